//! The command line: one file per subcommand, and what they share.
//!
//! Results go to stdout, everything for a person to stderr; a failure is one message and one
//! documented exit code.

mod assets;
mod check;
mod cycles;
mod data;
mod drift;
mod dump;
mod explain;
mod graph;
mod lookup;
mod models;
mod operators;
mod output;
mod plan;
mod progress;
mod query;
mod run;
mod schema;
mod status;
mod tree;
mod verify;
mod watch;

use std::{
    ffi::OsString,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    diagnostic::Diagnostics, lower::lower, models::RealModels, plan::Plan, registry::Registry,
    runtime::RunError, spec, state::StateError,
};

/// Keeps language-model recommendations fresh by recomputing only what a delta touches.
#[derive(Parser)]
#[command(name = "coea-engine", version, max_term_width = 100)]
struct Cli {
    /// Cores to compute on [default: all]. Models and dataflow workers take turns on them.
    #[arg(long, global = true, value_name = "N", env = "COEA_THREADS",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// All problems of a pipeline, each with file:line:col.
    Check(check::CheckArgs),
    /// What a run would change and cost; nothing is spent or written.
    Plan(plan::PlanArgs),
    /// Recompute every table from scratch and compare it with the stored one.
    Verify(verify::VerifyArgs),
    /// Take in what is new and bring every table up to date.
    Run(run::RunArgs),
    /// Run, then go on applying what is new in the sources until SIGINT or SIGTERM.
    Watch(watch::WatchArgs),
    /// What serving would answer.
    Lookup(lookup::Args),
    /// Why: history, group, profile, prompt, candidates, scores, threshold, model versions.
    Explain(explain::Args),
    /// A table as JSON lines, sorted by key.
    Dump(dump::Args),
    /// Epoch, sizes, what waits, model versions.
    Status(status::Args),
    /// The pipeline as a picture.
    Graph(graph::Args),
    /// SQL over tables and sources.
    Query(query::Args),
    /// What a node's `op` can say.
    Operators(operators::Args),
    /// The JSON Schema of a pipeline.
    Schema,
    /// Language models by name.
    Models(models::Args),
    /// Data sets by name.
    Data(data::Args),
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For a person.
    #[default]
    Text,
    /// One JSON document, or JSON lines.
    Json,
}

/// What every command on a pipeline takes.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// The pipeline's YAML file.
    pub pipeline: PathBuf,
    /// How it is run and shown.
    #[command(flatten)]
    pub flags: Flags,
}

/// The flags that every command on a pipeline takes.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// The state's folder [default: .coea/NAME, NAME being the pipeline's]
    #[arg(long)]
    pub state: Option<PathBuf>,
    /// How results are printed.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Override a value of the pipeline: path.to.param=value.
    #[arg(long = "set", value_name = "PATH=VALUE")]
    pub set: Vec<String>,
    /// Say nothing but the result.
    #[arg(short, long)]
    pub quiet: bool,
    /// Say more.
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

impl std::ops::Deref for Common {
    type Target = Flags;

    fn deref(&self) -> &Flags {
        &self.flags
    }
}

/// A pipeline, read, checked and lowered.
pub struct Loaded {
    /// The plan.
    pub plan: Arc<Plan>,
    /// The folder of its state.
    pub state_dir: PathBuf,
    /// The models of this machine that it names.
    pub models: RealModels,
}

impl Common {
    /// Reads, checks and lowers the pipeline.
    ///
    /// # Errors
    /// Every problem of the spec, as one failure.
    pub fn load(&self) -> Result<Loaded, Failure> {
        let (spec, mut problems) = spec::read(&self.pipeline, &self.set, &|name| std::env::var(name).ok());
        let folder = self.pipeline.parent().unwrap_or(Path::new("")).to_path_buf();
        let models = RealModels::default();
        let plan = match &spec {
            Some(spec) => match lower(spec, &folder, &Registry::built_in(), &models) {
                Ok(plan) => Some(plan),
                Err(more) => {
                    problems.extend(more);
                    None
                }
            },
            None => None,
        };
        match plan {
            Some(plan) if !problems.has_errors() => {
                let default = || Path::new(".coea").join(&plan.name);
                let state_dir = self.state.clone().unwrap_or_else(default);
                Ok(Loaded { plan: Arc::new(plan), state_dir, models })
            }
            _ => {
                problems.sort();
                Err(Failure::from(problems))
            }
        }
    }
}

/// Why a command did not do its work.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// What to tell; nothing if it was told already.
    pub message: String,
}

impl Failure {
    /// A failure while running.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Failure { code, message: message.into() }
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        RunError::from(error).into()
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        Failure::new(error.exit_code(), format!("error: {error}"))
    }
}

impl From<Diagnostics> for Failure {
    fn from(problems: Diagnostics) -> Self {
        let unreadable = problems.iter().any(|problem| problem.code == Some("unreadable"));
        let code = if unreadable { 66 } else { 78 };
        Failure::new(code, problems.render(colour()).trim_end().to_string())
    }
}

/// Whether stderr is a terminal that shows colour.
fn colour() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Writes text to stdout; a reader that went away is no failure.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

/// Writes a JSON document to stdout.
pub fn print_json(value: &serde_json::Value) {
    print(&format!("{value:#}\n"));
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Check(args) => check::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Watch(args) => watch::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Lookup(args) => lookup::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Dump(args) => dump::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Graph(args) => graph::run(&args),
        Command::Query(args) => query::run(&args),
        Command::Operators(args) => operators::run(&args),
        Command::Schema => schema::run(),
        Command::Models(args) => models::run(&args),
        Command::Data(args) => data::run(&args),
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    run_from(std::env::args_os())
}

fn run_from(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    // One pool for everything that computes. While a model is asked, or something is fitted, the
    // dataflow's workers wait for what comes of it, so together they never want more than these.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(cli.threads.map_or(0, usize::from));
    if let Err(error) = pool.build_global() {
        eprintln!("error: cannot start threads: {error}");
        return ExitCode::FAILURE;
    }
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                eprintln!("{}", failure.message);
            }
            ExitCode::from(failure.code)
        }
    }
}
