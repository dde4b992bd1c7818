//! A model that a pipeline tunes, with the state that knows its versions.

use coea_operators::{
    lm::LocalModel,
    served::ModelVersion,
    shape::{Artifact, LeafId},
};

use super::super::{Common, Failure, Loaded, output};
use crate::{
    fetch,
    models::ModelProvider,
    runtime::{
        RunError,
        versions::{version_leaf, want},
    },
    spec,
    state::{State, manifest::Manifest},
};

/// Digits of a digest that name a version.
pub(super) const SHORT: usize = 16;

/// A model of a pipeline.
#[derive(Debug, clap::Args)]
pub struct Of {
    #[command(flatten)]
    pub(super) common: Common,
    /// The model's name in the pipeline.
    #[arg(value_name = "MODEL")]
    pub(super) name: String,
}

/// A tuned model with the state of its pipeline.
pub(super) struct Tuned {
    loaded: Loaded,
    pub(super) state: State,
    pub(super) manifest: Manifest,
    leaf: LeafId,
    pub(super) model: String,
}

impl Of {
    pub(super) fn open(&self, write: bool) -> Result<Tuned, Failure> {
        let loaded = self.common.load()?;
        let leaf = version_leaf(&loaded.plan, &self.name).ok_or_else(|| {
            let tuned: Vec<&str> = loaded.plan.nodes.iter().filter_map(|n| n.updates.as_deref()).collect();
            let help = match tuned.as_slice() {
                [] => "no node of the pipeline has `updates`".to_string(),
                tuned => format!("it updates `{}`", tuned.join("`, `")),
            };
            output::usage(format!("the pipeline makes no versions of `{}`: {help}", self.name))
        })?;
        let state = if write { State::open(&loaded.state_dir)? } else { State::read(&loaded.state_dir)? };
        let manifest = Manifest::load(&state.snapshot()?.layered("meta"))?;
        if manifest.epoch == 0 {
            return Err(output::failed("nothing was run yet, so there is no version".to_string()));
        }
        Ok(Tuned { loaded, state, manifest, leaf, model: self.name.clone() })
    }
}

impl Tuned {
    pub(super) fn name(&self) -> String {
        self.loaded.plan.leaf_name(self.leaf)
    }

    pub(super) fn in_use(&self) -> Option<&str> {
        self.manifest.artifacts.get(&self.name()).map(|used| used.digest.as_str())
    }

    /// The digests that were in use, and the one that is wanted; oldest first, each once.
    pub(super) fn known(&self) -> Vec<String> {
        let used = self.manifest.versions.get(&self.name()).into_iter().flatten().map(|v| v.digest.clone());
        let mut known: Vec<String> = Vec::new();
        for digest in used.chain(self.manifest.wanted.get(&self.name()).cloned()) {
            if !known.contains(&digest) {
                known.push(digest);
            }
        }
        known
    }

    /// The version whose digest begins like this.
    pub(super) fn find(&self, start: &str) -> Result<String, Failure> {
        let known = self.known();
        let found: Vec<&String> = known.iter().filter(|digest| digest.starts_with(start)).collect();
        match found.as_slice() {
            [one] => Ok((*one).clone()),
            [] => Err(output::failed(format!(
                "`{}` has no version {start}; `models versions` lists them",
                self.model
            ))),
            _ => Err(output::failed(format!(
                "{start} begins several versions of `{}`; write more of it",
                self.model
            ))),
        }
    }

    pub(super) fn version(&self, digest: &str) -> Result<ModelVersion, Failure> {
        let bytes = self.state.memo.artifact_hex(digest)?;
        let bytes = bytes.ok_or_else(|| output::failed(format!("the version {digest} is gone")))?;
        ModelVersion::from_bytes(&bytes).map_err(output::failed)
    }

    /// What the model is called, and its network.
    pub(super) fn base(&self, common: &Common) -> Result<(String, LocalModel), Failure> {
        let spec = spec::load(&common.pipeline, &common.set, &|name| std::env::var(name).ok())?;
        let named = spec.models.iter().find(|model| model.name.value == self.model);
        let base = named.and_then(|model| model.spec.base.as_ref()).map(|base| base.value.clone());
        let base = base.ok_or_else(|| output::failed(format!("`{}` has no base", self.model)))?;
        fetch::model(&base)?;
        let model = self.loaded.models.language(&base).map_err(output::failed)?;
        let network = model.network().map_err(|error| RunError::call(&base, error))?;
        Ok((base, network))
    }

    pub(super) fn wish(&self, common: &Common, digest: &str) -> Result<(), Failure> {
        want(&self.state, &self.name(), digest)?;
        let short = &digest[..SHORT.min(digest.len())];
        let said = match self.in_use() == Some(digest) {
            true => format!("{short} of `{}` is in use and stays so", self.model),
            false => {
                let pipeline = common.pipeline.display();
                format!(
                    "the next run puts {short} of `{}` in use; `coea-engine plan {pipeline}` says what it will cost",
                    self.model
                )
            }
        };
        if !common.quiet {
            eprintln!("{said}");
        }
        Ok(())
    }
}
