//! Ticks until nothing is open: fits as their inputs are complete, then model calls.
//!
//! An inference is asked only when every fit and every inference above it is drained, so that no
//! state in between (a user between two groups) is ever paid for.

use std::collections::BTreeSet;

use coea_operators::{
    row::Row,
    shape::{LeafId, Shape},
};

use super::{
    RunError,
    address::memo_row,
    commit::failed_at,
    driver::Driver,
    epoch::{CallReport, InputReport},
};
use crate::state::memo::MemoKey;

impl Driver<'_> {
    /// Works until every fit that can be done is done and every call that may be made is made.
    ///
    /// # Errors
    /// If the budget is spent, or a fit or a model failed as a whole.
    pub fn settle(&mut self) -> Result<(), RunError> {
        loop {
            self.tick()?;
            if self.fit_one()? {
                continue;
            }
            if !self.ask_one()? {
                return Ok(());
            }
        }
    }

    /// Ticks, and feeds what the memo knows of the answers that were committed: of what failed or
    /// was held back, it may know answers that came later, and those are for an epoch to take in.
    pub(super) fn drain_known(&mut self) -> Result<(), RunError> {
        self.tick()?;
        let failed: BTreeSet<Row> = self.failures.iter().map(|(at, _)| at.clone()).collect();
        // Leaves stand in order of dependency: what is above is as complete as it was committed.
        for leaf in self.plan.infers().collect::<Vec<_>>() {
            let node = &self.plan.leaves[leaf].node;
            let waiting = self.waiting.get(&leaf);
            let requests = self.unanswered(leaf).map(|(key, _)| *key);
            let requests = requests.filter(|key| waiting.is_none_or(|waiting| !waiting.contains(key)));
            let committed: Vec<MemoKey> =
                requests.filter(|key| !failed.contains(&failed_at(node, key))).collect();
            if self.feed_known(leaf, committed)? {
                self.tick()?;
            }
        }
        self.epoch.calls.clear();
        Ok(())
    }

    /// Whether there is anything for the epoch under way to do.
    pub fn has_work(&self) -> bool {
        self.rebuild
            || self.epoch.promoted
            || self.epoch.inputs.iter().any(InputReport::brought)
            || self.plan.infers().any(|leaf| self.is_open(leaf))
            || self.epoch.offsets.iter().any(|(source, offsets)| {
                self.manifest.sources.get(source).is_none_or(|known| known.offsets != *offsets)
            })
    }

    /// Whether a leaf is still to be worked on: what is held back is not.
    pub(super) fn is_open(&self, leaf: LeafId) -> bool {
        match &self.plan.leaves[leaf].shape {
            Shape::Fit { .. } if self.fitted.contains_key(&leaf) => self.renewing.contains(&leaf),
            Shape::Fit { .. } => !self.plan.is_between(leaf),
            Shape::Infer { .. } => self.unanswered(leaf).next().is_some() && !self.holds(leaf),
            _ => false,
        }
    }

    /// Requests of an inference that are neither answered nor failed.
    pub(super) fn unanswered(&self, leaf: LeafId) -> impl Iterator<Item = (&MemoKey, &Row)> {
        let pending = self.pending.get(&leaf).into_iter().flatten();
        pending.filter(move |(key, _)| !self.failed.contains_key(&(leaf, **key)))
    }

    /// Answers the first inference that is ready to be asked; says whether there was one.
    pub(super) fn ask_one(&mut self) -> Result<bool, RunError> {
        if self.feed_any_known()? {
            return Ok(true);
        }
        for leaf in self.plan.infers().collect::<Vec<_>>() {
            if !self.is_open(leaf) || self.waits(leaf) {
                continue;
            }
            let Shape::Infer { kernel, .. } = &self.plan.leaves[leaf].shape else { continue };
            if self.options.dry && !(kernel.cheap() && self.options.resolve) {
                continue;
            }
            self.ask(leaf)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Whether something above an inference is still open.
    pub(super) fn waits(&self, leaf: LeafId) -> bool {
        self.plan.upstream(leaf).into_iter().any(|above| self.is_open(above))
    }

    /// Feeds the answers that the memo has to the first inference that waits for no other and lacks
    /// some; says whether there was one.
    fn feed_any_known(&mut self) -> Result<bool, RunError> {
        for leaf in self.plan.infers().collect::<Vec<_>>() {
            if self.waits(leaf) {
                continue;
            }
            let keys = self.unanswered(leaf).map(|(key, _)| *key);
            let keys: Vec<MemoKey> = keys.filter(|key| !self.missing.contains(key)).collect();
            if self.feed_known(leaf, keys)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Feeds those answers to some requests of an inference that the memo has; says whether it has
    /// any.
    fn feed_known(&mut self, leaf: LeafId, keys: Vec<MemoKey>) -> Result<bool, RunError> {
        let answers = self.state.memo.answers(&keys)?;
        let mut known: Vec<(MemoKey, Row)> = Vec::new();
        for (key, answer) in keys.into_iter().zip(answers) {
            match answer {
                Some(answer) => known.push((key, answer.row)),
                None => _ = self.missing.insert(key),
            }
        }
        if known.is_empty() {
            return Ok(false);
        }
        self.epoch.calls.entry(leaf).or_default().memo_hits += known.len() as u64;
        self.feed(leaf, known)?;
        Ok(true)
    }

    pub(super) fn feed(&mut self, leaf: LeafId, answers: Vec<(MemoKey, Row)>) -> Result<(), RunError> {
        self.answered.entry(leaf).or_default().extend(answers.iter().map(|(key, _)| *key));
        if self.epoch.recording {
            self.epoch.fed.extend(answers.iter().map(|(key, _)| *key));
        }
        let rows = answers.into_iter().map(|(key, row)| ((memo_row(&key), row), 1)).collect();
        Ok(self.workers.rows(leaf, rows)?)
    }

    /// What calls are still open would come to, for a plan.
    ///
    /// # Errors
    /// If a tokenizer cannot be loaded.
    pub fn price_open(&mut self) -> Result<(), RunError> {
        let plan = self.plan.clone();
        let mut counted: BTreeSet<MemoKey> = BTreeSet::new();
        for leaf in plan.infers() {
            let Shape::Infer { kernel, .. } = &plan.leaves[leaf].shape else { continue };
            if self.holds(leaf) {
                continue;
            }
            let (mut requests, mut hits): (Vec<Row>, u64) = (Vec::new(), 0);
            for (key, request) in self.unanswered(leaf) {
                // One model may be asked the same by two nodes: the second finds it answered.
                match counted.insert(*key) {
                    true => requests.push(request.clone()),
                    false => hits += 1,
                }
            }
            if hits > 0 {
                self.epoch.calls.entry(leaf).or_default().memo_hits += hits;
            }
            if requests.is_empty() {
                continue;
            }
            let node = plan.leaves[leaf].node.clone();
            let known = self.manifest.throughput.get(&node).copied().unwrap_or_default();
            let each = if known.calls > 0 { known.seconds / known.calls as f64 } else { 0.0 };
            let cost = kernel.price(&requests).map_err(|error| RunError::call(&node, error))?;
            let open = CallReport {
                calls: requests.len() as u64,
                cost,
                seconds: each * requests.len() as f64,
                ..CallReport::default()
            };
            let report = self.epoch.calls.entry(leaf).or_default();
            report.calls += open.calls;
            report.cost += open.cost;
            report.seconds += open.seconds;
        }
        Ok(())
    }

    /// Inferences with open calls and fits that were not done: everything below is not exact.
    pub fn unresolved(&self) -> BTreeSet<LeafId> {
        let infers = self.plan.infers().filter(|leaf| self.is_open(*leaf));
        infers.chain(self.unfit.iter().copied()).collect()
    }
}
