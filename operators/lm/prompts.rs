//! Which prompts of a call can be asked.
//!
//! Decision: a prompt that cannot is an answer of its own and never an error of the call, so that one
//! that a model's template refuses, or that is too long, costs the others nothing.

use super::error::LmError;
use super::model::LocalModel;
use super::tokenizer::LmTokenizer;
use crate::language_model::Answered;

/// Token ids of prompts, and the place of each in the call.
pub(super) struct Prompts {
    pub(super) ids: Vec<Vec<u32>>,
    pub(super) places: Vec<usize>,
}

impl Prompts {
    /// The prompts that leave room for `room` more tokens; the others are answered with what is wrong
    /// with them. Nothing, if no answer is wanted any more.
    pub(super) fn fitting<T>(
        model: &LocalModel,
        room: usize,
        prompts: &[impl AsRef<str>],
        answered: &mut Answered<'_, T>,
    ) -> Option<Self> {
        let available = model.network().sizes().context;
        let mut fitting = Self { ids: Vec::new(), places: Vec::new() };
        for (place, prompt) in prompts.iter().enumerate() {
            let ids = tokenised(model.tokenizer(), prompt.as_ref());
            let needed = |ids: &Vec<u32>| ids.len().saturating_add(room);
            match ids.map(|ids| (needed(&ids), ids)) {
                Ok((needed, ids)) if needed <= available => {
                    fitting.ids.push(ids);
                    fitting.places.push(place);
                }
                refused => {
                    let cause =
                        refused.map_or_else(|e| e, |(needed, _)| LmError::TooLong { needed, available });
                    if answered(place, Err(cause.to_string())).is_break() {
                        return None;
                    }
                }
            }
        }
        Some(fitting)
    }

    /// Token ids of the prompts that have any, as long as they may be.
    pub(super) fn all(tokenizer: &LmTokenizer, prompts: &[String]) -> Vec<Vec<u32>> {
        prompts.iter().filter_map(|prompt| tokenised(tokenizer, prompt).ok()).collect()
    }
}

fn tokenised(tokenizer: &LmTokenizer, prompt: &str) -> Result<Vec<u32>, LmError> {
    let ids = tokenizer.prompt(prompt)?;
    if ids.is_empty() { Err(LmError::EmptyPrompt) } else { Ok(ids) }
}
