//! Calls a model for everything an inference waits for.
//!
//! All of it in one call, because what requests cost depends on what they share and only the model
//! knows; answers are heard one by one as they come, and made durable every few of them, so that a
//! crash loses seconds of what was paid for and not a batch.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use coea_operators::{
    row::Row,
    shape::{CallError, Cost, InferKernel, KernelError, LeafId, Loaded, Shape},
};

use super::{
    RunError,
    driver::{Driver, Listener},
};
use crate::state::{
    StateError,
    memo::{Memo, MemoKey},
};

/// Answers that are not durable yet, at most.
const UNWRITTEN: usize = 64;
/// How long an answer waits at most to become durable, while others come.
const PATIENCE: Duration = Duration::from_secs(1);

impl Driver<'_> {
    /// Calls a model for everything an inference waits for, as far as the budget goes.
    pub(super) fn ask(&mut self, leaf: LeafId) -> Result<(), RunError> {
        let plan = self.plan.clone();
        let Shape::Infer { kernel, artifacts, .. } = &plan.leaves[leaf].shape else { return Ok(()) };
        let node = &plan.leaves[leaf].node;
        let fitted = artifacts.iter().filter_map(|artifact| self.fitted.get(artifact));
        let loaded: Result<Vec<Loaded>, _> =
            fitted.map(|artifact| self.artifacts.get(&artifact.digest)).collect();
        let loaded = loaded.map_err(|cause| RunError::call(node, cause))?;
        // In order of the request, so that what a budget cuts off does not depend on addresses.
        let mut requests: Vec<(Row, MemoKey)> =
            self.unanswered(leaf).map(|(key, request)| (request.clone(), *key)).collect();
        requests.sort();
        let short = self.shortage(leaf, kernel.cheap(), requests.len());
        requests.truncate(short.as_ref().map_or(requests.len(), |(allowed, _)| *allowed));
        let (rows, keys): (Vec<Row>, Vec<MemoKey>) = requests.into_iter().unzip();
        if !rows.is_empty() {
            let memo = (!self.options.dry).then(|| self.state.memo.clone());
            let desk = Desk::new(node, &keys, memo, self.manifest.epoch, self.listener);
            let began = Instant::now();
            let (heard, outcome) = desk.ask(&**kernel, &loaded, &rows);
            self.take_in(leaf, heard?, began.elapsed(), kernel.cheap(), &outcome)?;
            outcome.map_err(|error| RunError::call(node, error))?;
        }
        short.map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Notes what was heard, and feeds it to the dataflow.
    fn take_in(
        &mut self,
        leaf: LeafId,
        heard: Heard,
        took: Duration,
        cheap: bool,
        outcome: &Result<Cost, CallError>,
    ) -> Result<(), RunError> {
        let calls = (heard.good.len() + heard.failed.len()) as u64;
        if !cheap {
            self.epoch.spent += calls;
        }
        let report = self.epoch.calls.entry(leaf).or_default();
        report.calls += calls;
        report.errors += heard.failed.len() as u64;
        report.seconds += took.as_secs_f64();
        if let Ok(cost) = outcome {
            report.cost += *cost;
        }
        self.failed.extend(heard.failed.into_iter().map(|(key, cause)| ((leaf, key), cause)));
        self.feed(leaf, heard.good)
    }

    /// How many of `wanted` calls may be made, if not all, and what stands against the others: the limits
    /// of the node, or the budget of the run, on which small local models are not.
    fn shortage(&self, leaf: LeafId, cheap: bool, wanted: usize) -> Option<(usize, RunError)> {
        let node = &self.plan.leaves[leaf].node;
        let same = |(at, _): &(&LeafId, _)| self.plan.leaves[**at].node == *node;
        let before = self.spent_on.get(node).copied().unwrap_or_default();
        let made: u64 = self.epoch.calls.iter().filter(same).map(|(_, report)| report.calls).sum();
        let made = made + before;
        let limit = self
            .plan
            .max_calls(leaf)
            .map(|calls| (calls.saturating_sub(made), RunError::Limit { node: node.clone(), calls }));
        let budget = self.options.max_calls.filter(|_| !cheap);
        let budget =
            budget.map(|most| (most.saturating_sub(self.spent + self.epoch.spent), RunError::Budget(most)));
        let (allowed, error) = limit.into_iter().chain(budget).min_by_key(|(allowed, _)| *allowed)?;
        ((allowed as usize) < wanted).then_some((allowed as usize, error))
    }
}

/// The answers that were heard.
#[derive(Default)]
struct Heard {
    good: Vec<(MemoKey, Row)>,
    failed: Vec<(MemoKey, KernelError)>,
}

/// Where answers arrive.
struct Desk<'a> {
    node: &'a str,
    keys: &'a [MemoKey],
    /// Where answers are remembered; nothing in a plan.
    memo: Option<Memo>,
    epoch: u64,
    listener: &'a dyn Listener,
    heard: Heard,
    /// Good answers that are durable, and since when others wait.
    written: usize,
    waiting: Instant,
    failure: Option<StateError>,
}

impl<'a> Desk<'a> {
    fn new(
        node: &'a str,
        keys: &'a [MemoKey],
        memo: Option<Memo>,
        epoch: u64,
        listener: &'a dyn Listener,
    ) -> Self {
        let waiting = Instant::now();
        Desk {
            node,
            keys,
            memo,
            epoch,
            listener,
            heard: Heard::default(),
            written: 0,
            waiting,
            failure: None,
        }
    }

    /// What was heard, all of it durable, and how the call ended.
    fn ask(
        mut self,
        kernel: &dyn InferKernel,
        artifacts: &[Loaded],
        requests: &[Row],
    ) -> (Result<Heard, StateError>, Result<Cost, CallError>) {
        let outcome = kernel.run(artifacts, requests, &mut |at, answer| self.hear(at, answer));
        if self.failure.is_none() {
            self.failure = self.write().err();
        }
        (self.failure.map_or(Ok(self.heard), Err), outcome)
    }

    fn hear(&mut self, at: usize, answer: Result<Row, KernelError>) -> ControlFlow<()> {
        if self.heard.good.len() == self.written {
            self.waiting = Instant::now();
        }
        match answer {
            Ok(row) => self.heard.good.push((self.keys[at], row)),
            Err(cause) => self.heard.failed.push((self.keys[at], cause)),
        }
        let done = self.heard.good.len() + self.heard.failed.len();
        self.listener.progress(self.node, done as u64, self.keys.len() as u64, "calls");
        if self.heard.good.len() - self.written < UNWRITTEN && self.waiting.elapsed() < PATIENCE {
            return ControlFlow::Continue(());
        }
        match self.write() {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.failure = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    /// Makes durable what is not.
    fn write(&mut self) -> Result<(), StateError> {
        let unwritten = &self.heard.good[self.written..];
        if let Some(memo) = self.memo.as_ref().filter(|_| !unwritten.is_empty()) {
            memo.remember(self.node, unwritten, self.epoch)?;
        }
        self.written = self.heard.good.len();
        Ok(())
    }
}
