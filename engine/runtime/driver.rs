//! The driver: keeps a pipeline's dataflow, and takes epochs from their inputs to their commit.
//!
//! `run` and `plan` are the same code. A plan reads a snapshot, keeps its changes in memory, makes
//! no call of a language model and drops everything at the end; so what it says is what a run does.
//! A driver may stay open: an epoch after the first restores nothing and costs what it touches.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::PathBuf,
    sync::Arc,
};

use coea_operators::{
    row::{Keyed, Row},
    shape::{LeafId, Shape},
};

use super::{
    RunError,
    address::memo_key_of,
    artifacts::Artifacts,
    backlog::{Clock, Waiting},
    epoch::Epoch,
    fold::Update,
    reads::wanted,
    render::Channel,
    report::Report,
    worker::{Ticked, Workers, add},
};
use crate::{
    plan::Plan,
    state::{
        State,
        manifest::{ArtifactState, Manifest},
        memo::MemoKey,
        tables::Tables,
    },
};

/// What a command asks of the driver.
#[derive(Clone, Default)]
pub struct Options {
    /// Worker threads.
    pub workers: usize,
    /// Calls of language models at most.
    pub max_calls: Option<u64>,
    /// Delta files: source and path.
    pub deltas: Vec<(String, PathBuf)>,
    /// Apply a delta file that was applied before.
    pub again: bool,
    /// A state whose fitted artifacts are taken instead of fitting.
    pub models_from: Option<PathBuf>,
    /// Work out what a run would do, and do nothing.
    pub dry: bool,
    /// Whether a dry run may run small local models to be exact.
    pub resolve: bool,
    /// Ask what waits for `after`, whatever it waits for.
    pub flush: bool,
    /// What tells how long something waited.
    pub clock: Clock,
    /// Whether cycles are to follow.
    pub cycles: bool,
    /// Whether what is wanted is left for later.
    pub as_committed: bool,
}

/// Hears how far long work is.
pub trait Listener: Sync {
    /// `done` of `total` steps of `what` are done.
    fn progress(&self, what: &str, done: u64, total: u64, note: &str);
    /// Something a person should know.
    fn warn(&self, message: &str);
}

/// A pipeline on its state, with an epoch under way.
///
/// After an error it is to be dropped: what it holds is then neither the state before nor after.
pub struct Driver<'a> {
    pub(super) plan: Arc<Plan>,
    pub(super) state: State,
    pub(super) options: Options,
    pub(super) listener: &'a dyn Listener,
    /// What is committed.
    pub(super) manifest: Manifest,
    pub(super) tables: Tables,
    pub(super) workers: Workers,
    pub(super) artifacts: Artifacts,
    /// Numbers of the sources' histories.
    pub(super) ids: BTreeMap<String, u16>,
    /// Whether every table is computed anew and compared: a fresh state or a changed spec.
    pub(super) rebuild: bool,
    /// Fits that are done: leaf → artifact.
    pub(super) fitted: BTreeMap<LeafId, ArtifactState>,
    /// Fits that are done, and are to be done anew.
    pub(super) renewing: BTreeSet<LeafId>,
    /// Fits a plan does not run.
    pub(super) unfit: BTreeSet<LeafId>,
    /// Calls to make, by inference.
    pub(super) pending: BTreeMap<LeafId, BTreeMap<MemoKey, Row>>,
    /// Those of them that the memo was found not to know.
    pub(super) missing: HashSet<MemoKey>,
    /// Those of them that were held back, by inference, as of the last commit.
    pub(super) waiting: BTreeMap<LeafId, Waiting>,
    /// Requests that failed, with the cause.
    pub(super) failed: BTreeMap<(LeafId, MemoKey), String>,
    /// The committed error rows of failed calls.
    pub(super) failures: Vec<Keyed>,
    /// Answers that the dataflow holds, by inference.
    pub(super) answered: BTreeMap<LeafId, HashSet<MemoKey>>,
    /// Answers in use, by the number of inferences that use them.
    pub(super) in_use: BTreeMap<MemoKey, i64>,
    /// Rows of relations that open fits read, from the beginning of the process.
    pub(super) relations: BTreeMap<LeafId, Vec<Update>>,
    /// Calls of language models in epochs that were committed, where cycles are taken.
    pub(super) spent: u64,
    /// Calls of each node in them.
    pub(super) spent_on: BTreeMap<String, u64>,
    /// What is under way.
    pub(super) epoch: Epoch,
}

/// The table of the rows of a relation source.
pub fn source_table(source: &str) -> String {
    format!("source/{source}")
}

impl<'a> Driver<'a> {
    /// Opens a plan on a state and restores what was committed; the first epoch is under way.
    ///
    /// # Errors
    /// If the state cannot be read, or was begun with other sources.
    pub fn open(
        plan: Arc<Plan>,
        state: State,
        options: Options,
        listener: &'a dyn Listener,
    ) -> Result<Self, RunError> {
        let snapshot = state.snapshot()?;
        let manifest = Manifest::load(&snapshot.layered("meta"))?;
        let tables = Tables::new(snapshot.layered("tables"));
        let ids = source_ids(&plan, &manifest)?;
        let rebuild = manifest.epoch == 0 || changed_spec(&plan, &manifest);
        let artifacts = Artifacts::default();
        let wanted: Vec<LeafId> = wanted(&plan).into_iter().collect();
        let epoch = Epoch::new(rebuild, options.clock.now());
        let workers = Workers::start(&plan, &state, &ids, wanted, options.workers.max(1), &artifacts)?;
        let mut driver = Driver {
            plan,
            state,
            options,
            listener,
            manifest,
            tables,
            workers,
            artifacts,
            ids,
            rebuild,
            fitted: BTreeMap::new(),
            renewing: BTreeSet::new(),
            unfit: BTreeSet::new(),
            pending: BTreeMap::new(),
            missing: HashSet::new(),
            waiting: BTreeMap::new(),
            failed: BTreeMap::new(),
            failures: Vec::new(),
            answered: BTreeMap::new(),
            in_use: BTreeMap::new(),
            relations: BTreeMap::new(),
            spent: 0,
            spent_on: BTreeMap::new(),
            epoch,
        };
        driver.restore()?;
        Ok(driver)
    }

    /// Begins another epoch in the same process, with delta files (source and path) of its own.
    pub fn begin(&mut self, deltas: Vec<(String, PathBuf)>) {
        // What a rebuild restored is part of the epoch that commits it.
        if !self.rebuild {
            self.epoch = Epoch::new(true, self.options.clock.now());
        }
        self.options.deltas = deltas;
    }

    /// Takes the epoch under way from its inputs to its commit; with nothing to do, there is none.
    ///
    /// # Errors
    /// What kept the epoch from being committed; then nothing of it is, and the driver is spent.
    pub fn run_epoch(&mut self) -> Result<Report, RunError> {
        self.ingest()?;
        if !self.has_work() {
            return Ok(self.idle_report());
        }
        self.complete()
    }

    /// Takes what is under way to its commit.
    pub(super) fn complete(&mut self) -> Result<Report, RunError> {
        self.settle()?;
        let changes = self.changes()?;
        let mut report = self.report(&changes);
        report.epoch = self.commit(&changes)?;
        Ok(report)
    }

    /// Completes a tick and takes in what it brought.
    pub(super) fn tick(&mut self) -> Result<(), RunError> {
        let Ticked { updates, unmatched, net } = self.workers.tick()?;
        let fit_inputs = self.fit_inputs();
        for (channel, rows) in &updates {
            match *channel {
                Channel::Pending(leaf) => self.note_pending(leaf, rows),
                Channel::Rows(leaf) => {
                    if fit_inputs.contains(&leaf) {
                        self.relations.entry(leaf).or_default().extend(rows.iter().cloned());
                    }
                }
                Channel::Used(_) => {
                    for (key, count) in rows.iter().filter_map(|((memo, _), n)| Some((memo_key_of(memo)?, n)))
                    {
                        *self.in_use.entry(key).or_default() += count;
                    }
                }
                Channel::Errors(_) => {}
            }
        }
        if self.epoch.recording {
            let kept = updates.into_iter().filter(|(channel, _)| !matches!(channel, Channel::Pending(_)));
            add(&mut self.epoch.updates, kept.collect());
        }
        self.epoch.unmatched.extend(unmatched);
        net.into_iter().for_each(|(source, n)| *self.epoch.net.entry(source).or_default() += n);
        Ok(())
    }

    /// The epoch the state is at.
    pub fn epoch(&self) -> u64 {
        self.manifest.epoch
    }
}

/// What decides a fit's result beside its inputs and the artifacts it reads.
pub(super) fn fit_logic(plan: &Plan, leaf: LeafId) -> String {
    match &plan.leaves[leaf].shape {
        Shape::Fit { logic, .. } => blake3::hash(logic.as_bytes()).to_hex()[..32].to_string(),
        _ => String::new(),
    }
}

/// Whether nodes came, went, or compute something else than at the last commit.
pub fn changed_spec(plan: &Plan, manifest: &Manifest) -> bool {
    let names: BTreeSet<String> = table_leaves(plan).map(|leaf| plan.leaf_name(leaf)).collect();
    let known: BTreeSet<String> = manifest.nodes.keys().cloned().collect();
    let moved = |leaf: LeafId| {
        let known = manifest.nodes.get(&plan.leaf_name(leaf));
        known.is_none_or(|node| node.lineage != plan.lineage[leaf])
    };
    // What was fitted by other code is fitted anew, and so is all that it decided.
    let refitted = |leaf: LeafId| {
        let known = manifest.artifacts.get(&plan.leaf_name(leaf));
        known.is_some_and(|fit| fit.logic != fit_logic(plan, leaf))
    };
    names != known || table_leaves(plan).any(moved) || plan.fits().any(refitted)
}

/// The leaves whose rows are kept as tables: outputs of nodes, and folds.
pub fn table_leaves(plan: &Plan) -> impl Iterator<Item = LeafId> + '_ {
    let outputs: BTreeSet<LeafId> = plan.nodes.iter().map(|node| node.leaf).chain(plan.folds()).collect();
    outputs.into_iter()
}

/// The numbers of the sources: those they have, and new ones for new sources.
fn source_ids(plan: &Plan, manifest: &Manifest) -> Result<BTreeMap<String, u16>, RunError> {
    let mut ids: BTreeMap<String, u16> = BTreeMap::new();
    let mut next = manifest.sources.values().map(|s| s.id + 1).max().unwrap_or(0);
    for source in &plan.sources {
        match manifest.sources.get(&source.name) {
            Some(known) if known.logic != source.logic => {
                return Err(RunError::SourceChanged(source.name.clone()));
            }
            Some(known) => {
                ids.insert(source.name.clone(), known.id);
            }
            None => {
                ids.insert(source.name.clone(), next);
                next += 1;
            }
        }
    }
    Ok(ids)
}
