//! A language model as the operators see it: something that scores a closed set of labels.
//!
//! Behind a trait, so that the same operators run on the embedded model, on a server, and in tests
//! on a fast stand-in.

use crate::shape::{CallError, Cost, KernelError};

/// `log p(label, end of text | prompt)` per prompt, in the order of the labels.
pub type LabelLogprobs = Vec<Vec<f32>>;

/// A language model with a closed set of answers.
pub trait LabelModel: Send + Sync {
    /// What decides its answers: weights, tokenizer, adapter. Part of memo keys.
    fn digest(&self) -> String;

    /// Exact label log-probabilities of every prompt, in the order of the prompts; `progress` hears
    /// how many prompts are done.
    ///
    /// # Errors
    /// If the model cannot be had or loaded, or the labels cannot be told apart.
    fn score(
        &self,
        labels: &[String],
        prompts: &[String],
        progress: &mut (dyn FnMut(usize) + Send),
    ) -> Result<(Vec<Result<Vec<f32>, KernelError>>, Cost), CallError>;

    /// What [`LabelModel::score`] would cost, without loading the weights.
    ///
    /// # Errors
    /// If the tokenizer cannot be had or loaded.
    fn price(&self, prompts: &[String]) -> Result<Cost, CallError>;
}
