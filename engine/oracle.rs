//! The oracle: every relation of a plan from scratch, out of what the state says came in.
//!
//! It walks the same leaves as `render` with plain maps and shares none of the incremental
//! bookkeeping: counts are taken from whole histories, unknown items are found by looking. What it
//! takes from the state is only what cannot be computed again: accumulated input, fitted artifacts
//! and remembered answers. It holds everything in memory.

mod answers;

use std::collections::{BTreeMap, BTreeSet};

use coea_operators::{
    row::{Keyed, Row, Value},
    shape::{Counts, Event, FoldKernel, JoinKernel, LeafId, Loaded, MapKernel, ReduceKernel, Shape},
};

pub use self::answers::{BadAnswer, Calls};
use crate::{
    plan::{Plan, PlanSource},
    runtime::{
        RunError,
        driver::{source_table, table_leaves},
    },
    state::{State, history::History, manifest::Manifest, memo::MemoKey, tables::Tables},
};

/// A relation: keyed rows with their counts, none of them zero.
pub type Table = BTreeMap<Keyed, i64>;

/// One source's events by key, with signed counts.
type Histories = BTreeMap<Row, BTreeMap<Row, i64>>;

/// Everything a plan computes.
#[derive(Debug, Default)]
pub struct Recomputed {
    /// By table name: outputs of nodes, folds, `errors` and `unmatched_retractions`.
    pub tables: BTreeMap<String, Table>,
    /// By leaf name: the memo keys of each inference's requests.
    pub asked: BTreeMap<String, BTreeSet<MemoKey>>,
    /// Answers that are missing, or that came out otherwise when asked for again.
    pub bad_answers: Vec<BadAnswer>,
}

/// Computes every relation of `plan` from the input that `state` has accumulated.
///
/// # Errors
/// If the state cannot be read, an artifact is missing, or a model cannot be asked at all.
pub fn recompute(plan: &Plan, state: &State, calls: Calls) -> Result<Recomputed, RunError> {
    let snapshot = state.snapshot()?;
    let mut oracle = Oracle {
        plan,
        state,
        calls,
        manifest: Manifest::load(&snapshot.layered("meta"))?,
        tables: Tables::new(snapshot.layered("tables")),
        history: History::new(snapshot.layered("history")),
        relations: Vec::with_capacity(plan.leaves.len()),
        histories: BTreeMap::new(),
        errors: Table::new(),
        unmatched: Table::new(),
        out: Recomputed::default(),
    };
    for leaf in 0..plan.leaves.len() {
        let relation = oracle.leaf(leaf)?;
        oracle.relations.push(relation);
    }
    Ok(oracle.finish())
}

struct Oracle<'a> {
    plan: &'a Plan,
    state: &'a State,
    calls: Calls,
    manifest: Manifest,
    tables: Tables,
    history: History,
    /// Per leaf so far; those of event sources are empty.
    relations: Vec<Table>,
    /// Per event source.
    histories: BTreeMap<LeafId, Histories>,
    errors: Table,
    unmatched: Table,
    out: Recomputed,
}

/// Adds to a count; a row whose count becomes zero is gone.
fn add(table: &mut Table, row: Keyed, count: i64) {
    let total = table.entry(row.clone()).or_default();
    *total += count;
    if *total == 0 {
        table.remove(&row);
    }
}

impl Oracle<'_> {
    fn leaf(&mut self, leaf: LeafId) -> Result<Table, RunError> {
        let plan = self.plan;
        match &plan.leaves[leaf].shape {
            Shape::Source(at) => self.source(&plan.sources[*at]),
            Shape::Map { input, artifact, kernel } => self.map(leaf, *input, *artifact, kernel),
            Shape::Fold { source, dim, kernel } => Ok(self.fold(leaf, *source, *dim, kernel.as_ref())),
            Shape::Reduce { inputs, kernel } => Ok(self.reduce(inputs, kernel)),
            Shape::Join { left, right, kernel } => Ok(self.join(*left, *right, kernel)),
            Shape::Infer { requests, artifacts, kernel } => {
                self.infer(leaf, *requests, artifacts, kernel.as_ref())
            }
            Shape::Fit { .. } => Ok(self.version(leaf)),
        }
    }

    fn finish(mut self) -> Recomputed {
        for leaf in table_leaves(self.plan) {
            let rows = std::mem::take(&mut self.relations[leaf]);
            self.out.tables.insert(self.plan.leaf_name(leaf), rows);
        }
        self.out.tables.insert("errors".to_string(), self.errors);
        self.out.tables.insert("unmatched_retractions".to_string(), self.unmatched);
        self.out
    }

    /// Rows of a relation source above zero; those of an event source are kept as histories.
    fn source(&mut self, source: &PlanSource) -> Result<Table, RunError> {
        let id = self.manifest.sources.get(&source.name).map(|known| known.id);
        let mut rows = Table::new();
        if !source.events {
            rows.extend(self.tables.rows(&source_table(&source.name))?);
        } else if let Some(id) = id {
            self.history.for_each(id, &mut |key, events| {
                let keyed = events.iter().map(|(event, count)| ((key.clone(), event.clone()), *count));
                rows.extend(keyed);
            })?;
        }
        for ((key, row), count) in rows.iter().filter(|(_, count)| **count < 0) {
            let key = Row::from([Value::U64(id.unwrap_or_default().into())]).concat(key);
            add(&mut self.unmatched, (key, row.clone()), -count);
        }
        rows.retain(|_, count| *count > 0);
        if source.events {
            let histories = self.histories.entry(source.leaf).or_default();
            for ((key, event), count) in std::mem::take(&mut rows) {
                histories.entry(key).or_default().insert(event, count);
            }
        }
        Ok(rows)
    }

    /// A fit as a relation: the digest of the artifact that the state says it gave.
    fn version(&self, leaf: LeafId) -> Table {
        let artifact = self.manifest.artifacts.get(&self.plan.leaf_name(leaf));
        artifact
            .map(|artifact| ((Row::empty(), Row::from([Value::text(&artifact.digest)])), 1))
            .into_iter()
            .collect()
    }

    /// The digest and the artifact of a fit; nothing if it was never fitted.
    fn artifact(&self, fit: LeafId) -> Result<Option<(String, Loaded)>, RunError> {
        let Some(artifact) = self.manifest.artifacts.get(&self.plan.leaf_name(fit)) else { return Ok(None) };
        let Shape::Fit { load, .. } = &self.plan.leaves[fit].shape else { return Ok(None) };
        let bytes = self.state.memo.artifact_hex(&artifact.digest)?;
        let failed = |cause| RunError::Node { node: self.plan.leaves[fit].node.clone(), cause };
        let bytes = bytes.ok_or_else(|| failed(format!("the artifact {} is gone", artifact.digest)))?;
        Ok(Some((artifact.digest.clone(), load(&bytes).map_err(failed)?)))
    }

    fn map(
        &mut self,
        leaf: LeafId,
        input: LeafId,
        artifact: Option<LeafId>,
        kernel: &MapKernel,
    ) -> Result<Table, RunError> {
        let (mut mapped, mut failed) = (Table::new(), Table::new());
        let (rows, _, loaded) = self.with_versions(input, artifact.as_slice())?;
        for ((key, row), count) in rows {
            let mut out = Vec::new();
            match kernel(loaded.first(), key, row, &mut out) {
                Ok(()) => out.into_iter().for_each(|keyed| add(&mut mapped, keyed, *count)),
                Err(cause) => {
                    let key = Row::from([Value::text(&self.plan.leaves[leaf].node)]).concat(key);
                    add(&mut failed, (key, Row::from([Value::text(cause)])), *count);
                }
            }
        }
        failed.into_iter().for_each(|(row, count)| add(&mut self.errors, row, count));
        Ok(mapped)
    }

    fn fold(
        &mut self,
        leaf: LeafId,
        source: LeafId,
        dim: Option<(LeafId, usize)>,
        kernel: &dyn FoldKernel,
    ) -> Table {
        let dims = dim.map(|(dim, column)| (greatest_rows(&self.relations[dim]), column));
        let mut folded = Table::new();
        let mut unknown: BTreeSet<(Row, Row)> = BTreeSet::new();
        for (key, history) in self.histories.get(&source).into_iter().flatten() {
            let mut events: Vec<Event<'_>> = Vec::with_capacity(history.len());
            for (row, count) in history {
                let event = Event { row, count: count.unsigned_abs(), dim: None };
                let Some((dims, column)) = &dims else {
                    events.push(event);
                    continue;
                };
                let item = Row::new(row.get(*column).cloned());
                match dims.get(&item) {
                    Some(dim) => events.push(Event { dim: Some(*dim), ..event }),
                    None => _ = unknown.insert((key.clone(), item)),
                }
            }
            let mut out = Vec::new();
            replay(kernel, key, &events, &mut out);
            out.into_iter().for_each(|row| add(&mut folded, (key.clone(), row), 1));
        }
        for (user, item) in unknown {
            let row = self.waiting(leaf, source, &user, &item);
            add(&mut self.errors, row, 1);
        }
        folded
    }

    /// The error of a key whose events wait for an item.
    fn waiting(&self, fold: LeafId, source: LeafId, user: &Row, item: &Row) -> Keyed {
        let cells: Vec<String> = item.iter().map(Value::to_string).collect();
        let source = &self.plan.leaves[source].node;
        let cause = format!("item {} of {source} is not known yet; its events wait", cells.join(","));
        let node = Row::from([Value::text(&self.plan.leaves[fold].node)]);
        (node.concat(user).concat(item), Row::from([Value::text(cause)]))
    }

    fn reduce(&self, inputs: &[LeafId], kernel: &ReduceKernel) -> Table {
        let mut groups: BTreeMap<&Row, Vec<Vec<(Row, i64)>>> = BTreeMap::new();
        for (at, input) in inputs.iter().enumerate() {
            for ((key, row), count) in &self.relations[*input] {
                let apart = groups.entry(key).or_insert_with(|| vec![Vec::new(); inputs.len()]);
                apart[at].push((row.clone(), *count));
            }
        }
        let mut reduced = Table::new();
        for (key, apart) in groups {
            let mut out = Vec::new();
            kernel(key, &apart, &mut out);
            out.into_iter().for_each(|row| add(&mut reduced, (key.clone(), row), 1));
        }
        reduced
    }

    fn join(&self, left: LeafId, right: LeafId, kernel: &JoinKernel) -> Table {
        let mut rights: BTreeMap<&Row, Vec<(&Row, i64)>> = BTreeMap::new();
        for ((key, row), count) in &self.relations[right] {
            rights.entry(key).or_default().push((row, *count));
        }
        let mut joined = Table::new();
        for ((key, row), count) in &self.relations[left] {
            for (other, times) in rights.get(key).into_iter().flatten() {
                let mut out = Vec::new();
                kernel(key, row, other, &mut out);
                out.into_iter().for_each(|keyed| add(&mut joined, keyed, count * times));
            }
        }
        joined
    }
}

/// What a map or an inference reads while its artifact is not fitted.
static NO_ROWS: Table = Table::new();

/// The greatest row of each key.
fn greatest_rows(relation: &Table) -> BTreeMap<&Row, &Row> {
    relation.keys().map(|(key, row)| (key, row)).collect()
}

/// Folds events, oldest first, with counts taken from all of them.
fn replay(kernel: &dyn FoldKernel, key: &Row, events: &[Event<'_>], out: &mut Vec<Row>) {
    let mut counts = Counts::new();
    if kernel.counts() {
        for event in events {
            let mut values = Vec::new();
            kernel.counted(event, &mut values);
            values.into_iter().for_each(|value| *counts.entry(value).or_default() += event.count as i64);
        }
    }
    let mut walk = |visit: &mut dyn FnMut(&Event<'_>) -> bool| {
        let _ = events.iter().rev().all(visit);
    };
    kernel.emit(key, &mut walk, &counts, out);
}
