//! Cycles: models are made anew out of what epochs brought about, and put in use if they pass their gate.
//!
//! A cycle does the fits that work in cycles, in the order of the plan, each on what is committed. What
//! one of them makes is a version that is wanted, and bringing it about is an epoch like any other: so a
//! relevance model is asked again before pairs are made of its verdicts. What is done of a cycle is written
//! down with what it made: one that a budget or a kill cuts off is brought up to date by the next run, and
//! ended by the next cycle. What a gate refuses is written down and changes nothing else.

use coea_operators::{
    row::{Row, Value},
    schema::{Column, Type},
    served::{ModelVersion, VERSION},
    shape::{Artifact, FitCost, LeafId},
};

use super::{RunError, driver::Driver, renewal::RENEWALS, report::Report};
use crate::{
    plan::Due,
    state::{StateError, manifest::Manifest, tables::Tables},
};

/// The table of what cycles made.
pub const CYCLES: &str = "cycles";
/// The table of the figures of training.
pub const TRAINING: &str = "training";

/// The columns of [`CYCLES`]; the first two are its key.
pub fn columns() -> Vec<Column> {
    vec![
        Column::new("cycle", Type::U64),
        Column::new("node", Type::Text),
        Column::new("epoch", Type::U64),
        Column::new("version", Type::Text),
        Column::new("passed", Type::Bool),
        Column::new("why", Type::Text.list()),
    ]
}

/// The columns of [`TRAINING`]; the first four are its key.
pub fn training_columns() -> Vec<Column> {
    let key = [("cycle", Type::U64), ("node", Type::Text), ("step", Type::U64), ("figure", Type::Text)];
    let value = [("value", Type::F64)];
    key.into_iter().chain(value).map(|(name, ty)| Column::new(name, ty)).collect()
}

/// What became of something that a cycle made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in use.
    Used,
    /// It is what was in use already.
    Same,
    /// Its gate refused it, for these reasons.
    Refused(Vec<String>),
    /// It was not its turn, for this reason.
    Kept(String),
    /// It was not made, because there was nothing to make it of.
    Nothing(String),
}

/// Something that a cycle made.
#[derive(Clone, Debug)]
pub struct Made {
    /// The node.
    pub node: String,
    /// The model that it is a version of, if it is one.
    pub model: Option<String>,
    /// Its digest.
    pub version: String,
    /// What became of it.
    pub outcome: Outcome,
    /// What training took, with the seconds; nothing if nothing was trained.
    pub training: Option<(FitCost, f64)>,
    /// The last figures of its training.
    pub figures: Vec<(String, f64)>,
}

/// What is written down of something made.
pub(super) struct Entry {
    pub(super) made: Made,
    /// Step and name of each figure, and its value.
    pub(super) figures: Vec<(Row, Row)>,
    /// The fit that made it.
    pub(super) done: String,
    /// The fit whose artifact it takes the place of.
    pub(super) of: LeafId,
    /// Whether the tables tell of it.
    pub(super) told: bool,
}

/// A cycle that was done.
pub struct Cycle {
    /// Its number, from 1.
    pub number: u64,
    /// What was made, in order.
    pub made: Vec<Made>,
    /// The epochs that brought it about.
    pub epochs: Vec<Report>,
}

impl Driver<'_> {
    /// Does a cycle, or what is left of one that was cut off, on a driver that was opened for cycles and has
    /// no epoch under way.
    ///
    /// # Errors
    /// What kept an epoch from being committed, or a model from being made.
    pub fn cycle(&mut self) -> Result<Cycle, RunError> {
        let done = self.manifest.open_cycle.clone().unwrap_or_default();
        if self.manifest.open_cycle.is_none() {
            self.keep(|manifest, _| {
                manifest.cycles += 1;
                manifest.open_cycle = Some(Vec::new());
                Ok(())
            })?;
        }
        self.forget();
        let mut cycle = Cycle { number: self.manifest.cycles, made: Vec::new(), epochs: Vec::new() };
        if self.plan.renewals().next().is_some() && !done.iter().any(|done| done == RENEWALS) {
            cycle.made.extend(self.renew(cycle.number)?.unwrap_or_default());
        }
        for (leaf, of) in self.plan.refits().collect::<Vec<_>>() {
            let above = self.fitted_with(leaf);
            let ready = above.iter().all(|above| self.fitted.contains_key(above));
            if !ready || done.contains(&self.plan.leaf_name(leaf)) {
                continue;
            }
            if let Some(why) = self.not_yet(leaf, of) {
                cycle.made.push(self.made_of(leaf, Outcome::Kept(why)));
                continue;
            }
            // What is made of rows is made of committed ones.
            if !self.fitted_on(leaf).is_empty() {
                cycle.epochs.extend(self.bring_about()?);
            }
            cycle.made.push(self.make_anew(cycle.number, leaf, of)?);
        }
        cycle.epochs.extend(self.bring_about()?);
        self.keep(|manifest, _| {
            manifest.open_cycle = None;
            Ok(())
        })?;
        Ok(cycle)
    }

    /// Why it is not the turn of a fit that makes versions, if it is not.
    pub(super) fn not_yet(&self, leaf: LeafId, of: LeafId) -> Option<String> {
        let Due::After { epochs } = self.plan.due(leaf) else { return None };
        self.passed(self.fitted.get(&of)?.epoch, epochs)
    }

    /// Commits what was put in use, if something was.
    fn bring_about(&mut self) -> Result<Option<Report>, RunError> {
        self.epoch.promoted.then(|| self.complete()).transpose()
    }

    /// Does a fit again; says what came of it.
    fn make_anew(&mut self, cycle: u64, leaf: LeafId, of: LeafId) -> Result<Made, RunError> {
        let node = self.plan.leaves[leaf].node.clone();
        let model = self.plan.node(&node).and_then(|node| node.updates.clone());
        let model = model.filter(|_| self.plan.leaves[of].role == VERSION);
        let mut made = Made {
            node: node.clone(),
            model,
            version: String::new(),
            outcome: Outcome::Same,
            training: None,
            figures: Vec::new(),
        };
        let (artifact, bytes) = match self.made(leaf) {
            Ok(Some(fitted)) => fitted,
            Ok(None) => return Ok(made),
            Err(RunError::Nothing { cause, .. }) => {
                made.outcome = Outcome::Nothing(cause);
                return self.write_one(cycle, made, None, (leaf, of));
            }
            Err(error) => return Err(error),
        };
        let version = made.model.as_ref().map(|_| ModelVersion::from_bytes(&bytes));
        let version = version.transpose().map_err(|cause| RunError::Node { node, cause })?;
        let refused = version.as_ref().map(ModelVersion::refused).unwrap_or_default();
        let same = self.fitted.get(&of).is_some_and(|used| used.digest == artifact.digest);
        made.outcome = match (same, refused.is_empty()) {
            (true, _) => Outcome::Same,
            (false, true) => Outcome::Used,
            (false, false) => Outcome::Refused(refused),
        };
        made.training = self.epoch.training.get(&leaf).copied();
        made.figures = version.as_ref().map(ModelVersion::last_figures).unwrap_or_default();
        made.version = artifact.digest;
        let made = self.write_one(cycle, made, version.as_ref(), (leaf, of))?;
        if made.outcome == Outcome::Used {
            self.replace(of, made.version.clone(), &bytes)?;
        }
        Ok(made)
    }

    fn write_one(
        &mut self,
        cycle: u64,
        made: Made,
        version: Option<&ModelVersion>,
        (leaf, of): (LeafId, LeafId),
    ) -> Result<Made, RunError> {
        let figures = version.map(ModelVersion::figures).unwrap_or_default();
        let (done, told) = (self.plan.leaf_name(leaf), made.model.is_some());
        let entry = Entry { made, figures, done, of, told };
        self.write_down(cycle, std::slice::from_ref(&entry), None)?;
        Ok(entry.made)
    }

    /// Makes durable what was made, that this part of the cycle is done, and what is wanted if it passed.
    pub(super) fn write_down(
        &mut self,
        cycle: u64,
        entries: &[Entry],
        done: Option<&str>,
    ) -> Result<(), RunError> {
        let plan = self.plan.clone();
        let epoch = self.manifest.epoch;
        self.keep(|manifest, tables| {
            manifest.open_cycle.get_or_insert_default().extend(done.map(str::to_string));
            for entry in entries {
                manifest.open_cycle.get_or_insert_default().push(entry.done.clone());
                if entry.made.outcome == Outcome::Used {
                    manifest.wanted.insert(plan.leaf_name(entry.of), entry.made.version.clone());
                }
                if entry.told {
                    tell(tables, (cycle, epoch), entry)?;
                }
            }
            Ok(())
        })
    }

    /// Changes manifest and tables between epochs, at once.
    fn keep(
        &mut self,
        change: impl FnOnce(&mut Manifest, &mut Tables) -> Result<(), StateError>,
    ) -> Result<(), RunError> {
        let snapshot = self.state.snapshot()?;
        let (mut meta, mut tables) = (snapshot.layered("meta"), Tables::new(snapshot.layered("tables")));
        let mut manifest = Manifest::load(&meta)?;
        change(&mut manifest, &mut tables)?;
        manifest.save(&mut meta);
        if let Some(store) = &self.state.store {
            store.write(vec![("meta", meta.take()), ("tables", tables.take())])?;
        }
        let Manifest { cycles, open_cycle, wanted, .. } = manifest;
        (self.manifest.cycles, self.manifest.open_cycle, self.manifest.wanted) = (cycles, open_cycle, wanted);
        Ok(())
    }
}

/// Writes into the tables what was made.
fn tell(tables: &mut Tables, (cycle, epoch): (u64, u64), entry: &Entry) -> Result<(), StateError> {
    let key = Row::from([Value::U64(cycle), Value::text(&entry.made.node)]);
    let why = match &entry.made.outcome {
        Outcome::Refused(why) => why.clone(),
        Outcome::Nothing(why) | Outcome::Kept(why) => vec![why.clone()],
        Outcome::Used | Outcome::Same => Vec::new(),
    };
    let row = Row::from([
        Value::U64(epoch),
        Value::text(&entry.made.version),
        Value::Bool(why.is_empty()),
        Value::list(why.iter().map(Value::text)),
    ]);
    tables.apply(CYCLES, vec![((key.clone(), row), 1)])?;
    let figures = entry.figures.iter().map(|(step, figure)| ((key.concat(step), figure.clone()), 1));
    tables.apply(TRAINING, figures.collect())?;
    Ok(())
}
