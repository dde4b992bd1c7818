//! One database of the state with an epoch's changes laid over it.
//!
//! An epoch reads the last committed snapshot and keeps what it changes in memory; `plan` throws
//! the changes away, `run` writes them in one transaction. So both run the same code, and a crash
//! before the commit leaves nothing behind.

use std::{collections::BTreeMap, ops::Bound, rc::Rc};

use heed::{RoTxn, WithoutTls};

use super::{Bytes, StateError};

/// Changed entries: `None` is a deletion.
pub type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// A database with uncommitted changes over it.
pub struct Layered {
    committed: Option<(Bytes, Rc<RoTxn<'static, WithoutTls>>)>,
    changes: Changes,
}

impl Layered {
    /// Lays no changes over a committed database, or over nothing.
    pub fn new(committed: Option<(Bytes, Rc<RoTxn<'static, WithoutTls>>)>) -> Self {
        Layered { committed, changes: Changes::new() }
    }

    /// The entry of a key.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        if let Some(change) = self.changes.get(key) {
            return Ok(change.clone());
        }
        let Some((db, txn)) = &self.committed else { return Ok(None) };
        Ok(db.get(txn, key)?.map(<[u8]>::to_vec))
    }

    /// Sets the entry of a key.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.changes.insert(key, Some(value));
    }

    /// Removes the entry of a key.
    pub fn delete(&mut self, key: Vec<u8>) {
        self.changes.insert(key, None);
    }

    /// The changes, taken out.
    pub fn take(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// The keys whose entries are others than the committed ones, with those.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn replaced(&self) -> Result<Vec<(Vec<u8>, Option<Vec<u8>>)>, StateError> {
        let committed = Layered::new(self.committed.clone());
        let mut replaced = Vec::new();
        for (key, change) in &self.changes {
            let before = committed.get(key)?;
            if before != *change {
                replaced.push((key.clone(), before));
            }
        }
        Ok(replaced)
    }

    /// The greatest entry that starts with `prefix` and whose key is at most `key`.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn floor(&self, prefix: &[u8], key: &[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>, StateError> {
        let mut bound = Bound::Included(key.to_vec());
        loop {
            let changed = self.changed_floor(prefix, &bound);
            let committed = self.committed_floor(prefix, &bound)?;
            match (changed, committed) {
                (None, committed) => return Ok(committed),
                (Some((changed_key, change)), committed) => {
                    if let Some((key, value)) = committed
                        && key > *changed_key
                    {
                        return Ok(Some((key, value)));
                    }
                    match change {
                        Some(value) => return Ok(Some((changed_key.clone(), value.clone()))),
                        None => bound = Bound::Excluded(changed_key.clone()),
                    }
                }
            }
        }
    }

    fn changed_floor(&self, prefix: &[u8], bound: &Bound<Vec<u8>>) -> Option<(&Vec<u8>, &Option<Vec<u8>>)> {
        let range = (Bound::Unbounded, bound.as_ref());
        self.changes.range::<Vec<u8>, _>(range).next_back().filter(|(key, _)| key.starts_with(prefix))
    }

    fn committed_floor(
        &self,
        prefix: &[u8],
        bound: &Bound<Vec<u8>>,
    ) -> Result<Option<(Vec<u8>, Vec<u8>)>, StateError> {
        let Some((db, txn)) = &self.committed else { return Ok(None) };
        let found = match bound {
            Bound::Included(key) => db.get_lower_than_or_equal_to(txn, key)?,
            Bound::Excluded(key) => db.get_lower_than(txn, key)?,
            Bound::Unbounded => db.last(txn)?,
        };
        Ok(found.filter(|(key, _)| key.starts_with(prefix)).map(|(k, v)| (k.to_vec(), v.to_vec())))
    }

    /// Visits entries that start with `prefix` in order of their keys, until `visit` answers `false`.
    ///
    /// # Errors
    /// If the database cannot be read, or `visit` fails.
    pub fn scan(
        &self,
        prefix: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<bool, StateError>,
    ) -> Result<(), StateError> {
        let mut changed = self
            .changes
            .range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .peekable();
        if let Some((db, txn)) = &self.committed {
            // LMDB refuses to seek an empty key.
            let start = if prefix.is_empty() { Bound::Unbounded } else { Bound::Included(prefix) };
            for entry in db.range(txn, &(start, Bound::Unbounded))? {
                let (key, value) = entry?;
                if !key.starts_with(prefix) {
                    break;
                }
                while let Some((new_key, new)) = changed.next_if(|(k, _)| k.as_slice() < key) {
                    if let Some(new) = new
                        && !visit(new_key, new)?
                    {
                        return Ok(());
                    }
                }
                let replaced = changed.next_if(|(k, _)| k.as_slice() == key);
                let value = match &replaced {
                    Some((_, None)) => continue,
                    Some((_, Some(new))) => new.as_slice(),
                    None => value,
                };
                if !visit(key, value)? {
                    return Ok(());
                }
            }
        }
        for (key, new) in changed {
            if let Some(new) = new
                && !visit(key, new)?
            {
                return Ok(());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Model = BTreeMap<Vec<u8>, Vec<u8>>;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(0u8..3, 1..4)
    }

    proptest! {
        #[test]
        fn behaves_as_one_map(
            committed in prop::collection::btree_map(key(), prop::collection::vec(any::<u8>(), 0..2), 0..12),
            changes in prop::collection::vec((key(), prop::option::of(prop::collection::vec(any::<u8>(), 0..2))), 0..12),
            prefix in prop::collection::vec(0u8..3, 0..2),
            probe in key(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let store = super::super::Store::create(dir.path()).unwrap();
            let all: Changes = committed.iter().map(|(k, v)| (k.clone(), Some(v.clone()))).collect();
            store.write(vec![("tables", all)]).unwrap();
            let mut layered = store.snapshot().unwrap().layered("tables");
            let mut model: Model = committed;
            for (key, change) in changes {
                match change {
                    Some(value) => { layered.put(key.clone(), value.clone()); model.insert(key, value); }
                    None => { layered.delete(key.clone()); model.remove(&key); }
                }
            }
            let mut seen = Vec::new();
            layered.scan(&prefix, &mut |k, v| { seen.push((k.to_vec(), v.to_vec())); Ok(true) }).unwrap();
            let expected: Vec<_> = model.clone().into_iter().filter(|(k, _)| k.starts_with(&prefix)).collect();
            prop_assert_eq!(&seen, &expected);
            prop_assert_eq!(layered.get(&probe).unwrap(), model.get(&probe).cloned());
            let floor = expected.into_iter().rfind(|(k, _)| *k <= probe);
            if probe.starts_with(&prefix) {
                prop_assert_eq!(layered.floor(&prefix, &probe).unwrap(), floor);
            }
        }
    }
}
