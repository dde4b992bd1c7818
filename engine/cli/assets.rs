//! `list` and `fetch`, which `models` and `data` share: registered files and the way to get them.

use std::path::PathBuf;

use super::{Failure, Format, output};
use crate::fetch::{FetchError, Listed};

/// What to do with registered files.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Lists those that can be asked for by name.
    List {
        /// How results are printed.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Brings one into the cache, if it is not there, and prints where it lies.
    Fetch {
        /// Its name.
        name: String,
    },
}

/// Does it with one kind of files.
///
/// # Errors
/// If the name is unknown, or its files cannot be fetched or are not the right ones (66).
pub fn run(
    action: &Action,
    all: impl Fn() -> Vec<Listed>,
    fetch: impl Fn(&str) -> Result<PathBuf, FetchError>,
) -> Result<(), Failure> {
    match action {
        Action::List { format } => listed(&all(), *format),
        Action::Fetch { name } => output::text(&format!("{}\n", fetch(name)?.display())),
    }
}

fn listed(assets: &[Listed], format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        return output::document(&assets);
    }
    let row = |asset: &Listed| {
        let size = format!("{:.1} MB", asset.bytes as f64 / 1e6);
        let place = match (asset.cached, asset.fetched) {
            (true, _) => "here".to_string(),
            (false, true) => format!("{size} to fetch"),
            (false, false) => "yours to bring".to_string(),
        };
        vec![asset.name.to_string(), place, asset.licence.to_string(), asset.about.to_string()]
    };
    output::text(&output::columns(&assets.iter().map(row).collect::<Vec<_>>()))
}
