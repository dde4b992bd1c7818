//! Progress bars and warnings on stderr, for a person at a terminal.

use std::{
    collections::BTreeMap,
    io::IsTerminal,
    sync::{Mutex, PoisonError},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::Common;
use crate::runtime::driver::Listener;

/// Shows progress where there is a terminal and nobody asked for quiet.
pub struct Bars {
    shown: bool,
    lines: bool,
    all: MultiProgress,
    bars: Mutex<BTreeMap<String, ProgressBar>>,
}

impl Bars {
    /// Bars on stderr at a terminal; lines instead where `verbose` asks for them; nothing if `quiet`.
    pub fn new(common: &Common) -> Self {
        Bars::of(common.verbose, common.quiet)
    }

    /// The same for a command that is not on a pipeline.
    pub fn of(verbose: u8, quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let lines = verbose > 0 && !quiet;
        let shown = !quiet && terminal && !lines;
        Bars { shown, lines, all: MultiProgress::new(), bars: Mutex::default() }
    }
}

impl Listener for Bars {
    fn progress(&self, what: &str, done: u64, total: u64, note: &str) {
        if self.lines {
            eprintln!("{what}: {done}/{total} {note}");
        }
        if !self.shown {
            return;
        }
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = bars.entry(what.to_string()).or_insert_with(|| {
            let template = "{prefix:>16} {bar:30} {pos}/{len} {msg} {per_sec} {eta} left";
            let style =
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = self.all.add(ProgressBar::new(total).with_style(style));
            bar.set_prefix(what.to_string());
            bar
        });
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(note.to_string());
        if done >= total {
            bar.finish_and_clear();
        }
    }

    fn warn(&self, message: &str) {
        eprintln!("warning: {message}");
    }
}
