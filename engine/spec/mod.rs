//! A pipeline as the user wrote it: YAML to typed structs that remember where each value stood.
//!
//! No semantics: whether an operator exists, a name resolves or a graph is acyclic is for the next
//! stage, which reports against the places kept here. What is decided here is only what YAML alone
//! decides, in the order of the files of this folder: text to tree, overrides, references, sections.

mod block;
mod de;
mod node;
mod overrides;
mod policies;
mod read;
mod resolve;
mod schema;
mod secret;
mod time;
mod yaml;

use std::{collections::BTreeSet, fs::File, io::Read, path::Path, sync::Arc, time::Duration};

pub use self::{
    block::Block,
    schema::{Catalogue, TypeDoc, json_schema},
    secret::Secret,
    time::duration,
};
use crate::diagnostic::{Diagnostic, Diagnostics, SourceText, Span, Spanned};

/// What a document may expand to through anchors and parameters, and what a file may hold.
pub const LIMIT_BYTES: usize = 1 << 20;
/// How deep a document may nest.
pub const LIMIT_DEPTH: usize = 64;

/// A pipeline, in document order.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The file's text, to report against.
    pub file: Arc<SourceText>,
    /// The format's version: 1.
    pub version: Spanned<u64>,
    /// The pipeline's name.
    pub name: Spanned<String>,
    /// The parameters, as canonical JSON; they are already put in wherever they are used.
    pub params: Vec<Named<serde_json::Value>>,
    /// Where rows come from.
    pub sources: Vec<Named<SourceSpec>>,
    /// Models that nodes call or update.
    pub models: Vec<Named<ModelSpec>>,
    /// What is computed.
    pub nodes: Vec<Named<NodeSpec>>,
    /// Where rows go.
    pub sinks: Vec<Named<SinkSpec>>,
    /// Names of entries left out above because they could not be read; a reference to one of them is
    /// no mistake of its own. Empty after [`load`].
    pub unread: BTreeSet<String>,
}

/// An entry of a section.
#[derive(Clone, Debug)]
pub struct Named<T> {
    /// Its name, which identifies its state.
    pub name: Spanned<String>,
    /// The rest.
    pub spec: T,
}

/// `{ connector, with }`
#[derive(Clone, Debug)]
pub struct SourceSpec {
    /// The connector's name.
    pub connector: Spanned<String>,
    /// Its parameters.
    pub with: Block,
}

/// `{ kind, base, price, with }`
#[derive(Clone, Debug)]
pub struct ModelSpec {
    /// What kind of model it is.
    pub kind: Spanned<String>,
    /// The model it starts from.
    pub base: Option<Spanned<String>>,
    /// What calls cost.
    pub price: Block,
    /// The kind's parameters.
    pub with: Block,
}

/// `{ op, in, model, updates, with, refit, after, limits }`
#[derive(Clone, Debug)]
pub struct NodeSpec {
    /// The operator's name.
    pub op: Spanned<String>,
    /// Names of its inputs, in the operator's order; empty where none is written.
    pub inputs: Vec<Spanned<String>>,
    /// The model it calls.
    pub model: Option<Spanned<String>>,
    /// The model it promotes versions of.
    pub updates: Option<Spanned<String>>,
    /// The operator's parameters.
    pub with: Block,
    /// When what it fits is fitted again.
    pub refit: Option<Refit>,
    /// How long its requests wait to be asked together; no part of its logic.
    pub after: Option<After>,
    /// What a run may spend on it; no part of its logic.
    pub limits: Option<Limits>,
}

/// `{ connector, in, with }`
#[derive(Clone, Debug)]
pub struct SinkSpec {
    /// The connector's name.
    pub connector: Spanned<String>,
    /// The node it writes.
    pub input: Spanned<String>,
    /// Its parameters.
    pub with: Block,
}

/// When a fitted artifact is fitted again.
#[derive(Clone, Debug, PartialEq)]
pub struct Refit {
    /// The policy.
    pub when: When,
    /// Where it was written.
    pub span: Span,
}

/// The policies of [`Refit`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum When {
    /// `once`: inside the first epoch, and never again.
    Once,
    /// `cycle`: when a cycle is asked for.
    Cycle,
    /// `changed`: after each epoch that changed an input.
    Changed,
    /// `drift`: in a cycle, when the data have drifted further than `above`.
    Drift {
        /// The drift tolerated.
        above: f64,
    },
    /// `every`: in a cycle, when so many epochs have passed since the last fit came into use.
    Every {
        /// Epochs between fits, at least 1.
        epochs: u64,
    },
}

impl When {
    /// Whether it is cycles that fit.
    pub fn in_cycles(&self) -> bool {
        matches!(self, When::Cycle | When::Every { .. } | When::Drift { .. })
    }
}

/// How long requests wait to be asked together: until one of the bounds is reached.
#[derive(Clone, Debug, PartialEq)]
pub struct After {
    /// Rows taken in, at least 1.
    pub events: Option<u64>,
    /// Time passed.
    pub time: Option<Duration>,
    /// Where it was written.
    pub span: Span,
}

/// What a run may spend on a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Calls of its model.
    pub calls: u64,
    /// Where it was written.
    pub span: Span,
}

/// Reads a pipeline: YAML, then the overrides `sets` (`path.to.param=value`), then parameters,
/// variables and secrets, which `env` looks up.
///
/// # Errors
/// All problems found, in reading order. A file that cannot be read has the code `unreadable`.
pub fn load(path: &Path, sets: &[String], env: &dyn Fn(&str) -> Option<String>) -> Result<Spec, Diagnostics> {
    match read(path, sets, env) {
        (Some(spec), problems) if !problems.has_errors() => Ok(spec),
        (_, problems) => Err(problems),
    }
}

/// Like [`load`], but with what could be read beside the problems, so that a later stage can look
/// for more of them.
pub fn read(
    path: &Path,
    sets: &[String],
    env: &dyn Fn(&str) -> Option<String>,
) -> (Option<Spec>, Diagnostics) {
    match text_of(path) {
        Ok(file) => parse(file, sets, env),
        Err(problem) => (None, problem.into()),
    }
}

/// Like [`read`], from text.
pub fn parse(
    file: Arc<SourceText>,
    sets: &[String],
    env: &dyn Fn(&str) -> Option<String>,
) -> (Option<Spec>, Diagnostics) {
    let mut problems = Diagnostics::new();
    let spec = match yaml::parse(&file, &mut problems) {
        Ok(mut root) => {
            overrides::apply(&mut root, sets, &file, &mut problems);
            resolve::resolve(&mut root, &file, env, &mut problems);
            read::read(&root, &file, &mut problems)
        }
        Err(problem) => {
            problems.push(problem);
            None
        }
    };
    problems.sort();
    (spec, problems)
}

/// The file's text; of a file that is not UTF-8, the error points at the first bad byte.
fn text_of(path: &Path) -> Result<Arc<SourceText>, Diagnostic> {
    let name = path.display().to_string();
    let nowhere =
        |message: String| Diagnostic::error(&Arc::new(SourceText::new(&*name, "")), Span::File, message);
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LIMIT_BYTES as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| nowhere(format!("cannot be read: {error}")).code("unreadable"))?;
    if bytes.len() > LIMIT_BYTES {
        return Err(nowhere(format!("larger than {} KiB", LIMIT_BYTES / 1024)));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Arc::new(SourceText::new(name, text.strip_prefix('\u{feff}').unwrap_or(&text)))),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let file = Arc::new(SourceText::new(name, String::from_utf8_lossy(error.as_bytes())));
            let span = file.span_at(at);
            Err(Diagnostic::error(&file, span, "the file is not UTF-8").help("save it as UTF-8".to_owned()))
        }
    }
}
