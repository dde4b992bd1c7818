//! A language model as a node asks it: its base, and the adapter that the pipeline fits for it.
//!
//! Decision: which adapter is in use is an artifact like any other, read by every node that asks the
//! model. Its version is then part of what addresses an answer, a new version is a delta whose cost
//! a plan can tell, and no node can go on asking the model that was.

use std::sync::{Arc, OnceLock};

use crate::{
    language_model::LanguageModel,
    lm::Lora,
    row::Row,
    shape::{Artifact, CallError, Fitted, KernelError, LeafId, Loaded, present},
    tuning::version::figures,
};

/// The role of the fit that makes versions of a model.
pub const VERSION: &str = "version";

/// A version of a language model: its base as it is, or with an adapter.
#[derive(Clone, Default)]
pub struct ModelVersion {
    adapter: Option<Lora>,
    /// The base with the adapter, once it was asked.
    model: OnceLock<Result<Arc<dyn LanguageModel>, CallError>>,
}

impl ModelVersion {
    /// With an adapter.
    pub fn of(adapter: Lora) -> Self {
        Self { adapter: Some(adapter), model: OnceLock::new() }
    }

    /// What speaks against putting it in use, in the words of its gate; nothing of one that passed.
    pub fn refused(&self) -> Vec<String> {
        let said = self.adapter.iter().flat_map(|adapter| adapter.lineage()["refused"].as_array());
        said.flatten().filter_map(|why| Some(why.as_str()?.to_string())).collect()
    }

    /// The figures of the training that made it: step and name, value.
    pub fn figures(&self) -> Vec<(Row, Row)> {
        self.adapter.as_ref().map(figures).unwrap_or_default()
    }

    /// The figures of the last step of the training that made it.
    pub fn last_figures(&self) -> Vec<(String, f64)> {
        let log = self.adapter.iter().filter_map(|adapter| adapter.lineage()["log"].as_array()?.last());
        let last = log.filter_map(|figures| figures.as_object()).flatten();
        last.filter_map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect()
    }

    /// What names it: a hash of its durable form.
    pub fn digest(&self) -> String {
        blake3::hash(&self.to_bytes()).to_hex().to_string()
    }

    /// The adapter, where it has one.
    pub fn adapter(&self) -> Option<&Lora> {
        self.adapter.as_ref()
    }

    fn model(&self, base: &Arc<dyn LanguageModel>) -> Result<Arc<dyn LanguageModel>, CallError> {
        let Some(adapter) = &self.adapter else { return Ok(base.clone()) };
        self.model.get_or_init(|| base.adapted(adapter)).clone()
    }
}

impl Artifact for ModelVersion {
    fn to_bytes(&self) -> Vec<u8> {
        self.adapter.as_ref().map(Artifact::to_bytes).unwrap_or_default()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, KernelError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        Lora::from_bytes(bytes).map(Self::of)
    }
}

/// A language model as a node asks it.
#[derive(Clone)]
pub struct Served {
    base: Arc<dyn LanguageModel>,
    version: Option<Fitted<ModelVersion>>,
}

impl Served {
    /// A model, with the version of it that the pipeline fits, where it fits one.
    pub fn new(base: Arc<dyn LanguageModel>, version: Option<Fitted<ModelVersion>>) -> Self {
        Self { base, version }
    }

    /// The version of it that the pipeline fits, where it fits one.
    pub(crate) fn version(&self) -> Option<Fitted<ModelVersion>> {
        self.version
    }

    /// The model below.
    pub fn base(&self) -> &Arc<dyn LanguageModel> {
        &self.base
    }

    /// Artifacts of a kernel and after them the version: what an inference reads.
    pub(crate) fn artifacts(&self, own: &[LeafId]) -> Vec<LeafId> {
        own.iter().copied().chain(self.version.map(Fitted::leaf)).collect()
    }

    /// The model to ask, given what [`Served::artifacts`] named.
    ///
    /// # Errors
    /// If the adapter cannot be put on the model.
    pub(crate) fn model(&self, artifacts: &[Loaded]) -> Result<Arc<dyn LanguageModel>, CallError> {
        match self.version {
            None => Ok(self.base.clone()),
            Some(_) => present::<ModelVersion>(artifacts.last())?.model(&self.base),
        }
    }
}
