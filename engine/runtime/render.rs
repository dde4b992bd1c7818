//! The Plan as a timely/differential dataflow: one walk over the leaves, one match on the shape.
//!
//! Everything is `(Row, Row)` with signed counts, so each differential operator is compiled once.
//! Model calls never happen here: an inference is requests joined with results, and results are
//! data that the driver feeds in (see `driver`).

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, sync::Arc};

use coea_operators::{
    row::{Keyed, Row, Value},
    shape::{LeafId, Shape},
};
use differential_dataflow::{AsCollection, VecCollection, input::Input, input::InputSession};
use timely::{
    dataflow::{
        ProbeHandle, Scope,
        channels::pact::Pipeline,
        operators::{Probe, generic::operator::Operator, vec::Broadcast},
    },
    worker::Worker,
};

use super::{
    address::{joined, memo_key, memo_row},
    artifacts::Artifacts,
    fold::{Folds, Update},
};
use crate::{plan::Plan, state::history::shard};

/// Ticks: logical times within one process.
pub type Tick = u64;
type Relation<'s> = VecCollection<'s, Tick, Keyed, i64>;

/// What the dataflow says of itself, by leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// Rows of a leaf.
    Rows(LeafId),
    /// Rows of a leaf's error relation.
    Errors(LeafId),
    /// Memo key → request: calls to make.
    Pending(LeafId),
    /// Memo key → request: answers in use.
    Used(LeafId),
}

/// Updates seen, by channel.
pub type Captured = Rc<RefCell<BTreeMap<Channel, Vec<Update>>>>;

/// A rendered dataflow on one worker.
pub struct Rendered {
    /// Inputs by leaf: rows of relation sources, results of inferences, versions of fits.
    pub inputs: BTreeMap<LeafId, InputSession<Tick, Keyed, i64>>,
    /// Moves the time of folds without a side input.
    pub clock: InputSession<Tick, Keyed, i64>,
    /// Behind everything.
    pub probe: ProbeHandle<Tick>,
    /// What came out.
    pub captured: Captured,
}

/// Renders a plan on a worker. `wanted` are the leaves whose rows are captured.
pub fn render(
    worker: &mut Worker,
    plan: &Arc<Plan>,
    folds: &Rc<RefCell<Folds>>,
    artifacts: &Artifacts,
    wanted: &[LeafId],
) -> Rendered {
    let captured: Captured = Rc::default();
    let probe = ProbeHandle::new();
    let mut inputs = BTreeMap::new();
    let clock = worker.dataflow::<Tick, _, _>(|scope| {
        let (clock, ticking) = scope.new_collection::<Keyed, i64>();
        let mut rendering = Rendering {
            scope,
            plan,
            folds,
            artifacts,
            captured: &captured,
            probe: &probe,
            inputs: &mut inputs,
            ticking,
            relations: Vec::new(),
        };
        for leaf in 0..plan.leaves.len() {
            let relation = rendering.leaf(leaf);
            if let Some(relation) = &relation
                && wanted.contains(&leaf)
            {
                rendering.capture(Channel::Rows(leaf), relation.clone());
            }
            rendering.relations.push(relation);
        }
        for relation in rendering.relations.into_iter().flatten() {
            relation.inner.probe_with(&probe);
        }
        clock
    });
    Rendered { inputs, clock, probe, captured }
}

struct Rendering<'a, 's> {
    scope: Scope<'s, Tick>,
    plan: &'a Arc<Plan>,
    folds: &'a Rc<RefCell<Folds>>,
    artifacts: &'a Artifacts,
    captured: &'a Captured,
    probe: &'a ProbeHandle<Tick>,
    inputs: &'a mut BTreeMap<LeafId, InputSession<Tick, Keyed, i64>>,
    ticking: Relation<'s>,
    /// Per leaf so far; event sources have none.
    relations: Vec<Option<Relation<'s>>>,
}

impl<'s> Rendering<'_, 's> {
    fn of(&self, leaf: LeafId) -> Relation<'s> {
        // Operators read event sources through folds and fits only, which lowering checked.
        self.relations[leaf].clone().unwrap_or_else(|| unreachable!("an event source is no relation"))
    }

    fn input(&mut self, leaf: LeafId) -> Relation<'s> {
        let (session, relation) = self.scope.new_collection::<Keyed, i64>();
        self.inputs.insert(leaf, session);
        relation
    }

    fn capture(&self, channel: Channel, relation: Relation<'s>) {
        let captured = self.captured.clone();
        let seen = relation.inspect(move |(row, _, diff)| {
            captured.borrow_mut().entry(channel).or_default().push((row.clone(), *diff));
        });
        seen.inner.probe_with(self.probe);
    }

    fn leaf(&mut self, leaf: LeafId) -> Option<Relation<'s>> {
        let plan = self.plan.clone();
        Some(match &plan.leaves[leaf].shape {
            Shape::Source(source) if plan.sources[*source].events => return None,
            Shape::Source(_) | Shape::Fit { .. } => self.input(leaf),
            Shape::Map { input, artifact, kernel } => {
                let (kernel, artifacts) = (kernel.clone(), self.artifacts.clone());
                let rows = self.with_versions(*input, artifact.as_slice());
                self.fallible(leaf, rows, move |digest, (key, row), out| {
                    let loaded = digest.map(|digest| artifacts.get(digest)).transpose()?;
                    kernel(loaded.as_ref(), key, row, out)
                })
            }
            Shape::Fold { dim, .. } => {
                let restored = self.input(leaf);
                self.fold(leaf, dim.map(|(dim, _)| dim)).concat(restored)
            }
            Shape::Reduce { inputs, kernel } => self.reduce(inputs, kernel.clone()),
            Shape::Join { left, right, kernel } => {
                let kernel = kernel.clone();
                let joined = self.of(*left).join_map(self.of(*right), move |key, left, right| {
                    let mut out = Vec::new();
                    kernel(key, left, right, &mut out);
                    out
                });
                joined.flat_map(|rows| rows)
            }
            Shape::Infer { requests, artifacts, .. } => self.infer(leaf, *requests, artifacts),
        })
    }

    /// Rows beside the digests of the artifacts they are mapped with: a version is data, so a new one
    /// retracts what the old one gave.
    fn with_versions(
        &self,
        input: LeafId,
        artifacts: &[LeafId],
    ) -> VecCollection<'s, Tick, (Option<Arc<str>>, Keyed), i64> {
        let rows = self.of(input).map(|row| (None, row));
        artifacts.iter().fold(
            rows,
            |rows: VecCollection<'s, Tick, (Option<Arc<str>>, Keyed), i64>, artifact| {
                let versions = self.of(*artifact).flat_map(|(_, row)| {
                    let digest = row.first().and_then(Value::as_text).map(Arc::<str>::from);
                    (0..=u8::MAX).filter_map(move |shard| digest.clone().map(|digest| (shard, digest)))
                });
                let rows = rows.map(|(before, row)| (shard(&row.0), (before, row)));
                rows.join_map(versions, |_, (before, row), digest| {
                    (Some(joined(before.as_deref(), digest).into()), row.clone())
                })
            },
        )
    }

    /// Maps rows; what a kernel cannot do is a row of the error relation, gone when its row is.
    fn fallible<D: Clone + 'static>(
        &self,
        leaf: LeafId,
        rows: VecCollection<'s, Tick, (Option<D>, Keyed), i64>,
        kernel: impl Fn(Option<&D>, &Keyed, &mut Vec<Keyed>) -> Result<(), String> + 'static,
    ) -> Relation<'s> {
        let results = rows.flat_map(move |(version, row)| {
            let mut out = Vec::new();
            match kernel(version.as_ref(), &row, &mut out) {
                Ok(()) => out.into_iter().map(Ok).collect::<Vec<_>>(),
                Err(cause) => vec![Err((row.0, Row::from([Value::text(cause)])))],
            }
        });
        self.capture(Channel::Errors(leaf), results.clone().flat_map(Result::err));
        results.flat_map(Result::ok)
    }

    fn reduce(&self, inputs: &[LeafId], kernel: coea_operators::shape::ReduceKernel) -> Relation<'s> {
        let tagged = inputs.iter().enumerate().map(|(at, input)| {
            let tag = Value::U64(at as u64);
            self.of(*input).map(move |(key, row)| (key, Row::from([tag.clone()]).concat(&row)))
        });
        let all = tagged.reduce(|a, b| a.concat(b)).unwrap_or_else(|| self.ticking.clone());
        let width = inputs.len();
        all.reduce(move |key, rows, output| {
            let mut apart: Vec<Vec<(Row, i64)>> = vec![Vec::new(); width];
            for (row, count) in rows.iter().filter(|(_, count)| *count > 0) {
                let at = row[0].as_u64().unwrap_or_default() as usize;
                apart[at].push((Row::new(row[1..].iter().cloned()), *count));
            }
            if apart.iter().all(Vec::is_empty) {
                return;
            }
            let mut out = Vec::new();
            kernel(key, &apart, &mut out);
            output.extend(crate::state::tables::consolidate(out.into_iter().map(|row| (row, 1)).collect()));
        })
    }

    /// An own operator: waits until the tick's side input is complete, then folds touched keys.
    fn fold(&mut self, leaf: LeafId, dim: Option<LeafId>) -> Relation<'s> {
        let side = dim.map_or_else(|| self.ticking.clone(), |dim| self.of(dim)).inner.broadcast();
        let (folds, captured) = (self.folds.clone(), self.captured.clone());
        let failed = self.artifacts.clone();
        let rows = side
            .unary_frontier::<timely::container::CapacityContainerBuilder<Vec<(Keyed, Tick, i64)>>, _, _, _>(
                Pipeline,
                "Fold",
                move |capability, _| {
                    let mut capability = Some(capability);
                    let mut waiting: Vec<(Tick, Update)> = Vec::new();
                    move |(input, frontier), output| {
                        input.for_each_time(|_, data| {
                            let updates = data.flat_map(|batch| batch.drain(..));
                            waiting.extend(updates.map(|(row, time, diff)| (time, (row, diff))));
                        });
                        let Some(held) = capability.as_mut() else { return };
                        while !frontier.less_equal(held.time()) {
                            let now = *held.time();
                            let due =
                                waiting.extract_if(.., |(time, _)| *time <= now).map(|(_, u)| u).collect();
                            let mut folds = folds.borrow_mut();
                            match folds.advance(leaf, due) {
                                Ok(changed) => {
                                    let rows = changed.rows.into_iter().map(|(row, diff)| (row, now, diff));
                                    output.session(held).give_iterator(rows);
                                    if !changed.errors.is_empty() {
                                        let mut captured = captured.borrow_mut();
                                        captured
                                            .entry(Channel::Errors(leaf))
                                            .or_default()
                                            .extend(changed.errors);
                                    }
                                }
                                Err(error) => failed.fail(error.to_string()),
                            }
                            held.downgrade(&(now + 1));
                            if frontier.is_empty() {
                                break;
                            }
                        }
                        if frontier.is_empty() {
                            capability = None;
                        }
                    }
                },
            );
        rows.as_collection()
    }

    /// Requests joined with results; those without a result are pending.
    fn infer(&mut self, leaf: LeafId, requests: LeafId, artifacts: &[LeafId]) -> Relation<'s> {
        let logic = self.plan.infer_logic(leaf);
        let asked = self.with_versions(requests, artifacts).map(move |(digest, (key, request))| {
            (memo_row(&memo_key(&logic, digest.as_deref(), &request)), (key, request))
        });
        let keys = asked.clone().map(|(memo, (key, _))| (memo, key));
        let distinct = asked.map(|(memo, (_, request))| (memo, request)).distinct_core::<i64>();
        let results = self.input(leaf);
        let pending = distinct.clone().antijoin(results.clone().map(|(memo, _)| memo));
        self.capture(Channel::Used(leaf), distinct);
        self.capture(Channel::Pending(leaf), pending);
        keys.join_map(results, |_, key, answer| (key.clone(), answer.clone()))
    }
}
