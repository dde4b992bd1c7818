//! What a cycle would cost, before it is taken.
//!
//! Decision: the pairs of a cycle are made for it, since that is cheap, and training is priced on them; what
//! a new version would be asked again is what the one in use is asked now. Both are exact for the first
//! model of a cycle. A later one is made of what the first brings about, so of that they are a guess; and a
//! version that is refused or the same is not asked anything. What is renewed is fitted for the plan too: it
//! takes seconds of this machine and no call, and nothing else can tell what it moves.

use std::collections::{BTreeMap, BTreeSet};

use coea_operators::{
    row::Row,
    served::VERSION,
    shape::{FitCost, LeafId, Shape},
};

use super::{
    RunError,
    commit::EpochChanges,
    cycles::Made,
    driver::Driver,
    renewal::RENEWALS,
    report::{Basis, Report},
};
use crate::state::tables::consolidate;

/// What a cycle would take to make a version of a model, and to bring it about.
#[derive(Clone, Debug)]
pub struct Foreseen {
    /// The node that makes it.
    pub node: String,
    /// The model.
    pub model: Option<String>,
    /// What training takes, with the seconds at the pace of earlier ones; nothing if it is known only
    /// once more was answered, or if nothing is left to train.
    pub training: Option<(FitCost, f64)>,
    /// How sure that is.
    pub basis: Basis,
    /// Calls that a new version causes, at most, by the node that makes them; nothing if that is not known yet.
    pub calls: Option<BTreeMap<String, u64>>,
    /// Why it is not its turn in the first cycle, if it is not.
    pub kept: Option<String>,
}

impl Foreseen {
    /// Calls that a new version causes, at most; nothing if that is not known yet.
    pub fn most(&self) -> Option<u64> {
        Some(self.calls.as_ref()?.values().sum())
    }
}

/// What renewals would do, which come first in a cycle.
#[derive(Default)]
pub struct Renewal {
    /// What was fitted anew for the plan, or is not due; nothing if that is known only once more was
    /// answered.
    pub made: Option<Vec<Made>>,
    /// What that would move, and what it would be asked; nothing if it moves nothing.
    pub report: Option<Report>,
}

/// What cycles would take.
pub struct Foresight {
    /// How many.
    pub cycles: u64,
    /// Renewals, where a pipeline has any.
    pub renewal: Option<Renewal>,
    /// Versions of models.
    pub models: Vec<Foreseen>,
}

impl Driver<'_> {
    /// What so many cycles would take, on a dry driver that was opened for cycles and has settled, with the
    /// changes of its epoch.
    ///
    /// # Errors
    /// If something cannot be fitted for it, or priced.
    pub fn foresee(&mut self, cycles: u64, changes: &EpochChanges) -> Result<Foresight, RunError> {
        let known = self.unresolved().is_empty();
        self.assume(changes);
        let renews = self.plan.renewals().next().is_some();
        let renewal = renews.then(|| self.foresee_renewal(known)).transpose()?;
        let moves =
            renewal.as_ref().is_some_and(|renewal| renewal.made.is_none() || renewal.report.is_some());
        let moved = if moves { self.plan.renewals().collect() } else { BTreeSet::new() };
        Ok(Foresight { cycles, renewal, models: self.foresee_models(moved)? })
    }

    /// Goes on as if the epoch under way were committed.
    fn assume(&mut self, changes: &EpochChanges) {
        if self.has_work() {
            self.manifest = self.next_manifest(self.manifest.epoch + 1, changes);
        }
        self.failures = self.failed_calls();
        self.rebuild = false;
        self.begin(Vec::new());
    }

    /// What is done already of a cycle that was cut off.
    fn done(&self) -> Vec<String> {
        self.manifest.open_cycle.clone().unwrap_or_default()
    }

    fn foresee_renewal(&mut self, known: bool) -> Result<Renewal, RunError> {
        if self.done().iter().any(|done| done == RENEWALS) {
            return Ok(Renewal { made: Some(Vec::new()), report: None });
        }
        if !known {
            return Ok(Renewal::default());
        }
        let made = self.renew(self.manifest.cycles + 1)?;
        if made.is_none() || !self.epoch.promoted {
            return Ok(Renewal { made, report: None });
        }
        self.settle()?;
        self.price_open()?;
        let changes = self.changes()?;
        Ok(Renewal { made, report: Some(self.report(&changes)) })
    }

    fn foresee_models(&mut self, mut moved: BTreeSet<LeafId>) -> Result<Vec<Foreseen>, RunError> {
        let (unresolved, done) = (self.unresolved(), self.done());
        let mut foreseen: Vec<Foreseen> = Vec::new();
        for (leaf, of) in self.plan.refits().collect::<Vec<_>>() {
            if done.contains(&self.plan.leaf_name(leaf)) {
                continue;
            }
            if let Some(why) = self.not_yet(leaf, of) {
                foreseen.push(self.kept(leaf, of, why, &unresolved));
                continue;
            }
            let above: BTreeSet<LeafId> = self.plan.upstream(leaf).into_iter().collect();
            let known = above.is_disjoint(&unresolved);
            let made = if known { self.made(leaf)? } else { None };
            if self.plan.leaves[of].role != VERSION {
                if let Some((artifact, bytes)) = made {
                    self.replace(of, artifact.digest, &bytes)?;
                    self.tick()?;
                }
                continue;
            }
            let node = self.plan.leaves[leaf].node.clone();
            foreseen.push(Foreseen {
                model: self.plan.node(&node).and_then(|node| node.updates.clone()),
                training: self.epoch.training.contains_key(&leaf).then(|| self.training(&node)).flatten(),
                basis: if known && above.is_disjoint(&moved) { Basis::Exact } else { Basis::Estimate },
                calls: self.asked_again(of, &unresolved),
                kept: None,
                node,
            });
            moved.insert(of);
        }
        Ok(foreseen)
    }

    /// A model whose turn it is not in the first cycle, but may be in a later one.
    fn kept(&self, leaf: LeafId, of: LeafId, why: String, unresolved: &BTreeSet<LeafId>) -> Foreseen {
        let node = self.plan.leaves[leaf].node.clone();
        Foreseen {
            model: self.plan.node(&node).and_then(|node| node.updates.clone()),
            training: None,
            basis: Basis::Estimate,
            calls: self.asked_again(of, unresolved),
            kept: Some(why),
            node,
        }
    }

    /// Calls that a new version causes at most, by node: what is asked of it, once each, and whatever is asked
    /// below. Nothing if not all of that is known yet.
    fn asked_again(&self, version: LeafId, unresolved: &BTreeSet<LeafId>) -> Option<BTreeMap<String, u64>> {
        let mut calls: BTreeMap<String, u64> = BTreeMap::new();
        for leaf in self.plan.infers() {
            let Shape::Infer { requests, artifacts, .. } = &self.plan.leaves[leaf].shape else { continue };
            let asks = artifacts.contains(&version);
            let below = self.plan.upstream(*requests).contains(&version);
            if !asks && !below {
                continue;
            }
            let mut above = self.plan.upstream(*requests).into_iter();
            if above.any(|above| unresolved.contains(&above)) {
                return None;
            }
            let rows = consolidate(self.relations.get(requests).cloned().unwrap_or_default());
            let live = rows.iter().filter(|(_, count)| *count > 0).map(|((_, request), _)| request);
            // What stands below may come to differ from key to key.
            let of_leaf = if below { live.count() } else { live.collect::<BTreeSet<&Row>>().len() };
            *calls.entry(self.plan.leaves[leaf].node.clone()).or_default() += of_leaf as u64;
        }
        Some(calls)
    }
}
