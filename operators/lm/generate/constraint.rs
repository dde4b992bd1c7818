//! Holds the tokens of texts to a schema.
//!
//! Decision: the tokens that may follow a state are worked out for the whole vocabulary at once and
//! remembered, because texts of one schema come to the same states again and again: inside a string
//! it is always the same one. The vocabulary is walked in the order of its bytes, so that what two
//! tokens have in common is checked once, and where one beginning is refused all others with it are
//! passed over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::automaton::State;
use super::schema::Schema;
use crate::lm::error::LmError;
use crate::lm::vocabulary::Vocabulary;

/// States remembered, at most: one takes an eighth of a byte per token of the vocabulary.
const REMEMBERED: usize = 1024;

/// A schema with the vocabulary that is to write it.
pub(crate) struct Constraint<'a> {
    schema: Schema,
    vocabulary: &'a Vocabulary,
    masks: Mutex<HashMap<State, Arc<Mask>>>,
}

/// Tokens that may follow a state, one bit each.
pub(crate) struct Mask(Vec<u64>);

impl Mask {
    /// Whether a token may follow.
    pub(crate) fn allows(&self, token: usize) -> bool {
        self.0[token / 64] >> (token % 64) & 1 == 1
    }
}

impl<'a> Constraint<'a> {
    /// Reads a schema.
    ///
    /// # Errors
    /// If it is not supported, or the vocabulary cannot spell what it asks for.
    pub(crate) fn new(schema: &serde_json::Value, vocabulary: &'a Vocabulary) -> Result<Self, LmError> {
        let constraint = Self { schema: Schema::read(schema)?, vocabulary, masks: Mutex::default() };
        let start = constraint.start();
        constraint.closing(&start).ok_or_else(|| LmError::Writing {
            parameter: "schema".to_owned(),
            reason: "the model's vocabulary has no tokens for its punctuation".to_owned(),
        })?;
        Ok(constraint)
    }

    /// Before the first token.
    pub(crate) fn start(&self) -> State {
        State::start(&self.schema)
    }

    /// The state after a token, if it may follow.
    pub(crate) fn after(&self, state: &State, token: u32) -> Option<State> {
        let mut state = state.clone();
        state.take(&self.schema, self.vocabulary.bytes(token)).then_some(state)
    }

    /// The tokens that may follow; end tokens where the document is complete.
    pub(crate) fn mask(&self, state: &State) -> Arc<Mask> {
        // Poisoned only by a panic; what is in the map is whole in any case.
        let find = || self.masks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mask) = find().get(state) {
            return mask.clone();
        }
        let mask = Arc::new(self.walk(state));
        let mut masks = find();
        if masks.len() >= REMEMBERED {
            masks.clear();
        }
        masks.insert(state.clone(), mask.clone());
        mask
    }

    fn walk(&self, state: &State) -> Mask {
        let mut mask = vec![0u64; self.vocabulary.len().div_ceil(64)];
        let mut allow = |token: u32| mask[token as usize / 64] |= 1 << (token % 64);
        // The states after 0, 1, … bytes of the token before, as far as they were taken.
        let mut states = vec![state.clone()];
        let mut last: &[u8] = &[];
        for token in self.vocabulary.sorted() {
            let bytes = self.vocabulary.bytes(*token);
            let shared = last.iter().zip(bytes).take_while(|(a, b)| a == b).count();
            last = bytes;
            // A beginning that was refused is refused again.
            if shared >= states.len() {
                continue;
            }
            states.truncate(shared + 1);
            for byte in &bytes[shared..] {
                let mut next = states[states.len() - 1].clone();
                if !next.push(&self.schema, *byte) {
                    break;
                }
                states.push(next);
            }
            if states.len() == bytes.len() + 1 {
                allow(*token);
            }
        }
        if state.complete() {
            self.vocabulary.ends().for_each(allow);
        }
        Mask(mask)
    }

    /// Tokens of a short way to the end, and the first of them; `None` where there is no way.
    pub(crate) fn closing(&self, state: &State) -> Option<(usize, Option<u32>)> {
        let rest = state.rest(&self.schema);
        let (mut at, mut tokens, mut first) = (0, 0, None);
        while at < rest.len() {
            let token = self.vocabulary.longest(&rest[at..])?;
            first = first.or(Some(token));
            at += self.vocabulary.bytes(token).len();
            tokens += 1;
        }
        Some((tokens, first))
    }
}
