//! `plan`: what a run would change and cost. It writes nothing, calls no language model and needs
//! no lock.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::{
    Common, Failure, Format, Loaded,
    cycles::{calls, calls_of, foreseen_json, foreseen_text},
    print, print_json,
    progress::Bars,
    run::Epoch,
    tree,
};
use crate::{
    runtime::{RunError, backlog::Clock, driver::Driver, foreseen::Foresight, report::Report},
    state::{State, manifest::Manifest},
};

/// Arguments of `plan`.
#[derive(Args)]
pub struct PlanArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    epoch: Epoch,
    /// Write the plan to a file that `run --plan` takes.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Exit with 2 if there are changes.
    #[arg(long)]
    detailed_exitcode: bool,
    /// Do not run small local models: give bounds instead of exact numbers.
    #[arg(long)]
    no_resolve: bool,
    /// Explain why a key changes: every node with a change of that key.
    #[arg(long, value_name = "KEY")]
    why: Option<String>,
}

/// What `run --plan` runs.
#[derive(Debug, Serialize, Deserialize)]
pub struct Command {
    /// The pipeline's file.
    pub pipeline: PathBuf,
    /// The state's folder.
    pub state: PathBuf,
    /// Overrides.
    pub set: Vec<String>,
    /// Delta files.
    pub deltas: Vec<(String, PathBuf)>,
    /// Whether deltas that were applied are applied again.
    pub again: bool,
    /// Whether what waits is asked.
    pub flush: bool,
    /// When it was planned, in milliseconds since 1970.
    pub at: u64,
    /// The state whose models are taken.
    pub models_from: Option<PathBuf>,
    /// Cycles to take.
    #[serde(default)]
    pub cycles: u64,
}

impl Command {
    fn of(args: &PlanArgs, loaded: &Loaded, clock: &Clock) -> Self {
        Command {
            pipeline: args.common.pipeline.clone(),
            state: loaded.state_dir.clone(),
            set: args.common.set.clone(),
            deltas: args.epoch.deltas.clone(),
            again: args.epoch.again,
            flush: args.epoch.flush,
            at: clock.now(),
            models_from: args.epoch.models_from.clone(),
            cycles: args.epoch.cycles,
        }
    }

    /// The command a plan file was made for.
    ///
    /// # Errors
    /// Exit 66 if the file cannot be read or holds none.
    pub fn read(file: &Path) -> Result<Self, Failure> {
        let unreadable = |e: String| Failure::new(66, format!("error: cannot read {}: {e}", file.display()));
        let document = read_json(file)?;
        Command::deserialize(&document["command"]).map_err(|e| unreadable(e.to_string()))
    }
}

fn read_json(file: &Path) -> Result<Json, Failure> {
    let unreadable = |e: String| Failure::new(66, format!("error: cannot read {}: {e}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|e| unreadable(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| unreadable(e.to_string()))
}

/// Plans an epoch.
///
/// # Errors
/// What would keep a run from beginning.
pub fn run(args: &PlanArgs) -> Result<(), Failure> {
    let loaded = args.common.load()?;
    args.epoch.check(&loaded)?;
    let bars = Bars::new(&args.common);
    let clock = Clock::at(Clock::System.now());
    let (report, cycles) = foresee(&loaded, args, clock.clone(), &bars)?;
    let mut document = report.to_json();
    if let Some(cycles) = &cycles {
        document["cycles"] = foreseen_json(cycles);
    }
    if let Some(file) = &args.out {
        let document = json!({
            "plan": document,
            "command": Command::of(args, &loaded, &clock),
            "fingerprint": fingerprint(&loaded, &args.epoch)?,
        });
        std::fs::write(file, format!("{document:#}\n"))
            .map_err(|e| Failure::new(1, format!("error: cannot write {}: {e}", file.display())))?;
    }
    match (args.common.format, &args.why) {
        (Format::Json, _) => print_json(&document),
        (Format::Text, Some(key)) => print(&why(&report, key)),
        (Format::Text, None) if args.common.quiet => {}
        (Format::Text, None) => {
            print(&tree::text(&report));
            if let Some(cycles) = &cycles {
                print(&foreseen_text(cycles));
            }
        }
    }
    let most = args.epoch.max_calls.unwrap_or(u64::MAX);
    let calls = report.language_calls() + cycles.as_ref().map_or(0, |cycles| calls(cycles).0);
    if calls > most {
        let sure = if args.epoch.cycles > 0 { "up to " } else { "" };
        let message = format!("error: {sure}{calls} language-model calls are more than --max-calls {most}");
        return Err(Failure::new(4, message));
    }
    check_limits(&loaded, &report, cycles.as_ref())?;
    match args.detailed_exitcode && (report.changes_anything() || cycles.is_some()) {
        true => Err(Failure::new(2, "")),
        false => Ok(()),
    }
}

/// Refuses what would spend more on a node than its limits, as far as that is known.
fn check_limits(loaded: &Loaded, report: &Report, cycles: Option<&Foresight>) -> Result<(), Failure> {
    for node in &report.nodes {
        let again = cycles.map_or(0, |cycles| calls_of(cycles, &node.node));
        let calls = node.calls.calls + again;
        let limit = loaded.plan.node(&node.node).and_then(|planned| planned.max_calls);
        if let Some(most) = limit.filter(|most| calls > *most) {
            let sure = if again > 0 { "up to " } else { "" };
            let message =
                format!("error: {sure}{calls} calls of {} are more than its limits, {most}", node.node);
            return Err(Failure::new(4, message));
        }
    }
    Ok(())
}

fn foresee(
    loaded: &Loaded,
    args: &PlanArgs,
    clock: Clock,
    bars: &Bars,
) -> Result<(Report, Option<Foresight>), RunError> {
    let state = State::read(&loaded.state_dir)?;
    let mut options = args.epoch.options(true);
    options.resolve = !args.no_resolve;
    options.clock = clock;
    let mut driver = Driver::open(loaded.plan.clone(), state, options, bars)?;
    driver.ingest()?;
    driver.settle()?;
    driver.price_open()?;
    let changes = driver.changes()?;
    let report = driver.report(&changes);
    let cycles = (args.epoch.cycles > 0).then(|| driver.foresee(args.epoch.cycles, &changes)).transpose()?;
    Ok((report, cycles))
}

/// The nodes that a key passes through, with what happens to it there.
fn why(report: &Report, key: &str) -> String {
    let shown =
        |row: &coea_operators::row::Row| row.iter().map(ToString::to_string).collect::<Vec<_>>().join(":");
    let touched = report.nodes.iter().filter(|node| node.changed_keys.iter().any(|row| shown(row) == key));
    let lines: Vec<String> = touched
        .map(|node| format!("  {} ({}): {} for this key", node.node, node.op, node.changed_basis.verb()))
        .collect();
    match lines.is_empty() {
        true => format!("{key}: no node changes for this key\n"),
        false => format!("{key} is touched in\n{}\n", lines.join("\n")),
    }
}

/// What a plan is made from: if any of it moves, the plan is stale.
fn fingerprint(loaded: &Loaded, epoch: &Epoch) -> Result<Json, Failure> {
    let state = State::read(&loaded.state_dir)?;
    let manifest = Manifest::load(&state.snapshot()?.layered("meta"))?;
    let mut deltas = Vec::new();
    for (source, path) in &epoch.deltas {
        let bytes = std::fs::read(path)
            .map_err(|e| Failure::new(66, format!("error: cannot read {}: {e}", path.display())))?;
        deltas.push(json!([source, blake3::hash(&bytes).to_hex().to_string()]));
    }
    let lineage: Vec<&str> = loaded.plan.lineage.iter().map(String::as_str).collect();
    Ok(json!({
        "pipeline": loaded.plan.name,
        "epoch": manifest.epoch,
        "spec": blake3::hash(lineage.join(" ").as_bytes()).to_hex().to_string(),
        "deltas": deltas,
        "models": manifest.artifacts.iter().map(|(leaf, a)| json!([leaf, a.digest])).collect::<Vec<_>>(),
        "wanted": manifest.wanted,
    }))
}

/// Refuses a plan file if state, spec, inputs or models moved since it was made.
///
/// # Errors
/// Exit 3 with what moved; 66 if the file cannot be read.
pub fn check_fresh(file: &Path, loaded: &Loaded, epoch: &Epoch) -> Result<(), Failure> {
    let planned = read_json(file)?;
    let now = fingerprint(loaded, epoch)?;
    for part in ["pipeline", "epoch", "spec", "deltas", "models", "wanted"] {
        if planned["fingerprint"][part] != now[part] {
            return Err(RunError::StalePlan(format!("its {part} moved")).into());
        }
    }
    Ok(())
}
