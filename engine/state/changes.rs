//! What the last epochs changed in the tables, for a reader that asks for a difference.
//!
//! Kept is what a key held *before* an epoch, not what it holds after: the oldest entry of a key
//! after an epoch is then its rows at that epoch, to be compared with what is committed. So a change
//! that was taken back is no difference, and a key that is gone is still known by what it held. An
//! epoch that changed nothing leaves its mark too: where a mark is missing nothing is known.

use std::collections::BTreeMap;

use coea_operators::row::Row;

use super::{
    StateError,
    layered::Layered,
    tables::{Rows, Tables},
};

/// Epochs whose changes are kept.
pub const KEPT: u64 = 8;

/// A key whose rows differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The key.
    pub key: Row,
    /// Its rows at the epoch asked about.
    pub before: Rows,
    /// Its rows as committed; none, if the key is gone.
    pub now: Rows,
}

/// An epoch's mark, and the beginning of its entries.
fn mark(epoch: u64) -> Vec<u8> {
    epoch.to_be_bytes().to_vec()
}

/// A table's address may be as long as a database key can be, so it is hashed here.
fn entry(epoch: u64, address: &[u8]) -> Vec<u8> {
    [&epoch.to_be_bytes()[..], &blake3::hash(address).as_bytes()[..16]].concat()
}

/// Writes down what an epoch is about to replace in the tables, and forgets the oldest epoch.
///
/// # Errors
/// If the database cannot be read.
pub fn record(epoch: u64, tables: &Tables, changes: &mut Layered) -> Result<(), StateError> {
    changes.put(mark(epoch), Vec::new());
    // What the first epoch replaces is nothing, whatever the table.
    let replaced = if epoch > 1 { tables.replaced()? } else { Vec::new() };
    for (address, before) in replaced {
        let key = entry(epoch, &address);
        changes.put(key, postcard::to_allocvec(&(address, before)).unwrap_or_default());
    }
    let kept = mark((epoch + 1).saturating_sub(KEPT));
    let mut old = Vec::new();
    changes.scan(&[], &mut |key, _| {
        let is_old = key < kept.as_slice();
        old.extend(is_old.then(|| key.to_vec()));
        Ok(is_old)
    })?;
    old.into_iter().for_each(|key| changes.delete(key));
    Ok(())
}

/// The keys of a table whose rows are others now than at epoch `since`, in order; nothing if the
/// changes of an epoch between `since` and `now` are not kept.
///
/// # Errors
/// If the database cannot be read.
pub fn differences(
    changes: &Layered,
    tables: &Tables,
    table: &str,
    (since, now): (u64, u64),
) -> Result<Option<Vec<Difference>>, StateError> {
    let mut then: BTreeMap<Vec<u8>, Option<Vec<u8>>> = BTreeMap::new();
    for epoch in since + 1..=now {
        if changes.get(&mark(epoch))?.is_none() {
            return Ok(None);
        }
        changes.scan(&mark(epoch), &mut |key, bytes| {
            if key.len() > mark(epoch).len() {
                let (address, before): (Vec<u8>, Option<Vec<u8>>) =
                    postcard::from_bytes(bytes).map_err(|e| StateError::Corrupt(format!("changes: {e}")))?;
                then.entry(address).or_insert(before);
            }
            Ok(true)
        })?;
    }
    let mut found = Vec::new();
    for (address, before) in then {
        found.extend(tables.difference(table, &address, before.as_deref())?);
    }
    Ok(Some(found))
}

#[cfg(test)]
mod tests {
    use coea_operators::row::Value;

    use super::*;
    use crate::state::Store;

    fn row(n: u64) -> Row {
        Row::from([Value::U64(n)])
    }

    /// Commits an epoch that adds `n` times row 9 to each key of table `t`.
    fn commit(store: &std::sync::Arc<Store>, epoch: u64, keys: &[(u64, i64)]) {
        let snapshot = store.snapshot().unwrap();
        let mut tables = Tables::new(snapshot.layered("tables"));
        let mut changes = snapshot.layered("changes");
        for (key, n) in keys {
            tables.apply("t", vec![((row(*key), row(9)), *n)]).unwrap();
            tables.apply("tt", vec![((row(*key), row(8)), *n)]).unwrap();
        }
        record(epoch, &tables, &mut changes).unwrap();
        store.write(vec![("tables", tables.take()), ("changes", changes.take())]).unwrap();
    }

    /// Key, count before, count now; nothing where it is not known.
    fn since(store: &std::sync::Arc<Store>, since: u64, now: u64) -> Option<Vec<(Row, i64, i64)>> {
        let snapshot = store.snapshot().unwrap();
        let tables = Tables::new(snapshot.layered("tables"));
        let found = differences(&snapshot.layered("changes"), &tables, "t", (since, now)).unwrap()?;
        let count = |rows: &Rows| rows.iter().map(|(_, n)| n).sum();
        Some(found.iter().map(|d| (d.key.clone(), count(&d.before), count(&d.now))).collect())
    }

    #[test]
    fn keys_that_differ_are_told_and_those_taken_back_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        commit(&store, 1, &[(1, 1), (2, 1), (3, 1)]);
        commit(&store, 2, &[(1, 1), (2, -1), (4, 1), (5, 1)]);
        commit(&store, 3, &[(1, -1), (5, -1)]);
        assert_eq!(since(&store, 3, 3), Some(vec![]));
        assert_eq!(since(&store, 2, 3), Some(vec![(row(1), 2, 1), (row(5), 1, 0)]));
        assert_eq!(since(&store, 1, 3), Some(vec![(row(2), 1, 0), (row(4), 0, 1)]));
    }

    #[test]
    fn what_is_older_than_what_is_kept_is_not_known() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        (1..=KEPT + 2).for_each(|epoch| commit(&store, epoch, &[(epoch, 1)]));
        let now = KEPT + 2;
        assert_eq!(since(&store, 1, now), None);
        assert_eq!(since(&store, 2, now).unwrap().len(), KEPT as usize);
        let mut entries = 0;
        let changes = store.snapshot().unwrap().layered("changes");
        let mut count = |_: &[u8], _: &[u8]| {
            entries += 1;
            Ok(true)
        };
        changes.scan(&[], &mut count).unwrap();
        assert_eq!(entries, 3 * KEPT as usize, "a mark and two tables for each epoch kept");
    }
}
