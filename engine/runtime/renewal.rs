//! Renewals: what models stand on is fitted anew in cycles — encoders, codebooks, portraits.
//!
//! Decision: all that is due in a cycle is fitted in one go, each fit on what those above it make of the
//! data, and comes into use together: the vectors of a new encoder mean nothing to an old codebook. Fits
//! under renewal are open, as they are in a first epoch, so the rule that no state in between is ever paid
//! for holds here too. What stands on something that is renewed is renewed with it.

use coea_operators::{
    row::{Row, Value},
    shape::{Figures, LeafId, Shape, Snapshot},
};

use super::{
    RunError,
    cycles::{Entry, Made, Outcome},
    driver::Driver,
};
use crate::plan::Due;

/// What stands for all renewals among what is done of a cycle; no leaf has such a name.
pub(super) const RENEWALS: &str = "/renewals";

/// Whether a fit is due, and if not, why.
enum Turn {
    Due,
    NotYet(String),
}

impl Driver<'_> {
    /// Fits anew what is due of all that is renewed in cycles, and writes down that it is wanted; says what
    /// came of each. In a plan nothing, if something has to be answered first.
    ///
    /// # Errors
    /// What kept a fit, or something that a fit reads, from being made; then nothing is written down.
    pub(super) fn renew(&mut self, cycle: u64) -> Result<Option<Vec<Made>>, RunError> {
        let mut kept: Vec<Made> = Vec::new();
        for leaf in self.plan.renewals().collect::<Vec<_>>() {
            match self.turn(leaf)? {
                Turn::Due => _ = self.renewing.insert(leaf),
                Turn::NotYet(why) => kept.push(self.made_of(leaf, Outcome::Kept(why))),
            }
        }
        let before: Vec<_> =
            self.renewing.iter().map(|leaf| (*leaf, self.fitted.get(leaf).cloned())).collect();
        while !self.renewing.is_empty() {
            self.tick()?;
            if !self.fit_one()? && !self.ask_one()? {
                break;
            }
        }
        // What is left stays open in a plan, so that nothing below it is taken for known.
        if self.options.dry && !self.renewing.is_empty() {
            return Ok(None);
        }
        // In a run, half of them in use would be worse than none.
        if let Some(left) = self.renewing.first() {
            let cause = "it cannot be fitted anew, because something that it is fitted on waits".to_string();
            return Err(RunError::Node { node: self.plan.leaves[*left].node.clone(), cause });
        }
        let mut entries: Vec<Entry> = Vec::new();
        for (leaf, used) in before {
            let Some(now) = self.fitted.get(&leaf).cloned() else { continue };
            let same = used.is_some_and(|used| used.digest == now.digest);
            let mut made = self.made_of(leaf, if same { Outcome::Same } else { Outcome::Used });
            // Those of an artifact that stays are of the cycle that made it.
            if !same {
                made.figures = self.figures(leaf, &now.digest)?;
            }
            made.version = now.digest;
            let row = |(name, value): &(String, f64)| {
                (Row::from([Value::U64(0), Value::text(name)]), Row::from([Value::float(*value)]))
            };
            let figures = made.figures.iter().map(row).collect();
            entries.push(Entry { made, figures, done: self.plan.leaf_name(leaf), of: leaf, told: true });
        }
        if !self.options.dry {
            self.write_down(cycle, &entries, Some(RENEWALS))?;
        }
        kept.extend(entries.into_iter().map(|entry| entry.made));
        Ok(Some(kept))
    }

    /// Whether it is a fit's turn: as its node says, or because of something above it.
    fn turn(&self, leaf: LeafId) -> Result<Turn, RunError> {
        if self.plan.upstream(leaf).iter().any(|above| self.renewing.contains(above)) {
            return Ok(Turn::Due);
        }
        let Some(used) = self.fitted.get(&leaf) else {
            return Ok(Turn::NotYet("it was not fitted yet".to_string()));
        };
        Ok(match self.plan.due(leaf) {
            Due::EachCycle => Turn::Due,
            Due::After { epochs } => self.turn_after(used.epoch, epochs),
            Due::Drifted { above } => match self.drift(leaf)?.into_iter().next() {
                Some((_, drift)) if drift > above => Turn::Due,
                Some((name, drift)) => Turn::NotYet(format!("{name} is {drift:.4}, not above {above}")),
                None => Turn::NotYet("it tells no drift".to_string()),
            },
        })
    }

    /// Whether so many epochs have passed since one.
    pub(super) fn passed(&self, since: u64, epochs: u64) -> Option<String> {
        let passed = self.manifest.epoch.saturating_sub(since);
        (passed < epochs).then(|| format!("{passed} of {epochs} epochs have passed since it came into use"))
    }

    fn turn_after(&self, since: u64, epochs: u64) -> Turn {
        self.passed(since, epochs).map_or(Turn::Due, Turn::NotYet)
    }

    /// How far the inputs of a fit and its artifact have come apart; nothing if it does not tell.
    ///
    /// # Errors
    /// If the inputs cannot be read.
    pub fn drift(&self, leaf: LeafId) -> Result<Figures, RunError> {
        let Shape::Fit { inputs, drift: Some(drift), .. } = &self.plan.leaves[leaf].shape else {
            return Ok(Vec::new());
        };
        let Some(used) = self.fitted.get(&leaf) else { return Ok(Vec::new()) };
        let node = &self.plan.leaves[leaf].node;
        let rows = inputs.iter().map(|input| self.snapshot(*input)).collect::<Result<Vec<_>, RunError>>()?;
        let views: Vec<&dyn Snapshot> = rows.iter().map(|rows| rows as &dyn Snapshot).collect();
        let artifact = self.artifacts.get(&used.digest).map_err(|cause| RunError::call(node, cause))?;
        drift(&views, &artifact).map_err(|cause| RunError::Node { node: node.clone(), cause })
    }

    /// What an artifact in use tells of how it was fitted.
    fn figures(&self, leaf: LeafId, digest: &str) -> Result<Figures, RunError> {
        let Shape::Fit { figures, .. } = &self.plan.leaves[leaf].shape else { return Ok(Vec::new()) };
        let node = &self.plan.leaves[leaf].node;
        let artifact = self.artifacts.get(digest).map_err(|cause| RunError::call(node, cause))?;
        Ok(figures(&artifact))
    }

    pub(super) fn made_of(&self, leaf: LeafId, outcome: Outcome) -> Made {
        let node = self.plan.leaves[leaf].node.clone();
        let model = self.plan.node(&node).and_then(|node| node.model.clone().or(node.updates.clone()));
        Made { node, model, version: String::new(), outcome, training: None, figures: Vec::new() }
    }

    /// The fits that tell their drift.
    pub fn drifting(&self) -> Vec<LeafId> {
        let tells =
            |leaf: &LeafId| matches!(self.plan.leaves[*leaf].shape, Shape::Fit { drift: Some(_), .. });
        self.plan.fits().filter(tells).collect()
    }
}
