//! Batches of an objective's examples, each made once while memory allows.

use super::trainer::Objective;
use crate::lm::{Batch, LabelTrie, LmError, Tuner};

/// Examples in batches.
pub(super) struct Batches<'a> {
    objective: &'a dyn Objective,
    /// The examples of each batch.
    members: Vec<Vec<usize>>,
    made: Vec<Option<Batch<'a>>>,
    /// Bytes that may still be kept from one use to the next.
    left: usize,
}

impl<'a> Batches<'a> {
    /// Batches of these examples, of which so many bytes are kept.
    pub(super) fn new(objective: &'a dyn Objective, members: Vec<Vec<usize>>, left: usize) -> Self {
        let made = members.iter().map(|_| None).collect();
        Self { objective, members, made, left }
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// The examples of a batch.
    pub(super) fn members(&self, place: usize) -> &[usize] {
        &self.members[place]
    }

    /// Uses a batch: what layers that are not tuned make of it is computed the first time.
    ///
    /// # Errors
    /// If a prompt cannot be asked.
    pub(super) fn with<T>(
        &mut self,
        place: usize,
        tuner: &Tuner,
        used: impl FnOnce(&Batch<'a>, &[usize]) -> T,
    ) -> Result<T, LmError> {
        let (batch, new) = match self.made[place].take() {
            Some(batch) => (batch, 0),
            None => {
                let batch = self.make(place, tuner)?;
                let bytes = batch.bytes();
                (batch, bytes)
            }
        };
        let result = used(&batch, &self.members[place]);
        if new <= self.left {
            self.left -= new;
            self.made[place] = Some(batch);
        }
        Ok(result)
    }

    fn make(&self, place: usize, tuner: &Tuner) -> Result<Batch<'a>, LmError> {
        let (examples, labels) = (self.objective.examples(), self.objective.labels());
        let prompt = |example: &usize| (examples[*example].0.as_str(), labels);
        let prompts: Vec<(&str, &LabelTrie)> = self.members[place].iter().map(prompt).collect();
        tuner.batch(&prompts)
    }
}
