//! The index item → users: whose events a change of an item's row concerns.
//!
//! It is kept per source and item, in the state, so that an item nobody clicked costs nothing and
//! a corrected one costs its own readers.

use coea_operators::{ordered::encode_row, row::Row};

use super::INDEX_PREFIX;
use crate::state::{
    StateError,
    layered::{Changes, Layered},
    tables::bounded,
};

/// The index of every source.
pub(super) struct Index(Layered);

fn item_prefix(source: u16, item: &Row) -> Vec<u8> {
    [&source.to_be_bytes()[..], &bounded(encode_row(item), INDEX_PREFIX)].concat()
}

fn decode(bytes: &[u8]) -> Result<(Row, Row, i64), StateError> {
    postcard::from_bytes(bytes).map_err(|e| StateError::Corrupt(format!("index: {e}")))
}

impl Index {
    /// The index of a snapshot.
    pub fn new(layered: Layered) -> Self {
        Index(layered)
    }

    /// Changes how many distinct events of an item a user has; says whether there are any now.
    pub fn change(&mut self, source: u16, item: &Row, user: &Row, change: i64) -> Result<bool, StateError> {
        let mut place = item_prefix(source, item);
        place.extend(bounded(encode_row(user), INDEX_PREFIX));
        let known = self.0.get(&place)?.map(|bytes| decode(&bytes)).transpose()?;
        let count = known.map_or(0, |(_, _, count)| count) + change;
        match count {
            0 => self.0.delete(place),
            _ => self.0.put(place, postcard::to_allocvec(&(item, user, count)).unwrap_or_default()),
        }
        Ok(count > 0)
    }

    /// Users who have events of an item.
    pub fn users(&self, source: u16, item: &Row) -> Result<Vec<Row>, StateError> {
        let mut users = Vec::new();
        self.0.scan(&item_prefix(source, item), &mut |_, bytes| {
            users.push(decode(bytes)?.1);
            Ok(true)
        })?;
        Ok(users)
    }

    /// Visits every (item, user) of a source.
    pub fn pairs(&self, source: u16, visit: &mut dyn FnMut(&Row, &Row)) -> Result<(), StateError> {
        self.0.scan(&source.to_be_bytes(), &mut |_, bytes| {
            let (item, user, _) = decode(bytes)?;
            visit(&item, &user);
            Ok(true)
        })
    }

    /// The changes, taken out.
    pub fn take(&mut self) -> Changes {
        self.0.take()
    }
}
