//! `watch`: runs, then goes on applying what is new in the sources until it is told to stop.
//!
//! One driver stays open, so an epoch costs what its input touches. A signal never cuts an epoch:
//! the one under way is committed, then the process ends. A second signal ends it at once, which
//! loses nothing either, since an epoch is one transaction and paid answers are kept.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::Duration,
};

use clap::Args;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

use super::{Common, Failure, Format, print, progress::Bars, tree};
use crate::{
    runtime::{
        driver::{Driver, Options},
        report::Report,
    },
    spec::duration,
    state::State,
};

/// The shortest time between two epochs, should clocks disagree on what is over.
const SOON: Duration = Duration::from_millis(1);

/// Arguments of `watch`.
#[derive(Args)]
pub struct WatchArgs {
    #[command(flatten)]
    common: Common,
    /// How long to wait between two looks at the sources, such as 500ms, 2s, 1m or 1h.
    #[arg(long, default_value = "2s", value_parser = duration)]
    interval: Duration,
    /// Worker threads.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: u16,
}

/// Applies what is new until SIGINT or SIGTERM.
///
/// # Errors
/// What kept an epoch from being committed; all before it are.
pub fn run(args: &WatchArgs) -> Result<(), Failure> {
    let stop = stop_signals()?;
    let loaded = args.common.load()?;
    let bars = Bars::new(&args.common);
    let options = Options { workers: args.workers.into(), ..Options::default() };
    let state = State::open(&loaded.state_dir)?;
    let mut driver = Driver::open(loaded.plan.clone(), state, options, &bars)?;
    if !args.common.quiet {
        eprintln!("watching the sources of {} every {:?}; Ctrl-C stops", loaded.plan.name, args.interval);
    }
    loop {
        let report = driver.run_epoch()?;
        say(&args.common, &report);
        // What waits for its time is asked when that is over, also while nothing comes in.
        let due = driver.due_in().map_or(args.interval, |due| due.max(SOON));
        match stop.recv_timeout(args.interval.min(due)) {
            Err(RecvTimeoutError::Timeout) => driver.begin(Vec::new()),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

/// Hears the first signal; the second one ends the process.
fn stop_signals() -> Result<Receiver<()>, Failure> {
    let failed = |error| Failure::new(1, format!("error: cannot listen to signals: {error}"));
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(failed)?;
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut signals = signals.forever();
        if signals.next().is_some() {
            eprintln!("stopping when this epoch is committed; once more stops at once");
            let _ = sender.send(());
        }
        if let Some(signal) = signals.next() {
            std::process::exit(128 + signal);
        }
    });
    Ok(receiver)
}

fn say(common: &Common, report: &Report) {
    match common.format {
        _ if report.idle => {}
        Format::Json => print(&format!("{}\n", report.to_json())),
        Format::Text if common.quiet => {}
        Format::Text => print(&tree::line(report)),
    }
}
