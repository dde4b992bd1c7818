//! `data`: the data sets that can be asked for by name.

use super::{Failure, Format, models::listed, output};
use crate::fetch;

/// Data sets by name.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What to do with data sets.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Lists them.
    List {
        /// How results are printed.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Brings one into the cache and prints its folder.
    Fetch {
        /// Its name.
        name: String,
    },
}

/// Runs the command.
///
/// # Errors
/// If the data set is unknown or cannot be fetched (66).
pub fn run(args: &Args) -> Result<(), Failure> {
    match &args.action {
        Action::List { format } => listed(&fetch::datasets(), *format),
        Action::Fetch { name } => {
            output::text(&format!("{}\n", fetch::dataset(name, None)?.folder.display()))
        }
    }
}
