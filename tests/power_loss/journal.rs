//! What the process asks of storage, in order: writes, syncs, new names.
//!
//! The calls are met by functions of the same names in this binary, which the linker prefers to the
//! C library's; so LMDB is watched as it is, without a hook in it. Syncs do nothing but be written
//! down: the machine under the test never loses power, and the journal alone says what would be
//! left if it did.

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// One call, by what it did. Paths are from the watched folder on.
#[derive(Clone, Debug)]
pub enum Act {
    /// Bytes written; `through` if the file was opened to have them on storage before the call
    /// returns.
    Write { file: PathBuf, at: u64, bytes: Vec<u8>, through: bool },
    /// All of a file, or the names in a folder.
    Sync(PathBuf),
    /// A file or folder is known by another name.
    Rename(PathBuf, PathBuf),
}

/// A call and how far the program had come when it was made.
#[derive(Clone, Debug)]
pub struct Call {
    pub act: Act,
    /// Prompts paid for, and what else the program only goes on to when all before is durable.
    pub progress: [u64; 2],
}

struct Watch {
    folder: PathBuf,
    progress: Box<dyn Fn() -> [u64; 2] + Send>,
    calls: Vec<Call>,
}

static WATCH: Mutex<Option<Watch>> = Mutex::new(None);

/// Writes down from now on what is asked of the files below a folder.
pub fn watch(folder: &Path, progress: impl Fn() -> [u64; 2] + Send + 'static) {
    let folder = folder.canonicalize().unwrap();
    let watch = Watch { folder, progress: Box::new(progress), calls: Vec::new() };
    *WATCH.lock().unwrap_or_else(PoisonError::into_inner) = Some(watch);
}

/// What was written down; nothing is from now on.
pub fn taken() -> Vec<Call> {
    let watch = WATCH.lock().unwrap_or_else(PoisonError::into_inner).take();
    watch.map(|watch| watch.calls).unwrap_or_default()
}

/// Writes down an act on files of the watched folder.
fn note<const N: usize>(paths: [&Path; N], act: impl FnOnce([PathBuf; N]) -> Act) {
    let mut watch = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(watch) = watch.as_mut() else { return };
    let names = paths.map(|path| path.strip_prefix(&watch.folder).map(Path::to_path_buf));
    if names.iter().all(Result::is_ok) {
        let call = Call { act: act(names.map(Result::unwrap_or_default)), progress: (watch.progress)() };
        watch.calls.push(call);
    }
}

fn path_of(fd: c_int) -> PathBuf {
    std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default()
}

const F_GETFL: c_int = 3;
const O_DSYNC: c_int = 0o10_000;
const SEEK_CUR: c_int = 1;
const AT_FDCWD: c_int = -100;

unsafe extern "C" {
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    fn lseek(fd: c_int, offset: i64, whence: c_int) -> i64;
    fn pwrite64(fd: c_int, bytes: *const c_void, count: usize, at: i64) -> isize;
    fn pwritev2(fd: c_int, parts: *const Part, count: c_int, at: i64, flags: c_int) -> isize;
    fn renameat2(from: c_int, old: *const c_char, to: c_int, new: *const c_char, flags: c_uint) -> c_int;
}

/// `struct iovec`.
#[repr(C)]
pub struct Part {
    bytes: *const c_void,
    count: usize,
}

/// Writes down what a call wrote.
///
/// # Safety
/// `bytes` are `count` bytes that can be read.
unsafe fn note_write(fd: c_int, bytes: *const c_void, count: isize, at: i64) {
    let (Ok(count), Ok(at)) = (usize::try_from(count), u64::try_from(at)) else { return };
    // SAFETY: the caller's promise; a write that succeeded has read them.
    let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), count) };
    // SAFETY: reads the flags of a descriptor.
    let through = unsafe { fcntl(fd, F_GETFL) } & O_DSYNC != 0;
    note([&path_of(fd)], |[file]| Act::Write { file, at, bytes: bytes.to_vec(), through });
}

/// # Safety
/// As `pwrite(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite(fd: c_int, bytes: *const c_void, count: usize, at: i64) -> isize {
    // SAFETY: the arguments are handed on as they came; glibc has the call under both names.
    let written = unsafe { pwrite64(fd, bytes, count, at) };
    // SAFETY: these bytes were just read.
    unsafe { note_write(fd, bytes, written, at) };
    written
}

/// # Safety
/// As `writev(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(fd: c_int, parts: *const Part, count: c_int) -> isize {
    // SAFETY: asks where the descriptor stands; -1 where it stands nowhere, as a pipe.
    let at = unsafe { lseek(fd, 0, SEEK_CUR) };
    // SAFETY: at offset -1 this is `writev`.
    let written = unsafe { pwritev2(fd, parts, count, -1, 0) };
    let (mut rest, mut to) = (written, at);
    for part in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the caller's promise is `count` parts.
        let part = unsafe { &*parts.add(part) };
        let here = rest.min(part.count as isize);
        if here > 0 {
            // SAFETY: these bytes were just read.
            unsafe { note_write(fd, part.bytes, here, to) };
            (rest, to) = (rest - here, to + here as i64);
        }
    }
    written
}

/// Nothing but a line in the journal.
#[unsafe(no_mangle)]
pub extern "C" fn fdatasync(fd: c_int) -> c_int {
    note([&path_of(fd)], |[path]| Act::Sync(path));
    0
}

/// Nothing but a line in the journal.
#[unsafe(no_mangle)]
pub extern "C" fn fsync(fd: c_int) -> c_int {
    fdatasync(fd)
}

/// # Safety
/// As `rename(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(old: *const c_char, new: *const c_char) -> c_int {
    // SAFETY: the arguments are handed on as they came.
    let done = unsafe { renameat2(AT_FDCWD, old, AT_FDCWD, new, 0) };
    if done == 0 {
        // SAFETY: strings that the call has just read.
        let [old, new] = unsafe { [CStr::from_ptr(old), CStr::from_ptr(new)] }.map(real);
        note([&old, &new], |[old, new]| Act::Rename(old, new));
    }
    done
}

/// A path whose folder is spelt as the kernel spells it.
fn real(path: &CStr) -> PathBuf {
    let path = Path::new(path.to_str().unwrap_or_default());
    let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
    folder.zip(path.file_name()).map(|(folder, name)| folder.join(name)).unwrap_or_default()
}
