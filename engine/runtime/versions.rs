//! Versions of the models that a pipeline tunes: which is in use, which were, and which is wanted.
//!
//! Decision: to promote a version is to write down that it is wanted. That costs nothing and can be
//! taken back; what it would change is a plan like any other, and the next run brings it about as a
//! delta, within its budget. So there is one way for a model to change, whoever asks for it.

use coea_operators::{
    row::{Row, Value},
    served::VERSION,
    shape::LeafId,
};

use super::{
    RunError,
    driver::{Driver, fit_logic},
};
use crate::{
    plan::Plan,
    state::{
        State, StateError,
        manifest::{ArtifactState, Manifest, VersionState},
    },
};

/// The fit that makes the versions of a model, and the name of its node.
pub fn version_leaf(plan: &Plan, model: &str) -> Option<LeafId> {
    let node = plan.updater(Some(model))?;
    plan.fits().find(|leaf| plan.leaves[*leaf].node == node.name && plan.leaves[*leaf].role == VERSION)
}

/// Writes down that a version is wanted in place of the one in use; of the one in use, that none is.
/// Its bytes are in the memo.
///
/// # Errors
/// If the database refuses.
pub fn want(state: &State, leaf: &str, digest: &str) -> Result<(), StateError> {
    let mut meta = state.snapshot()?.layered("meta");
    let mut manifest = Manifest::load(&meta)?;
    match manifest.artifacts.get(leaf).is_some_and(|used| used.digest == digest) {
        true => manifest.wanted.remove(leaf),
        false => manifest.wanted.insert(leaf.to_string(), digest.to_string()),
    };
    manifest.save(&mut meta);
    match &state.store {
        Some(store) => store.write(vec![("meta", meta.take())]),
        None => Ok(()),
    }
}

impl Driver<'_> {
    /// The artifact that a fit had, or that is wanted in its place.
    pub(super) fn wanted(&self, leaf: LeafId, known: &ArtifactState) -> ArtifactState {
        match self.manifest.wanted.get(&self.plan.leaf_name(leaf)).filter(|wanted| **wanted != known.digest) {
            Some(wanted) => {
                let (digest, epoch) = (wanted.clone(), self.manifest.epoch + 1);
                ArtifactState { digest, epoch, logic: known.logic.clone() }
            }
            None => known.clone(),
        }
    }

    /// The artifact that is wanted of a fit which has none yet.
    pub(super) fn wanted_first(&self, leaf: LeafId) -> Option<ArtifactState> {
        let digest = self.manifest.wanted.get(&self.plan.leaf_name(leaf))?.clone();
        let epoch = self.manifest.epoch + 1;
        Some(ArtifactState { digest, logic: fit_logic(&self.plan, leaf), epoch })
    }

    /// Puts the versions that are wanted in place of those in use: a change of the epoch under way.
    pub(super) fn promote_wanted(&mut self) -> Result<(), RunError> {
        for leaf in self.plan.fits().collect::<Vec<_>>() {
            let Some(wanted) = self.manifest.wanted.get(&self.plan.leaf_name(leaf)).cloned() else {
                continue;
            };
            let gone = || RunError::Node {
                node: self.plan.leaves[leaf].node.clone(),
                cause: format!("the version {wanted} that is wanted is gone"),
            };
            let bytes = self.state.memo.artifact_hex(&wanted)?.ok_or_else(gone)?;
            self.replace(leaf, wanted, &bytes)?;
        }
        Ok(())
    }

    /// Puts an artifact in place of the one that a fit has: a change of the epoch under way.
    pub(super) fn replace(&mut self, leaf: LeafId, digest: String, bytes: &[u8]) -> Result<(), RunError> {
        let used = self.fitted.get(&leaf).cloned();
        if used.as_ref().is_some_and(|used| used.digest == digest) {
            return Ok(());
        }
        if let Some(used) = &used {
            let before = (Row::empty(), Row::from([Value::text(&used.digest)]));
            self.workers.rows(leaf, vec![(before, -1)])?;
        }
        let logic = used.map_or_else(|| fit_logic(&self.plan, leaf), |used| used.logic);
        self.adopt(leaf, ArtifactState { digest, logic, epoch: self.manifest.epoch + 1 }, bytes)?;
        self.epoch.promoted = true;
        Ok(())
    }

    /// Notes in a manifest which versions came into use.
    pub(super) fn note_versions(&self, manifest: &mut Manifest) {
        manifest.wanted.clear();
        for leaf in self.plan.fits().filter(|leaf| self.plan.leaves[*leaf].role == VERSION) {
            let Some(used) = self.fitted.get(&leaf) else { continue };
            let versions = manifest.versions.entry(self.plan.leaf_name(leaf)).or_default();
            if versions.last().is_none_or(|last| last.digest != used.digest) {
                versions.push(VersionState { digest: used.digest.clone(), epoch: manifest.epoch });
            }
        }
    }
}
