//! Relations at rest: the rows of a node, by key, with their counts.
//!
//! Entries are sorted by the ordered encoding of the key, so a dump is a scan. LMDB bounds its
//! keys, so the entry of a long key is addressed by a prefix and a hash and holds the key itself.

use coea_operators::{
    ordered::encode_row,
    row::{Keyed, Row},
};

use super::{StateError, changes::Difference, layered::Layered};

/// Bytes of an encoded key kept for order; LMDB takes 511 in all.
const PREFIX: usize = 300;

/// The rows of one key with their counts, none of them zero.
pub type Rows = Vec<(Row, i64)>;

/// All tables of a snapshot.
pub struct Tables {
    layered: Layered,
}

/// An encoded key short enough to be a part of a database key; injective, order kept in the first
/// bytes.
pub fn bounded(mut encoded: Vec<u8>, limit: usize) -> Vec<u8> {
    if encoded.len() > limit {
        let hash = blake3::hash(&encoded);
        encoded.truncate(limit);
        encoded.extend(hash.as_bytes());
    }
    encoded
}

fn prefix(table: &str) -> Vec<u8> {
    let mut bytes = table.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

fn address(table: &str, key: &Row) -> Vec<u8> {
    let mut bytes = prefix(table);
    bytes.extend(bounded(encode_row(key), PREFIX));
    bytes
}

fn decode(bytes: &[u8]) -> Result<(Row, Rows), StateError> {
    postcard::from_bytes(bytes).map_err(|e| StateError::Corrupt(format!("table: {e}")))
}

/// What a table's change did to its keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Keys that are new.
    pub added: u64,
    /// Keys that are gone.
    pub removed: u64,
}

impl Tables {
    /// The tables of a snapshot with room for changes.
    pub fn new(layered: Layered) -> Self {
        Tables { layered }
    }

    /// The rows of a key.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn get(&self, table: &str, key: &Row) -> Result<Rows, StateError> {
        let bytes = self.layered.get(&address(table, key))?;
        Ok(bytes.map(|b| decode(&b)).transpose()?.map(|(_, rows)| rows).unwrap_or_default())
    }

    /// Adds `changes` (key, row, difference of count) to a table.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn apply(&mut self, table: &str, mut changes: Vec<(Keyed, i64)>) -> Result<Moved, StateError> {
        changes.sort_unstable();
        let mut moved = Moved::default();
        let mut changes = changes.into_iter().peekable();
        while let Some(((key, row), diff)) = changes.next() {
            let mut rows = self.get(table, &key)?;
            let fresh = rows.is_empty();
            rows.push((row, diff));
            while let Some(((_, row), diff)) = changes.next_if(|((other, _), _)| *other == key) {
                rows.push((row, diff));
            }
            let rows = consolidate(rows);
            moved.added += u64::from(fresh && !rows.is_empty());
            moved.removed += u64::from(!fresh && rows.is_empty());
            self.put(table, &key, rows);
        }
        Ok(moved)
    }

    fn put(&mut self, table: &str, key: &Row, rows: Rows) {
        let address = address(table, key);
        if rows.is_empty() {
            self.layered.delete(address);
        } else {
            self.layered.put(address, postcard::to_allocvec(&(key, rows)).unwrap_or_default());
        }
    }

    /// Visits the keys of a table in order.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn for_each(&self, table: &str, visit: &mut dyn FnMut(Row, Rows)) -> Result<(), StateError> {
        self.layered.scan(&prefix(table), &mut |_, bytes| {
            let (key, rows) = decode(bytes)?;
            visit(key, rows);
            Ok(true)
        })
    }

    /// All rows of a table in order.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn rows(&self, table: &str) -> Result<Vec<(Keyed, i64)>, StateError> {
        let mut all = Vec::new();
        self.for_each(table, &mut |key, rows| {
            all.extend(rows.into_iter().map(|(row, count)| ((key.clone(), row), count)));
        })?;
        Ok(all)
    }

    /// Addresses whose entries differ from the committed ones, with those.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn replaced(&self) -> Result<Vec<(Vec<u8>, Option<Vec<u8>>)>, StateError> {
        self.layered.replaced()
    }

    /// Compares what an address of `table` held with what it holds; nothing if that is the same, or
    /// the address is another table's.
    ///
    /// # Errors
    /// If an entry cannot be read.
    pub fn difference(
        &self,
        table: &str,
        address: &[u8],
        before: Option<&[u8]>,
    ) -> Result<Option<Difference>, StateError> {
        let now = self.layered.get(address)?;
        if !address.starts_with(&prefix(table)) || now.as_deref() == before {
            return Ok(None);
        }
        let [before, now] = [before, now.as_deref()].map(|bytes| bytes.map(decode).transpose());
        let (before, now) = (before?, now?);
        let key = before.as_ref().or(now.as_ref()).map(|(key, _)| key.clone()).unwrap_or_default();
        let rows = |side: Option<(Row, Rows)>| side.map(|(_, rows)| rows).unwrap_or_default();
        Ok(Some(Difference { key, before: rows(before), now: rows(now) }))
    }

    /// The names of the tables that have rows, in order.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn names(&self) -> Result<Vec<String>, StateError> {
        let mut names: Vec<String> = Vec::new();
        self.layered.scan(&[], &mut |address, _| {
            let name = address.split(|byte| *byte == 0).next().unwrap_or_default();
            if names.last().is_none_or(|last| last.as_bytes() != name) {
                names.push(String::from_utf8_lossy(name).into_owned());
            }
            Ok(true)
        })?;
        Ok(names)
    }

    /// Removes a table; says how many keys it had.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn drop_table(&mut self, table: &str) -> Result<u64, StateError> {
        let mut addresses = Vec::new();
        self.layered.scan(&prefix(table), &mut |address, _| {
            addresses.push(address.to_vec());
            Ok(true)
        })?;
        let keys = addresses.len() as u64;
        addresses.into_iter().for_each(|address| self.layered.delete(address));
        Ok(keys)
    }

    /// The changes, taken out.
    pub fn take(&mut self) -> super::layered::Changes {
        self.layered.take()
    }
}

/// Sums the counts of equal rows and drops those that cancel.
pub fn consolidate<T: Ord>(mut rows: Vec<(T, i64)>) -> Vec<(T, i64)> {
    rows.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    rows.dedup_by(|row, kept| {
        let same = row.0 == kept.0;
        if same {
            kept.1 += row.1;
        }
        same
    });
    rows.retain(|(_, count)| *count != 0);
    rows
}

#[cfg(test)]
mod tests {
    use coea_operators::row::Value;

    use super::*;
    use crate::state::Snapshot;

    fn row(n: u64) -> Row {
        Row::from([Value::U64(n)])
    }

    #[test]
    fn tables_add_up_whatever_the_order() {
        let mut tables = Tables::new(Snapshot::empty().layered("tables"));
        let moved = tables.apply("t", vec![((row(1), row(9)), -1), ((row(2), row(9)), 1)]).unwrap();
        assert_eq!(moved, Moved { added: 2, removed: 0 });
        let moved = tables.apply("t", vec![((row(1), row(9)), 1), ((row(2), row(8)), 2)]).unwrap();
        assert_eq!(moved, Moved { added: 0, removed: 1 });
        assert_eq!(tables.rows("t").unwrap(), [((row(2), row(8)), 2), ((row(2), row(9)), 1)]);
        assert_eq!(tables.drop_table("t").unwrap(), 1);
        assert!(tables.rows("t").unwrap().is_empty());
    }

    #[test]
    fn tables_do_not_mix_and_long_keys_are_kept_apart() {
        let mut tables = Tables::new(Snapshot::empty().layered("tables"));
        let long = |end: &str| Row::from([Value::text("x".repeat(1000) + end)]);
        for key in [long("a"), long("b"), row(1)] {
            tables.apply("t", vec![((key.clone(), row(1)), 1)]).unwrap();
            tables.apply("tt", vec![((key, row(2)), 1)]).unwrap();
        }
        assert_eq!(tables.rows("t").unwrap().len(), 3);
        assert_eq!(tables.get("t", &long("b")).unwrap(), [(row(1), 1)]);
        assert_eq!(tables.names().unwrap(), ["t", "tt"]);
    }
}
