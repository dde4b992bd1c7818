//! Folds over histories, on one worker: which keys an epoch touches, and what becomes of them.
//!
//! Events never enter an arrangement. A worker keeps the histories of its shards, applies the
//! events it is sent, and when the tick's side inputs are complete folds the touched keys again and
//! says what changed. A fold whose side input is not fitted yet waits, and remembers the keys.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use coea_operators::{
    row::{Keyed, Row, Value, encode_row},
    shape::{Counts, Event, FoldKernel, LeafId, Shape},
};

use crate::{
    plan::Plan,
    state::{
        Snapshot, StateError,
        history::{Counted, History, shard},
        layered::{Changes, Layered},
        tables::bounded,
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
    index: Layered,
    counts: Layered,
    folds: Vec<Fold>,
    /// Signed counts below zero, as changes of a relation: source, key and event.
    pub unmatched: Vec<Update>,
    /// Net events per source.
    pub net: BTreeMap<u16, i64>,
    workers: usize,
    worker: usize,
}

/// One fold.
struct Fold {
    leaf: LeafId,
    name: String,
    node: String,
    /// The source's number in the state.
    source: u16,
    source_name: String,
    kernel: std::sync::Arc<dyn FoldKernel>,
    /// The side input's leaf, the event column it is looked up by, and the fits it waits for.
    dim: Option<(LeafId, usize)>,
    dims: HashMap<Row, BTreeMap<Row, i64>>,
    ready: bool,
    /// Whether the side input is complete once this tick's changes are in.
    ready_next: bool,
    /// Whether it took up what it gave at the last commit.
    restored: bool,
    touched: BTreeSet<Row>,
    /// Keys whose counts are to be taken anew from the whole history.
    recount: BTreeSet<Row>,
    /// What each key gave last.
    outputs: HashMap<Row, Vec<Row>>,
    /// (item, user) pairs whose item the side input does not know.
    unknown: BTreeSet<(Row, Row)>,
    errors: Vec<Update>,
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

fn index_key(source: u16, item: &Row, user: &Row) -> Vec<u8> {
    let mut key = index_prefix(source, item);
    key.extend(bounded(encode_row(user), INDEX_PREFIX));
    key
}

fn index_prefix(source: u16, item: &Row) -> Vec<u8> {
    [&source.to_be_bytes()[..], &bounded(encode_row(item), INDEX_PREFIX)].concat()
}

fn counts_key(fold: &str, user: &Row) -> Vec<u8> {
    [fold.as_bytes(), &[0], &bounded(encode_row(user), INDEX_PREFIX)].concat()
}

impl Folds {
    /// The folds of a plan on one of several workers.
    pub fn new(
        plan: &Plan,
        ids: &BTreeMap<String, u16>,
        snapshot: &Snapshot,
        (worker, workers): (usize, usize),
    ) -> Self {
        let fold = |leaf: LeafId| match &plan.leaves[leaf].shape {
            Shape::Fold { source, dim, kernel } => {
                let source = plan.sources.iter().find(|s| s.leaf == *source)?;
                Some(Fold {
                    leaf,
                    name: plan.leaf_name(leaf),
                    node: plan.leaves[leaf].node.clone(),
                    source: ids.get(&source.name).copied().unwrap_or_default(),
                    source_name: source.name.clone(),
                    kernel: kernel.clone(),
                    dim: *dim,
                    dims: HashMap::new(),
                    ready: dim.is_none(),
                    ready_next: false,
                    restored: false,
                    touched: BTreeSet::new(),
                    recount: BTreeSet::new(),
                    outputs: HashMap::new(),
                    unknown: BTreeSet::new(),
                    errors: Vec::new(),
                })
            }
            _ => None,
        };
        Folds {
            folds: plan.folds().filter_map(fold).collect(),
            unmatched: Vec::new(),
            net: BTreeMap::new(),
            workers,
            worker,
            ..Self::over(snapshot)
        }
    }

    fn over(snapshot: &Snapshot) -> Self {
        Folds {
            history: History::new(snapshot.layered("history")),
            index: snapshot.layered("index"),
            counts: snapshot.layered("counts"),
            folds: Vec::new(),
            unmatched: Vec::new(),
            net: BTreeMap::new(),
            workers: 1,
            worker: 0,
        }
    }

    /// Whether a key's shard belongs to this worker.
    fn mine(&self, key: &Row) -> bool {
        usize::from(shard(key)) % self.workers == self.worker
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
        for group in events.chunk_by(|a, b| a.0.0 == b.0.0) {
            let key = &group[0].0.0;
            let deltas: Vec<Counted> = crate::state::tables::consolidate(
                group.iter().map(|((_, event), diff)| (event.clone(), *diff)).collect(),
            );
            self.apply_key(source, key, &deltas)?;
        }
        Ok(())
    }

    fn apply_key(&mut self, source: u16, key: &Row, deltas: &[Counted]) -> Result<(), StateError> {
        let mut steps: Vec<(Row, i64, i64)> = Vec::new();
        self.history.apply(source, key, deltas, &mut |step| {
            steps.push((step.event.clone(), step.before, step.after));
        })?;
        for (event, before, after) in &steps {
            let below = (*after).min(0) - (*before).min(0);
            if below != 0 {
                self.unmatched.push((unmatched_row(source, key, event), -below));
            }
            *self.net.entry(source).or_default() += after - before;
        }
        for at in 0..self.folds.len() {
            if self.folds[at].source != source {
                continue;
            }
            for (event, before, after) in &steps {
                let (before, after) = (*before.max(&0), *after.max(&0));
                if before != after {
                    self.step(at, key, event, before, after)?;
                }
            }
        }
        self.index_steps(source, key, &steps)
    }

    /// One event's count changed: the fold's key is touched, its counted values move.
    fn step(&mut self, at: usize, key: &Row, event: &Row, before: i64, after: i64) -> Result<(), StateError> {
        let fold = &mut self.folds[at];
        fold.touched.insert(key.clone());
        if !fold.kernel.counts() || fold.recount.contains(key) {
            return Ok(());
        }
        if !fold.ready {
            fold.recount.insert(key.clone());
            return Ok(());
        }
        let Some(seen) = fold.see(event, 1) else { return Ok(()) };
        let mut values = Vec::new();
        fold.kernel.counted(&seen, &mut values);
        if values.is_empty() {
            return Ok(());
        }
        let place = counts_key(&fold.name, key);
        let mut counts = read_counts(&self.counts, &place)?;
        values.into_iter().for_each(|value| *counts.entry(value).or_default() += after - before);
        write_counts(&mut self.counts, place, counts);
        Ok(())
    }

    /// Keeps the index item → users and, per fold, the pairs whose item is unknown.
    fn index_steps(&mut self, source: u16, key: &Row, steps: &[(Row, i64, i64)]) -> Result<(), StateError> {
        let columns: BTreeSet<usize> = self
            .folds
            .iter()
            .filter(|fold| fold.source == source)
            .filter_map(|fold| fold.dim.map(|(_, column)| column))
            .collect();
        for column in columns {
            for (event, before, after) in steps {
                let change = i64::from(*after > 0) - i64::from(*before > 0);
                let Some(item) = event.get(column).filter(|_| change != 0) else { continue };
                let item = Row::from([item.clone()]);
                let place = index_key(source, &item, key);
                let entry: Option<(Row, Row, i64)> = read(&self.index, &place)?;
                let count = entry.map_or(0, |(_, _, count)| count) + change;
                match count {
                    0 => self.index.delete(place),
                    _ => self.index.put(place, write(&(&item, key, count))),
                }
                for fold in &mut self.folds {
                    if fold.ready && fold.source == source && fold.dim.is_some_and(|(_, c)| c == column) {
                        fold.note_unknown(&item, key, count > 0);
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
        let mut items: BTreeSet<Row> = BTreeSet::new();
        let fold = &mut self.folds[at];
        for ((item, row), diff) in updates {
            let rows = fold.dims.entry(item.clone()).or_default();
            let count = rows.entry(row.clone()).or_default();
            *count += diff;
            if *count == 0 {
                rows.remove(&row);
            }
            if rows.is_empty() {
                fold.dims.remove(&item);
            }
            items.insert(item);
        }
        if !fold.ready {
            return Ok(());
        }
        let source = fold.source;
        for item in items {
            let mut users: Vec<Row> = Vec::new();
            self.index.scan(&index_prefix(source, &item), &mut |_, bytes| {
                let (_, user, _): (Row, Row, i64) = decode(bytes)?;
                users.push(user);
                Ok(true)
            })?;
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
        let waiting = |fold: &&mut Fold| fold.leaf == leaf && fold.ready_next && !fold.ready;
        let (worker, workers) = (self.worker, self.workers);
        let Some(fold) = self.folds.iter_mut().find(waiting) else { return Ok(()) };
        fold.ready = true;
        if fold.restored && fold.touched.is_empty() {
            return Ok(());
        }
        self.index.scan(&fold.source.to_be_bytes(), &mut |_, bytes| {
            let (item, user, _): (Row, Row, i64) = decode(bytes)?;
            if usize::from(shard(&user)) % workers == worker {
                fold.note_unknown(&item, &user, true);
            }
            Ok(true)
        })
    }

    /// Takes what a fold gave at the last commit, instead of folding again.
    pub fn restore(&mut self, leaf: LeafId, rows: Vec<Update>, unknown: Vec<(Row, Row)>) {
        if let Some(fold) = self.folds.iter_mut().find(|fold| fold.leaf == leaf) {
            // The side input comes in the same tick, and is no news to it.
            fold.ready = fold.dim.is_none();
            fold.ready_next = true;
            fold.restored = true;
            fold.unknown.extend(unknown);
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
        self.history.for_each(self.folds[at].source, &mut |key, _| {
            if !keys.contains(key) {
                keys.insert(key.clone());
            }
        })?;
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
        let Some(at) = self.folds.iter().position(|fold| fold.leaf == leaf && fold.ready) else {
            return Ok(output);
        };
        for key in std::mem::take(&mut self.folds[at].touched) {
            self.fold_key(at, &key, &mut output)?;
        }
        output.errors = std::mem::take(&mut self.folds[at].errors);
        Ok(output)
    }

    fn fold_key(&mut self, at: usize, key: &Row, output: &mut FoldOutput) -> Result<(), StateError> {
        let fold = &mut self.folds[at];
        let counts = if fold.kernel.counts() {
            let place = counts_key(&fold.name, key);
            if fold.recount.remove(key) {
                let counts = recount(fold, &self.history, key)?;
                write_counts(&mut self.counts, place, counts.clone());
                counts
            } else {
                read_counts(&self.counts, &place)?
            }
        } else {
            Counts::new()
        };
        let mut rows = Vec::new();
        let mut failed = None;
        let (history, seen) = (&self.history, &*fold);
        let mut walk = |visit: &mut dyn FnMut(&Event<'_>) -> bool| {
            let walked = history.walk(fold.source, key, &mut |row, count| match seen.see(row, count) {
                Some(event) => visit(&event),
                None => true,
            });
            failed = walked.err();
        };
        fold.kernel.emit(key, &mut walk, &counts, &mut rows);
        if let Some(error) = failed {
            return Err(error);
        }
        rows.sort();
        let fold = &mut self.folds[at];
        let old = match rows.is_empty() {
            true => fold.outputs.remove(key),
            false => fold.outputs.insert(key.clone(), rows.clone()),
        };
        let old = old.unwrap_or_default();
        if old != rows {
            output.rows.extend(old.into_iter().map(|row| ((key.clone(), row), -1)));
            output.rows.extend(rows.into_iter().map(|row| ((key.clone(), row), 1)));
        }
        Ok(())
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

impl Fold {
    /// An event as the kernel sees it; none while its count is not positive or its item unknown.
    fn see<'a>(&'a self, row: &'a Row, count: i64) -> Option<Event<'a>> {
        let count = u64::try_from(count).ok().filter(|count| *count > 0)?;
        let dim = match self.dim {
            None => None,
            Some((_, column)) => {
                let item = Row::from([row.get(column)?.clone()]);
                Some(self.dims.get(&item)?.keys().next_back()?)
            }
        };
        Some(Event { row, count, dim })
    }

    /// Keeps the error relation: a pair is in it while its events are there and its item is not.
    fn note_unknown(&mut self, item: &Row, user: &Row, there: bool) {
        let pair = (item.clone(), user.clone());
        let unknown = there && !self.dims.contains_key(item);
        let changed = if unknown { self.unknown.insert(pair) } else { self.unknown.remove(&pair) };
        if changed {
            let key = Row::new(
                [Value::text(&self.node)].into_iter().chain(user.iter().cloned()).chain(item.iter().cloned()),
            );
            let item: Vec<String> = item.iter().map(Value::to_string).collect();
            let cause =
                format!("item {} of {} is not known yet; its events wait", item.join(","), self.source_name);
            self.errors.push(((key, Row::from([Value::text(cause)])), if unknown { 1 } else { -1 }));
        }
    }
}

fn recount(fold: &Fold, history: &History, key: &Row) -> Result<Counts, StateError> {
    let mut counts = Counts::new();
    let mut values = Vec::new();
    history.walk(fold.source, key, &mut |row, count| {
        if let Some(event) = fold.see(row, count) {
            fold.kernel.counted(&event, &mut values);
            values.drain(..).for_each(|value| *counts.entry(value).or_default() += count);
        }
        true
    })?;
    Ok(counts)
}

fn unmatched_row(source: u16, key: &Row, event: &Row) -> Keyed {
    (Row::from([Value::U64(source.into())]).concat(key), event.clone())
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, StateError> {
    postcard::from_bytes(bytes).map_err(|e| StateError::Corrupt(format!("index: {e}")))
}

fn read<T: serde::de::DeserializeOwned>(database: &Layered, key: &[u8]) -> Result<Option<T>, StateError> {
    database.get(key)?.map(|bytes| decode(&bytes)).transpose()
}

fn write<T: serde::Serialize>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).unwrap_or_default()
}

fn read_counts(database: &Layered, key: &[u8]) -> Result<Counts, StateError> {
    Ok(read(database, key)?.unwrap_or_default())
}

fn write_counts(database: &mut Layered, key: Vec<u8>, mut counts: Counts) {
    counts.retain(|_, count| *count != 0);
    match counts.is_empty() {
        true => database.delete(key),
        false => database.put(key, write(&counts)),
    }
}

/// The pairs (item, user) that rows of the error relation of `node` speak of.
pub fn unknown_pairs(node: &str, rows: &[Update], user_width: usize) -> Vec<(Row, Row)> {
    let of_node = rows.iter().filter(|((key, _), _)| key.first().and_then(Value::as_text) == Some(node));
    of_node
        .filter(|((key, _), _)| key.len() == user_width + 2)
        .map(|((key, _), _)| {
            let user = Row::new(key[1..=user_width].iter().cloned());
            (Row::new(key[user_width + 1..].iter().cloned()), user)
        })
        .collect()
}
