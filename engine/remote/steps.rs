//! Log-probabilities of labels by the most probable tokens at each step.
//!
//! For servers that take no ids: the labels' texts are walked with the tokens the server itself
//! names. Which of them its tokenizer would choose is unknown ("Com" and "edy", or "Comedy" at once),
//! so all are followed and a label gets the sum of its ways, as far as the `top` shows them. A token
//! that is not among those is at most as probable as the last of them; a label of which no way is
//! seen to its end gets that bound, which is too high for what it stands for.

use std::collections::BTreeMap;

use coea_operators::shape::Cost;
use serde_json::{Value as Json, json};

use super::{
    Asking,
    failure::Failure,
    forced::ids,
    protocol::{Completion, Entry, guess, request},
};

/// Tokens that are less probable than the best that fits by this factor are not followed.
const NEGLIGIBLE: f64 = 1e-6;

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
    let (mut seen, mut bound) = (vec![0f64; labels.len()], vec![0f64; labels.len()]);
    // Beginnings of labels and the probability to come there, shortest first: all ways to one are
    // known when its turn comes.
    let mut open = BTreeMap::from([((0, String::new()), 1f64)]);
    while let Some(((_, prefix), mass)) = open.pop_first() {
        let top = step(asking, &format!("{prompt}{prefix}"))?;
        let least = top.iter().map(|entry| entry.logprob).fold(f64::INFINITY, f64::min).exp();
        let mut next: BTreeMap<String, f64> = BTreeMap::new();
        for (at, label) in labels.iter().enumerate() {
            let Some(rest) = label.strip_prefix(prefix.as_str()) else { continue };
            let ways = if rest.is_empty() { Vec::new() } else { ways(&top, rest) };
            let ended = top.iter().find(|entry| rest.is_empty() && end.is(entry));
            match ended {
                Some(entry) => seen[at] += mass * entry.logprob.exp(),
                None if ways.is_empty() => bound[at] += mass * least,
                None => {}
            }
            next.extend(ways.into_iter().map(|(length, p)| (format!("{prefix}{}", &rest[..length]), p)));
        }
        for (prefix, probability) in next {
            *open.entry((prefix.len(), prefix)).or_default() += mass * probability;
        }
    }
    let score = |(seen, bound): (&f64, &f64)| if *seen > 0.0 { seen.ln() } else { bound.ln() };
    Ok(seen.iter().zip(&bound).map(|ways| score(ways) as f32).collect())
}

/// How far tokens go into a text, with their probabilities; only whole characters can be sent.
fn ways(top: &[Entry], rest: &str) -> Vec<(usize, f64)> {
    let fits = |entry: &Entry| {
        let bytes = entry.bytes();
        let begins = !bytes.is_empty() && rest.as_bytes().starts_with(bytes);
        (begins && rest.is_char_boundary(bytes.len())).then(|| (bytes.len(), entry.logprob.exp()))
    };
    let mut ways: Vec<(usize, f64)> = top.iter().filter_map(fits).collect();
    let best = ways.iter().map(|(_, p)| *p).fold(0.0, f64::max);
    ways.retain(|(_, p)| *p >= NEGLIGIBLE * best);
    ways
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
