//! The policy over a closed label set that sampler and scorer share: log-probabilities less the
//! frozen label prior.
//!
//! Zero-shot, one or two labels win every prompt whatever it says. The prior ℓ₀, each label's
//! log-probability under the content-free prompt, is that preference; it is fitted once and frozen
//! with the model version, so `s(c) = ℓ(c) − ℓ₀(c)` is what the prompt itself says.

use std::sync::Arc;

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    category_map::CategoryTable,
    chat::spoken,
    language_model::{Answered, LanguageModel, gather},
    operator::{Inputs, Problem},
    ordered::encode_row,
    row::{Row, Value},
    schema::Schema,
    served::Served,
    shape::{Artifact, CallError, Cost, Fitted, Graph, InferKernel, KernelError, Loaded, present},
};

/// Labels in order, what they are made of, and the prior of each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelPrior {
    /// Label names.
    pub labels: Vec<String>,
    /// The interests each label is made of.
    pub parts: Vec<Vec<String>>,
    /// ℓ₀ per label, in natural logarithms; less what it has before a prompt says something.
    pub prior: Vec<f32>,
    /// Clicks per label, when the labels were fitted.
    pub clicks: Vec<u64>,
}

impl Artifact for LabelPrior {
    fn to_bytes(&self) -> Vec<u8> {
        postcard::to_allocvec(self).unwrap_or_default()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, KernelError> {
        postcard::from_bytes(bytes).map_err(|e| format!("label prior: {e}"))
    }
}

impl LabelPrior {
    /// The share of each label in all clicks.
    pub fn shares(&self) -> Vec<f64> {
        let all: u64 = self.clicks.iter().sum();
        self.clicks.iter().map(|clicks| *clicks as f64 / all.max(1) as f64).collect()
    }

    /// `s(c)` per label.
    pub fn scores(&self, logprobs: &[f32]) -> Vec<f32> {
        logprobs.iter().zip(&self.prior).map(|(l, prior)| l - prior).collect()
    }
}

/// How often labels are drawn where a prompt says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Before {
    /// Each as often as the others.
    #[default]
    Even,
    /// In proportion to its clicks.
    Clicks,
}

/// Fits the prior of a label set under a content-free prompt: one call of the model.
pub(crate) fn fit_prior(
    graph: &mut Graph,
    labels: Fitted<CategoryTable>,
    model: Arc<dyn LanguageModel>,
    neutral: String,
) -> Fitted<LabelPrior> {
    fit_prior_before(graph, labels, model, neutral, (Before::Even, 1.0))
}

/// [`fit_prior`] of a policy that draws labels so often before a prompt says something, at a temperature.
pub(crate) fn fit_prior_before(
    graph: &mut Graph,
    labels: Fitted<CategoryTable>,
    model: Arc<dyn LanguageModel>,
    neutral: String,
    (before, temperature): (Before, f64),
) -> Fitted<LabelPrior> {
    let mut logic = format!("label_prior/2 {} {}", model.digest(), blake3::hash(neutral.as_bytes()));
    if before == Before::Clicks {
        logic = format!("{logic} clicks {temperature}");
    }
    graph.fit("prior", &[], &[labels.leaf()], logic, move |_, artifacts, progress| {
        let table = present::<CategoryTable>(artifacts.first())?;
        progress(crate::shape::Progress { done: 0, total: 1, note: "label prior" });
        let names = table.names();
        if names.is_empty() {
            return Err("the label set is empty: no category has enough clicks".into());
        }
        let (scores, _) =
            gather(1, |answered| model.score(&spoken(&names), std::slice::from_ref(&neutral), answered))?;
        let mut prior = scores.into_iter().next().ok_or("the model gave no answer")??;
        let parts = table.labels.values().map(|label| label.parts.clone()).collect();
        let clicks: Vec<u64> = table.labels.values().map(|label| label.clicks).collect();
        if before == Before::Clicks {
            subtract_shares(&mut prior, &clicks, temperature);
        }
        Ok(LabelPrior { labels: names, parts, prior, clicks })
    })
}

/// Moves priors so that labels are drawn in proportion to their clicks where log-probabilities equal the
/// priors; one click more for each, so that none is ruled out.
fn subtract_shares(prior: &mut [f32], clicks: &[u64], temperature: f64) {
    let all = (clicks.iter().sum::<u64>() + clicks.len() as u64) as f64;
    for (prior, clicks) in prior.iter_mut().zip(clicks) {
        // A score is divided by the temperature in the end.
        *prior -= (temperature * ((clicks + 1) as f64 / all).ln()) as f32;
    }
}

/// Labels that are not wholly made of recent interests.
pub(crate) fn allowed(prior: &LabelPrior, recent: &[Value]) -> Vec<bool> {
    let met = |part: &String| recent.iter().any(|r| r.as_text() == Some(part));
    prior.parts.iter().map(|parts| !parts.iter().all(met)).collect()
}

/// Asks the model for the log-probability of every label; a request is one prompt.
pub(crate) struct ScoreLabels(pub Served);

impl ScoreLabels {
    fn prompts(requests: &[Row]) -> Vec<String> {
        requests.iter().map(|row| row[0].as_text().unwrap_or_default().to_string()).collect()
    }
}

impl InferKernel for ScoreLabels {
    fn logic(&self) -> String {
        format!("score_labels/1 {}", self.0.base().digest())
    }

    fn cheap(&self) -> bool {
        false
    }

    fn run(
        &self,
        artifacts: &[Loaded],
        requests: &[Row],
        answered: &mut Answered<'_, Row>,
    ) -> Result<Cost, CallError> {
        let table = present::<CategoryTable>(artifacts.first())?;
        let row = |scores: Vec<f32>| Row::from([Value::floats(&scores)]);
        self.0.model(artifacts)?.score(
            &spoken(&table.names()),
            &Self::prompts(requests),
            &mut |at, scores| answered(at, scores.map(row)),
        )
    }

    fn price(&self, requests: &[Row]) -> Result<Cost, CallError> {
        self.0.base().price(&Self::prompts(requests))
    }
}

/// The label set a column's values come from.
///
/// # Errors
/// If the column has none.
pub(crate) fn label_domain(
    inputs: &Inputs<'_>,
    at: usize,
    schema: &Schema,
    column: &str,
) -> Result<String, Problem> {
    crate::category_map::domain_of(schema, column).ok_or_else(|| {
        Problem::input(at, format!("`{}` does not say which labels `{column}` holds", inputs.inputs[at].name))
            .help("labels come from a category_map")
    })
}

/// Standard Gumbel draw of a label: from (seed, key, label) and nothing else, so that a slightly
/// changed model changes few entries.
fn gumbel(seed: u64, key: &[u8], label: &str) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(label.as_bytes());
    let mut rng = ChaCha8Rng::from_seed(*hasher.finalize().as_bytes());
    // 53 random bits in the open interval (0, 1).
    let uniform = ((rng.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -(-uniform.ln()).ln()
}

/// What sampling adds to each label; those with `allowed == false` are ruled out.
///
/// The best `n` labels under these draws are `n` distinct labels drawn without replacement from
/// `π ∝ exp(s/T)`: the law of sampling until n are distinct (Gumbel-top-n).
pub(crate) fn draws(labels: &[String], allowed: &[bool], seed: u64, key: &Row) -> Vec<f64> {
    let key = encode_row(key);
    let draw = |(label, allowed): (&String, &bool)| match allowed {
        true => gumbel(seed, &key, label),
        false => f64::NEG_INFINITY,
    };
    labels.iter().zip(allowed).map(draw).collect()
}

/// Each label's expected win rate over a draw from the others, each drawn in proportion to its
/// share: `E[σ(s(c) − s(c′))]`. A label without another one wins nothing.
pub(crate) fn win_rates(scores: &[f32], shares: &[f64]) -> Vec<f64> {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let rate = |at: usize| {
        let others =
            || scores.iter().zip(shares).enumerate().filter(|(i, _)| *i != at).map(|(_, other)| other);
        let all: f64 = others().map(|(_, share)| share).sum();
        let wins = others().map(|(s, share)| share * sigmoid(f64::from(scores[at]) - f64::from(*s)));
        if all > 0.0 { wins.sum::<f64>() / all } else { 0.0 }
    };
    (0..scores.len()).map(rate).collect()
}

/// Shares of labels of which each is drawn as often as the others.
pub(crate) fn even(labels: usize) -> Vec<f64> {
    vec![1.0; labels]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choosing::{Choosing, pick};

    fn labels(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("label {i}")).collect()
    }

    /// The places of `n` labels drawn under `scores`.
    fn sample(scores: &[f32], allowed: &[bool], (seed, key): (u64, u64), n: usize) -> Vec<usize> {
        let how = Choosing { prior: vec![0.0; scores.len()], temperature: 1.0, count: n };
        let draws = draws(&labels(scores.len()), allowed, seed, &Row::from([Value::U64(key)]));
        pick(&how, scores, &draws).into_iter().map(|(label, _)| label).collect()
    }

    #[test]
    fn the_first_draw_has_the_law_of_the_softmax() {
        let scores = [0.0f32, 1.0, 2.0, -1.0];
        let mut first = [0f64; 4];
        for user in 0..20_000 {
            first[sample(&scores, &[true; 4], (7, user), 1)[0]] += 1.0 / 20_000.0;
        }
        let total: f64 = scores.iter().map(|s| f64::from(*s).exp()).sum();
        for (share, score) in first.iter().zip(scores) {
            assert!((share - f64::from(score).exp() / total).abs() < 0.012, "{first:?}");
        }
    }

    #[test]
    fn draws_follow_seed_key_and_label_alone() {
        let scores = [0.0f32; 9];
        let draw = |seed, key| sample(&scores, &[true; 9], (seed, key), 5);
        assert_eq!(draw(1, 1), draw(1, 1));
        assert_ne!(draw(1, 1), draw(2, 1));
        assert_ne!(draw(1, 1), draw(1, 2));
        let mut allowed = [true; 9];
        allowed[draw(1, 1)[0]] = false;
        assert_eq!(sample(&scores, &allowed, (1, 1), 4), draw(1, 1)[1..]);
    }

    #[test]
    fn a_prompt_that_says_nothing_leaves_labels_their_clicks() {
        let (logprobs, clicks) = ([-3.0f32, -9.0, -1.0], [5, 2, 0]);
        let mut prior = logprobs;
        subtract_shares(&mut prior, &clicks, 4.0);
        let odds: Vec<f64> = (0..3).map(|at| (f64::from(logprobs[at] - prior[at]) / 4.0).exp()).collect();
        let all: f64 = odds.iter().sum();
        for (odds, share) in odds.iter().zip([0.6, 0.3, 0.1]) {
            assert!((odds / all - share).abs() < 1e-6, "{odds} of {all}");
        }
    }

    #[test]
    fn win_rates_average_to_a_half() {
        let rates = win_rates(&[0.3, -2.0, 5.0, 0.3], &even(4));
        assert!((rates.iter().sum::<f64>() / 4.0 - 0.5).abs() < 1e-12);
        assert!((rates[0] - rates[3]).abs() < 1e-12);
        assert!(rates[2] > rates[0] && rates[0] > rates[1]);
        assert_eq!(win_rates(&[1.0], &even(1)), [0.0]);
        // A label that is never drawn is no rival.
        let rates = win_rates(&[0.0, 3.0, -3.0], &[0.5, 0.0, 0.5]);
        assert!(rates[0] > 0.9 && rates[1] > 0.95, "{rates:?}");
    }
}
