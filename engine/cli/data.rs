//! `data`: the data sets that can be asked for by name.

use super::{Failure, assets};
use crate::fetch;

/// Data sets by name.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub action: assets::Action,
}

/// Runs the command.
///
/// # Errors
/// If the data set is unknown or cannot be fetched (66).
pub fn run(args: &Args) -> Result<(), Failure> {
    assets::run(&args.action, fetch::datasets, |name| Ok(fetch::dataset(name, None)?.folder))
}
