//! Folds over histories, on one worker: which keys an epoch touches, and what becomes of them.
//!
//! Events never enter an arrangement. A worker keeps the histories of its shards, applies the
//! events it is sent, and when the tick's side inputs are complete folds the touched keys again and
//! says what changed. A fold whose side input is not fitted yet waits, and remembers the keys.

mod counts;
mod index;
mod one;
mod unknown;

use std::collections::{BTreeMap, BTreeSet};

use coea_operators::{
    row::{Keyed, Row, Value},
    shape::LeafId,
};

pub use self::unknown::unknown_pairs;
use self::{
    counts::CountsTable,
    index::Index,
    one::{Fold, Seen},
};
use crate::{
    plan::Plan,
    state::{
        Snapshot, StateError,
        history::{Counted, History, shard},
        layered::Changes,
        tables::consolidate,
    },
};

/// A keyed row with the difference of its count.
pub type Update = (Keyed, i64);

/// Bytes of an item or a user in an index entry that are kept for order.
const INDEX_PREFIX: usize = 160;

/// The histories of one worker's shards, with the folds over them.
pub struct Folds {
    /// The databases, with this epoch's changes over them.
    history: History,
    index: Index,
    counts: CountsTable,
    folds: Vec<Fold>,
    /// Signed counts below zero, as changes of a relation: source, key and event.
    pub unmatched: Vec<Update>,
    /// Net events per source.
    pub net: BTreeMap<u16, i64>,
    workers: usize,
    worker: usize,
}

/// What a fold changed in a tick.
#[derive(Default)]
pub struct FoldOutput {
    /// Rows.
    pub rows: Vec<Update>,
    /// Rows of the error relation: (user, item) → cause.
    pub errors: Vec<Update>,
}

/// The changes of an epoch, to be committed.
#[derive(Default)]
pub struct FoldChanges {
    /// Of the histories.
    pub history: Changes,
    /// Of the index item → users.
    pub index: Changes,
    /// Of the counted values.
    pub counts: Changes,
}

impl Folds {
    /// The folds of a plan on one of several workers.
    pub fn new(
        plan: &Plan,
        ids: &BTreeMap<String, u16>,
        snapshot: &Snapshot,
        (worker, workers): (usize, usize),
    ) -> Self {
        let folds = plan.folds().filter_map(|leaf| Fold::new(plan, ids, leaf)).collect();
        Folds { folds, workers, worker, ..Self::over(snapshot) }
    }

    fn over(snapshot: &Snapshot) -> Self {
        Folds {
            history: History::new(snapshot.layered("history")),
            index: Index::new(snapshot.layered("index")),
            counts: CountsTable::new(snapshot.layered("counts")),
            folds: Vec::new(),
            unmatched: Vec::new(),
            net: BTreeMap::new(),
            workers: 1,
            worker: 0,
        }
    }

    /// Whether a key's shard belongs to this worker.
    fn mine(&self, key: &Row) -> bool {
        self.workers == 1 || usize::from(shard(key)) % self.workers == self.worker
    }

    /// Moves on to what is committed now, keeping what is in memory.
    pub fn rebase(&mut self, snapshot: &Snapshot) {
        let fresh = Self::over(snapshot);
        self.history = fresh.history;
        self.index = fresh.index;
        self.counts = fresh.counts;
    }

    /// Applies events of a source, in any order.
    ///
    /// # Errors
    /// If the histories cannot be read.
    pub fn apply(&mut self, source: u16, mut events: Vec<Update>) -> Result<(), StateError> {
        events.sort_unstable();
        let mut deltas: Vec<Counted> = Vec::new();
        let mut events = events.into_iter().peekable();
        while let Some(((key, event), diff)) = events.next() {
            deltas.push((event, diff));
            while let Some(((_, event), diff)) = events.next_if(|((other, _), _)| *other == key) {
                deltas.push((event, diff));
            }
            self.apply_key(source, &key, &consolidate(std::mem::take(&mut deltas)))?;
        }
        Ok(())
    }

    fn apply_key(&mut self, source: u16, key: &Row, deltas: &[Counted]) -> Result<(), StateError> {
        let mut seen: Vec<Seen> = Vec::new();
        let (unmatched, mut net) = (&mut self.unmatched, 0);
        self.history.apply(source, key, deltas, &mut |step| {
            let below = step.after.min(0) - step.before.min(0);
            if below != 0 {
                unmatched.push((unmatched_row(source, key, step.event), -below));
            }
            net += step.after - step.before;
            let (before, after) = (step.before.max(0), step.after.max(0));
            if before != after {
                seen.push((step.event.clone(), before, after));
            }
        })?;
        *self.net.entry(source).or_default() += net;
        if seen.is_empty() {
            return Ok(());
        }
        for fold in self.folds.iter_mut().filter(|fold| fold.source == source) {
            fold.touched.insert(key.clone());
            fold.count(key, &seen, &mut self.counts)?;
        }
        self.index_key(source, key, &seen)
    }

    /// Keeps the index item → users and, per fold, the pairs whose item is unknown.
    fn index_key(&mut self, source: u16, key: &Row, seen: &[Seen]) -> Result<(), StateError> {
        let of_source = self.folds.iter().filter(|fold| fold.source == source);
        let columns: BTreeSet<usize> = of_source.filter_map(|fold| fold.dim.map(|(_, at)| at)).collect();
        for column in columns {
            for (event, before, after) in seen {
                let change = i64::from(*after > 0) - i64::from(*before > 0);
                let Some(item) = event.get(column).filter(|_| change != 0) else { continue };
                let item = Row::from([item.clone()]);
                let there = self.index.change(source, &item, key, change)?;
                for fold in &mut self.folds {
                    if fold.ready && fold.source == source && fold.dim.is_some_and(|(_, at)| at == column) {
                        fold.note_unknown(&item, key, there);
                    }
                }
            }
        }
        Ok(())
    }

    /// Lets a fold begin when this tick's side input is in.
    pub fn ready_next(&mut self, leaf: LeafId) {
        if let Some(fold) = self.folds.iter_mut().find(|fold| fold.leaf == leaf) {
            fold.ready_next = true;
        }
    }

    /// Takes a tick's changes of a fold's side input, folds the touched keys and says what changed;
    /// a fold that waits says nothing.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn advance(&mut self, leaf: LeafId, updates: Vec<Update>) -> Result<FoldOutput, StateError> {
        self.dims(leaf, updates)?;
        self.make_ready(leaf)?;
        self.run(leaf)
    }

    /// Takes changes of a fold's side input; keys whose events they concern are touched.
    fn dims(&mut self, leaf: LeafId, updates: Vec<Update>) -> Result<(), StateError> {
        let Some(at) = self.folds.iter().position(|fold| fold.leaf == leaf) else { return Ok(()) };
        let items = self.folds[at].take_dims(updates);
        if !self.folds[at].ready {
            return Ok(());
        }
        for item in items {
            let mut users = self.index.users(self.folds[at].source, &item)?;
            users.retain(|user| self.mine(user));
            let fold = &mut self.folds[at];
            for user in users {
                fold.note_unknown(&item, &user, true);
                if fold.kernel.counts() {
                    fold.recount.insert(user.clone());
                }
                fold.touched.insert(user);
            }
        }
        Ok(())
    }

    /// A fold that waited and is to begin looks for unknown items; one that was restored and has
    /// nothing new knows them.
    fn make_ready(&mut self, leaf: LeafId) -> Result<(), StateError> {
        let (workers, worker) = (self.workers, self.worker);
        let waiting = |fold: &&mut Fold| fold.leaf == leaf && fold.ready_next && !fold.ready;
        let Some(fold) = self.folds.iter_mut().find(waiting) else { return Ok(()) };
        fold.ready = true;
        if fold.restored && fold.touched.is_empty() {
            return Ok(());
        }
        self.index.pairs(fold.source, &mut |item, user| {
            if usize::from(shard(user)) % workers == worker {
                fold.note_unknown(item, user, true);
            }
        })
    }

    /// Takes what a fold gave at the last commit, instead of folding again.
    pub fn restore(&mut self, leaf: LeafId, rows: Vec<Update>, unknown: Vec<(Row, Row)>) {
        if let Some(fold) = self.folds.iter_mut().find(|fold| fold.leaf == leaf) {
            // The side input comes in the same tick, and is no news to it.
            fold.ready = fold.dim.is_none();
            fold.ready_next = true;
            fold.restored = true;
            fold.unknown.restore(unknown);
            for ((key, row), count) in rows {
                let outputs = fold.outputs.entry(key).or_default();
                outputs.extend(std::iter::repeat_n(row, count.max(0) as usize));
            }
        }
    }

    /// Touches every key of a fold's source that this worker has.
    ///
    /// # Errors
    /// If the histories cannot be read.
    pub fn touch_all(&mut self, leaf: LeafId) -> Result<(), StateError> {
        let Some(at) = self.folds.iter().position(|fold| fold.leaf == leaf) else { return Ok(()) };
        let mut keys: BTreeSet<Row> = BTreeSet::new();
        self.history.keys(self.folds[at].source, &mut |key| _ = keys.insert(key))?;
        keys.retain(|key| self.mine(key));
        let fold = &mut self.folds[at];
        if fold.kernel.counts() {
            fold.recount.extend(keys.iter().cloned());
        }
        fold.touched.extend(keys);
        Ok(())
    }

    /// Folds the touched keys of one fold.
    fn run(&mut self, leaf: LeafId) -> Result<FoldOutput, StateError> {
        let mut output = FoldOutput::default();
        let ready = |fold: &&mut Fold| fold.leaf == leaf && fold.ready;
        let Some(fold) = self.folds.iter_mut().find(ready) else { return Ok(output) };
        for key in std::mem::take(&mut fold.touched) {
            let counts = fold.counts(&key, &self.history, &mut self.counts)?;
            let rows = fold.emit(&key, &self.history, &counts)?;
            fold.replace(key, rows, &mut output.rows);
        }
        output.errors = fold.unknown.take();
        Ok(output)
    }

    /// All events of a source on this worker: key, event and positive count, sorted.
    ///
    /// # Errors
    /// If the histories cannot be read.
    pub fn events(&self, source: u16) -> Result<Vec<Update>, StateError> {
        let mut all = Vec::new();
        self.history.for_each(source, &mut |key, events| {
            if self.mine(key) {
                let positive = events.iter().filter(|(_, count)| *count > 0);
                all.extend(positive.map(|(event, count)| ((key.clone(), event.clone()), *count)));
            }
        })?;
        all.sort_unstable();
        Ok(all)
    }

    /// The changes of this epoch, taken out.
    pub fn take(&mut self) -> FoldChanges {
        FoldChanges { history: self.history.take(), index: self.index.take(), counts: self.counts.take() }
    }
}

fn unmatched_row(source: u16, key: &Row, event: &Row) -> Keyed {
    (Row::from([Value::U64(source.into())]).concat(key), event.clone())
}
