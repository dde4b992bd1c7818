//! The losses of preference, and what they say of a policy.
//!
//! Decision: the policy is `π ∝ exp((ℓ − ℓ₀)/T)` over the whole label set, before anything is ruled out:
//! that is what is drawn from, and what its divergence is taken of.

use super::{DpoUpdater, Method};
use crate::{
    lm::LabelTrie,
    preference_pairs::{Pairs, Preference},
    tuning::{
        loss::{
            Loss, Pair, PairLoss, Smoothing, cross_entropy, divergence, dpo, ipo, kto, log_softmax, optimum,
            simpo,
        },
        trainer::{Figures, Objective, Told},
    },
};

/// Figures of a version, by which it is judged: `kl` from the version before, `anchor_kl` from the one that
/// cycles began with, mean `entropy`, the share of keys with the most frequent best label (`top_share`),
/// expected `relevance` of a proposal and its `gain` over the version before, the share of pairs that are
/// the right way round (`accuracy`), the divergence from the `optimum`; and what the relevance model has no
/// part in, the mean log-probability of new clicks (`clicked`) and its gain over the version before (`clicked_gain`).
pub(super) const FIGURES: [&str; 10] = [
    "kl",
    "anchor_kl",
    "entropy",
    "top_share",
    "relevance",
    "gain",
    "accuracy",
    "optimum",
    "clicked",
    "clicked_gain",
];

/// γ of simpo where none is given (Meng et al. 2024).
const GAMMA: f64 = 0.5;

/// The loss over some pairs.
pub(super) struct Preferred<'a> {
    how: &'a DpoUpdater,
    trie: &'a LabelTrie,
    prior: Vec<f64>,
    temperature: f64,
    examples: Vec<(String, f64)>,
    pairs: Vec<Target>,
}

/// What is wanted after a prompt.
struct Target {
    chosen: usize,
    rejected: usize,
    relevance: Vec<f64>,
    /// New clicks of each label; empty if there are none.
    clicked: Vec<f64>,
    /// log π of the reference.
    reference: Vec<f64>,
    /// log π of the version that cycles began with; empty if it does not matter.
    anchor: Vec<f64>,
    /// log π*.
    optimum: Vec<f64>,
}

impl<'a> Preferred<'a> {
    /// `anchor` are the scores of the version that cycles began with; none if it does not matter.
    pub(super) fn new(
        how: &'a DpoUpdater,
        trie: &'a LabelTrie,
        of: &Pairs,
        pairs: &[&Preference],
        anchor: Vec<Vec<f64>>,
    ) -> Self {
        let prior = of.prior.iter().map(|prior| f64::from(*prior)).collect();
        // What is always the best label is no policy; its scores are still those of one.
        let temperature = if of.temperature > 0.0 { of.temperature } else { 1.0 };
        let examples = pairs.iter().map(|pair| (pair.prompt.clone(), pair.weight)).collect();
        let mut preferred = Self { how, trie, prior, temperature, examples, pairs: Vec::new() };
        let anchors = anchor.iter().map(Vec::as_slice).chain(std::iter::repeat(&[][..]));
        preferred.pairs =
            pairs.iter().zip(anchors).map(|(pair, anchor)| preferred.target(pair, anchor)).collect();
        preferred
    }

    fn target(&self, pair: &Preference, anchor: &[f64]) -> Target {
        let wide = |of: &[f32]| of.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
        let relevance = wide(&pair.relevance);
        let reference = self.log_policy(&wide(&pair.reference));
        let optimum = optimum(&reference, &relevance, self.how.beta);
        let anchor = if anchor.is_empty() { Vec::new() } else { self.log_policy(anchor) };
        let (chosen, rejected, clicked) = (pair.chosen, pair.rejected, pair.clicked.clone());
        Target { chosen, rejected, relevance, clicked, reference, anchor, optimum }
    }

    /// `log π` of each label.
    fn log_policy(&self, scores: &[f64]) -> Vec<f64> {
        let score = |(l, prior): (&f64, &f64)| (l - prior) / self.temperature;
        let scores: Vec<f64> = scores.iter().zip(&self.prior).map(score).collect();
        log_softmax(&scores, &vec![true; scores.len()])
    }

    /// The loss of preference alone, with the gradient by the scores that `policy` is a softmax of.
    fn preference(&self, target: &Target, policy: &[f64], moved: f64) -> Loss {
        let how = self.how;
        let pair = target.pair(policy);
        let of_pair = |PairLoss { value, chosen, rejected }: PairLoss| Loss {
            value,
            gradient: (0..policy.len())
                .map(|at| {
                    let own = |label| f64::from(u8::from(at == label)) - policy[at].exp();
                    chosen * own(target.chosen) + rejected * own(target.rejected)
                })
                .collect(),
        };
        match how.loss {
            Method::Dpo => {
                let smoothing = Smoothing::Conservative(how.label_smoothing.unwrap_or_default());
                of_pair(dpo(&pair, how.beta, smoothing))
            }
            Method::Ipo => of_pair(ipo(&pair, how.beta)),
            // The divergence is that of this prompt, exactly, where others estimate it from a batch.
            Method::Kto => of_pair(kto(&pair, how.beta, moved)),
            Method::Simpo => of_pair(simpo(&pair, how.beta, how.gamma.unwrap_or(GAMMA))),
            Method::Exact => {
                let wanted: Vec<f64> = target.optimum.iter().map(|log| log.exp()).collect();
                cross_entropy(policy, &wanted)
            }
        }
    }
}

impl Target {
    fn pair(&self, policy: &[f64]) -> Pair {
        Pair {
            chosen: policy[self.chosen],
            rejected: policy[self.rejected],
            chosen_reference: self.reference[self.chosen],
            rejected_reference: self.reference[self.rejected],
            lengths: (1.0, 1.0),
        }
    }

    fn relevance(&self, policy: &[f64]) -> f64 {
        policy.iter().zip(&self.relevance).map(|(log, relevance)| log.exp() * relevance).sum()
    }
}

/// `−Σ π ln π`.
fn entropy(policy: &[f64]) -> f64 {
    -policy.iter().map(|log| log.exp() * log).sum::<f64>()
}

/// The most probable label; of equal ones the first.
fn best(policy: &[f64]) -> Option<usize> {
    (0..policy.len()).max_by(|a, b| policy[*a].total_cmp(&policy[*b]).then(b.cmp(a)))
}

impl Objective for Preferred<'_> {
    fn labels(&self) -> &LabelTrie {
        self.trie
    }

    fn examples(&self) -> &[(String, f64)] {
        &self.examples
    }

    fn named(&self, example: usize) -> Vec<f64> {
        let Target { chosen, rejected, relevance, reference, anchor, .. } = &self.pairs[example];
        [&[*chosen as f64, *rejected as f64], relevance.as_slice(), reference, anchor].concat()
    }

    fn loss(&self, example: usize, scores: &[f64], told: &mut Told) -> Loss {
        let (how, target, policy) = (self.how, &self.pairs[example], self.log_policy(scores));
        let moved = divergence(&policy, &target.reference);
        let mut loss = self.preference(target, &policy, moved.value);
        let mut add = |weight: f64, part: &Loss| {
            loss.value += weight * part.value;
            loss.gradient.iter_mut().zip(&part.gradient).for_each(|(sum, slope)| *sum += weight * slope);
        };
        add(how.kl(), &moved);
        if !target.anchor.is_empty() {
            let far = divergence(&policy, &target.anchor);
            add(how.anchor_kl, &far);
            told.tell("step_anchor_kl", far.value);
        }
        if how.sft > 0.0 {
            let chosen: Vec<f64> =
                (0..policy.len()).map(|at| f64::from(u8::from(at == target.chosen))).collect();
            add(how.sft, &cross_entropy(&policy, &chosen));
        }
        loss.gradient.iter_mut().for_each(|slope| *slope /= self.temperature);
        let pair = target.pair(&policy);
        for (name, value) in [
            ("reward_chosen", how.beta * (pair.chosen - pair.chosen_reference)),
            ("reward_rejected", how.beta * (pair.rejected - pair.rejected_reference)),
            ("reward_margin", how.beta * pair.margin()),
            ("reward_accuracy", f64::from(u8::from(pair.margin() > 0.0))),
            ("log_chosen", pair.chosen),
            ("step_kl", moved.value),
            ("step_entropy", entropy(&policy)),
            ("step_optimum", divergence(&policy, &target.optimum).value),
        ] {
            told.tell(name, value);
        }
        loss
    }
}

/// What a version does with prompts, before training and after.
pub(super) struct Judged<'a> {
    pub(super) by: &'a Preferred<'a>,
    pub(super) before: &'a [Vec<f64>],
    pub(super) after: &'a [Vec<f64>],
}

impl Judged<'_> {
    /// [`FIGURES`] with their values.
    pub(super) fn figures(&self) -> Figures {
        let mut told = Told::default();
        let mut clicks = Told::default();
        let mut top = vec![0.0; self.by.prior.len()];
        let mut all = 0.0;
        for (at, target) in self.by.pairs.iter().enumerate() {
            let weight = self.by.examples[at].1;
            told.weigh(weight);
            let [before, after] = [self.before, self.after].map(|scores| self.by.log_policy(&scores[at]));
            let (relevance, gained) = (target.relevance(&after), target.relevance(&before));
            for (name, value) in [
                ("kl", divergence(&after, &before).value),
                ("anchor_kl", divergence(&after, &target.anchor).value),
                ("entropy", entropy(&after)),
                ("relevance", relevance),
                ("gain", relevance - gained),
                ("accuracy", f64::from(u8::from(target.pair(&after).margin() > 0.0))),
                ("optimum", divergence(&after, &target.optimum).value),
            ] {
                told.tell(name, value);
            }
            for (label, count) in target.clicked.iter().enumerate().filter(|(_, count)| **count > 0.0) {
                clicks.weigh(*count);
                clicks.tell("clicked", after[label]);
                clicks.tell("clicked_gain", after[label] - before[label]);
            }
            if let Some(best) = best(&after) {
                top[best] += weight;
                all += weight;
            }
        }
        let most = top.iter().copied().fold(0.0, f64::max);
        let mean = |name: &&str| told.mean(name).or_else(|| clicks.mean(name));
        let mut figures: Figures =
            FIGURES.iter().filter_map(|name| Some((name.to_string(), mean(name)?))).collect();
        figures.insert("top_share".to_string(), most / all);
        figures
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{row::Row, testing::slopes_are_those_of_differences};

    fn updater(with: &str) -> DpoUpdater {
        serde_json::from_str(with).unwrap()
    }

    fn pairs() -> Pairs {
        let pair = Preference {
            key: Row::empty(),
            prompt: "p".to_string(),
            reference: vec![-1.0, -2.0, -0.5, -3.0],
            relevance: vec![0.7, 0.2, 0.5, 0.6],
            clicked: vec![0.0, 3.0, 0.0, 1.0],
            chosen: 0,
            rejected: 1,
            weight: 2.0,
        };
        let labels = ["a", "b", "c", "d"].map(str::to_string).to_vec();
        Pairs { labels, prior: vec![-1.0, -2.0, -0.5, -3.0], temperature: 2.0, met: None, pairs: vec![pair] }
    }

    const SCORES: [f64; 4] = [-1.5, -0.3, -2.0, -1.1];

    fn with<T>(how: &DpoUpdater, pairs: &Pairs, look: impl FnOnce(&Preferred<'_>) -> T) -> T {
        let trie = LabelTrie::from_paths(vec![vec![1], vec![2], vec![3], vec![4]], 9).unwrap();
        let all: Vec<&Preference> = pairs.pairs.iter().collect();
        look(&Preferred::new(how, &trie, pairs, &all, vec![vec![-1.0, -1.0, -2.0, -3.0]]))
    }

    #[test]
    fn every_loss_falls_as_its_gradient_says() {
        for how in [
            r#"{ "kl": 0 }"#,
            r#"{ "beta": 2, "kl": 0.7, "anchor_kl": 0.3, "sft": 0.2 }"#,
            r#"{ "label_smoothing": 0.2, "kl": 0 }"#,
            r#"{ "loss": "ipo", "beta": 0.5 }"#,
            r#"{ "loss": "simpo", "beta": 2, "gamma": 1 }"#,
            r#"{ "loss": "exact", "beta": 0.3 }"#,
        ] {
            with(&updater(how), &pairs(), |objective| {
                slopes_are_those_of_differences(objective, 0, &SCORES);
            });
        }
    }

    #[test]
    fn the_policy_is_that_of_the_sampler_and_the_reference_that_which_proposed() {
        with(&updater(r#"{ "kl": 1, "beta": 1 }"#), &pairs(), |objective| {
            // The reference's scores equal the prior, so its policy is even.
            let even = -(4f64.ln());
            assert!(objective.pairs[0].reference.iter().all(|log| (log - even).abs() < 1e-12));
            let own = [-1.0, -2.0, -0.5, -3.0];
            let mut told = Told::default();
            told.weigh(1.0);
            let loss = objective.loss(0, &own, &mut told);
            assert!((loss.value - std::f64::consts::LN_2).abs() < 1e-12, "at the reference");
            assert_eq!(told.mean("step_kl"), Some(0.0));
            // s = −0.5, 1.7, −1.5, 1.9, halved by the temperature.
            let z: f64 = [-0.25f64, 0.85, -0.75, 0.95].iter().map(|s| s.exp()).sum();
            let policy = objective.log_policy(&SCORES);
            assert!((policy[1] - (0.85 - z.ln())).abs() < 1e-6, "{policy:?}");
        });
    }

    #[test]
    fn a_version_is_judged_by_what_it_would_propose() {
        let mut pairs = pairs();
        pairs.pairs.push(Preference { weight: 1.0, ..pairs.pairs[0].clone() });
        with(&updater(r#"{ "beta": 0.5 }"#), &pairs, |objective| {
            let (before, sure) = (vec![-1.0, -2.0, -0.5, -3.0], vec![99.0, -2.0, -0.5, -3.0]);
            let other = vec![-1.0, 99.0, -0.5, -3.0];
            let figures = |after: [&Vec<f64>; 2]| {
                let after = after.map(Clone::clone);
                Judged { by: objective, before: &[before.clone(), before.clone()], after: &after }.figures()
            };
            let same = figures([&before, &before]);
            assert!(
                (same["relevance"] - 0.5).abs() < 1e-6 && same["gain"] == 0.0 && same["kl"].abs() < 1e-12
            );
            assert!((same["entropy"] - 4f64.ln()).abs() < 1e-9);
            let moved = figures([&sure, &other]);
            // The first counts twice: two thirds choose the better label.
            assert!((moved["relevance"] - (2.0 * 0.7 + 0.2) / 3.0).abs() < 1e-6, "{moved:?}");
            assert!(
                (moved["top_share"] - 2.0 / 3.0).abs() < 1e-9 && (moved["accuracy"] - 2.0 / 3.0).abs() < 1e-9
            );
            assert!(same["clicked_gain"] == 0.0 && (same["clicked"] + 4f64.ln()).abs() < 1e-6);
            // Three clicks on b and one on d, after either: at −50 all four, and at 0 and −50.5.
            let clicked = (4.0 * -50.0 - 50.5) / 8.0;
            assert!((moved["clicked"] - clicked).abs() < 1e-6, "{moved:?}");
            assert!((moved["clicked_gain"] - clicked - 4f64.ln()).abs() < 1e-6, "{moved:?}");
            assert!((moved["kl"] - 4f64.ln()).abs() < 1e-6 && moved["entropy"].abs() < 1e-6);
            assert!(moved["optimum"] > same["optimum"]);
        });
    }
}
