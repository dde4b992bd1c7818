//! What `plan` and `run` say of an epoch: the same for both.

mod document;
mod moved;

use std::collections::{BTreeMap, BTreeSet};

use coea_operators::{
    row::Row,
    shape::{FitCost, LeafId, Shape},
};

use super::{
    commit::EpochChanges,
    driver::Driver,
    epoch::{CallReport, InputReport},
};

/// How sure a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Basis {
    /// A run does exactly this.
    Exact,
    /// A run does at most this.
    Bound,
    /// A guess: a model above is not fitted yet.
    Estimate,
}

impl Basis {
    /// What a run does, in words.
    pub fn verb(self) -> &'static str {
        match self {
            Basis::Exact => "changes",
            Basis::Bound => "may change",
            Basis::Estimate => "may change, as far as can be told",
        }
    }

    /// The word in reports.
    pub fn word(self) -> &'static str {
        match self {
            Basis::Exact => "exact",
            Basis::Bound => "bound",
            Basis::Estimate => "estimate",
        }
    }
}

/// What an epoch does to one node.
#[derive(Clone, Debug)]
pub struct NodeReport {
    /// Its name.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// Live keys after the epoch.
    pub keys: u64,
    /// Keys that change, where they are known by name.
    pub changed_keys: BTreeSet<Row>,
    /// Keys that change.
    pub changed: u64,
    /// Model calls.
    pub calls: CallReport,
    /// Requests that wait afterwards, to be asked together with later ones.
    pub backlog: u64,
    /// What the calls cost, and the currency, where their model has a price.
    pub money: Option<(f64, String)>,
    /// Whether it calls a model at all.
    pub infers: bool,
    /// Whether the model is a language model.
    pub language: bool,
    /// How sure `calls` is.
    pub calls_basis: Basis,
    /// How sure `changed` is.
    pub changed_basis: Basis,
    /// Keys that vanish.
    pub gone: u64,
    /// Whether it makes a version of a model in this epoch.
    pub trains: bool,
    /// What training its model took, or will take, with the seconds, where they are known.
    pub training: Option<(FitCost, f64)>,
}

/// An epoch, done or foreseen.
pub struct Report {
    /// True for a plan.
    pub dry: bool,
    /// The pipeline.
    pub pipeline: String,
    /// The epoch: that was committed; for a plan, that the state is at.
    pub epoch: u64,
    /// What came in.
    pub inputs: Vec<InputReport>,
    /// Nodes whose logic differs from the last commit: node and kind of change.
    pub spec_changes: Vec<(String, &'static str)>,
    /// Every node.
    pub nodes: Vec<NodeReport>,
    /// Sinks by table name with the place of the node they read.
    pub sinks: Vec<(String, usize)>,
    /// Seconds it took.
    pub seconds: f64,
    /// Whether there was nothing to do and so no epoch.
    pub idle: bool,
}

impl Driver<'_> {
    /// The report of the epoch as worked out so far.
    pub fn report(&self, changes: &EpochChanges) -> Report {
        let unresolved = self.unresolved();
        let mut nodes: Vec<NodeReport> = Vec::new();
        for node in &self.plan.nodes {
            let infers: Vec<LeafId> = self.infers_of(&node.name).collect();
            let mut calls = CallReport::default();
            for report in infers.iter().filter_map(|leaf| self.epoch.calls.get(leaf)) {
                calls.calls += report.calls;
                calls.memo_hits += report.memo_hits;
                calls.errors += report.errors;
                calls.cost += report.cost;
                calls.seconds += report.seconds;
            }
            let change = changes.tables.get(&node.leaf).cloned().unwrap_or_default();
            let mut report = NodeReport {
                node: node.name.clone(),
                op: node.op.clone(),
                keys: change.live,
                changed: change.changed,
                changed_keys: change.keys,
                calls,
                backlog: infers.iter().map(|leaf| self.backlog(*leaf)).sum(),
                money: self.money(node.model.as_deref(), &calls),
                infers: !infers.is_empty(),
                language: infers.iter().any(|leaf| self.language(*leaf)),
                calls_basis: Basis::Exact,
                changed_basis: Basis::Exact,
                gone: change.gone,
                trains: node.updates.is_some() && self.trains(&node.name),
                training: self.training(&node.name),
            };
            self.bound(node.leaf, &infers, &unresolved, &nodes, &mut report);
            nodes.push(report);
        }
        Report {
            dry: self.options.dry,
            pipeline: self.plan.name.clone(),
            epoch: self.manifest.epoch,
            inputs: self.epoch.inputs.clone(),
            spec_changes: self.spec_changes(),
            nodes,
            sinks: self.plan.sinks.iter().map(|sink| (sink.name.clone(), sink.node)).collect(),
            seconds: self.epoch.began.elapsed().as_secs_f64(),
            idle: false,
        }
    }

    /// The report of an epoch that did not take place, for want of anything to do.
    pub fn idle_report(&self) -> Report {
        let nodes = self.plan.nodes.iter().map(|node| NodeReport {
            node: node.name.clone(),
            op: node.op.clone(),
            keys: self.manifest.nodes.get(&node.name).map_or(0, |known| known.keys),
            changed: 0,
            changed_keys: BTreeSet::new(),
            calls: CallReport::default(),
            backlog: self.infers_of(&node.name).map(|leaf| self.backlog(leaf)).sum(),
            infers: self.infers_of(&node.name).next().is_some(),
            money: None,
            language: false,
            calls_basis: Basis::Exact,
            changed_basis: Basis::Exact,
            gone: 0,
            trains: false,
            training: None,
        });
        Report {
            dry: self.options.dry,
            pipeline: self.plan.name.clone(),
            epoch: self.manifest.epoch,
            inputs: self.epoch.inputs.clone(),
            spec_changes: Vec::new(),
            nodes: nodes.collect(),
            sinks: self.plan.sinks.iter().map(|sink| (sink.name.clone(), sink.node)).collect(),
            seconds: self.epoch.began.elapsed().as_secs_f64(),
            idle: true,
        }
    }

    fn infers_of(&self, node: &str) -> impl Iterator<Item = LeafId> {
        self.plan.infers().filter(move |leaf| self.plan.leaves[*leaf].node == node)
    }

    fn money(&self, model: Option<&str>, calls: &CallReport) -> Option<(f64, String)> {
        let price = self.plan.prices.get(model?)?;
        Some((price.of(&calls.cost), price.currency.clone()))
    }

    fn language(&self, leaf: LeafId) -> bool {
        matches!(&self.plan.leaves[leaf].shape, Shape::Infer { kernel, .. } if !kernel.cheap())
    }

    /// Where answers are missing, a node changes at most where what it reads changes.
    fn bound(
        &self,
        leaf: LeafId,
        infers: &[LeafId],
        unresolved: &BTreeSet<LeafId>,
        above: &[NodeReport],
        report: &mut NodeReport,
    ) {
        let upstream: BTreeSet<LeafId> = self.plan.upstream(leaf).into_iter().chain([leaf]).collect();
        if upstream.is_disjoint(unresolved) {
            return;
        }
        let unfit = |leaf: &LeafId| self.unfit.contains(leaf);
        if upstream.iter().any(unfit) {
            if report.trains {
                // A row for each figure of each step, of which nobody knows yet how many there are.
                report.changed_basis = Basis::Estimate;
                return;
            }
            let users = above.iter().map(|node| node.changed).max().unwrap_or(0);
            report.changed_basis = Basis::Estimate;
            report.changed = report.changed.max(users);
            report.keys = report.keys.max(report.changed);
            if report.infers {
                report.calls_basis = Basis::Estimate;
                let known = infers.iter().map(|leaf| self.requests(*leaf)).max().unwrap_or(0);
                report.calls.calls = report.calls.calls.max(if known > 0 { known } else { users });
            }
            return;
        }
        let Some(node) = self.plan.node(&report.node) else { return };
        for input in node.inputs.iter().filter_map(|name| self.plan.node(name)) {
            if input.schema.key == node.schema.key
                && let Some(read) = above.iter().find(|read| read.node == input.name)
            {
                report.changed_keys.extend(read.changed_keys.iter().cloned());
                report.keys = report.keys.max(read.keys);
            }
        }
        // What an earlier epoch left unanswered may be of any key.
        report.changed = match upstream.iter().any(|leaf| unresolved.contains(leaf) && self.catches_up(*leaf))
        {
            true => report.keys,
            false => report.changed_keys.len() as u64,
        };
        report.changed_basis = Basis::Bound;
        let waits = infers.iter().any(|leaf| self.waits(*leaf) && !self.holds_anyway(*leaf));
        if waits {
            report.calls_basis = Basis::Bound;
            report.calls.calls = report.changed;
        }
    }

    /// Keys that ask an inference for something, where its requests are known.
    fn requests(&self, leaf: LeafId) -> u64 {
        let Shape::Infer { requests, .. } = &self.plan.leaves[leaf].shape else { return 0 };
        let seen = self.epoch.updates.get(&super::render::Channel::Rows(*requests));
        seen.map_or(0, |rows| rows.iter().map(|(_, diff)| *diff).sum::<i64>().max(0) as u64)
    }
}

impl Report {
    /// Whether the epoch changes anything.
    pub fn changes_anything(&self) -> bool {
        self.inputs.iter().any(InputReport::brought)
            || !self.spec_changes.is_empty()
            || self.nodes.iter().any(|n| n.changed > 0 || n.calls.calls > 0)
    }

    /// Calls of language models.
    pub fn language_calls(&self) -> u64 {
        self.nodes.iter().filter(|node| node.language).map(|node| node.calls.calls).sum()
    }

    /// What the calls of language models cost, and the currency, where there is a price.
    pub fn money(&self) -> Option<(f64, &str)> {
        let priced = self.nodes.iter().filter_map(|node| node.money.as_ref());
        priced.fold(None, |sum, (money, currency)| {
            Some((sum.map_or(0.0, |(sum, _)| sum) + money, currency.as_str()))
        })
    }

    /// The summary of calls by node name.
    pub fn calls(&self) -> BTreeMap<&str, u64> {
        self.nodes.iter().map(|node| (node.node.as_str(), node.calls.calls)).collect()
    }
}
