//! The pointwise loss: a rate against what the model says of it, and what it is worth elsewhere.
//!
//! Decision: a figure of sets that were kept out is always beside that of counting, which knows of each
//! candidate what it gets on average. A model that does not beat it has learnt nothing of interests.

use std::cmp::Ordering;

use crate::{
    asked::{Asked, Prompted},
    label_policy::LabelPrior,
    lm::{LabelTrie, LmError},
    tuning::{
        loss::{Loss, reward_point, sigmoid},
        trainer::{Figures, Objective, Told, Trainer},
        version::known,
    },
};

/// Cross-entropy of rates against `σ(r)`, `r = (ℓ − ℓ₀)/T`, over the labels that were shown.
pub(super) struct Pointwise<'a> {
    trie: &'a LabelTrie,
    prior: Vec<f64>,
    temperature: f64,
    examples: Vec<(String, f64)>,
    shown: Vec<Vec<Shown>>,
    /// Of each example every label's target, and its share of the example: what names the data.
    targets: Vec<Vec<f64>>,
}

/// A label that was shown: its rate, its share of what the example counts, and whether it may be served.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Shown {
    label: usize,
    rate: f64,
    share: f64,
    served: bool,
}

/// The labels that were shown, and what they count together.
fn shown(asked: &Asked) -> (Vec<Shown>, f64) {
    let weight = |label: usize| asked.clicked[label] + asked.passed_over[label];
    let all: f64 = (0..asked.clicked.len()).map(weight).sum();
    let of = |label: usize| Shown {
        label,
        rate: asked.clicked[label] / weight(label),
        share: weight(label) / all,
        served: asked.allowed[label],
    };
    ((0..asked.clicked.len()).filter(|label| weight(*label) > 0.0).map(of).collect(), all)
}

impl<'a> Pointwise<'a> {
    pub(super) fn new(
        trie: &'a LabelTrie,
        prior: &LabelPrior,
        temperature: f64,
        examples: &Prompted,
    ) -> Self {
        let prior = prior.prior.iter().map(|prior| f64::from(*prior)).collect();
        let mut made = Self { trie, prior, temperature, examples: vec![], shown: vec![], targets: vec![] };
        for (prompt, asked) in examples {
            let (shown, weight) = shown(asked);
            made.examples.push((prompt.clone(), weight));
            made.targets.push(asked.clicked.iter().chain(&asked.passed_over).copied().collect());
            made.shown.push(shown);
        }
        made
    }

    /// `r` of each label that was shown.
    fn rewards(&self, example: usize, scores: &[f64]) -> Vec<f64> {
        let reward = |label: usize| (scores[label] - self.prior[label]) / self.temperature;
        self.shown[example].iter().map(|Shown { label, .. }| reward(*label)).collect()
    }

    /// What the model makes of the examples, under two adapters: the reward of each label that was shown.
    pub(super) fn judged(
        &self,
        trainer: &Trainer<'_>,
        values: [&[f32]; 2],
    ) -> Result<[Vec<Vec<f64>>; 2], LmError> {
        let prompts: Vec<&str> = self.examples.iter().map(|(prompt, _)| prompt.as_str()).collect();
        let rewards = |scores: Vec<Vec<f64>>| {
            scores.iter().enumerate().map(|(at, scores)| self.rewards(at, scores)).collect()
        };
        Ok(trainer.scores(values, &prompts)?.map(rewards))
    }

    /// What counting makes of them: the log odds of each label's mean rate in the examples `train`.
    pub(super) fn counted(&self, train: &Self) -> Vec<Vec<f64>> {
        // A rate of 0 has no finite log odds, and one exposure more would have given it one.
        let mut sums = vec![(0.5, 1.0); self.prior.len()];
        for ((_, weight), shown) in train.examples.iter().zip(&train.shown) {
            for Shown { label, rate, share, .. } in shown {
                sums[*label].0 += weight * share * rate;
                sums[*label].1 += weight * share;
            }
        }
        let odds = |shown: &Shown| {
            let (clicks, exposures) = sums[shown.label];
            (clicks / (exposures - clicks)).ln()
        };
        self.shown.iter().map(|shown| shown.iter().map(odds).collect()).collect()
    }

    /// The figures of values for each example's labels: `""`, the mean log-likelihood of rates;
    /// `_calibration`, how far what is said lies from what came of it; `_f1` and `_ndcg` of the best `serve`.
    pub(super) fn figures(&self, name: &str, serve: usize, rewards: &[Vec<f64>]) -> Figures {
        let mut told = Told::default();
        let mut bins = Bins::default();
        for (at, rewards) in rewards.iter().enumerate() {
            let (weight, shown) = (self.examples[at].1, &self.shown[at]);
            told.weigh(weight);
            told.tell("likelihood", -loss(shown, rewards));
            for (shown, reward) in shown.iter().zip(rewards) {
                bins.add(weight * shown.share, sigmoid(*reward), shown.rate);
            }
            // Each set of interests is ranked once, however often it was seen.
            told.weigh(1.0);
            if let Some((f1, ndcg)) = ranked(shown, rewards, serve) {
                told.tell("f1", f1);
                told.tell("ndcg", ndcg);
            }
        }
        let mean = |what| told.mean(what);
        let names = FIGURES.map(|what| format!("held_out{what}{name}"));
        let values = [mean("likelihood"), mean("f1"), mean("ndcg"), bins.error()];
        known(&[0, 1, 2, 3].map(|at| (names[at].as_str(), values[at])))
    }

    /// The mean log-likelihood of who knows all rates: they are not certain themselves.
    pub(super) fn most(&self) -> Option<f64> {
        let exact = |shown: &Shown| {
            let part = |p: f64| if p > 0.0 { p * p.ln() } else { 0.0 };
            shown.share * (part(shown.rate) + part(1.0 - shown.rate))
        };
        let mut told = Told::default();
        for ((_, weight), shown) in self.examples.iter().zip(&self.shown) {
            told.weigh(*weight);
            told.tell("most", shown.iter().map(exact).sum());
        }
        told.mean("most")
    }
}

fn loss(shown: &[Shown], rewards: &[f64]) -> f64 {
    shown.iter().zip(rewards).map(|(shown, reward)| shown.share * reward_point(*reward, shown.rate).0).sum()
}

/// F1 and NDCG of the `serve` labels with the highest values among those that may be served; nothing where
/// there are no more than that.
///
/// The best are those with the highest rates; of several that tie for the last place any is right, so
/// precision and recall are the same number. A label gains its rate.
fn ranked(shown: &[Shown], values: &[f64], serve: usize) -> Option<(f64, f64)> {
    let mut rows: Vec<(f64, f64)> = shown
        .iter()
        .zip(values)
        .filter(|(shown, _)| shown.served)
        .map(|(s, value)| (*value, s.rate))
        .collect();
    if rows.len() <= serve {
        return None;
    }
    let by = |a: f64, b: f64| -> Ordering { b.total_cmp(&a) };
    let gain = |rates: &[(f64, f64)]| -> f64 {
        (2..).zip(&rates[..serve]).map(|(place, (_, rate))| rate / f64::from(place).log2()).sum()
    };
    rows.sort_by(|a, b| by(a.1, b.1));
    let (least, most) = (rows[serve - 1].1, gain(&rows));
    rows.sort_by(|a, b| by(a.0, b.0));
    let right = rows[..serve].iter().filter(|(_, rate)| *rate >= least).count();
    let ndcg = if most > 0.0 { gain(&rows) / most } else { 1.0 };
    Some((right as f64 / serve as f64, ndcg))
}

/// What was said and what came of it, by tenths of what was said.
#[derive(Default)]
struct Bins([(f64, f64, f64); 10]);

impl Bins {
    fn add(&mut self, weight: f64, said: f64, rate: f64) {
        let (all, saying, rates) = &mut self.0[((said * 10.0) as usize).min(9)];
        *all += weight;
        *saying += weight * said;
        *rates += weight * rate;
    }

    /// The mean distance of the two (the expected calibration error); nothing of nothing.
    fn error(&self) -> Option<f64> {
        let all: f64 = self.0.iter().map(|(weight, ..)| weight).sum();
        let apart: f64 = self.0.iter().map(|(_, said, rate)| (said - rate).abs()).sum();
        (all > 0.0).then(|| apart / all)
    }
}

/// What is told of any rates, in the order that they are told in.
const FIGURES: [&str; 4] = ["", "_f1", "_ndcg", "_calibration"];

/// The figures that a gate may bound.
pub(super) fn gated() -> Vec<String> {
    FIGURES.iter().map(|what| format!("held_out{what}")).collect()
}

impl Objective for Pointwise<'_> {
    fn labels(&self) -> &LabelTrie {
        self.trie
    }

    fn examples(&self) -> &[(String, f64)] {
        &self.examples
    }

    fn named(&self, example: usize) -> Vec<f64> {
        self.targets[example].clone()
    }

    fn loss(&self, example: usize, scores: &[f64], told: &mut Told) -> Loss {
        let (rewards, shown) = (self.rewards(example, scores), &self.shown[example]);
        let mut gradient = vec![0.0; scores.len()];
        let mut apart = 0.0;
        for (Shown { label, rate, share, .. }, reward) in shown.iter().zip(&rewards) {
            let (_, slope) = reward_point(*reward, *rate);
            gradient[*label] = share * slope / self.temperature;
            apart += share * slope.abs();
        }
        told.tell("apart", apart);
        Loss { value: loss(shown, &rewards), gradient }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::slopes_are_those_of_differences;

    fn prior() -> LabelPrior {
        LabelPrior {
            parts: vec![vec![]; 4],
            labels: ["a", "b", "c", "d"].map(str::to_string).to_vec(),
            prior: vec![-1.0, -2.0, -0.5, -3.0],
            clicks: vec![1; 4],
        }
    }

    fn trie() -> LabelTrie {
        LabelTrie::from_paths(vec![vec![1], vec![2], vec![3], vec![4]], 9).unwrap()
    }

    /// Clicks and passes by label.
    fn prompted(of: &[(&str, [f64; 4], [f64; 4])]) -> Prompted {
        let asked = |clicked: [f64; 4], passed: [f64; 4]| Asked {
            group: String::new(),
            recent: vec![],
            allowed: vec![true, true, true, false],
            clicked: clicked.to_vec(),
            passed_over: passed.to_vec(),
            by: vec![],
        };
        of.iter().map(|(prompt, clicked, passed)| (prompt.to_string(), asked(*clicked, *passed))).collect()
    }

    #[test]
    fn the_loss_falls_as_its_gradient_says_and_ignores_what_was_not_shown() {
        let (trie, prior) = (trie(), prior());
        let rates = prompted(&[("p", [3.0, 0.0, 1.0, 0.0], [1.0, 4.0, 3.0, 0.0])]);
        slopes_are_those_of_differences(
            &Pointwise::new(&trie, &prior, 3.0, &rates),
            0,
            &[-1.5, -0.3, -2.0, 4.0],
        );
        let rates = Pointwise::new(&trie, &prior, 1.0, &rates);
        assert_eq!(rates.examples(), [("p".to_string(), 12.0)]);
        let scores = [-1.5, -0.3, -2.0, 4.0];
        slopes_are_those_of_differences(&rates, 0, &scores);
        let loss = rates.loss(0, &scores, &mut Told::default());
        assert_eq!(loss.gradient[3], 0.0);
        // Rewards −0.5, 1.7 and −1.5 against rates of 3/4, 0 and 1/4, a third of the example each.
        let expected = [(-0.5, 0.75), (1.7, 0.0), (-1.5, 0.25)].map(|(r, t)| reward_point(r, t).0);
        assert!((loss.value - expected.iter().sum::<f64>() / 3.0).abs() < 1e-12, "{}", loss.value);
        // Where it says the rates themselves nothing pulls, and no loss is smaller.
        let exact = [3f64.ln() - 1.0, -40.0, -(3f64.ln()) - 0.5, 0.0];
        let loss = rates.loss(0, &exact, &mut Told::default());
        assert!(loss.gradient.iter().all(|slope| slope.abs() < 1e-12), "{:?}", loss.gradient);
        assert!((loss.value + rates.most().unwrap()).abs() < 1e-9);
    }

    #[test]
    fn counting_knows_of_each_label_what_it_gets_on_average() {
        let (trie, prior) = (trie(), prior());
        let train = prompted(&[
            ("p", [8.5, 0.0, 0.0, 0.0], [10.0, 0.0, 9.0, 0.0]),
            ("q", [0.0, 0.0, 0.0, 0.0], [0.5, 0.0, 10.0, 0.0]),
        ]);
        let held = prompted(&[("r", [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 2.0, 0.0])]);
        let [train, held] = [train, held].map(|of| Pointwise::new(&trie, &prior, 1.0, &of));
        let said = &held.counted(&train)[0];
        let rate = |odds: f64| sigmoid(odds);
        assert!((rate(said[0]) - 9.0 / 20.0).abs() < 1e-12, "8.5 of 19, and half a click of one more");
        assert!((rate(said[1]) - 0.5).abs() < 1e-12, "it was never shown");
        assert!((rate(said[2]) - 0.5 / 20.0).abs() < 1e-12);
    }

    #[test]
    fn figures_say_how_sure_and_how_right_it_is() {
        let (trie, prior) = (trie(), prior());
        let held = prompted(&[
            ("p", [9.0, 5.0, 1.0, 10.0], [1.0, 5.0, 9.0, 0.0]),
            ("q", [1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]),
        ]);
        let held = Pointwise::new(&trie, &prior, 1.0, &held);
        let odds = |rate: f64| (rate / (1.0 - rate)).ln();
        let exact = vec![vec![odds(0.9), 0.0, odds(0.1), 60.0], vec![0.0]];
        let figures = held.figures("_x", 1, &exact);
        assert!((figures["held_out_x"] - held.most().unwrap()).abs() < 1e-9);
        assert!(figures["held_out_calibration_x"] < 1e-9);
        // The fourth is clicked always, and never served: the best is the first.
        assert_eq!([figures["held_out_f1_x"], figures["held_out_ndcg_x"]], [1.0, 1.0]);
        let upside_down = vec![vec![odds(0.1), 0.0, odds(0.9), 60.0], vec![0.0]];
        let figures = held.figures("", 1, &upside_down);
        assert!(figures["held_out"] < held.most().unwrap() - 0.3);
        assert!((figures["held_out_calibration"] - 2.0 * 8.0 / 42.0).abs() < 1e-9, "two of 10 are 0.8 off");
        assert_eq!(figures["held_out_f1"], 0.0);
        assert!((figures["held_out_ndcg"] - 1.0 / 9.0).abs() < 1e-12);
        assert!(!held.figures("", 3, &exact).contains_key("held_out_f1"), "all three are served anyway");
    }

    #[test]
    fn several_that_tie_for_the_last_place_are_all_right() {
        let row = |rate| Shown { label: 0, rate, share: 0.25, served: true };
        let shown = [row(0.8), row(0.5), row(0.5), row(0.2)];
        let f1 = |values: [f64; 4]| ranked(&shown, &values, 2).unwrap().0;
        assert_eq!([f1([4.0, 3.0, 2.0, 1.0]), f1([4.0, 2.0, 3.0, 1.0]), f1([1.0, 3.0, 4.0, 2.0])], [1.0; 3]);
        assert_eq!(f1([3.0, 2.0, 1.0, 4.0]), 0.5);
        let (_, ndcg) = ranked(&shown, &[1.0, 3.0, 4.0, 2.0], 2).unwrap();
        let third = 3f64.log2();
        assert!((ndcg - (0.5 + 0.5 / third) / (0.8 + 0.5 / third)).abs() < 1e-12);
    }
}
