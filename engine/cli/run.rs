//! `run`: takes in what is new and brings every table up to date.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value as Json;

use super::{
    Common, Failure, Flags, Format, Loaded, cycles, output, print, print_json, progress::Bars, tree,
};
use crate::{
    runtime::{
        backlog::Clock,
        driver::{Driver, Options},
        report::Report,
    },
    state::{State, manifest::Manifest},
};

/// Users looked up after the first run of a pipeline.
const SAMPLES: usize = 3;

/// What `run` and `plan` take beside the pipeline.
#[derive(Args, Clone, Debug)]
pub struct Epoch {
    /// A delta of a source: SRC=FILE (CSV, JSON lines, Parquet or Arrow; may be repeated).
    #[arg(long = "delta", value_name = "SRC=FILE", value_parser = delta)]
    pub deltas: Vec<(String, PathBuf)>,
    /// Apply delta files that were applied before.
    #[arg(long)]
    pub again: bool,
    /// Calls of language models at most; then stop with exit code 4.
    #[arg(long, value_name = "N")]
    pub max_calls: Option<u64>,
    /// Worker threads.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: u16,
    /// Take the fitted models of another state instead of fitting.
    #[arg(long, value_name = "DIR")]
    pub models_from: Option<PathBuf>,
    /// Ask what waits for the `after` of a node now.
    #[arg(long)]
    pub flush: bool,
    /// Cycles to take afterwards: models that are tuned in cycles are made anew and put in use.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub cycles: u64,
    /// What tells how long something waited.
    #[arg(skip)]
    pub clock: Clock,
}

fn delta(text: &str) -> Result<(String, PathBuf), String> {
    let (source, file) = text.split_once('=').ok_or("expected SRC=FILE, such as events=clicks.csv")?;
    Ok((source.to_string(), PathBuf::from(file)))
}

impl Epoch {
    /// Refuses what cannot be meant: cycles of nothing, and models from nowhere.
    ///
    /// # Errors
    /// Exit 64 for what says nothing, 66 if there are no models to take.
    pub fn check(&self, loaded: &Loaded) -> Result<(), Failure> {
        if self.cycles > 0 && !loaded.plan.cycles() {
            let help = "give a node that fits something `refit: { when: cycle }`";
            return Err(output::usage(format!("nothing in the pipeline is made anew in cycles; {help}")));
        }
        self.check_models_from(loaded)
    }

    /// Refuses `--models-from` a folder that has no models to take: without them a run would fit its
    /// own and say nothing, and a state that lends itself its models has a run for that already.
    ///
    /// # Errors
    /// Exit 64 if it is the state of this very run, 66 if nothing was ever run in it.
    fn check_models_from(&self, loaded: &Loaded) -> Result<(), Failure> {
        let Some(dir) = &self.models_from else { return Ok(()) };
        let place = |dir: &Path| dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
        if place(dir) == place(&loaded.state_dir) {
            let message = "is the state of this run, which keeps its models anyway; name another one";
            return Err(output::usage(format!("--models-from {} {message}", dir.display())));
        }
        let manifest = |dir: &Path| -> Result<Manifest, Failure> {
            Ok(Manifest::load(&State::read(dir)?.snapshot()?.layered("meta"))?)
        };
        let (own, other) = (manifest(&loaded.state_dir)?, manifest(dir)?);
        if other.epoch == 0 {
            let message = format!("error: --models-from {}: nothing was ever run in it", dir.display());
            return Err(Failure::new(66, message));
        }
        // To say it again is no mistake, as long as it changes nothing.
        let digests = |of: &Manifest| -> Vec<(String, String)> {
            of.artifacts.iter().map(|(leaf, fitted)| (leaf.clone(), fitted.digest.clone())).collect()
        };
        if own.epoch > 0 && digests(&own) != digests(&other) {
            let message = "begins a fresh state, and this one has models of its own; name another --state";
            return Err(output::usage(format!("--models-from {} {message}", dir.display())));
        }
        Ok(())
    }

    /// The driver's options.
    pub fn options(&self, dry: bool) -> Options {
        Options {
            workers: self.workers.into(),
            max_calls: self.max_calls,
            deltas: self.deltas.clone(),
            again: self.again,
            models_from: self.models_from.clone(),
            dry,
            resolve: true,
            flush: self.flush,
            clock: self.clock.clone(),
            cycles: self.cycles > 0,
            as_committed: false,
        }
    }
}

/// Arguments of `run`.
#[derive(Args)]
pub struct RunArgs {
    /// The pipeline's YAML file.
    #[arg(required_unless_present = "plan")]
    pipeline: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    epoch: Epoch,
    /// The file `plan --out` wrote, which also names pipeline, state, overrides and deltas; refuse
    /// to run if anything moved since.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
}

impl RunArgs {
    /// Pipeline and inputs: as given, and from the plan file where nothing is given.
    fn resolved(&self) -> Result<(Common, Epoch), Failure> {
        let (mut flags, mut epoch) = (self.flags.clone(), self.epoch.clone());
        let Some(file) = &self.plan else {
            return Ok((Common { pipeline: self.pipeline.clone().unwrap_or_default(), flags }, epoch));
        };
        let planned = super::plan::Command::read(file)?;
        let pipeline = self.pipeline.clone().unwrap_or(planned.pipeline);
        flags.state = flags.state.or(Some(planned.state));
        if flags.set.is_empty() {
            flags.set = planned.set;
        }
        if epoch.deltas.is_empty() {
            epoch.deltas = planned.deltas;
        }
        epoch.again |= planned.again;
        epoch.flush |= planned.flush;
        // What had waited long enough when it was planned, and nothing else.
        epoch.clock = Clock::at(planned.at);
        if epoch.cycles != planned.cycles && epoch.cycles > 0 {
            let message = format!("--cycles {} is not what was planned, {}", epoch.cycles, planned.cycles);
            return Err(output::usage(message));
        }
        epoch.cycles = planned.cycles;
        epoch.models_from = epoch.models_from.or(planned.models_from);
        Ok((Common { pipeline, flags }, epoch))
    }
}

/// Runs one epoch, and cycles if they are asked for, and reports them.
///
/// # Errors
/// What kept the epoch from being committed.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let (common, given) = args.resolved()?;
    let loaded = common.load()?;
    given.check(&loaded)?;
    if let Some(file) = &args.plan {
        super::plan::check_fresh(file, &loaded, &given)?;
    }
    let report = epoch_and_cycles(&common, &given, &loaded)?;
    if common.verbose > 0 && !common.quiet {
        output::loaded(&loaded.models);
    }
    if common.format == Format::Text && !common.quiet && report.epoch == 1 && !report.idle {
        print(&super::lookup::samples(&loaded, SAMPLES));
    }
    Ok(())
}

/// An epoch, and the cycles after it; gives the report of the epoch.
fn epoch_and_cycles(common: &Common, given: &Epoch, loaded: &Loaded) -> Result<Report, Failure> {
    let bars = Bars::new(common);
    let state = State::open(&loaded.state_dir)?;
    let mut driver = Driver::open(loaded.plan.clone(), state, given.options(false), &bars)?;
    let report = driver.run_epoch()?;
    if given.cycles == 0 || common.format == Format::Text {
        say(common, &report);
    }
    let mut done: Vec<Json> = Vec::new();
    let mut failed = None;
    for _ in 0..given.cycles {
        let cycle = match driver.cycle() {
            Ok(cycle) => cycle,
            Err(error) => {
                // What was done before is reported all the same.
                failed = Some(error);
                break;
            }
        };
        match common.format {
            Format::Json => done.push(cycles::json(&cycle)),
            Format::Text if common.quiet => {}
            Format::Text => print(&cycles::text(&cycle)),
        }
    }
    if given.cycles > 0 && common.format == Format::Json {
        let mut document = report.to_json();
        document["cycles"] = Json::Array(done);
        print_json(&document);
    }
    failed.map_or(Ok(report), |error| Err(error.into()))
}

fn say(common: &Common, report: &Report) {
    match common.format {
        Format::Json => print_json(&report.to_json()),
        Format::Text if common.quiet => {}
        Format::Text if report.idle => {
            print(&format!("{} at epoch {}: nothing to do\n", report.pipeline, report.epoch));
            print(&tree::waiting(report));
        }
        Format::Text => print(&tree::text(report)),
    }
}
