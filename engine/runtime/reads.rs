//! Which relations the driver looks at: what is reported, and what is held in memory for fits.

use std::collections::BTreeSet;

use coea_operators::shape::{LeafId, Shape};

use super::driver::Driver;
use crate::{plan::Plan, state::tables::consolidate};

impl Driver<'_> {
    /// Relations that fits still to be done read; cycles do theirs again and again.
    pub(super) fn fit_inputs(&self) -> BTreeSet<LeafId> {
        let open = self.plan.fits().filter(|fit| self.is_open(*fit));
        let anew = self.plan.refits().map(|(leaf, _)| leaf).chain(self.plan.renewals());
        let cycles = anew.filter(|_| self.options.cycles);
        let mut read: BTreeSet<LeafId> = open.chain(cycles).flat_map(|fit| self.fitted_on(fit)).collect();
        if self.options.cycles {
            // What is asked of a model is what a new version of it would be asked again.
            read.extend(self.plan.infers().filter_map(|leaf| self.requested(leaf)));
        }
        read
    }

    /// Gives up what nothing needs any more of the relations held for fits, and artifacts that were replaced.
    pub(super) fn forget(&mut self) {
        for rows in self.relations.values_mut() {
            *rows = consolidate(std::mem::take(rows));
        }
        self.artifacts.keep(&self.fitted.values().map(|fit| fit.digest.as_str()).collect());
    }

    /// The relations that a fit reads.
    pub(super) fn fitted_on(&self, fit: LeafId) -> Vec<LeafId> {
        match &self.plan.leaves[fit].shape {
            Shape::Fit { inputs, .. } => inputs.clone(),
            _ => vec![],
        }
    }

    /// The artifacts that a fit reads.
    pub(super) fn fitted_with(&self, fit: LeafId) -> Vec<LeafId> {
        match &self.plan.leaves[fit].shape {
            Shape::Fit { artifacts, .. } => artifacts.clone(),
            _ => vec![],
        }
    }

    /// The relation of the requests of an inference.
    pub(super) fn requested(&self, infer: LeafId) -> Option<LeafId> {
        match &self.plan.leaves[infer].shape {
            Shape::Infer { requests, .. } => Some(*requests),
            _ => None,
        }
    }
}

/// The leaves whose rows are reported: outputs of nodes, folds, and what fits and inferences read.
pub(super) fn wanted(plan: &Plan) -> BTreeSet<LeafId> {
    let outputs = plan.nodes.iter().map(|node| node.leaf);
    let mut wanted: BTreeSet<LeafId> = outputs.chain(plan.folds()).collect();
    for leaf in &plan.leaves {
        match &leaf.shape {
            Shape::Fit { inputs, .. } => wanted.extend(inputs),
            Shape::Infer { requests, .. } => {
                wanted.insert(*requests);
            }
            _ => {}
        }
    }
    wanted
}
