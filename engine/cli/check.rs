//! `check`: everything that is wrong with a pipeline.

use clap::Args;
use serde_json::json;

use super::{Common, Failure, Format, print, print_json};

/// Arguments of `check`.
#[derive(Args)]
pub struct CheckArgs {
    #[command(flatten)]
    common: Common,
}

/// Checks a pipeline.
///
/// # Errors
/// All its problems.
pub fn run(args: &CheckArgs) -> Result<(), Failure> {
    let plan = args.common.load()?.plan;
    match args.common.format {
        Format::Json => print_json(&json!({
            "schema": "coea.check/1",
            "pipeline": plan.name,
            "nodes": plan.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(),
        })),
        Format::Text if !args.common.quiet => {
            let (sources, nodes, sinks) = (plan.sources.len(), plan.nodes.len(), plan.sinks.len());
            print(&format!("{}: {sources} sources, {nodes} nodes, {sinks} sinks: no problems\n", plan.name));
        }
        Format::Text => {}
    }
    Ok(())
}
