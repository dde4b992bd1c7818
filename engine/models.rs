//! Where a pipeline's models come from.
//!
//! Behind a trait, so that tests can run the same pipelines on a fast stand-in; no command-line
//! flag selects one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use coea_operators::{
    choosing::{Best, Choosing, Question},
    language_model::{Answered, LanguageModel, Writing, Written},
    lm::{self, LabelTrie, LmTokenizer, LocalModel, Lora},
    shape::{CallError, Cost},
};

use crate::{
    fetch,
    price::Price,
    remote::{Remote, settings::Settings},
};

/// Gives the language model behind a `base`.
pub trait ModelProvider {
    /// The model of a registered name or a path; nothing is fetched or loaded until it is asked.
    ///
    /// # Errors
    /// If there can be no such model.
    fn language(&self, base: &str) -> Result<Arc<dyn LanguageModel>, String>;

    /// The model of a server, whose URL `base` is; nothing is sent until it is asked.
    ///
    /// # Errors
    /// If it is not the URL of a server.
    fn remote(
        &self,
        base: &str,
        settings: Settings,
        price: Option<Price>,
    ) -> Result<Arc<dyn LanguageModel>, String> {
        Ok(Arc::new(Remote::new(base, settings, price)?))
    }
}

/// Whether a `base` is the URL of a server.
pub fn is_remote(base: &str) -> bool {
    base.starts_with("http://") || base.starts_with("https://")
}

/// Models from the registry, or from the user's own files; a model that has several names in a
/// pipeline is held once.
#[derive(Default)]
pub struct RealModels {
    opened: Mutex<BTreeMap<String, Arc<Files>>>,
}

/// A model that was loaded.
pub struct Opened {
    /// Its name or path.
    pub base: String,
    /// How long it took to load.
    pub took: Duration,
    /// Bytes of its weights in memory.
    pub bytes: usize,
}

impl RealModels {
    /// The models that were loaded so far.
    pub fn opened(&self) -> Vec<Opened> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let read = |files: &Arc<Files>| match files.model.get() {
            Some(Ok((model, took))) => {
                Some(Opened { base: files.base.clone(), took: *took, bytes: model.memory_bytes() })
            }
            _ => None,
        };
        opened.values().filter_map(read).collect()
    }
}

impl ModelProvider for RealModels {
    fn language(&self, base: &str) -> Result<Arc<dyn LanguageModel>, String> {
        if is_remote(base) {
            return Err("a server also needs the model's name; use it in a pipeline".to_string());
        }
        let digest = fetch::model_digest(base).map_err(|e| e.to_string())?;
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let files = opened.entry(digest.clone()).or_insert_with(|| Arc::new(Files::new(base))).clone();
        Ok(Arc::new(Embedded { digest, files, model: OnceLock::new() }))
    }
}

/// What is read from a model's files, when first used.
struct Files {
    base: String,
    /// With the time it took to load.
    model: OnceLock<Result<(LocalModel, Duration), CallError>>,
    tokenizer: OnceLock<Result<LmTokenizer, CallError>>,
}

impl Files {
    fn new(base: &str) -> Self {
        Self { base: base.to_string(), model: OnceLock::new(), tokenizer: OnceLock::new() }
    }

    fn path(&self) -> Result<std::path::PathBuf, CallError> {
        Ok(fetch::model(&self.base).map_err(unavailable)?.path)
    }

    fn model(&self) -> Result<&LocalModel, CallError> {
        let load = || {
            let (path, began) = (self.path()?, Instant::now());
            Ok((LocalModel::open(&path).map_err(unavailable)?, began.elapsed()))
        };
        self.model.get_or_init(load).as_ref().map(|(model, _)| model).map_err(Clone::clone)
    }

    fn tokenizer(&self) -> Result<&LmTokenizer, CallError> {
        if let Some(Ok((model, _))) = self.model.get() {
            return Ok(model.tokenizer());
        }
        let load = || LmTokenizer::open(&self.path()?).map_err(unavailable);
        self.tokenizer.get_or_init(load).as_ref().map_err(Clone::clone)
    }
}

/// A model of this machine. What it remembers of prompts is its own, so that what a question costs
/// does not depend on what is asked of others.
struct Embedded {
    digest: String,
    files: Arc<Files>,
    model: OnceLock<Result<LocalModel, CallError>>,
}

impl Embedded {
    fn model(&self) -> Result<&LocalModel, CallError> {
        let own = || Ok(self.files.model()?.with_cache(LocalModel::CACHE_BYTES));
        self.model.get_or_init(own).as_ref().map_err(Clone::clone)
    }
}

/// A file of a model that is not there, not the right one, or not of its format.
fn unavailable(error: impl std::fmt::Display) -> CallError {
    CallError::Unavailable(error.to_string())
}

impl LanguageModel for Embedded {
    fn digest(&self) -> String {
        self.digest.clone()
    }

    fn score(
        &self,
        labels: &[String],
        prompts: &[String],
        answered: &mut Answered<'_, Vec<f32>>,
    ) -> Result<Cost, CallError> {
        let model = self.model()?;
        let trie = LabelTrie::new(model.tokenizer(), labels).map_err(|e| e.to_string())?;
        Ok(lm::score_labels(model, &trie, prompts, answered))
    }

    fn choose(
        &self,
        labels: &[String],
        how: &Choosing,
        questions: &[Question],
        answered: &mut Answered<'_, Best>,
    ) -> Result<Cost, CallError> {
        let model = self.model()?;
        let trie = LabelTrie::new(model.tokenizer(), labels).map_err(|e| e.to_string())?;
        Ok(lm::best_labels(model, &trie, how, questions, answered))
    }

    fn write(
        &self,
        how: &Writing,
        prompts: &[String],
        answered: &mut Answered<'_, Written>,
    ) -> Result<Cost, CallError> {
        Ok(lm::write_texts(self.model()?, how, prompts, answered).map_err(|e| e.to_string())?)
    }

    fn price(&self, prompts: &[String]) -> Result<Cost, CallError> {
        Ok(lm::price(self.files.tokenizer()?, prompts))
    }

    fn network(&self) -> Result<LocalModel, CallError> {
        self.files.model().cloned()
    }

    fn adapted(&self, adapter: &Lora) -> Result<Arc<dyn LanguageModel>, CallError> {
        let model = self.files.model()?.with_adapter(adapter).map_err(|e| e.to_string())?;
        // What decides an answer is the model below and the adapter.
        let digest = blake3::hash(format!("{} {}", self.digest, adapter.digest()).as_bytes());
        let digest = digest.to_hex().to_string();
        let model = OnceLock::from(Ok(model.with_cache(LocalModel::CACHE_BYTES)));
        Ok(Arc::new(Embedded { digest, files: self.files.clone(), model }))
    }
}
