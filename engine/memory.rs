//! Gives memory back to the system after work that took much of it.
//!
//! The allocator of glibc keeps what threads let go of, each thread's by itself. A process that
//! stays open after a load would hold the load's memory for good, and mapped pages of the database
//! would come on top.

/// Gives back what is free; takes some milliseconds where much is. Does nothing where the C library
/// is not glibc.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes no pointer and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
