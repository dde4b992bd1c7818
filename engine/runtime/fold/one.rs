//! One fold: its side input, its counts, and what each key gave last.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use coea_operators::{
    row::Row,
    shape::{Counts, Event, FoldKernel, LeafId, Shape},
};

use super::{Update, counts::CountsTable, unknown::Unknown};
use crate::{
    plan::Plan,
    state::{StateError, history::History},
};

/// An event with its count before and after, neither below zero.
pub(super) type Seen = (Row, i64, i64);

/// One fold.
pub(super) struct Fold {
    pub leaf: LeafId,
    pub name: String,
    /// The source's number in the state.
    pub source: u16,
    pub kernel: Arc<dyn FoldKernel>,
    /// The side input's leaf, the event column it is looked up by, and the fits it waits for.
    pub dim: Option<(LeafId, usize)>,
    pub dims: HashMap<Row, BTreeMap<Row, i64>>,
    pub ready: bool,
    /// Whether the side input is complete once this tick's changes are in.
    pub ready_next: bool,
    /// Whether it took up what it gave at the last commit.
    pub restored: bool,
    pub touched: BTreeSet<Row>,
    /// Keys whose counts are to be taken anew from the whole history.
    pub recount: BTreeSet<Row>,
    /// What each key gave last.
    pub outputs: HashMap<Row, Vec<Row>>,
    pub unknown: Unknown,
}

impl Fold {
    /// A fold of a plan.
    pub fn new(plan: &Plan, ids: &BTreeMap<String, u16>, leaf: LeafId) -> Option<Self> {
        let Shape::Fold { source, dim, kernel } = &plan.leaves[leaf].shape else { return None };
        let source = plan.sources.iter().find(|s| s.leaf == *source)?;
        Some(Fold {
            leaf,
            name: plan.leaf_name(leaf),
            source: ids.get(&source.name).copied().unwrap_or_default(),
            kernel: kernel.clone(),
            dim: *dim,
            dims: HashMap::new(),
            ready: dim.is_none(),
            ready_next: false,
            restored: false,
            touched: BTreeSet::new(),
            recount: BTreeSet::new(),
            outputs: HashMap::new(),
            unknown: Unknown::new(&plan.leaves[leaf].node, &source.name),
        })
    }

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

    /// Moves a key's counted values by the events that came and went.
    pub fn count(&mut self, key: &Row, seen: &[Seen], table: &mut CountsTable) -> Result<(), StateError> {
        if !self.kernel.counts() || self.recount.contains(key) {
            return Ok(());
        }
        if !self.ready {
            self.recount.insert(key.clone());
            return Ok(());
        }
        let (mut moves, mut values) = (Vec::new(), Vec::new());
        for (event, before, after) in seen {
            if let Some(event) = self.see(event, 1) {
                self.kernel.counted(&event, &mut values);
                moves.extend(values.drain(..).map(|value| (value, after - before)));
            }
        }
        if moves.is_empty() {
            return Ok(());
        }
        let mut counts = table.get(&self.name, key)?;
        moves.into_iter().for_each(|(value, change)| *counts.entry(value).or_default() += change);
        table.put(&self.name, key, &mut counts);
        Ok(())
    }

    /// Takes changes of the side input and says which items they concern.
    pub fn take_dims(&mut self, updates: Vec<Update>) -> BTreeSet<Row> {
        let mut items = BTreeSet::new();
        for ((item, row), diff) in updates {
            let rows = self.dims.entry(item.clone()).or_default();
            let count = rows.entry(row.clone()).or_default();
            *count += diff;
            if *count == 0 {
                rows.remove(&row);
            }
            if rows.is_empty() {
                self.dims.remove(&item);
            }
            items.insert(item);
        }
        items
    }

    /// Notes whether events of a user wait for their item.
    pub fn note_unknown(&mut self, item: &Row, user: &Row, there: bool) {
        let waits = there && !self.dims.contains_key(item);
        self.unknown.note(item, user, waits);
    }

    /// A key's counts, taken anew from its history where they are not to be trusted.
    pub fn counts(
        &mut self,
        key: &Row,
        history: &History,
        table: &mut CountsTable,
    ) -> Result<Counts, StateError> {
        if !self.kernel.counts() {
            return Ok(Counts::new());
        }
        if !self.recount.remove(key) {
            return table.get(&self.name, key);
        }
        let (mut counts, mut values) = (Counts::new(), Vec::new());
        history.walk(self.source, key, &mut |row, count| {
            if let Some(event) = self.see(row, count) {
                self.kernel.counted(&event, &mut values);
                values.drain(..).for_each(|value| *counts.entry(value).or_default() += count);
            }
            true
        })?;
        table.put(&self.name, key, &mut counts);
        Ok(counts)
    }

    /// What the kernel makes of a key's history now.
    pub fn emit(&self, key: &Row, history: &History, counts: &Counts) -> Result<Vec<Row>, StateError> {
        let (mut rows, mut failed) = (Vec::new(), None);
        let mut walk = |visit: &mut dyn FnMut(&Event<'_>) -> bool| {
            let walked = history.walk(self.source, key, &mut |row, count| match self.see(row, count) {
                Some(event) => visit(&event),
                None => true,
            });
            failed = walked.err();
        };
        self.kernel.emit(key, &mut walk, counts, &mut rows);
        rows.sort();
        failed.map_or(Ok(rows), Err)
    }

    /// Puts a key's rows in place of those it gave last.
    pub fn replace(&mut self, key: Row, rows: Vec<Row>, changes: &mut Vec<Update>) {
        let old = match rows.is_empty() {
            true => self.outputs.remove(&key),
            false => self.outputs.insert(key.clone(), rows.clone()),
        };
        let old = old.unwrap_or_default();
        if old != rows {
            changes.extend(old.into_iter().map(|row| ((key.clone(), row), -1)));
            changes.extend(rows.into_iter().map(|row| ((key.clone(), row), 1)));
        }
    }
}
