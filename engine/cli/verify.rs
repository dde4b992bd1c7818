//! `verify`: recomputes everything from scratch and compares it with what is stored.

use clap::Args;
use serde_json::json;

use super::{Common, Failure, Format, output, print, print_json};
use crate::{state::State, verify::verify};

/// Differences printed before they are only counted.
const SHOWN: usize = 20;

/// Arguments of `verify`.
#[derive(Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    common: Common,
    /// Ask the models again instead of taking their answers from the memo.
    #[arg(long)]
    recompute: bool,
}

/// Verifies the state of a pipeline.
///
/// # Errors
/// Exit 1 if anything stored is not what a computation from scratch gives.
pub fn run(args: &VerifyArgs) -> Result<(), Failure> {
    let loaded = args.common.load()?;
    let state = State::read(&loaded.state_dir)?;
    let differences = verify(&loaded.plan, &state, args.recompute)?;
    match args.common.format {
        Format::Json => print_json(&json!({
            "schema": "coea.verify/1",
            "pipeline": loaded.plan.name,
            "differences": differences.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })),
        Format::Text => {
            differences.iter().take(SHOWN).for_each(|difference| print(&format!("{difference}\n")));
            if differences.is_empty() && !args.common.quiet {
                print(&format!(
                    "{}: every table is what a computation from scratch gives\n",
                    loaded.plan.name
                ));
            }
        }
    }
    match differences.len() {
        0 => Ok(()),
        n => Err(output::failed(format!("{n} differences between what is stored and what it should be"))),
    }
}
