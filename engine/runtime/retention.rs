//! How long answers are kept: which ones an epoch took into use and which ones it gave up.
//!
//! The memo is another database than the epoch's, so what changes there is written down in the
//! epoch's transaction first (see [`Marks`]).

use std::collections::BTreeSet;

use coea_operators::shape::LeafId;

use super::{
    RunError,
    address::{memo_key_of, memo_row},
    driver::Driver,
    render::Channel,
};
use crate::state::{
    memo::{Marks, MemoKey},
    tables::consolidate,
};

/// Epochs an answer is kept after its last use.
pub const RETENTION: u64 = 8;

impl Driver<'_> {
    /// Applies the marks of the last commit, in case the process that made it was killed before.
    pub(super) fn replay_marks(&self) -> Result<(), RunError> {
        if self.options.dry {
            return Ok(());
        }
        let marks = Marks::load(&self.state.snapshot()?.layered("meta"))?;
        Ok(self.state.memo.retain(&marks, Some(RETENTION))?)
    }

    /// Answers whose use changed; one that another node still uses stays in use.
    pub(super) fn marks(&mut self, epoch: u64) -> Result<Marks, RunError> {
        // An answer may come epochs after its request did, and be in use only then.
        let mut moved: BTreeSet<MemoKey> = std::mem::take(&mut self.epoch.fed).into_iter().collect();
        for leaf in self.plan.infers().collect::<Vec<_>>() {
            let updates = self.epoch.updates.remove(&Channel::Used(leaf)).unwrap_or_default();
            moved.extend(updates.iter().filter_map(|((memo, _), _)| memo_key_of(memo)));
        }
        if self.rebuild {
            self.state.memo.for_each(&mut |key, answer| {
                if answer.unused_since.is_none() {
                    moved.extend(MemoKey::try_from(key));
                }
            })?;
        }
        self.in_use.retain(|_, uses| *uses > 0);
        Ok(self.state.memo.marks(epoch, moved, |key| self.in_use.contains_key(key))?)
    }

    /// Answers that an inference used and does not any more.
    pub(super) fn released(&self) -> Vec<(LeafId, MemoKey)> {
        let mut released = Vec::new();
        for leaf in self.plan.infers() {
            let (Some(seen), Some(held)) =
                (self.epoch.updates.get(&Channel::Used(leaf)), self.answered.get(&leaf))
            else {
                continue;
            };
            let given_up = consolidate(seen.clone()).into_iter().filter(|(_, count)| *count < 0);
            let keys = given_up.filter_map(|((memo, _), _)| memo_key_of(&memo));
            released.extend(keys.filter(|key| held.contains(key)).map(|key| (leaf, key)));
        }
        released
    }

    /// Takes answers out of the dataflow: the memo keeps them for a while, memory does not.
    pub(super) fn release(&mut self, released: Vec<(LeafId, MemoKey)>) -> Result<(), RunError> {
        for (leaf, key) in released {
            let answer = self.state.memo.answers(&[key])?.pop().flatten();
            let held = self.answered.entry(leaf).or_default().remove(&key);
            if let (Some(answer), true) = (answer, held) {
                self.workers.rows(leaf, vec![((memo_row(&key), answer.row), -1)])?;
            }
        }
        Ok(())
    }
}
