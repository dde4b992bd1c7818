//! `data generate`: writes a planted world.
//!
//! A shape gives all parameters, flags change the sizes, and `--set` whatever else: a world has more
//! strengths than a command should have flags, and their names are those of `world.json`.

use std::{path::PathBuf, time::Instant};

use serde::Serialize;

use super::super::{Failure, Format, output, progress::Bars};
use crate::{
    runtime::driver::Listener,
    world::{Parameters, Shape, Truth, WorldError, Written, generate},
};

/// Makes a planted world.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder to write; it must not be there yet, or be empty.
    pub folder: PathBuf,
    /// Where sizes and strengths come from that are not given here.
    #[arg(long, value_enum, default_value_t)]
    pub shape: Shape,
    /// Users.
    #[arg(long, value_name = "N")]
    pub users: Option<u32>,
    /// Items.
    #[arg(long, value_name = "N")]
    pub items: Option<u32>,
    /// Categories of items.
    #[arg(long, value_name = "N")]
    pub categories: Option<u32>,
    /// Planted groups of users.
    #[arg(long, value_name = "N")]
    pub groups: Option<u32>,
    /// Items shown, clicked or not.
    #[arg(long, value_name = "N")]
    pub interactions: Option<u64>,
    /// Days of the log; each is a file.
    #[arg(long, value_name = "N")]
    pub days: Option<u32>,
    /// Which of all such worlds.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Any other parameter, by its name in world.json: drift=0, say.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub set: Vec<String>,
    /// How results are printed.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Say nothing but the result.
    #[arg(short, long)]
    pub quiet: bool,
}

impl Args {
    fn parameters(&self) -> Result<Parameters, Failure> {
        let mut parameters = self.shape.parameters();
        let sizes = [
            (&mut parameters.users, self.users),
            (&mut parameters.items, self.items),
            (&mut parameters.categories, self.categories),
            (&mut parameters.groups, self.groups),
            (&mut parameters.days, self.days),
        ];
        for (size, given) in sizes {
            *size = given.unwrap_or(*size);
        }
        parameters.interactions = self.interactions.unwrap_or(parameters.interactions);
        parameters.seed = self.seed.unwrap_or(parameters.seed);
        for set in &self.set {
            let (name, value) = set
                .split_once('=')
                .ok_or_else(|| output::usage(format!("`--set {set}` is not of the form NAME=VALUE")))?;
            parameters.set(name.trim(), value.trim()).map_err(output::usage)?;
        }
        Ok(parameters)
    }
}

/// What is said of it.
#[derive(Serialize)]
struct Report<'a> {
    schema: &'static str,
    folder: &'a str,
    #[serde(flatten)]
    written: Written,
    parameters: &'a Parameters,
    seconds: f64,
    interactions_per_second: f64,
}

/// Runs the command.
///
/// # Errors
/// If the parameters are no world, or the folder is not empty (64); if it cannot be written (1).
pub fn run(args: &Args) -> Result<(), Failure> {
    let truth = Truth::new(args.parameters()?)?;
    let bars = Bars::of(0, args.quiet);
    let started = Instant::now();
    let written = generate(&truth, &args.folder, &|done, all| bars.progress("interactions", done, all, ""))?;
    let seconds = started.elapsed().as_secs_f64();
    let folder = args.folder.display().to_string();
    match args.format {
        Format::Json => output::document(&Report {
            schema: "coea.generated/1",
            folder: &folder,
            written,
            parameters: truth.parameters(),
            seconds,
            interactions_per_second: written.interactions as f64 / seconds,
        }),
        Format::Text => output::text(&format!(
            "{folder}: {} users, {} items, {} interactions, {:.1}% of them clicked, in {} files \
             ({:.1} MB), {seconds:.1} s\n",
            truth.parameters().users,
            truth.parameters().items,
            written.interactions,
            100.0 * written.clicks as f64 / written.interactions as f64,
            written.files,
            written.bytes as f64 / 1e6,
        )),
    }
}

impl From<WorldError> for Failure {
    fn from(error: WorldError) -> Self {
        match error {
            WorldError::Misfits(_) | WorldError::Occupied(_) => output::usage(error),
            WorldError::Unfit { .. } => Failure::new(66, format!("error: {error}")),
            WorldError::Encoding { .. } | WorldError::Io { .. } => output::failed(error),
        }
    }
}
