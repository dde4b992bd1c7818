//! The command line: one file per subcommand.

pub mod data;
pub mod dump;
pub mod explain;
pub mod graph;
pub mod lookup;
pub mod models;
pub mod operators;
pub mod output;
pub mod query;
pub mod schema;
pub mod status;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use clap::{Parser, Subcommand, ValueEnum};

use crate::{
    diagnostic::Diagnostics,
    lower::lower,
    models::{ModelProvider, RealModels},
    plan::Plan,
    registry::Registry,
    runtime::RunError,
    spec,
    state::StateError,
};

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Flags of every command on a pipeline.
#[derive(Clone, Debug, clap::Args)]
pub struct Common {
    /// The pipeline's YAML file.
    pub pipeline: PathBuf,
    /// Folder of the state; `.coea/NAME` if absent.
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// How results are printed.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Overrides a value of the pipeline: `params.groups=6`.
    #[arg(long, value_name = "PATH=VALUE")]
    pub set: Vec<String>,
    /// Prints no progress.
    #[arg(short, long)]
    pub quiet: bool,
    /// Prints more.
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// A pipeline that was read and checked.
pub struct Loaded {
    /// The plan.
    pub plan: Arc<Plan>,
    /// The folder of its state.
    pub state_dir: PathBuf,
}

impl Common {
    /// Reads, checks and lowers the pipeline.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(&self) -> Result<Loaded, Failure> {
        let spec = spec::load(&self.pipeline, &self.set, &|name| std::env::var(name).ok())?;
        let folder = self.pipeline.parent().unwrap_or(Path::new("."));
        let plan = lower(&spec, folder, &Registry::built_in(), &RealModels)?;
        let state_dir = self.state.clone().unwrap_or_else(|| Path::new(".coea").join(&plan.name));
        Ok(Loaded { plan: Arc::new(plan), state_dir })
    }
}

/// What commands share beside their arguments.
pub struct Context {
    /// The operators.
    pub registry: Registry,
    /// The language models.
    pub models: Box<dyn ModelProvider>,
}

/// Why a command failed, for a person, with its exit code.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// What is wrong.
    pub message: String,
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        RunError::State(error).into()
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        Failure { code: error.exit_code(), message: error.to_string() }
    }
}

impl From<Diagnostics> for Failure {
    fn from(problems: Diagnostics) -> Self {
        let unreadable = problems.iter().any(|problem| problem.code == Some("unreadable"));
        Failure { code: if unreadable { 66 } else { 78 }, message: problems.render(false) }
    }
}

#[derive(Parser)]
#[command(name = "coea-engine", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Lookup(lookup::Args),
    Explain(explain::Args),
    Dump(dump::Args),
    Status(status::Args),
    Graph(graph::Args),
    Query(query::Args),
    Operators(operators::Args),
    Schema(schema::Args),
    Models(models::Args),
    Data(data::Args),
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    let context = Context { registry: Registry::built_in(), models: Box::new(RealModels) };
    let done = match &command {
        Command::Lookup(args) => lookup::run(args, &context),
        Command::Explain(args) => explain::run(args, &context),
        Command::Dump(args) => dump::run(args, &context),
        Command::Status(args) => status::run(args, &context),
        Command::Graph(args) => graph::run(args, &context),
        Command::Query(args) => query::run(args, &context),
        Command::Operators(args) => operators::run(args, &context),
        Command::Schema(args) => schema::run(args, &context),
        Command::Models(args) => models::run(args, &context),
        Command::Data(args) => data::run(args, &context),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{}", failure.message.trim_end());
            ExitCode::from(failure.code)
        }
    }
}
