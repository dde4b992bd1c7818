//! The closed set of shapes an operator is built from, and the graph it builds.
//!
//! A [`Leaf`] says which shape combines which leaves with which kernel. The engine has one
//! incremental rendering and one from-scratch oracle per shape, so an operator gets both for free.
//! Kernels are pure: no clock, no random generator, no hash-map order.

use std::{any::Any, fmt, marker::PhantomData, sync::Arc};

use crate::row::{Keyed, Row, Value};

/// The place of a leaf in the graph; leaves come after those they read.
pub type LeafId = usize;

/// A fitted artifact in memory.
pub type Loaded = Arc<dyn Any + Send + Sync>;

/// What a kernel could not do, in words for the user.
pub type KernelError = String;

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

/// Tokens that a batch of requests computes, and those it finds in a shared prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Tokens computed.
    pub prompt_tokens: u64,
    /// Tokens read from a prefix that was computed before.
    pub reused_prompt_tokens: u64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        self.prompt_tokens += other.prompt_tokens;
        self.reused_prompt_tokens += other.reused_prompt_tokens;
    }
}

/// An expensive function of a request, called once per distinct request.
pub trait InferKernel: Send + Sync {
    /// What beside the request and the artifact decides the answer: name and version of the
    /// function, digest of its model. Part of the memo key.
    fn logic(&self) -> String;

    /// Whether `plan` may run it: a small local model, not a language model.
    fn cheap(&self) -> bool;

    /// Answers a batch, in order; a request that cannot be answered is an error of its own and
    /// does not fail the others.
    ///
    /// # Errors
    /// If no request can be answered, such as when the model cannot be loaded.
    fn run(
        &self,
        artifact: Option<&Loaded>,
        requests: &[Row],
        progress: &mut (dyn FnMut(usize) + Send),
    ) -> Result<Answers, KernelError>;

    /// What [`InferKernel::run`] would cost for these requests.
    ///
    /// # Errors
    /// If the model's tokenizer cannot be loaded.
    fn price(&self, _requests: &[Row]) -> Result<Cost, KernelError> {
        Ok(Cost::default())
    }
}

/// The answers to a batch of requests.
pub struct Answers {
    /// One per request, in their order.
    pub rows: Vec<Result<Row, KernelError>>,
    /// What they cost.
    pub cost: Cost,
}

/// Something fitted from data: durable as bytes, the same bytes from the same input.
pub trait Artifact: Any + Send + Sync + Sized {
    /// The durable form.
    fn to_bytes(&self) -> Vec<u8>;

    /// Reads the durable form.
    ///
    /// # Errors
    /// If the bytes were not written by [`Artifact::to_bytes`].
    fn from_bytes(bytes: &[u8]) -> Result<Self, KernelError>;
}

/// A relation at rest, in canonical order.
pub trait Snapshot {
    /// Calls `visit` with key, row and count (at least 1) in the order of (key, row).
    fn for_each(&self, visit: &mut dyn FnMut(&Row, &Row, i64));
}

/// How far a fit is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Steps done.
    pub done: u64,
    /// Steps in all, as far as is known.
    pub total: u64,
    /// What a person wants to see beside the bar.
    pub note: &'a str,
}

/// Fits an artifact from snapshots of its inputs and from artifacts fitted before.
pub type FitKernel = Arc<
    dyn Fn(&[&dyn Snapshot], &[Loaded], &mut dyn FnMut(Progress<'_>)) -> Result<Vec<u8>, KernelError>
        + Send
        + Sync,
>;
/// Reads an artifact's durable form.
pub type LoadKernel = Arc<dyn Fn(&[u8]) -> Result<Loaded, KernelError> + Send + Sync>;

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
        /// The artifact that answers, where it is a fitted one.
        artifact: Option<LeafId>,
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
            Shape::Infer { requests, artifact, .. } => {
                [Some(*requests), *artifact].into_iter().flatten().collect()
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

/// A shape in the graph, with the name state and reports know it by.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The node it belongs to.
    pub node: String,
    /// Its part in the node; the node's output has the node's own name.
    pub role: &'static str,
    /// What it does.
    pub shape: Shape,
}

/// A fitted artifact of a known type.
pub struct Fitted<A> {
    leaf: LeafId,
    kind: PhantomData<fn() -> A>,
}

impl<A> Fitted<A> {
    /// The fit's leaf, for [`Graph::fit`]'s list of artifacts read.
    pub fn leaf(self) -> LeafId {
        self.leaf
    }
}

impl<A> Clone for Fitted<A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for Fitted<A> {}

/// The graph under construction.
#[derive(Default)]
pub struct Graph {
    /// The leaves so far.
    pub leaves: Vec<Leaf>,
    node: String,
    label_sets: std::collections::BTreeMap<String, LeafId>,
}

impl Graph {
    /// Begins a node: leaves added from now on belong to it.
    pub fn begin(&mut self, node: &str) {
        self.node = node.to_string();
    }

    /// Adds a leaf.
    pub fn add(&mut self, role: &'static str, shape: Shape) -> LeafId {
        debug_assert!(
            shape.reads().iter().all(|id| *id < self.leaves.len()),
            "leaves come after their inputs"
        );
        self.leaves.push(Leaf { node: self.node.clone(), role, shape });
        self.leaves.len() - 1
    }

    /// Adds a map.
    pub fn map(
        &mut self,
        role: &'static str,
        input: LeafId,
        kernel: impl Fn(&Row, &Row, &mut Vec<Keyed>) -> Result<(), KernelError> + Send + Sync + 'static,
    ) -> LeafId {
        let kernel: MapKernel = Arc::new(move |_, key, row, out| kernel(key, row, out));
        self.add(role, Shape::Map { input, artifact: None, kernel })
    }

    /// Adds a map that reads a fitted artifact; when the artifact changes, every row is mapped anew.
    pub fn map_with<A: Artifact>(
        &mut self,
        role: &'static str,
        input: LeafId,
        artifact: Fitted<A>,
        kernel: impl Fn(&A, &Row, &Row, &mut Vec<Keyed>) -> Result<(), KernelError> + Send + Sync + 'static,
    ) -> LeafId {
        let kernel: MapKernel = Arc::new(move |loaded, key, row, out| {
            let artifact =
                loaded.and_then(|l| l.downcast_ref::<A>()).ok_or("the artifact is of another type")?;
            kernel(artifact, key, row, out)
        });
        self.add(role, Shape::Map { input, artifact: Some(artifact.leaf), kernel })
    }

    /// Adds a fold over an event source, with a relation looked up by one event column.
    pub fn fold(
        &mut self,
        role: &'static str,
        source: LeafId,
        dim: Option<(LeafId, usize)>,
        kernel: impl FoldKernel + 'static,
    ) -> LeafId {
        self.add(role, Shape::Fold { source, dim, kernel: Arc::new(kernel) })
    }

    /// Adds a reduce; the rows of several inputs come apart, in the order of the inputs.
    pub fn reduce(
        &mut self,
        role: &'static str,
        inputs: &[LeafId],
        kernel: impl Fn(&Row, &[Vec<(Row, i64)>], &mut Vec<Row>) + Send + Sync + 'static,
    ) -> LeafId {
        self.add(role, Shape::Reduce { inputs: inputs.to_vec(), kernel: Arc::new(kernel) })
    }

    /// Adds a join of two relations on their whole key.
    pub fn join(
        &mut self,
        role: &'static str,
        left: LeafId,
        right: LeafId,
        kernel: impl Fn(&Row, &Row, &Row, &mut Vec<Keyed>) + Send + Sync + 'static,
    ) -> LeafId {
        self.add(role, Shape::Join { left, right, kernel: Arc::new(kernel) })
    }

    /// Adds an inference answered by a function, such as a language model.
    pub fn infer(
        &mut self,
        role: &'static str,
        requests: LeafId,
        kernel: impl InferKernel + 'static,
    ) -> LeafId {
        self.add(role, Shape::Infer { requests, artifact: None, kernel: Arc::new(kernel) })
    }

    /// Adds an inference that needs a fitted artifact.
    pub fn infer_with<A: Artifact>(
        &mut self,
        role: &'static str,
        requests: LeafId,
        artifact: Fitted<A>,
        kernel: impl InferKernel + 'static,
    ) -> LeafId {
        self.add(role, Shape::Infer { requests, artifact: Some(artifact.leaf), kernel: Arc::new(kernel) })
    }

    /// Adds a fit. `logic` names what decides the result beside the inputs.
    pub fn fit<A: Artifact>(
        &mut self,
        role: &'static str,
        inputs: &[LeafId],
        artifacts: &[LeafId],
        logic: String,
        kernel: impl Fn(&[&dyn Snapshot], &[Loaded], &mut dyn FnMut(Progress<'_>)) -> Result<A, KernelError>
        + Send
        + Sync
        + 'static,
    ) -> Fitted<A> {
        let shape = Shape::Fit {
            inputs: inputs.to_vec(),
            artifacts: artifacts.to_vec(),
            kernel: Arc::new(move |inputs, artifacts, progress| {
                Ok(kernel(inputs, artifacts, progress)?.to_bytes())
            }),
            load: Arc::new(|bytes| Ok(Arc::new(A::from_bytes(bytes)?) as Loaded)),
            logic,
            cheap: false,
        };
        Fitted { leaf: self.add(role, shape), kind: PhantomData }
    }

    /// Declares that a fit takes so little that `plan` may run it.
    pub fn cheap<A>(&mut self, fitted: Fitted<A>) -> Fitted<A> {
        if let Shape::Fit { cheap, .. } = &mut self.leaves[fitted.leaf].shape {
            *cheap = true;
        }
        fitted
    }

    /// Declares that the current node's labels are those of `fitted`.
    pub fn publish_labels<A: Artifact>(&mut self, fitted: Fitted<A>) {
        self.label_sets.insert(self.node.clone(), fitted.leaf);
    }

    /// The label set of a node that declared one.
    pub fn labels_of<A: Artifact>(&self, node: &str) -> Option<Fitted<A>> {
        self.label_sets.get(node).map(|leaf| Fitted { leaf: *leaf, kind: PhantomData })
    }
}

/// An artifact read by a fit, as the type it was fitted as.
///
/// # Errors
/// If the artifact is of another type, which a graph built through [`Graph`] cannot contain.
pub fn loaded<A: Artifact>(artifacts: &[Loaded], at: usize) -> Result<&A, KernelError> {
    artifacts
        .get(at)
        .and_then(|a| a.downcast_ref::<A>())
        .ok_or_else(|| format!("artifact {at} is missing or of another type"))
}
