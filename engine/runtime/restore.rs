//! Opening: what was committed becomes the dataflow's input again, without a fold or a call.
//!
//! Relations are restored at cut points (rows of relation sources, outputs of folds, remembered
//! answers), not from raw events, so a restart costs what was derived and not what was read.

use coea_operators::{
    row::{Row, Value},
    shape::{LeafId, Shape},
};

use super::{
    RunError,
    commit::is_failed_call,
    driver::{Driver, fit_logic, source_table},
    fold::unknown_pairs,
    render::Channel,
};
use crate::state::{
    State,
    manifest::{ArtifactState, Manifest},
};

impl Driver<'_> {
    /// Feeds what is committed. Where the spec is as it was, that is no part of the epoch.
    pub(super) fn restore(&mut self) -> Result<(), RunError> {
        self.replay_marks()?;
        self.restore_backlog()?;
        self.restore_artifacts()?;
        for at in 0..self.plan.sources.len() {
            let source = &self.plan.sources[at];
            if !source.events {
                let rows = self.tables.rows(&source_table(&source.name))?;
                let present = rows.into_iter().filter(|(_, count)| *count > 0).collect();
                self.workers.rows(source.leaf, present)?;
            }
        }
        self.restore_folds()?;
        if !self.rebuild {
            self.drain_known()?;
            self.epoch.recording = true;
            if !self.options.as_committed {
                self.promote_wanted()?;
            }
        }
        Ok(())
    }

    fn restore_artifacts(&mut self) -> Result<(), RunError> {
        let fits: Vec<LeafId> = self.plan.fits().collect();
        let other = match &self.options.models_from {
            Some(dir) => Some(State::read(dir)?),
            None => None,
        };
        let known = match &other {
            Some(other) => Manifest::load(&other.snapshot()?.layered("meta"))?.artifacts,
            None => self.manifest.artifacts.clone(),
        };
        for leaf in fits {
            let first = || self.wanted_first(leaf).filter(|_| self.rebuild && other.is_none());
            let artifact = known.get(&self.plan.leaf_name(leaf)).cloned().or_else(first);
            let Some(artifact) = artifact.filter(|known| known.logic == fit_logic(&self.plan, leaf)) else {
                continue;
            };
            // What was fitted with something that is fitted anew is of no use beside it.
            if self.fitted_with(leaf).iter().any(|above| !self.fitted.contains_key(above)) {
                continue;
            }
            // What is renewed with something is of no use beside a new one of that either.
            let renewed = self.plan.renewals().any(|again| again == leaf);
            let mut fits = self.plan.upstream(leaf).into_iter().filter(|above| self.plan.is_fit(*above));
            if renewed && fits.any(|above| !self.fitted.contains_key(&above)) {
                continue;
            }
            // A rebuild takes everything in anew, what is wanted too.
            let wanted = self.wanted(leaf, &artifact);
            let artifact = if self.rebuild && other.is_none() { wanted } else { artifact };
            let from = other.as_ref().unwrap_or(&self.state);
            if let Some(bytes) = from.memo.artifact_hex(&artifact.digest)? {
                if other.is_some() && !self.options.dry {
                    self.state.memo.keep_artifact(&bytes)?;
                }
                self.adopt(leaf, artifact, &bytes)?;
            }
        }
        Ok(())
    }

    fn restore_folds(&mut self) -> Result<(), RunError> {
        let errors = self.tables.rows("errors")?;
        self.failures =
            errors.iter().filter(|(row, _)| is_failed_call(row)).map(|(row, _)| row.clone()).collect();
        for leaf in self.plan.folds().collect::<Vec<_>>() {
            let name = self.plan.leaf_name(leaf);
            let known = self.manifest.nodes.get(&name).map(|node| node.lineage.clone());
            if known.as_ref() == Some(&self.plan.lineage[leaf]) {
                let width = self.user_width(leaf);
                let node = &self.plan.leaves[leaf].node;
                let unknown = unknown_pairs(node, &errors, width);
                if self.rebuild {
                    let old = errors.iter().filter(|((key, _), _)| key[0].as_text() == Some(node));
                    self.epoch.updates.entry(Channel::Errors(leaf)).or_default().extend(old.cloned());
                }
                self.workers.restore(leaf, self.tables.rows(&name)?, unknown)?;
            } else {
                self.workers.touch_all(leaf)?;
            }
        }
        self.ready_folds()
    }

    fn user_width(&self, fold: LeafId) -> usize {
        let Shape::Fold { source, .. } = &self.plan.leaves[fold].shape else { return 1 };
        self.plan.sources.iter().find(|s| s.leaf == *source).map_or(1, |s| s.key.len())
    }

    /// Tells folds whose side input is complete, because every fit above it is done, to begin.
    pub(super) fn ready_folds(&mut self) -> Result<(), RunError> {
        for fold in self.plan.folds().collect::<Vec<_>>() {
            let fit = |leaf: &LeafId| matches!(self.plan.leaves[*leaf].shape, Shape::Fit { .. });
            let waits = self.plan.upstream(fold).into_iter().filter(fit).any(|leaf| self.is_open(leaf));
            if !waits {
                self.workers.ready(fold)?;
            }
        }
        Ok(())
    }

    /// Loads an artifact and makes its version a row of the dataflow.
    pub(super) fn adopt(
        &mut self,
        leaf: LeafId,
        artifact: ArtifactState,
        bytes: &[u8],
    ) -> Result<(), RunError> {
        let Shape::Fit { load, .. } = &self.plan.leaves[leaf].shape else { return Ok(()) };
        let loaded = load(bytes)
            .map_err(|cause| RunError::Node { node: self.plan.leaves[leaf].node.clone(), cause })?;
        self.artifacts.insert(&artifact.digest, loaded);
        let version = (Row::empty(), Row::from([Value::text(&artifact.digest)]));
        self.workers.rows(leaf, vec![(version, 1)])?;
        self.fitted.insert(leaf, artifact);
        let open = self.fit_inputs();
        self.relations.retain(|leaf, _| open.contains(leaf));
        Ok(())
    }
}
