//! `data judge`: how a world answers recommendations.
//!
//! Lines in, lines out, so a loop in any language can be closed: what a recommender says goes in, what
//! the users did comes out, with the regret that only the truth knows. `--events` writes the same as a
//! delta of the world's events, for `run --delta`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::{Failure, models, output};
use crate::{
    nearest::did_you_mean,
    world::{Category, Judgement, Truth, User},
};

/// How a world answers recommendations: {"user","day","categories","not"} → {"answers","regret",…}.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder of the world; its world.json is all that is read.
    pub world: PathBuf,
    /// A file of JSON lines: `user` is a user's number, `day` a day from 0 (the log's or a later one),
    /// `categories` the names recommended, and `not` the names that may not be.
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// Also writes what was shown and clicked, as a CSV delta for the world's events.
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
}

/// A line of the input.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recommendation {
    user: u64,
    day: u32,
    categories: Vec<String>,
    #[serde(default)]
    not: Vec<String>,
}

/// A line of the output.
#[derive(Serialize)]
struct Line<'a> {
    user: u64,
    day: u32,
    answers: Vec<Answer<'a>>,
    expected: f64,
    best: f64,
    regret: f64,
}

#[derive(Serialize)]
struct Answer<'a> {
    category: &'a str,
    probability: f64,
    clicked: bool,
    item_id: u64,
}

/// Runs the command.
///
/// # Errors
/// If the world or a line cannot be read (66), names what is not there (64), or a file exists already.
pub fn run(args: &Args) -> Result<(), Failure> {
    let truth = Truth::restore(&args.world.join("world.json"))?;
    let lines: Vec<Recommendation> = models::lines(&args.input)?;
    let mut judged = Vec::with_capacity(lines.len());
    for line in &lines {
        judged.push((
            line.day,
            judge(&truth, line).map_err(|what| output::usage(format!("{}: {what}", args.input.display())))?,
        ));
    }
    if let Some(path) = &args.events {
        truth
            .write_answers(path, &judged)
            .map_err(|error| output::failed(format!("{}: {error}", path.display())))?;
    }
    let mut out = output::Out::new();
    for (day, (user, judgement)) in &judged {
        output::line(&mut out, &shown(&truth, *day, *user, judgement))?;
    }
    out.finish()
}

fn judge(truth: &Truth, line: &Recommendation) -> Result<(User, Judgement), String> {
    let users = truth.parameters().users;
    let user = truth.user(line.user);
    let user = user.ok_or_else(|| format!("there is no user {}; they are 1 to {users}", line.user))?;
    let named =
        |names: &[String]| names.iter().map(|name| category(truth, name)).collect::<Result<Vec<_>, _>>();
    let (recommended, not) = (named(&line.categories)?, named(&line.not)?);
    Ok((user, truth.judge(user, line.day, &recommended, |category| !not.contains(&category))))
}

fn category(truth: &Truth, name: &str) -> Result<Category, String> {
    truth.category(name).ok_or_else(|| {
        let near = did_you_mean(name, truth.categories().map(|category| truth.name(category)));
        format!("there is no category `{name}`{near}")
    })
}

fn shown<'a>(truth: &'a Truth, day: u32, user: User, judgement: &Judgement) -> Line<'a> {
    let answers = judgement.answers.iter().map(|answer| Answer {
        category: truth.name(answer.category),
        probability: answer.probability,
        clicked: answer.clicked,
        item_id: answer.item.id(),
    });
    Line {
        user: user.id(),
        day,
        answers: answers.collect(),
        expected: judgement.expected,
        best: judgement.best,
        regret: judgement.regret(),
    }
}
