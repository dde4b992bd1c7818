//! `models`: the language models, and three looks at one from outside a pipeline.
//!
//! `tokenize`, `score` and `generate` read JSON lines and answer in the same order, so that another
//! program's figures can be compared line by line. Lines with equal labels are scored in one batch.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use coea_operators::{language_model::gather, lm::LmTokenizer};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

mod generate;
mod tuned;
mod versions;

use super::{Failure, assets, output};
use crate::{
    fetch,
    models::{ModelProvider, RealModels},
    runtime::RunError,
};

/// Language models.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What to do with models.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Lists or fetches them.
    #[command(flatten)]
    Assets(assets::Action),
    /// Token ids of texts: {"text"} → {"ids","ids_plain"}.
    Tokenize(Batch),
    /// Log-probabilities of labels: {"prompt","labels"} → {"logprobs"}.
    Score {
        /// What to score.
        #[command(flatten)]
        batch: Batch,
        /// An adapter for the model: a folder of PEFT, as `models export` writes it.
        #[arg(long, value_name = "DIR")]
        adapter: Option<PathBuf>,
    },
    /// Texts that a model writes: {"prompt", how to write} → {"text","tokens","finished"}.
    Generate(Batch),
    /// The versions of the models that a pipeline tunes.
    Versions(versions::Versions),
    /// Has the next run put a version of a model in use; `plan` says what that costs.
    Promote(versions::Promote),
    /// Has the next run go back to the version before.
    Rollback(tuned::Of),
    /// Writes a version of a model into a folder, in the layout of PEFT.
    Export(versions::Export),
}

/// A model and a file of questions to it.
#[derive(Debug, clap::Args)]
pub struct Batch {
    /// A model's name, or the path of a GGUF file or a Hugging Face folder.
    pub base: String,
    /// A file of JSON lines.
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// If a model or file is unknown or cannot be read (66), a line is wrong, or the model fails.
pub fn run(args: &Args) -> Result<(), Failure> {
    match &args.action {
        Action::Assets(action) => assets::run(action, fetch::models, |name| Ok(fetch::model(name)?.path)),
        Action::Tokenize(batch) => tokenize(batch),
        Action::Score { batch, adapter } => with_models(|models| score(batch, adapter.as_deref(), models)),
        Action::Generate(batch) => with_models(|models| generate::run(batch, models)),
        Action::Versions(args) => versions::list(args),
        Action::Promote(args) => versions::promote(args),
        Action::Rollback(args) => versions::rollback(args),
        Action::Export(args) => versions::export(args),
    }
}

/// Asks models, and says what they took.
fn with_models(ask: impl FnOnce(&RealModels) -> Result<(), Failure>) -> Result<(), Failure> {
    let models = RealModels::default();
    ask(&models)?;
    output::loaded(&models);
    Ok(())
}

/// The lines of a file; empty ones are passed over.
pub(super) fn lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, Failure> {
    let unreadable = |what: String| Failure::new(66, format!("error: {}{what}", path.display()));
    let file = File::open(path).map_err(|error| unreadable(format!(": {error}")))?;
    let mut parsed = Vec::new();
    for (at, line) in (1..).zip(BufReader::new(file).lines()) {
        let line = line.map_err(|error| unreadable(format!(":{at}: {error}")))?;
        if !line.trim().is_empty() {
            parsed.push(serde_json::from_str(&line).map_err(|error| unreadable(format!(":{at}: {error}")))?);
        }
    }
    Ok(parsed)
}

#[derive(Deserialize)]
struct Text {
    text: String,
}

#[derive(Serialize)]
struct Tokens {
    /// Markers such as `<|im_end|>` are control tokens.
    ids: Vec<u32>,
    /// Markers are text.
    ids_plain: Vec<u32>,
}

fn tokenize(batch: &Batch) -> Result<(), Failure> {
    let texts: Vec<Text> = lines(&batch.input)?;
    let path = fetch::model(&batch.base)?.path;
    let tokenizer = LmTokenizer::open(&path).map_err(|error| Failure::new(66, format!("error: {error}")))?;
    let mut out = output::Out::new();
    for Text { text } in texts {
        let encode = |control| tokenizer.encode(&text, control).map_err(output::failed);
        output::line(&mut out, &Tokens { ids: encode(true)?, ids_plain: encode(false)? })?;
    }
    out.finish()
}

#[derive(Deserialize)]
struct Question {
    prompt: String,
    labels: Vec<String>,
}

#[derive(Serialize)]
struct Scores {
    logprobs: Vec<f32>,
}

fn score(batch: &Batch, adapter: Option<&Path>, models: &dyn ModelProvider) -> Result<(), Failure> {
    let questions: Vec<Question> = lines(&batch.input)?;
    fetch::model(&batch.base)?;
    let mut model = models.language(&batch.base).map_err(output::failed)?;
    if let Some(folder) = adapter {
        let failed = |error| RunError::call(&batch.base, error);
        let network = model.network().map_err(failed)?;
        let wrong = |error| Failure::new(66, format!("error: {}: {error}", folder.display()));
        model = model.adapted(&network.read_adapter(folder).map_err(wrong)?).map_err(failed)?;
    }
    let mut answers: Vec<Vec<f32>> = vec![Vec::new(); questions.len()];
    for (labels, places) in by_labels(&questions) {
        let prompts: Vec<String> = places.iter().map(|at| questions[*at].prompt.clone()).collect();
        let (scores, _) = gather(prompts.len(), |answered| model.score(labels, &prompts, answered))
            .map_err(|error| RunError::call(&batch.base, error))?;
        for (at, score) in places.into_iter().zip(scores) {
            answers[at] = score.map_err(|cause| output::failed(format!("question {}: {cause}", at + 1)))?;
        }
    }
    let mut out = output::Out::new();
    for logprobs in answers {
        output::line(&mut out, &Scores { logprobs })?;
    }
    out.finish()
}

/// The places of the questions that share a list of labels.
fn by_labels(questions: &[Question]) -> BTreeMap<&[String], Vec<usize>> {
    let mut groups: BTreeMap<&[String], Vec<usize>> = BTreeMap::new();
    for (at, question) in questions.iter().enumerate() {
        groups.entry(&question.labels).or_default().push(at);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_grouped_by_their_labels() {
        let question = |labels: &[&str]| Question {
            prompt: String::new(),
            labels: labels.iter().map(ToString::to_string).collect(),
        };
        let questions = [question(&["a", "b"]), question(&["b", "a"]), question(&["a", "b"])];
        let groups: Vec<Vec<usize>> = by_labels(&questions).into_values().collect();
        assert_eq!(groups, [vec![0, 2], vec![1]]);
    }

    #[test]
    fn a_wrong_line_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{\"text\":\"a\"}\n\n{\"txt\":1}\n").unwrap();
        let failure = lines::<Text>(file.path()).err().unwrap();
        assert_eq!(failure.code, 66);
        assert!(failure.message.contains(":3: "), "{}", failure.message);
    }
}
