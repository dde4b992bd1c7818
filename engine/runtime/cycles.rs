//! Cycles: models are made anew out of what epochs brought about, and put in use if they pass their gate.
//!
//! A cycle does the fits that work in cycles, in the order of the plan, each on what is committed. What
//! one of them makes is a version that is wanted, and bringing it about is an epoch like any other: so a
//! relevance model is asked again before pairs are made of its verdicts, and a budget or a kill between
//! two steps leaves a state that the next run goes on from. What a gate refuses is written down and
//! changes nothing else.

use coea_operators::{
    row::{Row, Value},
    schema::{Column, Type},
    served::{ModelVersion, VERSION},
    shape::{Artifact, FitCost, LeafId, Shape},
};

use super::{RunError, driver::Driver, report::Report};
use crate::state::{manifest::Manifest, tables::Tables};

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
    /// Does a cycle, on a driver that was opened for cycles and has no epoch under way.
    ///
    /// # Errors
    /// What kept an epoch from being committed, or a model from being made.
    pub fn cycle(&mut self) -> Result<Cycle, RunError> {
        let mut cycle = Cycle { number: self.manifest.cycles + 1, made: Vec::new(), epochs: Vec::new() };
        for (leaf, of) in self.plan.refits().collect::<Vec<_>>() {
            // What is made of rows is made of committed ones.
            if !self.fitted_on(leaf).is_empty() {
                cycle.epochs.extend(self.bring_about()?);
            }
            let lacks = |above: &LeafId| {
                let fit = matches!(self.plan.leaves[*above].shape, Shape::Fit { .. });
                fit && !self.fitted.contains_key(above)
            };
            if self.plan.leaves[leaf].shape.reads().iter().any(lacks) {
                continue;
            }
            cycle.made.extend(self.make_anew(cycle.number, leaf, of)?);
        }
        cycle.epochs.extend(self.bring_about()?);
        Ok(cycle)
    }

    /// Commits what was put in use, if something was.
    fn bring_about(&mut self) -> Result<Option<Report>, RunError> {
        self.epoch.promoted.then(|| self.complete()).transpose()
    }

    /// Does a fit again; says what came of it, unless that is nothing new.
    fn make_anew(&mut self, cycle: u64, leaf: LeafId, of: LeafId) -> Result<Option<Made>, RunError> {
        let Some((artifact, bytes)) = self.made(leaf)? else { return Ok(None) };
        let node = self.plan.leaves[leaf].node.clone();
        let version = (self.plan.leaves[of].role == VERSION).then(|| ModelVersion::from_bytes(&bytes));
        let version = version.transpose().map_err(|cause| RunError::Node { node: node.clone(), cause })?;
        let used = self.fitted.get(&of).map(|used| used.digest.clone());
        let same = used.as_ref() == Some(&artifact.digest);
        // A label prior comes out as it was; only versions of models are worth a word then.
        let Some(version) = version else {
            if !same {
                self.replace(of, artifact.digest, &bytes)?;
            }
            return Ok(None);
        };
        let refused = version.refused();
        let outcome = match (same, refused.is_empty()) {
            (true, _) => Outcome::Same,
            (false, true) => Outcome::Used,
            (false, false) => Outcome::Refused(refused),
        };
        let made = Made {
            model: self.plan.node(&node).and_then(|node| node.updates.clone()),
            training: self.epoch.training.get(&leaf).copied(),
            figures: version.last_figures(),
            version: artifact.digest.clone(),
            node,
            outcome,
        };
        self.write_down(cycle, &made, &version, of)?;
        if made.outcome == Outcome::Used {
            self.replace(of, artifact.digest, &bytes)?;
        }
        Ok(Some(made))
    }

    /// Makes durable what was made, and that it is wanted if it passed.
    fn write_down(
        &mut self,
        cycle: u64,
        made: &Made,
        version: &ModelVersion,
        of: LeafId,
    ) -> Result<(), RunError> {
        let Some(store) = &self.state.store else { return Ok(()) };
        let snapshot = self.state.snapshot()?;
        let (mut meta, mut tables) = (snapshot.layered("meta"), Tables::new(snapshot.layered("tables")));
        let mut manifest = Manifest::load(&meta)?;
        manifest.cycles = cycle;
        if made.outcome == Outcome::Used {
            manifest.wanted.insert(self.plan.leaf_name(of), made.version.clone());
        }
        manifest.save(&mut meta);
        let key = Row::from([Value::U64(cycle), Value::text(&made.node)]);
        let why: &[String] = if let Outcome::Refused(why) = &made.outcome { why } else { &[] };
        let row = Row::from([
            Value::U64(self.manifest.epoch),
            Value::text(&made.version),
            Value::Bool(why.is_empty()),
            Value::list(why.iter().map(Value::text)),
        ]);
        tables.apply(CYCLES, vec![((key.clone(), row), 1)])?;
        let figures = version.figures().into_iter().map(|(step, figure)| ((key.concat(&step), figure), 1));
        tables.apply(TRAINING, figures.collect())?;
        store.write(vec![("meta", meta.take()), ("tables", tables.take())])?;
        self.manifest.cycles = manifest.cycles;
        self.manifest.wanted = manifest.wanted;
        Ok(())
    }
}
