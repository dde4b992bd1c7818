//! The graph an operator builds, typed where shapes are not.
//!
//! A leaf holds its artifact as bytes and `dyn Any`, so that the engine needs no type parameter; the
//! builder takes it as [`Fitted<A>`], so that no operator can wire a kernel to an artifact of another
//! type.

use std::{marker::PhantomData, sync::Arc};

use crate::{
    published::Published,
    row::{Keyed, Row},
    shape::{
        Artifact, CallError, Figures, FitCost, FoldKernel, InferKernel, KernelError, LeafId, Loaded,
        MapKernel, Progress, Refit, Shape, Snapshot, Watch,
    },
};

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
    /// The fit at a leaf, whose artifact has this type.
    pub(crate) fn at(leaf: LeafId) -> Self {
        Self { leaf, kind: PhantomData }
    }

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
    pub(crate) node: String,
    /// What nodes tell one another.
    pub(crate) published: Published,
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
        let kernel: MapKernel =
            Arc::new(move |loaded, key, row, out| kernel(present(loaded)?, key, row, out));
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
        self.add(role, Shape::Infer { requests, artifacts: Vec::new(), kernel: Arc::new(kernel) })
    }

    /// Adds an inference that needs fitted artifacts; its kernel finds them in this order.
    pub fn infer_with(
        &mut self,
        role: &'static str,
        requests: LeafId,
        artifacts: &[LeafId],
        kernel: impl InferKernel + 'static,
    ) -> LeafId {
        self.add(role, Shape::Infer { requests, artifacts: artifacts.to_vec(), kernel: Arc::new(kernel) })
    }

    /// Adds a fit that takes little time. `logic` names what decides the result beside the inputs.
    pub fn fit<A: Artifact>(
        &mut self,
        role: &'static str,
        inputs: &[LeafId],
        artifacts: &[LeafId],
        logic: String,
        kernel: impl Fn(&[&dyn Snapshot], &[Loaded], &mut dyn FnMut(Progress<'_>)) -> Result<A, CallError>
        + Send
        + Sync
        + 'static,
    ) -> Fitted<A> {
        self.long_fit(role, inputs, artifacts, logic, move |inputs, artifacts, watch| {
            kernel(inputs, artifacts, &mut |progress| watch.progress(progress))
        })
    }

    /// Adds a fit that keeps where it stands, to go on from there if it is stopped.
    pub fn long_fit<A: Artifact>(
        &mut self,
        role: &'static str,
        inputs: &[LeafId],
        artifacts: &[LeafId],
        logic: String,
        kernel: impl Fn(&[&dyn Snapshot], &[Loaded], &mut dyn Watch) -> Result<A, CallError>
        + Send
        + Sync
        + 'static,
    ) -> Fitted<A> {
        let shape = Shape::Fit {
            inputs: inputs.to_vec(),
            artifacts: artifacts.to_vec(),
            kernel: Arc::new(
                move |inputs, artifacts, watch| Ok(kernel(inputs, artifacts, watch)?.to_bytes()),
            ),
            load: Arc::new(|bytes| Ok(Arc::new(A::from_bytes(bytes)?) as Loaded)),
            logic,
            cheap: false,
            asks: false,
            price: None,
            refit: Refit::Once,
            compares: false,
            figures: Arc::new(|loaded| loaded.downcast_ref::<A>().map(A::figures).unwrap_or_default()),
            drift: None,
        };
        Fitted::at(self.add(role, shape))
    }

    /// Declares that a fit takes so little that `plan` may run it.
    pub fn cheap<A>(&mut self, fitted: Fitted<A>) -> Fitted<A> {
        if let Shape::Fit { cheap, .. } = &mut self.leaves[fitted.leaf].shape {
            *cheap = true;
        }
        fitted
    }

    /// Declares that a fit asks a language model.
    pub(crate) fn asks<A>(&mut self, fitted: Fitted<A>) {
        if let Shape::Fit { asks, .. } = &mut self.leaves[fitted.leaf].shape {
            *asks = true;
        }
    }

    /// Declares how `plan` tells what a fit will take.
    pub fn priced<A>(
        &mut self,
        fitted: Fitted<A>,
        kernel: impl Fn(&[&dyn Snapshot], &[Loaded]) -> Result<FitCost, CallError> + Send + Sync + 'static,
    ) {
        if let Shape::Fit { price, .. } = &mut self.leaves[fitted.leaf].shape {
            *price = Some(Arc::new(kernel));
        }
    }

    /// Declares that the fits of the current node from this leaf on are done in cycles.
    pub fn every_cycle(&mut self, first: LeafId) {
        for (at, leaf) in self.leaves.iter_mut().enumerate().skip(first) {
            if let Shape::Fit { refit: refit @ Refit::Once, .. } = &mut leaf.shape {
                *refit = Refit::Between(at);
            }
        }
    }

    /// Declares that the fits of the current node from this leaf on are renewed in cycles.
    pub fn renewed(&mut self, first: LeafId) {
        for leaf in self.leaves.iter_mut().skip(first) {
            if let Shape::Fit { refit: refit @ Refit::Once, .. } = &mut leaf.shape {
                *refit = Refit::Again;
            }
        }
    }

    /// Declares that a fit, where it is renewed, sees what its node put out and the artifact in use: they
    /// come after its inputs and artifacts.
    pub(crate) fn compares<A>(&mut self, fitted: Fitted<A>) {
        if let Shape::Fit { compares, .. } = &mut self.leaves[fitted.leaf].shape {
            *compares = true;
        }
    }

    /// Declares how far a fit's inputs and its artifact have come apart.
    pub(crate) fn drifts<A: Artifact>(
        &mut self,
        fitted: Fitted<A>,
        kernel: impl Fn(&[&dyn Snapshot], &A) -> Result<Figures, KernelError> + Send + Sync + 'static,
    ) {
        if let Shape::Fit { drift, .. } = &mut self.leaves[fitted.leaf].shape {
            *drift = Some(Arc::new(move |inputs, artifact| kernel(inputs, present(Some(artifact))?)));
        }
    }

    /// Declares that a fit is done between epochs, in place of the artifact of another one or of itself.
    pub(crate) fn between<A>(&mut self, fitted: Fitted<A>, of: Fitted<A>) {
        if let Shape::Fit { refit, .. } = &mut self.leaves[fitted.leaf].shape {
            *refit = Refit::Between(of.leaf);
        }
    }
}

/// An artifact as the type it was fitted as.
///
/// # Errors
/// If it is missing or of another type, which a graph built through [`Graph`] cannot contain.
pub fn present<A: Artifact>(artifact: Option<&Loaded>) -> Result<&A, KernelError> {
    artifact
        .and_then(|artifact| artifact.downcast_ref::<A>())
        .ok_or_else(|| "an artifact is missing or of another type".to_string())
}
