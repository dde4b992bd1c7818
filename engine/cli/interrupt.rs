//! Interrupts: a first SIGINT or SIGTERM asks for a clean end between two epochs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// A flag that the first interrupt raises.
pub fn flag() -> Arc<AtomicBool> {
    let raised = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // A signal that cannot be caught ends the process as usual, which loses nothing committed.
        let _ = signal_hook::flag::register(signal, raised.clone());
    }
    raised
}

/// Waits, but not beyond an interrupt; says whether one came.
pub fn wait(raised: &AtomicBool, interval: Duration) -> bool {
    let until = Instant::now() + interval;
    while !raised.load(Ordering::Relaxed) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50).min(interval));
    }
    raised.load(Ordering::Relaxed)
}
