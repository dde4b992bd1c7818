//! What of a table changed since an epoch, in the columns of its relation.

use coea_operators::row::Row;

use super::{relations::Relation, view::View};
use crate::state::{
    StateError,
    changes::{self, Difference},
};

/// What a key's rows became since an epoch.
pub enum Change {
    /// A row of a key whose rows differ.
    Row(Row),
    /// The key columns of a key that is gone.
    Gone(Row),
}

impl View {
    /// Visits what of a table differs from what it was at an epoch, in order of the keys. Says
    /// whether that is known: it is of stored tables, for as many epochs as changes are kept.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn changes_since(
        &self,
        relation: Relation,
        since: u64,
        visit: &mut dyn FnMut(Change),
    ) -> Result<bool, StateError> {
        if since == 0 {
            // Before the first epoch there was nothing.
            self.for_each(relation, &mut |row| visit(Change::Row(row)))?;
            return Ok(true);
        }
        // Cycles are written down between epochs, so no epoch knows what they changed.
        let between = matches!(relation, Relation::Cycles | Relation::Training);
        let Some(table) = relation.stored(&self.plan).filter(|_| !between) else { return Ok(false) };
        let epochs = (since, self.manifest.epoch);
        let Some(found) = changes::differences(&self.changes, &self.tables, table, epochs)? else {
            return Ok(false);
        };
        for Difference { key, before, now } in found {
            if now.is_empty() {
                let last = before.first().map(|(row, _)| row.clone()).unwrap_or_default();
                let shown = self.shown(relation, &key, &last);
                visit(Change::Gone(Row::new(shown.iter().take(relation.key_width(&self.plan)).cloned())));
            }
            for (row, count) in now {
                (0..count).for_each(|_| visit(Change::Row(self.shown(relation, &key, &row))));
            }
        }
        Ok(true)
    }
}
