//! The closed set of shapes an operator is built from.
//!
//! A [`Leaf`] says which shape combines which leaves with which kernel. The engine has one
//! incremental rendering and one from-scratch oracle per shape, so an operator gets both for free.
//! Kernels are pure: no clock, no random generator, no hash-map order.

use std::{any::Any, fmt, sync::Arc};

pub use crate::{
    fitting::{
        Artifact, DriftKernel, Figures, FiguresKernel, FitCost, FitKernel, LoadKernel, PriceKernel, Progress,
        Snapshot, Watch,
    },
    graph::{Fitted, Graph, Leaf, present},
};
use crate::{
    language_model::Answered,
    row::{Keyed, Row, Value},
};

/// The place of a leaf in the graph; leaves come after those they read.
pub type LeafId = usize;

/// A fitted artifact in memory.
pub type Loaded = Arc<dyn Any + Send + Sync>;

/// What a kernel could not do, in words for the user.
pub type KernelError = String;

/// Why a fit, or a whole batch of requests, came to nothing.
///
/// The two are told apart because a person mends them in different places: the pipeline and its
/// data, or the machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It was tried and failed.
    #[error("{0}")]
    Failed(KernelError),
    /// It was not tried, because there is nothing to do it on.
    #[error("{0}")]
    Nothing(String),
    /// It was not tried, because a model's file cannot be had or read, or its server not
    /// be reached.
    #[error("{0}")]
    Unavailable(String),
    /// It was not tried, or not further, because a budget is spent.
    #[error("{0}")]
    Spent(String),
}

impl From<KernelError> for CallError {
    fn from(cause: KernelError) -> Self {
        CallError::Failed(cause)
    }
}

impl From<&str> for CallError {
    fn from(cause: &str) -> Self {
        CallError::Failed(cause.to_string())
    }
}

/// `(key, row) → rows`, cheap and pure; the artifact is present where the map was built with one.
pub type MapKernel =
    Arc<dyn Fn(Option<&Loaded>, &Row, &Row, &mut Vec<Keyed>) -> Result<(), KernelError> + Send + Sync>;
/// `(key, the key's rows of each input with their counts, sorted) → rows`.
pub type ReduceKernel = Arc<dyn Fn(&Row, &[Vec<(Row, i64)>], &mut Vec<Row>) + Send + Sync>;
/// `(key, left row, right row) → rows`.
pub type JoinKernel = Arc<dyn Fn(&Row, &Row, &Row, &mut Vec<Keyed>) + Send + Sync>;

/// One event of a key's history as a fold sees it.
pub struct Event<'a> {
    /// The event's columns in the source's total order: time first.
    pub row: &'a Row,
    /// How many equal events there are; at least 1.
    pub count: u64,
    /// The side input's row for this event; `None` for a fold without a side input.
    pub dim: Option<&'a Row>,
}

/// How often each counted value occurs in a key's whole history.
pub type Counts = std::collections::BTreeMap<Value, i64>;

/// Walks a key's history from the newest event; answers `false` to stop.
pub type Walk<'a> = dyn FnMut(&mut dyn FnMut(&Event<'_>) -> bool) + 'a;

/// What a fold makes of one key's history.
///
/// A fold walks lazily from the newest event and stops when it has enough. What it needs to know of
/// the whole history it declares as counted values: the engine keeps the counts up to date at a
/// cost of one update per new event.
pub trait FoldKernel: Send + Sync {
    /// Values of this event that are counted over the whole history.
    fn counted(&self, _event: &Event<'_>, _out: &mut Vec<Value>) {}

    /// Whether [`FoldKernel::counted`] counts anything.
    fn counts(&self) -> bool {
        false
    }

    /// The rows of this key.
    fn emit(&self, key: &Row, walk: &mut Walk<'_>, counts: &Counts, out: &mut Vec<Row>);
}

/// Tokens that a batch of requests reads and writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Tokens of prompts, computed.
    pub prompt_tokens: u64,
    /// Tokens of prompts, found in a beginning that was computed before.
    pub reused_prompt_tokens: u64,
    /// Tokens written.
    pub completion_tokens: u64,
    /// Requests to a server; none for a model of this machine.
    pub requests: u64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        self.prompt_tokens += other.prompt_tokens;
        self.reused_prompt_tokens += other.reused_prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.requests += other.requests;
    }
}

/// An expensive function of a request, called once per distinct request.
pub trait InferKernel: Send + Sync {
    /// What beside the request and the artifacts decides the answer: name and version of the
    /// function, digest of its model. Part of the memo key.
    fn logic(&self) -> String;

    /// Whether `plan` may run it: a small local model, not a language model.
    fn cheap(&self) -> bool;

    /// Answers a batch, in any order; a request that cannot be answered is an error of its own and
    /// does not fail the others.
    ///
    /// # Errors
    /// If no request can be answered, such as when the model cannot be loaded; or no further one.
    fn run(
        &self,
        artifacts: &[Loaded],
        requests: &[Row],
        answered: &mut Answered<'_, Row>,
    ) -> Result<Cost, CallError>;

    /// What [`InferKernel::run`] would cost for these requests, if nothing had been asked before; what a
    /// model remembers may make it cheaper.
    ///
    /// # Errors
    /// If the model's tokenizer cannot be loaded.
    fn price(&self, _requests: &[Row]) -> Result<Cost, CallError> {
        Ok(Cost::default())
    }
}

/// When a fit is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refit {
    /// Once, in the first epoch that can.
    #[default]
    Once,
    /// In the first epoch that can, and anew in cycles, together with all that is renewed there.
    Again,
    /// In every cycle, and in no epoch: out of what epochs brought about. What it makes takes the place of
    /// the artifact of this fit; that may be itself.
    Between(LeafId),
}

/// The shape of a leaf, with its kernel.
#[derive(Clone)]
pub enum Shape {
    /// The rows of a source, by its place in the plan.
    Source(usize),
    /// `row → rows`; may read a fitted artifact.
    Map {
        /// The rows.
        input: LeafId,
        /// The artifact the kernel reads.
        artifact: Option<LeafId>,
        /// What is done.
        kernel: MapKernel,
    },
    /// One key's events, newest first → rows.
    Fold {
        /// The event source.
        source: LeafId,
        /// A relation keyed by one event column, and that column's place in the event.
        dim: Option<(LeafId, usize)>,
        /// What is done.
        kernel: Arc<dyn FoldKernel>,
    },
    /// `(key, all rows of the key)` → rows, for small keys; several inputs are grouped together.
    Reduce {
        /// The inputs, told apart by their place.
        inputs: Vec<LeafId>,
        /// What is done.
        kernel: ReduceKernel,
    },
    /// Pairs of rows of one key → rows.
    Join {
        /// The left rows.
        left: LeafId,
        /// The right rows.
        right: LeafId,
        /// What is done.
        kernel: JoinKernel,
    },
    /// Requests → answers, each distinct request once.
    Infer {
        /// Requests by key.
        requests: LeafId,
        /// The artifacts the kernel reads, where what answers was fitted.
        artifacts: Vec<LeafId>,
        /// What is done.
        kernel: Arc<dyn InferKernel>,
    },
    /// Snapshots → artifact. As a relation: one row without a key that holds the digest.
    Fit {
        /// The relations fitted on.
        inputs: Vec<LeafId>,
        /// Artifacts read.
        artifacts: Vec<LeafId>,
        /// What is done.
        kernel: FitKernel,
        /// How the result is read back.
        load: LoadKernel,
        /// What decides the result beside the inputs: parameters and model digests.
        logic: String,
        /// Whether `plan` may run it.
        cheap: bool,
        /// Whether it asks a language model, so that no plan runs it.
        asks: bool,
        /// What `plan` says of it otherwise.
        price: Option<PriceKernel>,
        /// When it is done.
        refit: Refit,
        /// Whether a renewal is given one input and one artifact more: what the node put out so far, and
        /// the artifact in use.
        compares: bool,
        /// What the result tells of how it was fitted.
        figures: FiguresKernel,
        /// How far data and artifact have come apart, where that can be told.
        drift: Option<DriftKernel>,
    },
}

impl Shape {
    /// The leaves this one reads, artifacts included.
    pub fn reads(&self) -> Vec<LeafId> {
        match self {
            Shape::Source(_) => vec![],
            Shape::Map { input, artifact, .. } => [Some(*input), *artifact].into_iter().flatten().collect(),
            Shape::Fold { source, dim, .. } => std::iter::once(*source).chain(dim.map(|(d, _)| d)).collect(),
            Shape::Reduce { inputs, .. } => inputs.clone(),
            Shape::Join { left, right, .. } => vec![*left, *right],
            Shape::Infer { requests, artifacts, .. } => {
                std::iter::once(requests).chain(artifacts).copied().collect()
            }
            Shape::Fit { inputs, artifacts, .. } => inputs.iter().chain(artifacts).copied().collect(),
        }
    }

    /// The name of the shape.
    pub fn name(&self) -> &'static str {
        match self {
            Shape::Source(_) => "source",
            Shape::Map { .. } => "map",
            Shape::Fold { .. } => "fold",
            Shape::Reduce { .. } => "reduce",
            Shape::Join { .. } => "join",
            Shape::Infer { .. } => "infer",
            Shape::Fit { .. } => "fit",
        }
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.name(), self.reads())
    }
}
