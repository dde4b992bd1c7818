//! The events of every key, once, in blocks: what all folds of a source walk.
//!
//! A key's blocks are kept newest first, so the newest events are one seek away however long the
//! history is. A block holds at most [`BLOCK`] events and is addressed by its oldest one, so that
//! appending to the newest block, which is what nearly every event does, moves nothing; an event
//! that comes late goes into the block it belongs to. Counts are signed: a retraction may come
//! before its insert.

use std::ops::Bound;

use coea_operators::{ordered::encode_row, row::Row};

pub use super::block::Counted;
use super::{
    StateError, block,
    layered::{Changes, Layered},
    tables::bounded,
};

/// Events in a block, at most: about 2 KiB, of which two fit a page of the database.
pub const BLOCK: usize = 64;
/// Bytes of an encoded user key that are kept for order.
const KEY_PREFIX: usize = 160;
/// Bytes of an encoded event that are kept for order.
const EVENT_PREFIX: usize = 200;

/// The histories of a snapshot with room for changes.
pub struct History {
    layered: Layered,
}

fn prefix(source: u16, key: &Row) -> Vec<u8> {
    let encoded = bounded(encode_row(key), KEY_PREFIX);
    [&source.to_be_bytes()[..], &[shard(key)], &encoded].concat()
}

/// The virtual shard of a key, the same on every machine.
pub fn shard(key: &Row) -> u8 {
    blake3::hash(&encode_row(key)).as_bytes()[0]
}

/// The part of a block's address that orders events: newest first, so every bit is turned.
fn inverted(event: &Row) -> Vec<u8> {
    let mut encoded = encode_row(event);
    encoded.truncate(EVENT_PREFIX);
    encoded.iter_mut().for_each(|byte| *byte = !*byte);
    encoded
}

/// One event's count before and after a change.
pub struct Step<'a> {
    /// The event.
    pub event: &'a Row,
    /// Its signed count before.
    pub before: i64,
    /// Its signed count after.
    pub after: i64,
}

impl History {
    /// The histories of a snapshot.
    pub fn new(layered: Layered) -> Self {
        History { layered }
    }

    /// Adds changes of one key, given in ascending order without repetition; `visit` sees each
    /// event's count before and after.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn apply(
        &mut self,
        source: u16,
        key: &Row,
        deltas: &[Counted],
        visit: &mut dyn FnMut(Step<'_>),
    ) -> Result<(), StateError> {
        let prefix = prefix(source, key);
        let mut rest = deltas;
        while let Some((first, _)) = rest.first() {
            let Some(address) = self.block_of(&prefix, first)? else {
                self.put(&prefix, key, &merge(Vec::new(), rest, visit), BLOCK);
                return Ok(());
            };
            let taken = self.reach(&prefix, &address, rest)?;
            self.apply_to(&prefix, key, address, &rest[..taken], visit)?;
            rest = &rest[taken..];
        }
        Ok(())
    }

    /// The address of the block an event belongs to: the newest one whose oldest event is not newer
    /// than it, else the oldest block.
    fn block_of(&self, prefix: &[u8], event: &Row) -> Result<Option<Vec<u8>>, StateError> {
        let address = [prefix, &inverted(event)].concat();
        match self.layered.ceiling(prefix, &address)? {
            Some(found) => Ok(Some(found)),
            None => {
                let end = [prefix, &[0xFF; EVENT_PREFIX + 1]].concat();
                self.layered.last(prefix, Bound::Included(&end))
            }
        }
    }

    /// How many of the ascending deltas belong to the block at `address`: those older than the
    /// oldest event of the next newer block.
    fn reach(&self, prefix: &[u8], address: &[u8], deltas: &[Counted]) -> Result<usize, StateError> {
        let Some(newer) = self.layered.last(prefix, Bound::Excluded(address))? else {
            return Ok(deltas.len());
        };
        let newer = &newer[prefix.len()..];
        Ok(deltas.iter().take_while(|(event, _)| inverted(event).as_slice() > newer).count().max(1))
    }

    /// Merges deltas into one block; where all are newer, only their bytes are written.
    fn apply_to(
        &mut self,
        prefix: &[u8],
        key: &Row,
        address: Vec<u8>,
        deltas: &[Counted],
        visit: &mut dyn FnMut(Step<'_>),
    ) -> Result<(), StateError> {
        let Some(bytes) = self.layered.edit(&address)? else { return Ok(()) };
        let newest = block::newest(bytes)?;
        if let Some(newest) = newest.filter(|newest| deltas.first().is_some_and(|(event, _)| event > newest))
        {
            let room = BLOCK.saturating_sub(block::len(bytes));
            let cut = (room..deltas.len()).find(|at| {
                let before = if *at == 0 { &newest } else { &deltas[at - 1].0 };
                inverted(before) != inverted(&deltas[*at].0)
            });
            let (older, newer) = deltas.split_at(cut.unwrap_or(deltas.len()));
            block::append(bytes, older);
            deltas.iter().for_each(|(event, diff)| visit(Step { event, before: 0, after: *diff }));
            self.put(prefix, key, newer, BLOCK);
            return Ok(());
        }
        let events = merge(block::events(bytes)?, deltas, visit);
        self.layered.delete(address);
        // Room for what comes late again.
        let blocks = events.len().div_ceil(BLOCK).max(1);
        self.put(prefix, key, &events, events.len().div_ceil(blocks));
        Ok(())
    }

    /// Writes ascending events as blocks of their own, of `size` events.
    fn put(&mut self, prefix: &[u8], key: &Row, events: &[Counted], size: usize) {
        for events in split(events, size) {
            let address = [prefix, &inverted(&events[0].0)].concat();
            self.layered.put(address, block::encode(key, events));
        }
    }

    /// Visits a key's events from the newest, with their signed counts, until `visit` answers
    /// `false`; what is beyond is not read.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn walk(
        &self,
        source: u16,
        key: &Row,
        visit: &mut dyn FnMut(&Row, i64) -> bool,
    ) -> Result<(), StateError> {
        self.layered.scan(&prefix(source, key), &mut |_, bytes| {
            block::walk(bytes, &mut |event, count| visit(&event, count))
        })
    }

    /// Visits the keys of a source, each once.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn keys(&self, source: u16, visit: &mut dyn FnMut(Row)) -> Result<(), StateError> {
        let mut last = None;
        self.layered.scan(&source.to_be_bytes(), &mut |_, bytes| {
            let key = block::key(bytes)?;
            if last.as_ref() != Some(&key) {
                visit(key.clone());
                last = Some(key);
            }
            Ok(true)
        })
    }

    /// Visits all keys of a source, block by block; `visit` sees key and events of a block, oldest
    /// first. The blocks of a key come newest first.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn for_each(&self, source: u16, visit: &mut dyn FnMut(&Row, &[Counted])) -> Result<(), StateError> {
        self.layered.scan(&source.to_be_bytes(), &mut |_, bytes| {
            visit(&block::key(bytes)?, &block::events(bytes)?);
            Ok(true)
        })
    }

    /// The changes, taken out.
    pub fn take(&mut self) -> Changes {
        self.layered.take()
    }
}

/// Merges ascending deltas into ascending events; counts that cancel leave.
fn merge(events: Vec<Counted>, deltas: &[Counted], visit: &mut dyn FnMut(Step<'_>)) -> Vec<Counted> {
    let mut merged = Vec::with_capacity(events.len() + deltas.len());
    let mut old = events.into_iter().peekable();
    for (event, diff) in deltas {
        while let Some(earlier) = old.next_if(|(row, _)| row < event) {
            merged.push(earlier);
        }
        let before = old.next_if(|(row, _)| row == event).map_or(0, |(_, count)| count);
        let after = before + diff;
        visit(Step { event, before, after });
        if after != 0 {
            merged.push((event.clone(), after));
        }
    }
    merged.extend(old);
    merged
}

/// Cuts ascending events into blocks of `size`; events whose addresses would be equal stay together.
fn split(events: &[Counted], size: usize) -> Vec<&[Counted]> {
    let mut blocks = Vec::new();
    let mut rest = events;
    while rest.len() > size {
        let same = |at: usize| inverted(&rest[at - 1].0) == inverted(&rest[at].0);
        let cut = (size..rest.len()).find(|at| !same(*at)).unwrap_or(rest.len());
        let (block, newer) = rest.split_at(cut);
        blocks.push(block);
        rest = newer;
    }
    if !rest.is_empty() {
        blocks.push(rest);
    }
    blocks
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use coea_operators::row::Value;
    use proptest::prelude::*;

    use super::*;
    use crate::state::{Snapshot, Store};

    fn event(time: i64, item: u64) -> Row {
        Row::from([Value::I64(time), Value::U64(item)])
    }

    fn apply(history: &mut History, key: &Row, deltas: &[(i64, u64, i64)]) {
        let mut sums: BTreeMap<Row, i64> = BTreeMap::new();
        deltas.iter().for_each(|(t, i, d)| *sums.entry(event(*t, *i)).or_default() += d);
        let deltas: Vec<Counted> = sums.into_iter().filter(|(_, d)| *d != 0).collect();
        history.apply(3, key, &deltas, &mut |_| {}).unwrap();
    }

    fn walked(history: &History, key: &Row) -> Vec<Counted> {
        let mut all = Vec::new();
        history
            .walk(3, key, &mut |row, count| {
                all.push((row.clone(), count));
                true
            })
            .unwrap();
        all.reverse();
        all
    }

    proptest! {
        #[test]
        fn is_a_signed_multiset_in_order(
            batches in prop::collection::vec(
                (prop::collection::vec((0i64..900, 0u64..2, -1i64..3), 0..300), any::<bool>()),
                1..6,
            ),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::create(dir.path()).unwrap();
            let open = || History::new(store.snapshot().unwrap().layered("history"));
            let key = Row::from([Value::U64(7)]);
            let other = Row::from([Value::U64(8)]);
            let mut history = open();
            let mut model: BTreeMap<Row, i64> = BTreeMap::new();
            apply(&mut history, &other, &[(1, 1, 1)]);
            for (batch, commit) in &batches {
                apply(&mut history, &key, batch);
                // What is appended to may be of this epoch or committed.
                if *commit {
                    store.write(vec![("history", history.take())]).unwrap();
                    history = open();
                }
                batch.iter().for_each(|(t, i, d)| *model.entry(event(*t, *i)).or_default() += d);
            }
            model.retain(|_, n| *n != 0);
            prop_assert_eq!(walked(&history, &key), model.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(walked(&history, &other).len(), 1);
            let mut blocks = 0;
            history.for_each(3, &mut |_, events| { assert!(events.len() <= BLOCK); blocks += 1; }).unwrap();
            prop_assert!(blocks <= 60, "{blocks} blocks");
        }
    }

    #[test]
    fn the_newest_events_of_a_long_history_are_one_block_away() {
        let key = Row::from([Value::U64(7)]);
        let mut history = History::new(Snapshot::empty().layered("history"));
        for time in 0..2000 {
            apply(&mut history, &key, &[(time, 1, 1)]);
        }
        let mut blocks = 0;
        history.for_each(3, &mut |_, _| blocks += 1).unwrap();
        assert_eq!(blocks, 2000usize.div_ceil(BLOCK));
        let mut newest = None;
        history
            .walk(3, &key, &mut |row, _| {
                newest = Some(row.clone());
                false
            })
            .unwrap();
        assert_eq!(newest, Some(event(1999, 1)));
    }

    #[test]
    fn long_events_of_one_moment_stay_together_in_order() {
        let key = Row::from([Value::U64(7)]);
        let mut history = History::new(Snapshot::empty().layered("history"));
        let long = |n: usize| Row::from([Value::I64(1), Value::text("x".repeat(400) + &format!("{n:04}"))]);
        let deltas: Vec<Counted> = (0..600).map(|n| (long(n), 1)).collect();
        history.apply(3, &key, &deltas, &mut |_| {}).unwrap();
        assert_eq!(walked(&history, &key), deltas);
    }
}
