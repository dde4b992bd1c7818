//! What folds know of a whole history without walking it: how often each counted value occurs.
//!
//! Counts are kept in the state by fold and user, and moved by the events of an epoch, so a click
//! costs the same in a long history as in a short one.

use coea_operators::{ordered::encode_row, row::Row, shape::Counts};

use super::INDEX_PREFIX;
use crate::state::{
    StateError,
    layered::{Changes, Layered},
    tables::bounded,
};

/// The counts of every fold.
pub(super) struct CountsTable(Layered);

fn place(fold: &str, user: &Row) -> Vec<u8> {
    [fold.as_bytes(), &[0], &bounded(encode_row(user), INDEX_PREFIX)].concat()
}

impl CountsTable {
    /// The counts of a snapshot.
    pub fn new(layered: Layered) -> Self {
        CountsTable(layered)
    }

    /// A user's counts in a fold.
    pub fn get(&self, fold: &str, user: &Row) -> Result<Counts, StateError> {
        let Some(bytes) = self.0.get(&place(fold, user))? else { return Ok(Counts::new()) };
        postcard::from_bytes(&bytes).map_err(|e| StateError::Corrupt(format!("counts: {e}")))
    }

    /// Sets a user's counts in a fold.
    pub fn put(&mut self, fold: &str, user: &Row, counts: &mut Counts) {
        counts.retain(|_, count| *count != 0);
        let place = place(fold, user);
        match counts.is_empty() {
            true => self.0.delete(place),
            false => self.0.put(place, postcard::to_allocvec(counts).unwrap_or_default()),
        }
    }

    /// The changes, taken out.
    pub fn take(&mut self) -> Changes {
        self.0.take()
    }
}
