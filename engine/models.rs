//! Where a pipeline's models come from.
//!
//! Behind a trait, so that tests can run the same pipelines on a fast stand-in; no command-line
//! flag selects one.

use std::sync::{Arc, OnceLock};

use coea_operators::{
    label_model::LabelModel,
    lm::{self, LabelTrie, LanguageModel, LmError, LmTokenizer},
    shape::{CallError, Cost, KernelError},
};

use crate::fetch;

/// Gives the language model behind a `base`.
pub trait ModelProvider {
    /// The model of a registered name or a path; nothing is fetched or loaded until it is asked.
    ///
    /// # Errors
    /// If there can be no such model.
    fn language(&self, base: &str) -> Result<Arc<dyn LabelModel>, String>;
}

/// Models from the registry, or from the user's own files.
#[derive(Default)]
pub struct RealModels;

impl ModelProvider for RealModels {
    fn language(&self, base: &str) -> Result<Arc<dyn LabelModel>, String> {
        let digest = fetch::model_digest(base).map_err(|e| e.to_string())?;
        Ok(Arc::new(Embedded {
            base: base.to_string(),
            digest,
            model: OnceLock::new(),
            tokenizer: OnceLock::new(),
        }))
    }
}

/// A model of the registry, loaded when first used.
struct Embedded {
    base: String,
    digest: String,
    model: OnceLock<Result<LanguageModel, CallError>>,
    tokenizer: OnceLock<Result<LmTokenizer, CallError>>,
}

impl Embedded {
    fn path(&self) -> Result<std::path::PathBuf, CallError> {
        Ok(fetch::model(&self.base).map_err(unavailable)?.path)
    }

    fn model(&self) -> Result<&LanguageModel, CallError> {
        let load = || LanguageModel::open(&self.path()?).map_err(unavailable);
        self.model.get_or_init(load).as_ref().map_err(Clone::clone)
    }

    fn tokenizer(&self) -> Result<&LmTokenizer, CallError> {
        if let Some(Ok(model)) = self.model.get() {
            return Ok(model.tokenizer());
        }
        let load = || LmTokenizer::open(&self.path()?).map_err(unavailable);
        self.tokenizer.get_or_init(load).as_ref().map_err(Clone::clone)
    }
}

/// A file of a model that is not there, not the right one, or not of its format.
fn unavailable(error: impl std::fmt::Display) -> CallError {
    CallError::Unavailable(error.to_string())
}

impl LabelModel for Embedded {
    fn digest(&self) -> String {
        self.digest.clone()
    }

    fn score(
        &self,
        labels: &[String],
        prompts: &[String],
        progress: &mut (dyn FnMut(usize) + Send),
    ) -> Result<(Vec<Result<Vec<f32>, KernelError>>, Cost), CallError> {
        let model = self.model()?;
        let trie = LabelTrie::new(model.tokenizer(), labels).map_err(|e| e.to_string())?;
        let mut answers: Vec<Result<Vec<f32>, KernelError>> = vec![Ok(Vec::new()); prompts.len()];
        let mut left: Vec<usize> = (0..prompts.len()).collect();
        // A prompt that cannot be asked is an error of its own; the others are asked without it.
        loop {
            let asked: Vec<String> = left.iter().map(|at| prompts[*at].clone()).collect();
            match lm::score_labels(model, &trie, &asked, progress) {
                Ok(scores) => {
                    left.iter().zip(scores.logprobs).for_each(|(at, answer)| answers[*at] = Ok(answer));
                    return Ok((answers, scores.cost));
                }
                Err(error @ (LmError::TooLong { prompt, .. } | LmError::EmptyPrompt(prompt))) => {
                    answers[left.remove(prompt)] = Err(error.to_string());
                }
                Err(error) => return Err(error.to_string().into()),
            }
        }
    }

    fn price(&self, prompts: &[String]) -> Result<Cost, CallError> {
        Ok(lm::price(self.tokenizer()?, prompts).map_err(|e| e.to_string())?)
    }
}
