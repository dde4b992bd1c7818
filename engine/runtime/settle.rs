//! Ticks until nothing is open: fits as their inputs are complete, then model calls.
//!
//! An inference is asked only when every fit and every inference above it is drained, so that no
//! state in between (a user between two groups) is ever paid for.

use std::{collections::BTreeSet, time::Instant};

use coea_operators::{
    row::{Row, encode_row},
    shape::{LeafId, Loaded, Progress, Shape, Snapshot},
};

use super::{
    RunError,
    driver::{Driver, fit_logic},
    epoch::CallReport,
    fold::Update,
    render::memo_row,
};
use crate::state::{manifest::ArtifactState, memo::MemoKey, tables::consolidate};

/// Requests answered between two writes of the memo: what a crash can lose.
const CHUNK: usize = 64;

/// A relation in memory, in canonical order.
struct Rows(Vec<Update>);

impl Snapshot for Rows {
    fn for_each(&self, visit: &mut dyn FnMut(&Row, &Row, i64)) {
        self.0.iter().filter(|(_, count)| *count > 0).for_each(|((key, row), count)| visit(key, row, *count));
    }
}

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

    /// Ticks while the memo knows every answer: restores what was committed without a call.
    pub(super) fn drain_known(&mut self) -> Result<(), RunError> {
        self.tick()?;
        while self.feed_known()?.is_some() {
            self.tick()?;
        }
        self.epoch.calls.clear();
        Ok(())
    }

    fn is_open(&self, leaf: LeafId) -> bool {
        match &self.plan.leaves[leaf].shape {
            Shape::Fit { .. } => !self.fitted.contains_key(&leaf),
            Shape::Infer { .. } => self.unanswered(leaf).next().is_some(),
            _ => false,
        }
    }

    /// Requests of an inference that are neither answered nor failed.
    pub(super) fn unanswered(&self, leaf: LeafId) -> impl Iterator<Item = (&MemoKey, &Row)> {
        let pending = self.pending.get(&leaf).into_iter().flatten();
        pending.filter(move |(key, _)| !self.failed.contains_key(&(leaf, **key)))
    }

    /// Does the first fit whose inputs are complete; says whether there was one.
    fn fit_one(&mut self) -> Result<bool, RunError> {
        for leaf in self.plan.fits().collect::<Vec<_>>() {
            if self.fitted.contains_key(&leaf) || self.unfit.contains(&leaf) {
                continue;
            }
            if self.plan.upstream(leaf).into_iter().any(|above| self.is_open(above)) {
                continue;
            }
            if self.fit(leaf)? {
                self.ready_folds()?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn fit(&mut self, leaf: LeafId) -> Result<bool, RunError> {
        let plan = self.plan.clone();
        let Shape::Fit { inputs, artifacts, kernel, cheap, .. } = &plan.leaves[leaf].shape else {
            return Ok(false);
        };
        let snapshots =
            inputs.iter().map(|input| self.snapshot(*input)).collect::<Result<Vec<_>, RunError>>()?;
        let read: Vec<ArtifactState> =
            artifacts.iter().filter_map(|artifact| self.fitted.get(artifact).cloned()).collect();
        let logic = fit_logic(&plan, leaf);
        let identity = identity(&logic, &snapshots, &read);
        let bytes = match self.state.memo.fitted(&identity)? {
            Some(bytes) => bytes,
            None if self.options.dry && !cheap => {
                self.unfit.insert(leaf);
                return Ok(false);
            }
            None => {
                let node = &plan.leaves[leaf].node;
                let loaded: Vec<Loaded> = read
                    .iter()
                    .map(|artifact| self.artifacts.get(&artifact.digest))
                    .collect::<Result<_, _>>()
                    .map_err(|cause| RunError::call(node, cause))?;
                let views: Vec<&dyn Snapshot> = snapshots.iter().map(|rows| rows as &dyn Snapshot).collect();
                let what = format!("fit {}", plan.leaf_name(leaf));
                let mut tell = |p: Progress<'_>| self.listener.progress(&what, p.done, p.total, p.note);
                kernel(&views, &loaded, &mut tell).map_err(|error| RunError::call(node, error))?
            }
        };
        let digest = match self.options.dry {
            true => *blake3::hash(&bytes).as_bytes(),
            false => self.state.memo.finish_fit(&identity, &bytes)?,
        };
        let digest = blake3::Hash::from_bytes(digest).to_hex().to_string();
        let epoch = self.manifest.epoch + 1;
        self.adopt(leaf, ArtifactState { digest, logic, epoch }, &bytes)?;
        Ok(true)
    }

    fn snapshot(&self, input: LeafId) -> Result<Rows, RunError> {
        let source = self.plan.sources.iter().find(|source| source.leaf == input && source.events);
        Ok(Rows(match source {
            Some(source) => self.workers.scan(self.ids[&source.name])?,
            None => consolidate(self.relations.get(&input).cloned().unwrap_or_default()),
        }))
    }

    /// Answers the first inference that is ready to be asked; says whether there was one.
    fn ask_one(&mut self) -> Result<bool, RunError> {
        if self.feed_known()?.is_some() {
            return Ok(true);
        }
        for leaf in self.plan.infers().collect::<Vec<_>>() {
            if self.unanswered(leaf).next().is_none() || self.waits(leaf) {
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

    /// Feeds answers that the memo has; says for which inference.
    fn feed_known(&mut self) -> Result<Option<LeafId>, RunError> {
        for leaf in self.plan.infers().collect::<Vec<_>>() {
            if self.waits(leaf) {
                continue;
            }
            let keys: Vec<MemoKey> = self.unanswered(leaf).map(|(key, _)| *key).collect();
            if keys.is_empty() {
                continue;
            }
            let answers = self.state.memo.answers(&keys)?;
            let known: Vec<(MemoKey, Row)> =
                keys.into_iter().zip(answers).filter_map(|(key, answer)| Some((key, answer?.row))).collect();
            if known.is_empty() {
                continue;
            }
            self.epoch.calls.entry(leaf).or_default().memo_hits += known.len() as u64;
            self.feed(leaf, known)?;
            return Ok(Some(leaf));
        }
        Ok(None)
    }

    fn feed(&mut self, leaf: LeafId, answers: Vec<(MemoKey, Row)>) -> Result<(), RunError> {
        self.answered.entry(leaf).or_default().extend(answers.iter().map(|(key, _)| *key));
        let rows = answers.into_iter().map(|(key, row)| ((memo_row(&key), row), 1)).collect();
        Ok(self.workers.rows(leaf, rows)?)
    }

    /// Calls a model for everything an inference waits for, a chunk at a time.
    fn ask(&mut self, leaf: LeafId) -> Result<(), RunError> {
        let plan = self.plan.clone();
        let Shape::Infer { kernel, artifact, .. } = &plan.leaves[leaf].shape else { return Ok(()) };
        let node = plan.leaves[leaf].node.clone();
        let loaded = artifact.and_then(|artifact| self.fitted.get(&artifact));
        let loaded = loaded.map(|artifact| self.artifacts.get(&artifact.digest)).transpose();
        let loaded = loaded.map_err(|cause| RunError::call(&node, cause))?;
        // In order of the request, so that neighbours share the beginnings of their prompts.
        let mut requests: Vec<(Row, MemoKey)> =
            self.unanswered(leaf).map(|(key, request)| (request.clone(), *key)).collect();
        requests.sort();
        let total = requests.len() as u64;
        let mut done = 0u64;
        for chunk in requests.chunks(CHUNK) {
            let allowed = self.allowance(kernel.cheap(), chunk.len());
            let (rows, keys): (Vec<Row>, Vec<MemoKey>) = chunk[..allowed].iter().cloned().unzip();
            if rows.is_empty() {
                return Err(RunError::Budget(self.options.max_calls.unwrap_or_default()));
            }
            let began = Instant::now();
            let listener = self.listener;
            let answers = kernel
                .run(loaded.as_ref(), &rows, &mut |n| {
                    listener.progress(&node, done + n as u64, total, "calls")
                })
                .map_err(|error| RunError::call(&node, error))?;
            done += rows.len() as u64;
            if !kernel.cheap() {
                self.epoch.spent += rows.len() as u64;
            }
            let report = self.epoch.calls.entry(leaf).or_default();
            report.calls += rows.len() as u64;
            report.cost += answers.cost;
            report.seconds += began.elapsed().as_secs_f64();
            let mut good = Vec::new();
            for (key, answer) in keys.into_iter().zip(answers.rows) {
                match answer {
                    Ok(row) => good.push((key, row)),
                    Err(cause) => {
                        report.errors += 1;
                        self.failed.insert((leaf, key), cause);
                    }
                }
            }
            if !self.options.dry {
                self.state.memo.remember(&node, &good, self.manifest.epoch)?;
            }
            self.feed(leaf, good)?;
            if allowed < chunk.len() {
                return Err(RunError::Budget(self.options.max_calls.unwrap_or_default()));
            }
        }
        Ok(())
    }

    /// How many of `wanted` calls the budget allows; small local models are not on it.
    fn allowance(&self, cheap: bool, wanted: usize) -> usize {
        match self.options.max_calls {
            Some(most) if !cheap => wanted.min(most.saturating_sub(self.epoch.spent) as usize),
            _ => wanted,
        }
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
        let infers = self.plan.infers().filter(|leaf| self.unanswered(*leaf).next().is_some());
        infers.chain(self.unfit.iter().copied()).collect()
    }
}

/// What a fit is a function of: logic, inputs, artifacts read.
fn identity(logic: &str, snapshots: &[Rows], read: &[ArtifactState]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(logic.as_bytes());
    read.iter().for_each(|artifact| {
        hasher.update(artifact.digest.as_bytes());
    });
    for rows in snapshots {
        hasher.update(b"\0input");
        rows.for_each(&mut |key, row, count| {
            hasher.update(&encode_row(key));
            hasher.update(&encode_row(row));
            hasher.update(&count.to_le_bytes());
        });
    }
    *hasher.finalize().as_bytes()
}
