//! One consistent view of a committed state, through the plan that reads it.
//!
//! All tables and histories of a view come from one snapshot, so a run that commits meanwhile
//! cannot show half an epoch.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use coea_operators::{
    row::Row,
    served::ModelVersion,
    shape::{LeafId, Shape},
};

use crate::{
    plan::{Plan, PlanNode, PlanSource},
    runtime::versions::version_leaf,
    state::{
        State, StateError, history::History, layered::Layered, manifest::Manifest, memo::Memo, tables::Tables,
    },
};

/// Digits of a digest that are shown.
const SHORT: usize = 16;

/// A committed state, as a plan names its parts.
pub struct View {
    /// The pipeline.
    pub plan: Arc<Plan>,
    /// What the state knows of itself.
    pub manifest: Manifest,
    /// Rows of nodes, relations and errors.
    pub tables: Tables,
    /// Events.
    pub history: History,
    /// What the last epochs changed in the tables.
    pub changes: Layered,
    /// Remembered answers; of their own database, so as of now.
    pub memo: Memo,
    /// The folder of the state.
    pub dir: PathBuf,
}

impl View {
    /// Opens what is committed in a folder; a folder without a state is at epoch 0.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn open(plan: Arc<Plan>, dir: &Path) -> Result<Self, StateError> {
        let state = State::read(dir)?;
        let snapshot = state.snapshot()?;
        Ok(View {
            plan,
            manifest: Manifest::load(&snapshot.layered("meta"))?,
            tables: Tables::new(snapshot.layered("tables")),
            history: History::new(snapshot.layered("history")),
            changes: snapshot.layered("changes"),
            memo: state.memo,
            dir: state.dir,
        })
    }

    /// The row of a key in a table; of several, the first.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn row(&self, table: &str, key: &Row) -> Result<Option<Row>, StateError> {
        let rows = self.tables.get(table, key)?;
        Ok(rows.into_iter().find(|(_, count)| *count > 0).map(|(row, _)| row))
    }

    /// Visits a key's events of a source, newest first, with their counts above zero, until `visit`
    /// answers `false`.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn walk(
        &self,
        source: &PlanSource,
        key: &Row,
        visit: &mut dyn FnMut(&Row, i64) -> bool,
    ) -> Result<(), StateError> {
        let Some(known) = self.manifest.sources.get(&source.name) else { return Ok(()) };
        self.history.walk(known.id, key, &mut |event, count| count <= 0 || visit(event, count))
    }

    /// The nodes that a node depends on, itself included, in order.
    pub fn nodes_above(&self, node: &PlanNode) -> Vec<&PlanNode> {
        nodes_above(&self.plan, node)
    }

    /// The models that a node's rows come from, by name, with the first digits of their digests: a
    /// fitted model by the name the pipeline gives it, another artifact by its leaf.
    pub fn model_versions(&self, node: &PlanNode) -> BTreeMap<String, String> {
        let mut versions = BTreeMap::new();
        for leaf in self.plan.upstream(node.leaf).into_iter().chain([node.leaf]) {
            if let Some((name, digest)) = self.model_version(leaf) {
                let name = if versions.contains_key(&name) { self.plan.leaf_name(leaf) } else { name };
                versions.insert(name, digest.chars().take(SHORT).collect());
            }
        }
        versions
    }

    /// Whether the version of a model that is in use has an adapter.
    fn adapted(&self, model: &str) -> bool {
        let leaf = version_leaf(&self.plan, model).map(|leaf| self.plan.leaf_name(leaf));
        let used = leaf.and_then(|leaf| self.manifest.artifacts.get(&leaf));
        used.is_some_and(|used| used.digest != ModelVersion::default().digest())
    }

    fn model_version(&self, leaf: LeafId) -> Option<(String, String)> {
        let node = self.plan.node(&self.plan.leaves[leaf].node)?;
        let asks = |at: LeafId| matches!(&self.plan.leaves[at].shape, Shape::Infer { kernel, .. } if !kernel.cheap());
        match &self.plan.leaves[leaf].shape {
            Shape::Fit { .. } => {
                let fitted = self.manifest.artifacts.get(&self.plan.leaf_name(leaf))?;
                let used =
                    node.updates.as_ref().filter(|model| version_leaf(&self.plan, model) == Some(leaf));
                if let Some(model) = used {
                    return self.adapted(model).then(|| (model.clone(), fitted.digest.clone()));
                }
                // A node that asks a language model names that one; what it fits beside is a part.
                let asking = self.plan.infers().any(|at| self.plan.leaves[at].node == node.name && asks(at));
                let own = node.model.clone().filter(|_| !asking);
                Some((own.unwrap_or_else(|| self.plan.leaf_name(leaf)), fitted.digest.clone()))
            }
            // A model with an adapter is the version that a node made of it.
            Shape::Infer { .. } if node.model.as_ref().is_some_and(|model| self.adapted(model)) => None,
            Shape::Infer { .. } if asks(leaf) => {
                // An inference's logic ends with the digest of its model.
                let logic = self.plan.infer_logic(leaf);
                let digest = logic.rsplit(' ').next().unwrap_or_default().to_string();
                Some((node.model.clone().unwrap_or_else(|| node.name.clone()), digest))
            }
            _ => None,
        }
    }
}

/// The nodes that a node depends on, itself included, in order.
pub fn nodes_above<'a>(plan: &'a Plan, node: &PlanNode) -> Vec<&'a PlanNode> {
    let leaves: Vec<LeafId> = plan.upstream(node.leaf).into_iter().chain([node.leaf]).collect();
    plan.nodes.iter().filter(|above| leaves.contains(&above.leaf)).collect()
}
