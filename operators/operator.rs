//! What an operator is: parameters with documentation, a schema, and a graph of shapes.
//!
//! The trait is small on purpose. A new operator is one file that implements it and one line in
//! [`register`](crate::register).

use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    language_model::LanguageModel,
    lm::LoraSettings,
    schema::Schema,
    served::{ModelVersion, Served},
    shape::{Fitted, Graph, LeafId},
};

/// Something wrong with a node, placed by a path into its YAML: `["with", "levels"]`, `["in", "0"]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where in the node.
    pub path: Vec<String>,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub help: Option<String>,
}

impl Problem {
    /// A problem with a parameter.
    pub fn with(parameter: &str, message: impl Into<String>) -> Self {
        Problem { path: vec!["with".into(), parameter.into()], message: message.into(), help: None }
    }

    /// A problem with an input.
    pub fn input(at: usize, message: impl Into<String>) -> Self {
        Problem { path: vec!["in".into(), at.to_string()], message: message.into(), help: None }
    }

    /// A problem with another field of the node.
    pub fn field(name: &str, message: impl Into<String>) -> Self {
        Problem { path: vec![name.into()], message: message.into(), help: None }
    }

    /// The same problem with a remedy.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// What comes in at one input.
#[derive(Clone, Debug)]
pub struct Input {
    /// The node or source it comes from.
    pub name: String,
    /// Its columns.
    pub schema: Schema,
    /// Whether it is an event source, which only folds and fits can read.
    pub events: bool,
    /// Its leaf.
    pub leaf: LeafId,
}

/// The model a node names, as far as the spec and the registry know it.
#[derive(Clone)]
pub struct Model {
    /// Its name in the pipeline.
    pub name: String,
    /// Its kind: `language_model`, `reward_model`, `csa_encoder`, `rq_quantizer`.
    pub kind: String,
    /// The language model behind it, for the kinds that have one.
    pub language: Option<Arc<dyn LanguageModel>>,
    /// What the rewards of a `reward_model` are divided by; 1 for other kinds.
    pub temperature: f64,
    /// The version in use, where a node of the pipeline updates it.
    pub version: Option<Fitted<ModelVersion>>,
    /// The version that cycles begin with, where another node makes it, and the size of its adapter.
    pub parent: Option<(Fitted<ModelVersion>, LoraSettings)>,
}

/// Everything an operator may know when it is checked and built.
pub struct Inputs<'a> {
    /// The node's name.
    pub node: &'a str,
    /// Its inputs, in order.
    pub inputs: &'a [Input],
    /// The model it names.
    pub model: Option<&'a Model>,
    /// The model it makes versions of.
    pub updates: Option<&'a Model>,
    /// The folder of the pipeline file: relative paths start here.
    pub folder: &'a Path,
    /// Digests of the files read, by path as written: a part of the node's logic.
    pub files: &'a RefCell<BTreeMap<PathBuf, String>>,
}

impl<'a> Inputs<'a> {
    /// The input at a place, where there must be one.
    ///
    /// # Errors
    /// A problem that says what belongs there.
    pub fn get(&self, at: usize, what: &str) -> Result<&'a Input, Problem> {
        self.inputs
            .get(at)
            .ok_or_else(|| Problem::field("in", format!("input {} is missing: {what}", at + 1)))
    }

    /// The event source at a place.
    ///
    /// # Errors
    /// If it is missing, or a relation.
    pub fn events(&self, at: usize) -> Result<&'a Input, Problem> {
        let input = self.get(at, "a source of events")?;
        if input.events {
            return Ok(input);
        }
        Err(Problem::input(
            at,
            format!("`{}` is a relation; this operator folds a source of events here", input.name),
        )
        .help("name a source that has a time column"))
    }

    /// The relation at a place.
    ///
    /// # Errors
    /// If it is missing, or an event source.
    pub fn relation(&self, at: usize, what: &str) -> Result<&'a Input, Problem> {
        let input = self.get(at, what)?;
        if !input.events {
            return Ok(input);
        }
        Err(Problem::input(at, format!("`{}` is a source of events; expected {what}", input.name))
            .help("put an operator that folds events, such as recent_categories, in between"))
    }

    /// The place of a value column of an input.
    ///
    /// # Errors
    /// If there is no such column.
    pub fn column(&self, at: usize, input: &Input, name: &str) -> Result<usize, Problem> {
        input.schema.column(name).map(|(place, _)| place).ok_or_else(|| {
            Problem::input(at, format!("`{}` has no column `{name}`; it has {}", input.name, input.schema))
        })
    }

    /// That there are no more inputs than `most`.
    ///
    /// # Errors
    /// If there are.
    pub fn at_most(&self, most: usize) -> Result<(), Problem> {
        match self.inputs.get(most) {
            None => Ok(()),
            Some(extra) => Err(Problem::input(most, format!("`{}` is one input too many", extra.name))),
        }
    }

    /// The language model the node names.
    ///
    /// # Errors
    /// If it names none, or a model of another kind.
    pub fn language_model(&self) -> Result<&'a Arc<dyn LanguageModel>, Problem> {
        let model = self.model.ok_or_else(|| {
            Problem::field("op", "this operator needs a language model").help("add `model: NAME` to the node")
        })?;
        model.language.as_ref().ok_or_else(|| {
            Problem::field("model", format!("`{}` is a {}, not a language model", model.name, model.kind))
                .help("a language model has `base: NAME`, such as smollm2-135m-instruct")
        })
    }

    /// The language model the node names, as it is to be asked: in the version that the pipeline fits.
    ///
    /// # Errors
    /// If it names none, or a model of another kind.
    pub fn served(&self) -> Result<Served, Problem> {
        let base = self.language_model()?.clone();
        Ok(Served::new(base, self.model.and_then(|model| model.version)))
    }

    /// The language model the node makes versions of.
    ///
    /// # Errors
    /// If it names none.
    pub fn updated(&self) -> Result<&'a Arc<dyn LanguageModel>, Problem> {
        let model = self.updates.and_then(|model| model.language.as_ref());
        model.ok_or_else(|| {
            Problem::field("op", "this operator trains a model").help("add `updates: NAME` to the node")
        })
    }

    /// The text of a file the node names by a parameter.
    ///
    /// # Errors
    /// If the file cannot be read as text.
    pub fn read(&self, parameter: &str, path: &Path) -> Result<String, Problem> {
        let full: PathBuf = self.folder.join(path);
        let text = std::fs::read_to_string(&full).map_err(|error| {
            Problem::with(parameter, format!("cannot read {}: {error}", full.display()))
                .help("relative paths start at the folder of the pipeline file")
        })?;
        let digest = blake3::hash(text.as_bytes()).to_hex().to_string();
        self.files.borrow_mut().insert(path.to_path_buf(), digest);
        Ok(text)
    }
}

/// One operator, with its parameters as fields.
pub trait Operator: Send + Sync {
    /// The columns of its output.
    ///
    /// # Errors
    /// Everything that is wrong with its inputs and parameters.
    fn output(&self, inputs: &Inputs<'_>) -> Result<Schema, Vec<Problem>>;

    /// The kinds of models the node may name; none, for an operator that has no model.
    fn model_kinds(&self) -> &'static [&'static str] {
        &[]
    }

    /// The kinds of models the node may make versions of; none, for an operator that trains none.
    fn updated_kinds(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether it works between epochs, in cycles, on what epochs brought about. If it makes versions of a
    /// model, they take effect a cycle later, so it may read what that model was asked.
    fn between_epochs(&self) -> bool {
        false
    }

    /// Whether it may be told to fit in cycles instead of once, which no fit on other artifacts may be.
    fn refits(&self) -> bool {
        false
    }

    /// Whether what it fits in the first epoch may be renewed in cycles.
    fn renews(&self) -> bool {
        false
    }

    /// Builds its part of the graph and names the leaf of its output. Called only after
    /// [`Operator::output`] accepted the same inputs.
    fn build(&self, inputs: &Inputs<'_>, graph: &mut Graph) -> LeafId;
}

/// What makes an operator's type known: its name in YAML and an example that runs.
pub trait Described: Operator + Serialize + DeserializeOwned + JsonSchema + 'static {
    /// The name in YAML.
    const NAME: &'static str;
    /// A pipeline that uses it, checked and run by a test.
    const EXAMPLE: &'static str;
}

/// Takes operators by their type; see [`register`](crate::register).
pub trait Register {
    /// Takes one operator.
    fn operator<T: Described>(&mut self);
}

/// Gathers problems from several checks, so that all are told at once.
#[derive(Default)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// The value, or its problem noted.
    pub fn take<T>(&mut self, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.0.push(problem)).ok()
    }

    /// Notes a problem.
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    /// Notes a problem unless `holds`.
    pub fn require(&mut self, holds: bool, problem: impl FnOnce() -> Problem) {
        if !holds {
            self.0.push(problem());
        }
    }

    /// The value, or everything noted.
    ///
    /// # Errors
    /// If a problem was noted; a missing value always comes with one.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, Vec<Problem>> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(self.0),
        }
    }
}
