//! The loss of supervised tuning, and what it says of users who were kept out.
//!
//! Decision: the policy that is trained is the one that is served: label prior subtracted, recent
//! interests ruled out, temperature 1.

use super::examples::{Asked, Prompted};
use crate::{
    label_policy::LabelPrior,
    lm::{LabelTrie, LmError},
    tuning::{
        loss::{Loss, cross_entropy, log_softmax},
        trainer::{Objective, Told, Trainer},
    },
};

/// Cross-entropy of what was clicked, under the policy that is served at temperature 1.
pub(super) struct Sft<'a> {
    trie: &'a LabelTrie,
    prior: Vec<f64>,
    examples: Vec<(String, f64)>,
    /// Of each example the labels allowed, and the share of each.
    asked: Vec<(Vec<bool>, Vec<f64>)>,
}

impl<'a> Sft<'a> {
    pub(super) fn new(trie: &'a LabelTrie, prior: &LabelPrior, examples: Prompted) -> Self {
        let prior = prior.prior.iter().map(|prior| f64::from(*prior)).collect();
        let mut sft = Self { trie, prior, examples: Vec::new(), asked: Vec::new() };
        for (prompt, Asked { allowed, clicked, .. }) in examples {
            let clicks: f64 = clicked.iter().sum();
            sft.examples.push((prompt, clicks));
            sft.asked.push((allowed, clicked.iter().map(|n| n / clicks).collect()));
        }
        sft
    }

    /// `log π` of each label after an example.
    fn log_policy(&self, example: usize, scores: &[f64]) -> Vec<f64> {
        let scores: Vec<f64> = scores.iter().zip(&self.prior).map(|(l, prior)| l - prior).collect();
        log_softmax(&scores, &self.asked[example].0)
    }

    /// The mean log-probability of what was clicked; nothing where there is nothing.
    pub(super) fn log_likelihood(
        &self,
        trainer: &Trainer<'_>,
        values: &[f32],
    ) -> Result<Option<f64>, LmError> {
        let prompts: Vec<&str> = self.examples.iter().map(|(prompt, _)| prompt.as_str()).collect();
        let scores = trainer.scores(values, &prompts)?;
        let mut told = Told::default();
        for (at, scores) in scores.iter().enumerate() {
            told.weigh(self.examples[at].1);
            told.tell("log_likelihood", -self.loss(at, scores, &mut Told::default()).value);
        }
        Ok(told.mean("log_likelihood"))
    }

    /// What names the examples.
    pub(super) fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for ((prompt, clicks), (_, target)) in self.examples.iter().zip(&self.asked) {
            hasher.update(prompt.as_bytes());
            hasher.update(&clicks.to_le_bytes());
            target.iter().for_each(|share| {
                hasher.update(&share.to_le_bytes());
            });
        }
        hasher.finalize().to_hex().to_string()
    }
}

impl Objective for Sft<'_> {
    fn labels(&self) -> &LabelTrie {
        self.trie
    }

    fn examples(&self) -> &[(String, f64)] {
        &self.examples
    }

    fn loss(&self, example: usize, scores: &[f64], told: &mut Told) -> Loss {
        let (policy, target) = (self.log_policy(example, scores), &self.asked[example].1);
        let best = (0..policy.len()).max_by(|a, b| policy[*a].total_cmp(&policy[*b]).then(b.cmp(a)));
        told.tell("accuracy", best.map_or(0.0, |best| target[best]));
        let mut loss = cross_entropy(&policy, target);
        // A score that is ruled out moves nothing.
        loss.gradient
            .iter_mut()
            .zip(&self.asked[example].0)
            .filter(|(_, allowed)| !**allowed)
            .for_each(|(slope, _)| *slope = 0.0);
        loss
    }
}
