//! Fits: done once, when everything above them is complete, and durable when they are finished.

use std::time::{Duration, Instant};

use coea_operators::{
    ordered::encode_row,
    row::Row,
    shape::{CallError, FitCost, LeafId, Loaded, Progress, Shape, Snapshot, Watch},
};

use super::{
    RunError,
    driver::{Driver, Listener, fit_logic},
    fold::Update,
};
use crate::state::{StateError, manifest::ArtifactState, memo::Memo, tables::consolidate};

/// A relation in memory, in canonical order.
pub(super) struct Rows(Vec<Update>);

impl Snapshot for Rows {
    fn for_each(&self, visit: &mut dyn FnMut(&Row, &Row, i64)) {
        self.0.iter().filter(|(_, count)| *count > 0).for_each(|((key, row), count)| visit(key, row, *count));
    }
}

/// How long a fit works at most for something that a kill would lose: a tenth of what it has worked so
/// far, but not less than the first, so that little is written, and not more than the second.
const PATIENCE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];

/// A fit under way, as the driver sees it.
struct Watched<'a> {
    listener: &'a dyn Listener,
    what: &'a str,
    /// Where it is kept; nothing in a plan.
    memo: Option<&'a Memo>,
    identity: &'a [u8; 32],
    began: Instant,
    /// When it was kept last.
    since: Instant,
}

impl Watch for Watched<'_> {
    fn progress(&mut self, p: Progress<'_>) {
        self.listener.progress(self.what, p.done, p.total, p.note);
    }

    fn kept(&mut self) -> Result<Option<Vec<u8>>, CallError> {
        self.memo.map_or(Ok(None), |memo| memo.checkpoint(self.identity)).map_err(unkept)
    }

    fn keep(&mut self, state: &dyn Fn() -> Vec<u8>) -> Result<(), CallError> {
        let patience = (self.began.elapsed() / 10).clamp(PATIENCE[0], PATIENCE[1]);
        let Some(memo) = self.memo.filter(|_| self.since.elapsed() >= patience) else { return Ok(()) };
        memo.keep_checkpoint(self.identity, &state()).map_err(unkept)?;
        self.since = Instant::now();
        Ok(())
    }
}

/// What a fit is told when the database refuses.
fn unkept(error: StateError) -> CallError {
    CallError::Failed(format!("what was fitted so far cannot be kept: {error}"))
}

impl Driver<'_> {
    /// Does the first fit whose inputs are complete; says whether there was one.
    pub(super) fn fit_one(&mut self) -> Result<bool, RunError> {
        for leaf in self.plan.fits().collect::<Vec<_>>() {
            if !self.is_open(leaf) || self.unfit.contains(&leaf) {
                continue;
            }
            if self.plan.upstream(leaf).into_iter().any(|above| self.is_open(above)) {
                continue;
            }
            if self.fit(leaf)? {
                self.ready_folds()?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn fit(&mut self, leaf: LeafId) -> Result<bool, RunError> {
        let made = self.made(leaf)?;
        let Some((artifact, bytes)) = made else {
            self.unfit.insert(leaf);
            return Ok(false);
        };
        match self.renewing.remove(&leaf) {
            true => self.replace(leaf, artifact.digest, &bytes)?,
            false => self.adopt(leaf, artifact, &bytes)?,
        }
        Ok(true)
    }

    /// What a fit makes of its inputs as they are now; nothing if that is too much for a plan.
    pub(super) fn made(&mut self, leaf: LeafId) -> Result<Option<(ArtifactState, Vec<u8>)>, RunError> {
        let plan = self.plan.clone();
        let Shape::Fit { inputs, artifacts, kernel, cheap, asks, price, compares, .. } =
            &plan.leaves[leaf].shape
        else {
            return Ok(None);
        };
        let mut snapshots =
            inputs.iter().map(|input| self.snapshot(*input)).collect::<Result<Vec<_>, RunError>>()?;
        let mut read: Vec<ArtifactState> =
            artifacts.iter().filter_map(|artifact| self.fitted.get(artifact).cloned()).collect();
        let renewed = self.renewing.contains(&leaf);
        if let Some(used) = self.fitted.get(&leaf).filter(|_| renewed && *compares) {
            snapshots.push(Rows(self.tables.rows(&plan.leaves[leaf].node)?));
            read.push(used.clone());
        }
        let logic = fit_logic(&plan, leaf);
        let identity = identity(&logic, &snapshots, &read);
        let node = &plan.leaves[leaf].node;
        let views: Vec<&dyn Snapshot> = snapshots.iter().map(|rows| rows as &dyn Snapshot).collect();
        let loaded = || -> Result<Vec<Loaded>, RunError> {
            let loaded = read.iter().map(|artifact| self.artifacts.get(&artifact.digest));
            loaded.collect::<Result<_, _>>().map_err(|cause| RunError::call(node, cause))
        };
        let bytes = match self.state.memo.fitted(&identity)? {
            Some(bytes) => bytes,
            None if self.options.dry && !cheap && (*asks || !renewed) => {
                if let Some(price) = price {
                    let cost = price(&views, &loaded()?).map_err(|error| RunError::call(node, error))?;
                    self.epoch.training.insert(leaf, (cost, 0.0));
                }
                return Ok(None);
            }
            None => {
                let (what, loaded) = (format!("fit {}", plan.leaf_name(leaf)), loaded()?);
                let cost = match price {
                    Some(price) => price(&views, &loaded).map_err(|error| RunError::call(node, error))?,
                    None => FitCost::default(),
                };
                let (listener, identity, now) = (self.listener, &identity, Instant::now());
                let memo = (!self.options.dry).then_some(&self.state.memo);
                let mut watched = Watched { listener, what: &what, memo, identity, began: now, since: now };
                let bytes =
                    kernel(&views, &loaded, &mut watched).map_err(|error| RunError::call(node, error))?;
                if price.is_some() {
                    self.epoch.training.insert(leaf, (cost, now.elapsed().as_secs_f64()));
                }
                bytes
            }
        };
        let digest = match self.options.dry {
            true => *blake3::hash(&bytes).as_bytes(),
            false => self.state.memo.finish_fit(&identity, &bytes)?,
        };
        let digest = blake3::Hash::from_bytes(digest).to_hex().to_string();
        let epoch = self.manifest.epoch + 1;
        Ok(Some((ArtifactState { digest, logic, epoch }, bytes)))
    }

    /// Whether a fit of a node is done in this epoch, or would be in a run.
    pub(super) fn trains(&self, node: &str) -> bool {
        let own = |leaf: &LeafId| self.plan.leaves[*leaf].node == node;
        let open = self.plan.fits().filter(own).any(|leaf| self.is_open(leaf));
        open || self.epoch.training.keys().any(own)
    }

    /// What the fits of a node took, or by the pace of earlier ones will take.
    pub(super) fn training(&self, node: &str) -> Option<(FitCost, f64)> {
        let own = |(leaf, _): &(&LeafId, _)| self.plan.leaves[**leaf].node == node;
        let (_, (cost, seconds)) = self.epoch.training.iter().find(own)?;
        let known = self.manifest.training.get(node).filter(|known| self.options.dry && known.calls > 0);
        let foreseen = known.map(|known| known.seconds / known.calls as f64 * cost.steps as f64);
        Some((*cost, foreseen.unwrap_or(*seconds)))
    }

    pub(super) fn snapshot(&self, input: LeafId) -> Result<Rows, RunError> {
        let source = self.plan.sources.iter().find(|source| source.leaf == input && source.events);
        Ok(Rows(match source {
            Some(source) => self.workers.scan(self.ids[&source.name])?,
            None => consolidate(self.relations.get(&input).cloned().unwrap_or_default()),
        }))
    }
}

/// What a fit is a function of: logic, inputs, artifacts read.
fn identity(logic: &str, snapshots: &[Rows], read: &[ArtifactState]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(logic.as_bytes());
    read.iter().for_each(|artifact| {
        hasher.update(artifact.digest.as_bytes());
    });
    for rows in snapshots {
        hasher.update(b"\0input");
        rows.for_each(&mut |key, row, count| {
            hasher.update(&encode_row(key));
            hasher.update(&encode_row(row));
            hasher.update(&count.to_le_bytes());
        });
    }
    *hasher.finalize().as_bytes()
}
