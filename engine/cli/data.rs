//! `data`: the data sets that can be asked for by name, and worlds that are made.

mod generate;
mod judge;

use super::{Failure, assets};
use crate::fetch;

/// Data sets by name, and worlds whose truth is known.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What to do with data sets.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Lists or fetches them.
    #[command(flatten)]
    Assets(assets::Action),
    /// Makes a planted world: users, items and a log of what was shown and clicked, with known truth.
    Generate(generate::Args),
    /// How a world answers recommendations: {"user","day","categories"} → {"answers","regret",…}.
    Judge(judge::Args),
}

/// Runs the command.
///
/// # Errors
/// If the data set is unknown or cannot be fetched (66), or a world cannot be made (64, 1).
pub fn run(args: &Args) -> Result<(), Failure> {
    match &args.action {
        Action::Assets(action) => {
            assets::run(action, fetch::datasets, |name| Ok(fetch::dataset(name, None)?.folder))
        }
        Action::Generate(args) => generate::run(args),
        Action::Judge(args) => judge::run(args),
    }
}
