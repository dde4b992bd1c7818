//! A language model as the operators see it: it scores closed sets of labels, and writes texts.
//!
//! Behind a trait, so that the same operators run on the embedded model, on a server, and in tests
//! on a fast stand-in. Answers are heard one by one as they come, because each of them is paid for:
//! what was heard is kept, whatever happens to the rest of its batch.

use std::{ops::ControlFlow, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    choosing::{Best, Choosing, Question, pick},
    lm::{LocalModel, Lora},
    shape::{CallError, Cost, KernelError},
};

/// Hears the answers to a batch: the place of a question, and its answer. Says whether to go on;
/// questions that are not begun by then are dropped. Each question is answered once at most.
pub type Answered<'a, T> = dyn FnMut(usize, Result<T, KernelError>) -> ControlFlow<()> + Send + 'a;

/// How a text is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Writing {
    /// Tokens a text may have at most.
    pub max_tokens: usize,
    /// Temperature of the draws; 0 takes the most probable token.
    pub temperature: f64,
    /// Only the most probable tokens that hold this share of the mass are drawn; 1 keeps all.
    pub top_p: f64,
    /// Logits of tokens already written are divided (or, below zero, multiplied) by this; 1 is off.
    pub repetition_penalty: f64,
    /// Texts that end the answer; they are no part of it.
    pub stop: Vec<String>,
    /// Names the draws, together with the prompt.
    pub seed: u64,
    /// A JSON Schema the text must satisfy.
    pub schema: Option<Arc<serde_json::Value>>,
}

impl Default for Writing {
    /// The most probable text, of at most 128 tokens.
    fn default() -> Self {
        Writing {
            max_tokens: 128,
            temperature: 0.0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            stop: Vec::new(),
            seed: 0,
            schema: None,
        }
    }
}

/// A text, and how it came to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// The text, without the stop that ended it.
    pub text: String,
    /// Tokens written.
    pub tokens: u64,
    /// Whether the model ended it, or a stop, rather than the limit of tokens.
    pub finished: bool,
}

/// A language model.
pub trait LanguageModel: Send + Sync {
    /// What decides its answers: weights, tokenizer, adapter. Part of memo keys.
    fn digest(&self) -> String;

    /// The exact log-probability of every label with the end of the answer after it, in the order of
    /// `labels`, for every prompt.
    ///
    /// # Errors
    /// If the model cannot be had or loaded, or the labels cannot be told apart.
    fn score(
        &self,
        labels: &[String],
        prompts: &[String],
        answered: &mut Answered<'_, Vec<f32>>,
    ) -> Result<Cost, CallError>;

    /// The best labels after every prompt: what [`pick`] picks from [`LanguageModel::score`].
    ///
    /// A model that need not look at all labels for that does better than this one, which does.
    ///
    /// # Errors
    /// As [`LanguageModel::score`].
    fn choose(
        &self,
        labels: &[String],
        how: &Choosing,
        questions: &[Question],
        answered: &mut Answered<'_, Best>,
    ) -> Result<Cost, CallError> {
        let prompts: Vec<String> = questions.iter().map(|question| question.prompt.clone()).collect();
        self.score(labels, &prompts, &mut |at, logprobs| {
            answered(at, logprobs.map(|logprobs| pick(how, &logprobs, &questions[at].draws)))
        })
    }

    /// A text for every prompt.
    ///
    /// # Errors
    /// If the model cannot be had or loaded, or cannot write in this way.
    fn write(
        &self,
        how: &Writing,
        prompts: &[String],
        answered: &mut Answered<'_, Written>,
    ) -> Result<Cost, CallError>;

    /// What scoring these prompts would cost as the first call, without loading the weights; of writing,
    /// what reading them would.
    ///
    /// # Errors
    /// If the tokenizer cannot be had or loaded.
    fn price(&self, prompts: &[String]) -> Result<Cost, CallError>;

    /// The network itself, to be tuned: the one without an adapter.
    ///
    /// # Errors
    /// If it is not on this machine, or cannot be had or loaded.
    fn network(&self) -> Result<LocalModel, CallError> {
        Err(CallError::Failed(ELSEWHERE.to_string()))
    }

    /// The model with an adapter.
    ///
    /// # Errors
    /// If it is not on this machine, cannot be had or loaded, or the adapter is of another.
    fn adapted(&self, _adapter: &Lora) -> Result<Arc<dyn LanguageModel>, CallError> {
        Err(CallError::Failed(ELSEWHERE.to_string()))
    }
}

/// Why a model cannot be tuned.
const ELSEWHERE: &str = "only an embedded model can be tuned; this one answers from elsewhere";

/// Gathers the answers to a batch in its order.
///
/// # Errors
/// If the batch fails as a whole, or leaves a question without an answer.
pub fn gather<T: Clone + Send>(
    questions: usize,
    ask: impl FnOnce(&mut Answered<'_, T>) -> Result<Cost, CallError>,
) -> Result<(Vec<Result<T, KernelError>>, Cost), CallError> {
    let mut answers = vec![None; questions];
    let cost = ask(&mut |at, answer| {
        answers[at] = Some(answer);
        ControlFlow::Continue(())
    })?;
    let answers: Option<Vec<_>> = answers.into_iter().collect();
    Ok((answers.ok_or("the model left a question without an answer")?, cost))
}
