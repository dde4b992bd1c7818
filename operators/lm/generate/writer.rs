//! A text that is being written: its cache, its draws, and the tokens it may go on with.
//!
//! Decision: near its limit of tokens a text with a schema is led to its end. A drawn token is kept
//! only if the shortest way to the end after it fits in the tokens left, and that way is taken where
//! no drawn token fits; so a text that had room for its document at all is always finished.

use std::collections::BTreeSet;

use super::automaton::State;
use super::constraint::Constraint;
use super::draw::{Draws, choose, penalise};
use super::text::Text;
use crate::language_model::{Writing, Written};
use crate::lm::batch::Prefix;
use crate::lm::prefix::Tail;
use crate::lm::vocabulary::Vocabulary;
use crate::shape::KernelError;

/// Draws that may fail to fit before the shortest way to the end is taken.
const TRIES: usize = 8;

/// What all texts of a call are written with.
pub(crate) struct Pen<'a> {
    pub(crate) how: &'a Writing,
    pub(crate) vocabulary: &'a Vocabulary,
    pub(crate) constraint: Option<&'a Constraint<'a>>,
}

/// A text that is being written.
pub(crate) struct Running<'a> {
    /// The prompts it answers.
    pub(crate) tail: &'a Tail,
    /// Keys and values of everything before `last`.
    pub(crate) cache: Prefix,
    /// The token drawn last.
    pub(crate) last: u32,
    /// The answer, when there is one.
    pub(crate) over: Option<Result<Written, KernelError>>,
    text: Text,
    draws: Draws,
    state: Option<State>,
    /// Distinct tokens written, where they are penalised.
    seen: BTreeSet<u32>,
}

impl<'a> Running<'a> {
    /// The text after a prompt that was read.
    pub(crate) fn new(pen: &Pen, prompt: &[u32], tail: &'a Tail, cache: Prefix) -> Self {
        Self {
            tail,
            cache,
            last: 0,
            over: None,
            text: Text::default(),
            draws: Draws::new(pen.how.seed, prompt),
            state: pen.constraint.map(Constraint::start),
            seen: BTreeSet::new(),
        }
    }

    /// Tokens written so far.
    pub(crate) fn written(&self) -> u64 {
        self.text.tokens
    }

    /// Draws the next token and says in `over` if that ends the text.
    pub(crate) fn draw(&mut self, pen: &Pen, logits: &mut [f32]) {
        match self.next(pen, logits) {
            None => self.over = Some(Err("the model gave no probabilities".to_owned())),
            Some((token, _)) if pen.vocabulary.is_end(token) => self.end(true),
            Some((token, state)) => {
                (self.last, self.state) = (token, state);
                self.seen.insert(token);
                let stopped = self.text.push(pen.vocabulary.bytes(token), pen.how);
                let closed = self.state.as_ref().is_some_and(State::closed);
                let full = self.text.tokens as usize >= pen.how.max_tokens;
                if stopped || closed || full {
                    self.end(stopped || self.state.as_ref().is_some_and(State::complete));
                }
            }
        }
    }

    fn end(&mut self, finished: bool) {
        self.over = Some(Ok(self.text.written(finished)));
    }

    /// The next token, and the state of the document after it.
    fn next(&mut self, pen: &Pen, logits: &mut [f32]) -> Option<(u32, Option<State>)> {
        self.draws.begin(self.text.tokens);
        if pen.how.repetition_penalty != 1.0 {
            penalise(logits, pen.how.repetition_penalty, self.seen.iter().copied());
        }
        pen.vocabulary.markers().iter().for_each(|token| logits[*token as usize] = f32::NEG_INFINITY);
        // Rows of the output weights past the vocabulary are padding.
        logits[pen.vocabulary.len()..].fill(f32::NEG_INFINITY);
        let Some((constraint, state)) = pen.constraint.zip(self.state.as_ref()) else {
            return Some((choose(logits, pen.how, &mut self.draws)?, None));
        };
        let mask = constraint.mask(state);
        for (token, logit) in logits.iter_mut().enumerate().take(pen.vocabulary.len()) {
            *logit = if mask.allows(token) { *logit } else { f32::NEG_INFINITY };
        }
        let left = pen.how.max_tokens - self.text.tokens as usize;
        let (needed, way) = constraint.closing(state)?;
        for _ in 0..TRIES {
            let Some(token) = choose(&mut logits.to_vec(), pen.how, &mut self.draws) else { break };
            if pen.vocabulary.is_end(token) {
                return Some((token, None));
            }
            let after = constraint.after(state, token)?;
            // A document for which there never was room is written as far as it goes.
            if needed > left || constraint.closing(&after)?.0 < left {
                return Some((token, Some(after)));
            }
            logits[token as usize] = f32::NEG_INFINITY;
        }
        match way {
            Some(token) => Some((token, Some(constraint.after(state, token)?))),
            None => pen.vocabulary.ends().next().map(|end| (end, None)),
        }
    }
}
