//! Log-probabilities of labels by forcing their tokens, one at a time.
//!
//! Servers do not score texts that are given to them. They do tell the log-probability of the token
//! they chose, from before any bias; so each edge of the labels' trie is asked for with a bias that
//! leaves no choice. Exact however improbable a label is, where a list of the most probable tokens
//! would have to be as long as the vocabulary. Such a list still saves requests: what of a node's
//! tokens is in it need not be forced.

use std::collections::{BTreeMap, BTreeSet};

use coea_operators::shape::Cost;
use serde_json::{Value as Json, json};

use super::{
    Asking,
    client::Path,
    failure::Failure,
    protocol::{Completion, Entry, Tokens, guess, request, tokenize},
};

/// A bias that outweighs any difference of logits; the most that the protocol allows.
const BIAS: u32 = 100;
/// What tokens at one position may have together, with room for rounding.
const WHOLE: f64 = 1.01;

/// The labels as paths of token ids, each with the end.
pub(super) struct Paths {
    labels: Vec<Vec<u32>>,
    /// Beginnings of paths, and the tokens that go on from there.
    nodes: BTreeMap<Vec<u32>, BTreeSet<u32>>,
}

impl Paths {
    /// Asks the server for the labels' tokens.
    pub fn new(asking: &mut Asking<'_>, labels: &[String]) -> Result<Self, Failure> {
        let end = asking.settings.end().to_string();
        let end = match ids(asking, &end, false)?.as_slice() {
            [id] => *id,
            ids => {
                let message = format!(
                    "`{end}` is {} tokens of this model; name the one that ends an answer",
                    ids.len()
                );
                return Err(Failure::Unfit(format!("{message} as `end`")));
            }
        };
        let (mut paths, mut nodes) = (Vec::new(), BTreeMap::<Vec<u32>, BTreeSet<u32>>::new());
        for label in labels {
            let mut path = ids(asking, label, false)?;
            path.push(end);
            for at in 0..path.len() {
                nodes.entry(path[..at].to_vec()).or_default().insert(path[at]);
            }
            if path.len() == 1 || paths.contains(&path) {
                return Err(Failure::Unfit(format!("the label {label:?} has no tokens of its own")));
            }
            paths.push(path);
        }
        Ok(Paths { labels: paths, nodes })
    }

    /// What scoring a prompt costs at most.
    pub fn expected(&self, prompt: &str) -> Cost {
        let edges = self.nodes.values().map(|tokens| tokens.len() as u64).sum::<u64>();
        let deepest = self.labels.iter().map(Vec::len).max().unwrap_or(0) as u64;
        Cost { prompt_tokens: edges * (guess(prompt) + deepest), completion_tokens: edges, ..Cost::default() }
    }

    /// The log-probability of every label.
    pub fn score(&self, asking: &mut Asking<'_>, prompt: &str) -> Result<Vec<f32>, Failure> {
        let prompt = ids(asking, prompt, true)?;
        let mut known: BTreeMap<(&[u32], u32), f64> = BTreeMap::new();
        for (prefix, tokens) in &self.nodes {
            let mut found: BTreeMap<u32, f64> = BTreeMap::new();
            for token in tokens {
                if found.contains_key(token) {
                    continue;
                }
                // One list for a node is enough; for a chain it would be of no use.
                let top = if found.is_empty() && tokens.len() > 1 { asking.settings.top() } else { 1 };
                let (forced, others) = force(asking, &[&prompt, prefix.as_slice()].concat(), *token, top)?;
                found.insert(*token, forced.logprob);
                for Entry { id, logprob, .. } in others {
                    if let Some(id) = id.filter(|id| tokens.contains(id)) {
                        found.entry(id).or_insert(logprob);
                    }
                }
            }
            if found.values().map(|logprob| logprob.exp()).sum::<f64>() > WHOLE {
                let message = "the server's log-probabilities include the bias, so none can be forced";
                return Err(Failure::Unfit(format!("{message}; write `scoring: steps` or `draws`")));
            }
            known.extend(found.into_iter().map(|(token, logprob)| ((prefix.as_slice(), token), logprob)));
        }
        let score = |path: &Vec<u32>| (0..path.len()).map(|at| known[&(&path[..at], path[at])]).sum::<f64>();
        Ok(self.labels.iter().map(|path| score(path) as f32).collect())
    }
}

/// The token ids of a text; of a prompt, with what the model wants at its beginning.
pub(super) fn ids(asking: &mut Asking<'_>, text: &str, prompt: bool) -> Result<Vec<u32>, Failure> {
    let body = tokenize(asking.settings, text, prompt);
    Ok(asking.post::<Tokens>(Path::Root("/tokenize"), &body, Cost::default())?.tokens)
}

/// The entry of a token after a prompt, and those of the most probable ones.
fn force(
    asking: &mut Asking<'_>,
    prompt: &[u32],
    token: u32,
    top: u32,
) -> Result<(Entry, Vec<Entry>), Failure> {
    let (path, mut body) = request(asking.settings, "");
    body.insert("prompt".into(), json!(prompt));
    body.insert("max_tokens".into(), json!(1));
    body.insert("temperature".into(), json!(0));
    body.insert("logprobs".into(), json!(top));
    body.insert("logit_bias".into(), json!({ token.to_string(): BIAS }));
    // vLLM's; others pass over it.
    body.insert("return_tokens_as_token_ids".into(), json!(true));
    let expected = Cost { prompt_tokens: prompt.len() as u64, completion_tokens: 1, ..Cost::default() };
    let answer: Completion = asking.post(path, &Json::Object(body), expected)?;
    let first = answer.choices.first().and_then(|choice| choice.first());
    let Some((entry, others)) = first else {
        return Err(Failure::Question("the server gave no log-probabilities".to_string()));
    };
    match entry.id {
        Some(id) if id == token => Ok((entry, others)),
        Some(id) => {
            Err(Failure::Question(format!("the server answered token {id} where {token} was forced")))
        }
        None => {
            let message = "the server does not tell ids of tokens, so none can be forced";
            Err(Failure::Unfit(format!("{message}; write `scoring: steps` or `draws`")))
        }
    }
}
