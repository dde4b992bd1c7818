//! One database of the state with an epoch's changes laid over it.
//!
//! An epoch reads the last committed snapshot and keeps what it changes in memory; `plan` throws
//! the changes away, `run` writes them in one transaction. So both run the same code, and a crash
//! before the commit leaves nothing behind.

use std::{collections::BTreeMap, ops::Bound, rc::Rc};

use super::{Bytes, Reader, StateError};

/// Changed entries: `None` is a deletion.
pub type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// A database with uncommitted changes over it.
pub struct Layered {
    committed: Option<(Bytes, Rc<Reader>)>,
    changes: Changes,
}

impl Layered {
    /// Lays no changes over a committed database, or over nothing.
    pub(super) fn new(committed: Option<(Bytes, Rc<Reader>)>) -> Self {
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
        let Some((db, reader)) = &self.committed else { return Ok(None) };
        Ok(db.get(&reader.txn, key)?.map(<[u8]>::to_vec))
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

    /// The entry of a key, to be changed in place.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn edit(&mut self, key: &[u8]) -> Result<Option<&mut Vec<u8>>, StateError> {
        if !self.changes.contains_key(key) {
            let Some((db, reader)) = &self.committed else { return Ok(None) };
            let Some(value) = db.get(&reader.txn, key)? else { return Ok(None) };
            self.changes.insert(key.to_vec(), Some(value.to_vec()));
        }
        Ok(self.changes.get_mut(key).and_then(Option::as_mut))
    }

    /// The greatest key that starts with `prefix` and is within `bound`, which starts with it too.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn last(&self, prefix: &[u8], bound: Bound<&[u8]>) -> Result<Option<Vec<u8>>, StateError> {
        let mut bound = bound.map(<[u8]>::to_vec);
        loop {
            let range = (Bound::Unbounded, bound.as_ref());
            let changed = self.changes.range::<Vec<u8>, _>(range).next_back();
            let changed = changed.filter(|(key, _)| key.starts_with(prefix));
            let committed = self.last_committed(prefix, &bound)?;
            match changed {
                Some((key, change)) if committed.as_ref().is_none_or(|other| other <= key) => match change {
                    Some(_) => return Ok(Some(key.clone())),
                    None => bound = Bound::Excluded(key.clone()),
                },
                _ => return Ok(committed),
            }
        }
    }

    fn last_committed(&self, prefix: &[u8], bound: &Bound<Vec<u8>>) -> Result<Option<Vec<u8>>, StateError> {
        let Some((db, reader)) = &self.committed else { return Ok(None) };
        let found = match bound {
            Bound::Included(key) => db.get_lower_than_or_equal_to(&reader.txn, key)?,
            Bound::Excluded(key) => db.get_lower_than(&reader.txn, key)?,
            Bound::Unbounded => db.last(&reader.txn)?,
        };
        Ok(found.filter(|(key, _)| key.starts_with(prefix)).map(|(key, _)| key.to_vec()))
    }

    /// The smallest key that starts with `prefix` and is at least `key`.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn ceiling(&self, prefix: &[u8], key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        let mut found = None;
        self.scan_from(prefix, key, &mut |key, _| {
            found = Some(key.to_vec());
            Ok(false)
        })?;
        Ok(found)
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
        self.scan_from(prefix, prefix, visit)
    }

    fn scan_from(
        &self,
        prefix: &[u8],
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Result<bool, StateError>,
    ) -> Result<(), StateError> {
        let mut changed = self
            .changes
            .range::<[u8], _>((Bound::Included(from), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .peekable();
        if let Some((db, reader)) = &self.committed {
            // LMDB refuses to seek an empty key.
            let start = if from.is_empty() { Bound::Unbounded } else { Bound::Included(from) };
            for entry in db.range(&reader.txn, &(start, Bound::Unbounded))? {
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
            if probe.starts_with(&prefix) {
                let keys: Vec<&Vec<u8>> = expected.iter().map(|(key, _)| key).collect();
                let last = |bound| layered.last(&prefix, bound).unwrap();
                prop_assert_eq!(last(Bound::Included(&probe)), keys.iter().rfind(|k| ***k <= probe).copied().cloned());
                prop_assert_eq!(last(Bound::Excluded(&probe)), keys.iter().rfind(|k| ***k < probe).copied().cloned());
                let ceiling = keys.iter().find(|k| ***k >= probe).copied().cloned();
                prop_assert_eq!(layered.ceiling(&prefix, &probe).unwrap(), ceiling);
            }
            if let Some(value) = layered.edit(&probe).unwrap() {
                value.push(9);
                model.get_mut(&probe).unwrap().push(9);
            }
            prop_assert_eq!(layered.get(&probe).unwrap(), model.get(&probe).cloned());
        }
    }
}
