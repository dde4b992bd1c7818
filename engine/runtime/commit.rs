//! From what an epoch changed to one transaction, and to the report of it.

use std::collections::{BTreeMap, BTreeSet};

use coea_operators::{
    row::{Keyed, Row, Value},
    shape::{LeafId, Shape},
};

use super::{
    RunError,
    driver::{Driver, table_leaves},
    fold::Update,
    ingest::delta_key,
    render::Channel,
    retention::RETENTION,
};
use crate::{
    memory::give_back,
    state::{
        changes,
        manifest::{FORMAT, Manifest, NodeState, SourceState, Throughput},
        memo::MemoKey,
        tables::{Tables, consolidate},
    },
};

/// Rows of an epoch after which memory is given back to the system.
const LARGE: u64 = 100_000;

/// What an epoch did to one table.
#[derive(Clone, Debug, Default)]
pub struct TableChange {
    /// How many keys have other rows.
    pub changed: u64,
    /// Those keys; only a plan names them.
    pub keys: BTreeSet<Row>,
    /// Live keys afterwards.
    pub live: u64,
    /// Keys that had rows before and have none now.
    pub gone: u64,
}

/// What an epoch changes.
pub struct EpochChanges {
    /// By leaf: outputs of nodes, and folds.
    pub tables: BTreeMap<LeafId, TableChange>,
    /// Of the error relation.
    pub errors: Vec<Update>,
}

impl Driver<'_> {
    /// Works out what the epoch changes in every table; nothing is written.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn changes(&mut self) -> Result<EpochChanges, RunError> {
        let mut tables = BTreeMap::new();
        for leaf in table_leaves(&self.plan).collect::<Vec<_>>() {
            let name = self.plan.leaf_name(leaf);
            let seen = self.epoch.updates.remove(&Channel::Rows(leaf)).unwrap_or_default();
            let updates = self.against_committed(&name, seen)?;
            let changed = updates.chunk_by(|a, b| a.0.0 == b.0.0);
            let named = changed.clone().take(if self.options.dry { usize::MAX } else { 0 });
            let keys = named.map(|rows| rows[0].0.0.clone()).collect();
            let changed = changed.count() as u64;
            let moved = self.tables.apply(&name, updates)?;
            let before = self.manifest.nodes.get(&name).map_or(0, |node| node.keys);
            let live = before + moved.added - moved.removed.min(before + moved.added);
            tables.insert(leaf, TableChange { changed, keys, live, gone: moved.removed });
        }
        let errors = self.errors()?;
        self.tables.apply("errors", errors.clone())?;
        Ok(EpochChanges { tables, errors })
    }

    /// Updates as differences to what is committed: after a rebuild they are the whole relation.
    fn against_committed(&self, table: &str, seen: Vec<Update>) -> Result<Vec<Update>, RunError> {
        let mut updates = seen;
        if self.rebuild {
            updates.extend(self.tables.rows(table)?.into_iter().map(|(row, count)| (row, -count)));
        }
        Ok(consolidate(updates))
    }

    /// Differences of the error relation: rows of maps and folds as they come and go, and the
    /// calls that failed this time in place of those that failed before.
    fn errors(&mut self) -> Result<Vec<Update>, RunError> {
        let mut updates: Vec<Update> = Vec::new();
        for leaf in 0..self.plan.leaves.len() {
            let node = Value::text(&self.plan.leaves[leaf].node);
            let seen = self.epoch.updates.remove(&Channel::Errors(leaf)).unwrap_or_default();
            let fold = matches!(self.plan.leaves[leaf].shape, Shape::Fold { .. });
            updates.extend(seen.into_iter().map(|((key, row), diff)| match fold {
                true => ((key, row), diff),
                false => ((Row::from([node.clone()]).concat(&key), row), diff),
            }));
        }
        updates.extend(self.failed_calls().into_iter().map(|row| (row, 1)));
        match self.rebuild {
            true => updates.extend(self.tables.rows("errors")?.into_iter().map(|(row, count)| (row, -count))),
            false => updates.extend(self.failures.iter().map(|row| (row.clone(), -1))),
        }
        Ok(consolidate(updates))
    }

    /// The rows of the error relation for the calls that failed.
    pub(super) fn failed_calls(&self) -> Vec<Keyed> {
        let failed = self.failed.iter();
        failed.map(|((leaf, key), cause)| failed_call(&self.plan.leaves[*leaf].node, key, cause)).collect()
    }

    /// Writes the epoch in one transaction, brings the memo's retention after it, and begins the
    /// next one; says which epoch it was.
    ///
    /// # Errors
    /// If a database refuses; then nothing of the epoch is written.
    pub fn commit(&mut self, changes: &EpochChanges) -> Result<u64, RunError> {
        let epoch = self.manifest.epoch + 1;
        self.apply_letters()?;
        self.drop_vanished()?;
        self.apply_backlog(epoch)?;
        let released = self.released();
        let marks = self.marks(epoch)?;
        let manifest = self.next_manifest(epoch, changes);
        let snapshot = self.state.snapshot()?;
        let (mut meta, mut deltas) = (snapshot.layered("meta"), snapshot.layered("deltas"));
        manifest.save(&mut meta);
        marks.save(&mut meta);
        for (source, digest) in &self.epoch.applied {
            deltas.put(delta_key(source, digest), epoch.to_be_bytes().to_vec());
        }
        let mut changed = snapshot.layered("changes");
        changes::record(epoch, &self.tables, &mut changed)?;
        let mut all = vec![("meta", meta.take()), ("deltas", deltas.take()), ("tables", self.tables.take())];
        all.push(("changes", changed.take()));
        for folds in self.workers.take()? {
            all.extend([("history", folds.history), ("index", folds.index), ("counts", folds.counts)]);
        }
        if let Some(store) = &self.state.store {
            store.write(all)?;
        }
        self.release(released)?;
        self.state.memo.retain(&marks, Some(RETENTION))?;
        self.rest(manifest)?;
        Ok(epoch)
    }

    /// Moves on to what is committed now.
    fn rest(&mut self, manifest: Manifest) -> Result<(), RunError> {
        // A bound is one for all epochs of a run that takes cycles; `watch` has it for each.
        if self.options.cycles {
            self.spent += self.epoch.spent;
            for (leaf, report) in &self.epoch.calls {
                *self.spent_on.entry(self.plan.leaves[*leaf].node.clone()).or_default() += report.calls;
            }
        }
        self.manifest = manifest;
        self.failures = self.failed_calls();
        self.tables = Tables::new(self.state.snapshot()?.layered("tables"));
        self.workers.rebase()?;
        let rows: u64 = self.epoch.inputs.iter().map(|input| input.rows + input.retractions).sum();
        if self.rebuild || rows >= LARGE {
            give_back();
        }
        self.rebuild = false;
        self.begin(Vec::new());
        Ok(())
    }

    fn apply_letters(&mut self) -> Result<(), RunError> {
        let unmatched = std::mem::take(&mut self.epoch.unmatched);
        self.tables.apply("unmatched_retractions", unmatched)?;
        let letters = std::mem::take(&mut self.epoch.dead).into_iter().map(|letter| {
            let key = [Value::text(&letter.source), Value::text(&letter.file), Value::U64(letter.line)];
            let row = [Value::U64(letter.byte), Value::text(&letter.cause), Value::text(&letter.raw)];
            ((Row::from(key), Row::from(row)), 1)
        });
        let letters = letters.collect();
        self.tables.apply("dead_letters", letters)?;
        Ok(())
    }

    /// Tables of nodes that are no longer in the pipeline go with them.
    fn drop_vanished(&mut self) -> Result<(), RunError> {
        let names: BTreeSet<String> =
            table_leaves(&self.plan).map(|leaf| self.plan.leaf_name(leaf)).collect();
        for name in self.manifest.nodes.keys().filter(|name| !names.contains(*name)) {
            self.tables.drop_table(name)?;
        }
        Ok(())
    }

    pub(super) fn next_manifest(&self, epoch: u64, changes: &EpochChanges) -> Manifest {
        let mut manifest = self.manifest.clone();
        manifest.format = FORMAT;
        manifest.pipeline = self.plan.name.clone();
        manifest.epoch = epoch;
        manifest.workers = self.options.workers.max(1);
        manifest.nodes = changes
            .tables
            .iter()
            .map(|(leaf, change)| {
                let name = self.plan.leaf_name(*leaf);
                let node = self.plan.nodes.iter().find(|n| n.name == self.plan.leaves[*leaf].node);
                let state = NodeState {
                    op: node.map(|n| n.op.clone()).unwrap_or_default(),
                    logic: node.map(|n| n.logic.clone()).unwrap_or_default(),
                    lineage: self.plan.lineage[*leaf].clone(),
                    keys: change.live,
                };
                (name, state)
            })
            .collect();
        for source in &self.plan.sources {
            let id = self.ids[&source.name];
            let known = manifest.sources.entry(source.name.clone()).or_insert_with(|| SourceState {
                id,
                logic: source.logic.clone(),
                ..SourceState::default()
            });
            if let Some(offsets) = self.epoch.offsets.get(&source.name) {
                known.offsets = offsets.clone();
            }
            known.rows += self.epoch.net.get(&id).copied().unwrap_or(0);
        }
        manifest.artifacts =
            self.fitted.iter().map(|(leaf, fit)| (self.plan.leaf_name(*leaf), fit.clone())).collect();
        for (leaf, report) in self.epoch.calls.iter().filter(|(_, report)| report.calls > 0) {
            let node = self.plan.leaves[*leaf].node.clone();
            let known: &mut Throughput = manifest.throughput.entry(node).or_default();
            known.calls += report.calls;
            known.seconds += report.seconds;
        }
        for (leaf, (cost, seconds)) in &self.epoch.training {
            let known = manifest.training.entry(self.plan.leaves[*leaf].node.clone()).or_default();
            known.calls += cost.steps;
            known.seconds += seconds;
        }
        self.note_versions(&mut manifest);
        manifest.taken = self.taken();
        manifest.dead_letters += self.epoch.inputs.iter().map(|input| input.rejected).sum::<u64>();
        manifest
    }
}

/// What tells a failed call from the row of a user: no user's id is null.
fn failed_mark() -> Value {
    Value::Null
}

/// Whether a row of the error relation is that of a failed call.
pub(super) fn is_failed_call((key, _): &Keyed) -> bool {
    key.len() == 3 && key[1] == failed_mark()
}

/// Where the error relation has a call that failed.
pub(crate) fn failed_at(node: &str, key: &MemoKey) -> Row {
    let hash = blake3::Hash::from_bytes(*key).to_hex();
    Row::from([Value::text(node), failed_mark(), Value::text(&hash[..16])])
}

/// A row of the error relation for a call that failed.
fn failed_call(node: &str, key: &MemoKey, cause: &str) -> Keyed {
    (failed_at(node, key), Row::from([Value::text(cause)]))
}
