//! Log-probabilities of labels by the most probable tokens at each step.
//!
//! For servers that tell no ids and take no ids: the labels' texts are walked with the tokens the
//! server itself names, the longest that a label goes on with, as a tokenizer would. A token that is
//! not among the `top` is at most as probable as the last of them, so a label that needs it gets
//! that bound instead: too high for what it stands for, and never above a label that was seen to
//! be more probable.

use std::collections::BTreeMap;

use coea_operators::shape::Cost;
use serde_json::{Value as Json, json};

use super::{
    Asking,
    failure::Failure,
    forced::ids,
    protocol::{Completion, Entry, guess, request},
};

/// The token that ends an answer.
pub(super) struct End {
    text: String,
    /// Its id, where the server has a tokenizer to ask: llama.cpp shows all control tokens as "".
    id: Option<u32>,
}

impl End {
    /// Asks the server which token it is; one that cannot say must show it as text.
    pub fn new(asking: &mut Asking<'_>) -> Result<Self, Failure> {
        let text = asking.settings.end().to_string();
        let id = match ids(asking, &text, false) {
            Ok(ids) => ids.first().copied().filter(|_| ids.len() == 1),
            Err(Failure::Unfit(_)) => None,
            Err(failure) => return Err(failure),
        };
        Ok(End { text, id })
    }

    fn is(&self, entry: &Entry) -> bool {
        match (entry.id, self.id) {
            (Some(id), Some(end)) => id == end,
            _ => entry.token == self.text,
        }
    }
}

/// What scoring a prompt costs, about: a step for every word of a label, and its end.
pub(super) fn expected(labels: &[String], prompt: &str) -> Cost {
    let steps = labels.iter().map(|label| 1 + guess(label)).sum::<u64>();
    Cost { prompt_tokens: steps * guess(prompt), completion_tokens: steps, ..Cost::default() }
}

/// The log-probability of every label, or a bound.
pub(super) fn score(
    asking: &mut Asking<'_>,
    end: &End,
    labels: &[String],
    prompt: &str,
) -> Result<Vec<f32>, Failure> {
    let mut scores = vec![0f64; labels.len()];
    let mut open: BTreeMap<String, (f64, Vec<usize>)> = BTreeMap::new();
    open.insert(String::new(), (0.0, (0..labels.len()).collect()));
    while let Some((prefix, (logprob, at))) = open.pop_first() {
        let top = step(asking, &format!("{prompt}{prefix}"))?;
        let least = top.iter().map(|entry| entry.logprob).fold(f64::INFINITY, f64::min);
        for label in at {
            let rest = &labels[label][prefix.len()..];
            let next = match rest.is_empty() {
                true => top.iter().find(|entry| end.is(entry)).map(|entry| (entry, 0)),
                false => longest(&top, rest),
            };
            match next {
                None => scores[label] = logprob + least,
                Some((entry, 0)) => scores[label] = logprob + entry.logprob,
                Some((entry, length)) => {
                    let reached = labels[label][..prefix.len() + length].to_string();
                    let node = open.entry(reached).or_insert((logprob + entry.logprob, Vec::new()));
                    node.1.push(label);
                }
            }
        }
    }
    Ok(scores.into_iter().map(|score| score as f32).collect())
}

/// The longest token that a text begins with, and its length; only whole characters can be sent.
fn longest<'t>(top: &'t [Entry], rest: &str) -> Option<(&'t Entry, usize)> {
    let fits = top.iter().filter_map(|entry| {
        let bytes = entry.bytes();
        let begins = !bytes.is_empty() && rest.as_bytes().starts_with(bytes);
        (begins && rest.is_char_boundary(bytes.len())).then_some((entry, bytes.len()))
    });
    fits.max_by_key(|(_, length)| *length)
}

/// The most probable tokens after a text.
fn step(asking: &mut Asking<'_>, text: &str) -> Result<Vec<Entry>, Failure> {
    let (path, mut body) = request(asking.settings, text);
    body.insert("max_tokens".into(), json!(1));
    body.insert("temperature".into(), json!(0));
    body.insert("logprobs".into(), json!(asking.settings.top()));
    let expected = Cost { prompt_tokens: guess(text), completion_tokens: 1, ..Cost::default() };
    let answer: Completion = asking.post(path, &Json::Object(body), expected)?;
    match answer.choices.first().and_then(|choice| choice.first()) {
        Some((_, top)) if !top.is_empty() => Ok(top),
        _ => Err(Failure::Question("the server gave no log-probabilities".to_string())),
    }
}
