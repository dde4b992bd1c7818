//! The events of every key, once, in blocks: what all folds of a source walk.
//!
//! A key's events are kept newest block first, so the newest ones are one seek away however long
//! the history is. A block holds at most [`BLOCK`] events and is addressed by its newest one; an
//! event that comes late goes into the block it belongs to. Counts are signed: a retraction may
//! come before its insert.

use coea_operators::row::{Row, Value, encode_row};
use serde::{Deserialize, Serialize};

use super::{
    StateError,
    layered::{Changes, Layered},
    tables::bounded,
};

/// Events in a block, at most.
pub const BLOCK: usize = 256;
/// Bytes of an encoded user key that are kept for order.
const KEY_PREFIX: usize = 160;
/// Bytes of an encoded event that are kept for order.
const EVENT_PREFIX: usize = 200;

/// An event with its signed count.
pub type Counted = (Row, i64);

/// The histories of a snapshot with room for changes.
pub struct History {
    layered: Layered,
}

/// A block as stored: events oldest first, the first cell as a difference where it is a number.
#[derive(Serialize, Deserialize)]
struct Block {
    key: Row,
    events: Vec<(i64, Row, i64)>,
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

fn encode(key: &Row, events: &[Counted]) -> Vec<u8> {
    let mut before = 0i64;
    let events = events
        .iter()
        .map(|(row, count)| match row.first() {
            Some(Value::I64(time)) => {
                let step = time.wrapping_sub(std::mem::replace(&mut before, *time));
                (step, Row::new(row[1..].iter().cloned()), *count)
            }
            _ => (i64::MIN, row.clone(), *count),
        })
        .collect();
    postcard::to_allocvec(&Block { key: key.clone(), events }).unwrap_or_default()
}

fn decode(bytes: &[u8]) -> Result<(Row, Vec<Counted>), StateError> {
    let block: Block =
        postcard::from_bytes(bytes).map_err(|e| StateError::Corrupt(format!("history: {e}")))?;
    let mut time = 0i64;
    let events = block.events.into_iter().map(|(step, rest, count)| {
        if step == i64::MIN {
            return (rest, count);
        }
        time = time.wrapping_add(step);
        (Row::new(std::iter::once(Value::I64(time)).chain(rest.iter().cloned())), count)
    });
    Ok((block.key, events.collect()))
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
            let found = self.block_of(&prefix, first)?;
            let (address, events) = match found {
                Some((address, bytes)) => (Some(address), decode(&bytes)?.1),
                None => (None, Vec::new()),
            };
            let taken = self.reach(&prefix, &address, rest);
            let merged = merge(events, &rest[..taken], visit);
            rest = &rest[taken..];
            self.replace(&prefix, key, address, merged);
        }
        Ok(())
    }

    /// The block an event belongs to: the oldest one whose newest event is not older, else the
    /// newest block.
    fn block_of(&self, prefix: &[u8], event: &Row) -> Result<Option<(Vec<u8>, Vec<u8>)>, StateError> {
        let address = [prefix, &inverted(event)].concat();
        match self.layered.floor(prefix, &address)? {
            Some(found) => Ok(Some(found)),
            None => self.newest(prefix),
        }
    }

    fn newest(&self, prefix: &[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>, StateError> {
        let mut first = None;
        self.layered.scan(prefix, &mut |address, bytes| {
            first = Some((address.to_vec(), bytes.to_vec()));
            Ok(false)
        })?;
        Ok(first)
    }

    /// How many of the ascending deltas go into the block at `address`: those not newer than its
    /// newest event, or all if the first one is newer than every block.
    fn reach(&self, prefix: &[u8], address: &Option<Vec<u8>>, deltas: &[Counted]) -> usize {
        let Some(address) = address else { return deltas.len() };
        let newest = &address[prefix.len()..];
        let older = deltas.iter().take_while(|(event, _)| inverted(event).as_slice() >= newest).count();
        if older == 0 { deltas.len() } else { older }
    }

    fn replace(&mut self, prefix: &[u8], key: &Row, old: Option<Vec<u8>>, events: Vec<Counted>) {
        if let Some(old) = old {
            self.layered.delete(old);
        }
        for block in split(&events) {
            if let Some((newest, _)) = block.last() {
                let address = [prefix, &inverted(newest)].concat();
                self.layered.put(address, encode(key, block));
            }
        }
    }

    /// Visits a key's events from the newest, with their signed counts, until `visit` answers
    /// `false`; blocks beyond are not read.
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
            let (_, events) = decode(bytes)?;
            Ok(events.iter().rev().all(|(event, count)| visit(event, *count)))
        })
    }

    /// Visits all keys of a source, block by block; `visit` sees key and events of a block, oldest
    /// first. The blocks of a key come newest first.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn for_each(&self, source: u16, visit: &mut dyn FnMut(&Row, &[Counted])) -> Result<(), StateError> {
        self.layered.scan(&source.to_be_bytes(), &mut |_, bytes| {
            let (key, events) = decode(bytes)?;
            visit(&key, &events);
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

/// Cuts ascending events into blocks, the older ones full; events whose addresses would be equal
/// stay together.
fn split(events: &[Counted]) -> Vec<&[Counted]> {
    let mut blocks = Vec::new();
    let mut rest = events;
    while rest.len() > BLOCK {
        let same = |at: usize| inverted(&rest[at - 1].0) == inverted(&rest[at].0);
        let cut = (BLOCK..rest.len()).find(|at| !same(*at)).unwrap_or(rest.len());
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

    use proptest::prelude::*;

    use super::*;
    use crate::state::Snapshot;

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
            batches in prop::collection::vec(prop::collection::vec((0i64..900, 0u64..2, -1i64..3), 0..300), 1..6),
        ) {
            let key = Row::from([Value::U64(7)]);
            let other = Row::from([Value::U64(8)]);
            let mut history = History::new(Snapshot::empty().layered("history"));
            let mut model: BTreeMap<Row, i64> = BTreeMap::new();
            apply(&mut history, &other, &[(1, 1, 1)]);
            for batch in &batches {
                apply(&mut history, &key, batch);
                batch.iter().for_each(|(t, i, d)| *model.entry(event(*t, *i)).or_default() += d);
            }
            model.retain(|_, n| *n != 0);
            prop_assert_eq!(walked(&history, &key), model.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(walked(&history, &other).len(), 1);
            let mut blocks = 0;
            history.for_each(3, &mut |_, events| { assert!(events.len() <= BLOCK); blocks += 1; }).unwrap();
            prop_assert!(blocks <= 40);
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
