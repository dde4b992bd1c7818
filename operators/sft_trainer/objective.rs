//! The loss of supervised tuning, and what it says of users who were kept out.
//!
//! Decision: the policy that is trained is the one that is served: label prior subtracted, recent
//! interests ruled out, at the sampler's temperature.

use crate::{
    asked::{Asked, Prompted},
    label_policy::LabelPrior,
    lm::{LabelTrie, LmError},
    tuning::{
        loss::{Loss, cross_entropy, log_softmax},
        trainer::{Objective, Told, Trainer},
    },
};

/// Cross-entropy of what was clicked, under the policy that is served.
pub(super) struct Sft<'a> {
    trie: &'a LabelTrie,
    prior: Vec<f64>,
    temperature: f64,
    examples: Vec<(String, f64)>,
    /// Of each example the labels allowed, and the share of each.
    asked: Vec<(Vec<bool>, Vec<f64>)>,
}

impl<'a> Sft<'a> {
    pub(super) fn new(trie: &'a LabelTrie, prior: &LabelPrior, temperature: f64, examples: Prompted) -> Self {
        let prior = prior.prior.iter().map(|prior| f64::from(*prior)).collect();
        let mut sft = Self { trie, prior, temperature, examples: Vec::new(), asked: Vec::new() };
        for (prompt, Asked { allowed, clicked, .. }) in examples {
            let clicks: f64 = clicked.iter().sum();
            sft.examples.push((prompt, clicks));
            sft.asked.push((allowed, clicked.iter().map(|n| n / clicks).collect()));
        }
        sft
    }

    /// `log π` of each label after an example.
    fn log_policy(&self, example: usize, scores: &[f64]) -> Vec<f64> {
        let score = |(l, prior): (&f64, &f64)| (l - prior) / self.temperature;
        let scores: Vec<f64> = scores.iter().zip(&self.prior).map(score).collect();
        log_softmax(&scores, &self.asked[example].0)
    }

    /// Of every example the score of every label, under two adapters.
    pub(super) fn scores(
        &self,
        trainer: &Trainer<'_>,
        values: [&[f32]; 2],
    ) -> Result<[Vec<Vec<f64>>; 2], LmError> {
        let prompts: Vec<&str> = self.examples.iter().map(|(prompt, _)| prompt.as_str()).collect();
        trainer.scores(values, &prompts)
    }

    /// The mean log-probability of what was clicked; nothing where there is nothing.
    pub(super) fn log_likelihood(&self, scores: &[Vec<f64>]) -> Option<f64> {
        self.log_likelihood_after(scores, |at| vec![at])
    }

    /// The same if a model is told of others instead.
    pub(super) fn placebo(&self, scores: &[Vec<f64>], others: &[Vec<usize>]) -> Option<f64> {
        self.log_likelihood_after(scores, |at| others[at].clone())
    }

    /// The mean over examples, and over the places whose scores each is judged by.
    fn log_likelihood_after(&self, scores: &[Vec<f64>], places: impl Fn(usize) -> Vec<usize>) -> Option<f64> {
        let mut told = Told::default();
        for (at, (_, weight)) in self.examples.iter().enumerate() {
            let places = places(at);
            for place in &places {
                told.weigh(weight / places.len() as f64);
                told.tell("log_likelihood", -self.loss(at, &scores[*place], &mut Told::default()).value);
            }
        }
        told.mean("log_likelihood")
    }
}

impl Objective for Sft<'_> {
    fn labels(&self) -> &LabelTrie {
        self.trie
    }

    fn examples(&self) -> &[(String, f64)] {
        &self.examples
    }

    fn named(&self, example: usize) -> Vec<f64> {
        self.asked[example].1.clone()
    }

    fn loss(&self, example: usize, scores: &[f64], told: &mut Told) -> Loss {
        let (policy, target) = (self.log_policy(example, scores), &self.asked[example].1);
        let best = (0..policy.len()).max_by(|a, b| policy[*a].total_cmp(&policy[*b]).then(b.cmp(a)));
        told.tell("accuracy", best.map_or(0.0, |best| target[best]));
        let mut loss = cross_entropy(&policy, target);
        // A score that is ruled out moves nothing.
        for (slope, allowed) in loss.gradient.iter_mut().zip(&self.asked[example].0) {
            *slope = if *allowed { *slope / self.temperature } else { 0.0 };
        }
        loss
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::slopes_are_those_of_differences;

    #[test]
    fn a_placebo_is_judged_by_what_was_said_to_others() {
        let trie = LabelTrie::from_paths(vec![vec![1], vec![2]], 9).unwrap();
        let names = ["a", "b"].map(str::to_string).to_vec();
        let prior =
            LabelPrior { parts: vec![vec![]; 2], labels: names, prior: vec![0.0; 2], clicks: vec![1; 2] };
        let asked = |clicked: [f64; 2]| Asked {
            group: String::new(),
            recent: vec![],
            allowed: vec![true; 2],
            clicked: clicked.to_vec(),
            passed_over: vec![],
            by: vec![],
        };
        let examples =
            [("p", [3.0, 0.0]), ("q", [0.0, 1.0])].map(|(p, clicked)| (p.to_string(), asked(clicked)));
        let sft = Sft::new(&trie, &prior, 1.0, Prompted::from(examples));
        let scores = [0.9f64, 0.2].map(|first| vec![first.ln(), (1.0 - first).ln()]);
        let own = (3.0 * 0.9f64.ln() + 0.8f64.ln()) / 4.0;
        assert!((sft.log_likelihood(&scores).unwrap() - own).abs() < 1e-12);
        let other = (3.0 * 0.2f64.ln() + 0.1f64.ln()) / 4.0;
        assert!((sft.placebo(&scores, &[vec![1], vec![0]]).unwrap() - other).abs() < 1e-12);
        let both = sft.placebo(&scores, &[vec![0, 1], vec![0, 1]]).unwrap();
        assert!((both - (own + other) / 2.0).abs() < 1e-12);
    }

    #[test]
    fn the_loss_falls_as_its_gradient_says_and_ignores_what_is_ruled_out() {
        let trie = LabelTrie::from_paths(vec![vec![1], vec![2], vec![3], vec![4]], 9).unwrap();
        let names = ["a", "b", "c", "d"].map(str::to_string).to_vec();
        let prior = LabelPrior {
            parts: vec![vec![]; 4],
            labels: names,
            prior: vec![-1.0, -2.0, -0.5, -3.0],
            clicks: vec![1; 4],
        };
        let asked = Asked {
            group: String::new(),
            recent: vec![],
            allowed: vec![true, true, false, true],
            clicked: vec![3.0, 1.0, 0.0, 0.0],
            passed_over: vec![],
            by: vec![],
        };
        let sft = Sft::new(&trie, &prior, 2.0, Prompted::from([("p".to_string(), asked)]));
        let scores = [-1.5, -0.3, 4.0, -2.0];
        slopes_are_those_of_differences(&sft, 0, &scores);
        let loss = sft.loss(0, &scores, &mut Told::default());
        assert_eq!(loss.gradient[2], 0.0);
        // s = −0.5, 1.7, –, 1: the policy is the softmax of half of them, the prior subtracted.
        let sum = (-0.25f64).exp() + 0.85f64.exp() + 0.5f64.exp();
        let expected = -(0.75 * (-0.25 - sum.ln()) + 0.25 * (0.85 - sum.ln()));
        assert!((loss.value - expected).abs() < 1e-6, "{} {expected}", loss.value);
    }
}
