//! The Plan: a pipeline with everything worked out that a later stage would need.
//!
//! Nodes stand in dependency order and leaves come after those they read, so that rendering, the
//! oracle and the cost model are straight walks. Nothing here knows YAML, the registry, a database
//! or a dataflow.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use coea_operators::{
    row::{Keyed, Row, Value},
    schema::Schema,
    shape::{Leaf, LeafId, Refit, Shape},
};

use crate::{
    connectors::{SourceConnector, SourceTable},
    price::Price,
    sinks::KvSink,
};

/// A pipeline, ready to run.
pub struct Plan {
    /// Its name.
    pub name: String,
    /// The folder of its file.
    pub folder: PathBuf,
    /// Where rows come from.
    pub sources: Vec<PlanSource>,
    /// What is computed, in dependency order.
    pub nodes: Vec<PlanNode>,
    /// Where rows go.
    pub sinks: Vec<PlanSink>,
    /// The graph; a leaf comes after those it reads.
    pub leaves: Vec<Leaf>,
    /// What models cost, by name.
    pub prices: BTreeMap<String, Price>,
    /// Per leaf: hash of what it computes and of everything upstream.
    pub lineage: Vec<String>,
}

/// A source.
pub struct PlanSource {
    /// Its name.
    pub name: String,
    /// Its connector and parameters.
    pub connector: SourceConnector,
    /// Its columns as read.
    pub table: SourceTable,
    /// Its columns as the graph sees them: key, then time, event id and the rest.
    pub schema: Schema,
    /// Its leaf.
    pub leaf: LeafId,
    /// Whether it holds events, kept as histories.
    pub events: bool,
    /// Hash of connector and parameters.
    pub logic: String,
    /// Places of the key columns in a row as read.
    pub key: Vec<usize>,
    /// Places of the other columns, in the order of the graph.
    pub rest: Vec<usize>,
}

impl PlanSource {
    /// A row as read, as key and row of the graph.
    pub fn keyed(&self, row: &Row) -> Keyed {
        let pick = |places: &[usize]| Row::new(places.iter().map(|at| row[*at].clone()));
        (pick(&self.key), pick(&self.rest))
    }

    /// Key and row of the graph, as the row that was read.
    pub fn unkeyed(&self, key: &Row, row: &Row) -> Row {
        let mut cells = vec![Value::Null; self.key.len() + self.rest.len()];
        let pairs = self.key.iter().zip(key.iter()).chain(self.rest.iter().zip(row.iter()));
        pairs.for_each(|(at, value)| cells[*at] = value.clone());
        Row::new(cells)
    }
}

/// A node.
pub struct PlanNode {
    /// Its name.
    pub name: String,
    /// Its operator.
    pub op: String,
    /// What it reads, as written.
    pub inputs: Vec<String>,
    /// The model it names.
    pub model: Option<String>,
    /// The model it makes versions of.
    pub updates: Option<String>,
    /// Whether it works between epochs.
    pub between: bool,
    /// Its columns.
    pub schema: Schema,
    /// The leaf of its output.
    pub leaf: LeafId,
    /// The first of its leaves.
    pub first_leaf: LeafId,
    /// Hash of operator, parameters, templates and model.
    pub logic: String,
    /// How long its requests wait to be asked together.
    pub after: Option<Debounce>,
    /// Calls that a run may spend on it.
    pub max_calls: Option<u64>,
    /// In which cycles it works, if it works in cycles.
    pub due: Due,
}

/// In which cycles something is fitted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Due {
    /// In each of them.
    #[default]
    EachCycle,
    /// Where so many epochs have passed since it came into use.
    After {
        /// The epochs.
        epochs: u64,
    },
    /// Where the data have drifted further than this from what it was fitted on.
    Drifted {
        /// The drift tolerated.
        above: f64,
    },
}

/// Until one of these is reached, requests wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Debounce {
    /// Rows that all sources together brought.
    pub events: Option<u64>,
    /// Time passed.
    pub time: Option<Duration>,
}

/// A sink.
pub struct PlanSink {
    /// Its name.
    pub name: String,
    /// The node it writes.
    pub node: usize,
    /// Its parameters.
    pub kv: KvSink,
}

impl Plan {
    /// The node of a name.
    pub fn node(&self, name: &str) -> Option<&PlanNode> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The source of a name.
    pub fn source(&self, name: &str) -> Option<&PlanSource> {
        self.sources.iter().find(|source| source.name == name)
    }

    /// The node whose output a leaf is.
    pub fn node_of_output(&self, leaf: LeafId) -> Option<&PlanNode> {
        self.nodes.iter().find(|node| node.leaf == leaf)
    }

    /// The name that state and reports know a leaf by: the node's for its output, else
    /// `node/role`.
    pub fn leaf_name(&self, leaf: LeafId) -> String {
        let Leaf { node, role, .. } = &self.leaves[leaf];
        if role.is_empty() { node.clone() } else { format!("{node}/{role}") }
    }

    /// Every leaf that `leaf` depends on, itself not included, in order.
    pub fn upstream(&self, leaf: LeafId) -> Vec<LeafId> {
        let mut seen = vec![false; self.leaves.len()];
        let mut stack = self.leaves[leaf].shape.reads();
        while let Some(next) = stack.pop() {
            if !std::mem::replace(&mut seen[next], true) {
                stack.extend(self.leaves[next].shape.reads());
            }
        }
        (0..self.leaves.len()).filter(|at| seen[*at]).collect()
    }

    /// How long the requests of an inference wait to be asked together, if they do.
    pub fn after(&self, leaf: LeafId) -> Option<Debounce> {
        self.node(&self.leaves[leaf].node)?.after
    }

    /// Calls that a run may spend on the node of an inference, if they are limited.
    pub fn max_calls(&self, leaf: LeafId) -> Option<u64> {
        self.node(&self.leaves[leaf].node)?.max_calls
    }

    /// The node that makes the versions of a model which are asked: of two, the one that works in cycles.
    pub fn updater(&self, model: Option<&str>) -> Option<&PlanNode> {
        let mut updaters =
            self.nodes.iter().filter(|node| model.is_some() && node.updates.as_deref() == model);
        let first = updaters.next();
        updaters.find(|node| node.between).or(first)
    }

    /// Whether a fit is done in cycles alone.
    pub fn is_between(&self, leaf: LeafId) -> bool {
        matches!(self.leaves[leaf].shape, Shape::Fit { refit: Refit::Between(_), .. })
    }

    /// The fits that are renewed in cycles, in order.
    pub fn renewals(&self) -> impl Iterator<Item = LeafId> + '_ {
        self.of_shape(|shape| matches!(shape, Shape::Fit { refit: Refit::Again, .. }))
    }

    /// Whether a leaf is a fit.
    pub fn is_fit(&self, leaf: LeafId) -> bool {
        matches!(self.leaves[leaf].shape, Shape::Fit { .. })
    }

    /// Whether cycles have anything to do.
    pub fn cycles(&self) -> bool {
        self.refits().next().is_some() || self.renewals().next().is_some()
    }

    /// In which cycles a fit is done.
    pub fn due(&self, leaf: LeafId) -> Due {
        self.node(&self.leaves[leaf].node).map_or(Due::EachCycle, |node| node.due)
    }

    /// The fits that cycles do, in order, each with the fit whose artifact it replaces.
    pub fn refits(&self) -> impl Iterator<Item = (LeafId, LeafId)> + '_ {
        self.fits().filter_map(|leaf| match self.leaves[leaf].shape {
            Shape::Fit { refit: Refit::Between(of), .. } => Some((leaf, of)),
            _ => None,
        })
    }

    /// The fits, in order.
    pub fn fits(&self) -> impl Iterator<Item = LeafId> + '_ {
        self.of_shape(|shape| matches!(shape, Shape::Fit { .. }))
    }

    /// The inferences, in order.
    pub fn infers(&self) -> impl Iterator<Item = LeafId> + '_ {
        self.of_shape(|shape| matches!(shape, Shape::Infer { .. }))
    }

    /// The folds, in order.
    pub fn folds(&self) -> impl Iterator<Item = LeafId> + '_ {
        self.of_shape(|shape| matches!(shape, Shape::Fold { .. }))
    }

    fn of_shape<'a>(&'a self, is: impl Fn(&Shape) -> bool + 'a) -> impl Iterator<Item = LeafId> + 'a {
        (0..self.leaves.len()).filter(move |at| is(&self.leaves[*at].shape))
    }

    /// What decides an inference's answer beside request and artifact.
    pub fn infer_logic(&self, leaf: LeafId) -> String {
        match &self.leaves[leaf].shape {
            Shape::Infer { kernel, .. } => kernel.logic(),
            _ => String::new(),
        }
    }
}
