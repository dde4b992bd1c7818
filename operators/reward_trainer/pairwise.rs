//! The pairwise loss in expectation, and the share of pairs that are ranked rightly.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Negatives,
    bootstrap::{Witness, difference},
};
use crate::{
    asked::{Asked, By, Prompted},
    label_policy::LabelPrior,
    lm::{LabelTrie, LmError},
    row::Row,
    tuning::{
        baselines::{Baseline, Click, Kind},
        loss::{Loss, reward_pair},
        placebo::{Swapped, others as others_of},
        trainer::{Figures, Objective, Told, Trainer},
    },
};

/// `E[−ln σ(r(c) − r(c′))]` over clicked labels `c` and others `c′`, `r = ℓ − ℓ₀`.
pub(super) struct Reward<'a> {
    trie: &'a LabelTrie,
    prior: Vec<f64>,
    temperature: f64,
    /// Of each example how often each label is the other one.
    others: Vec<Vec<f64>>,
    examples: Vec<(String, f64)>,
    /// Of each example the share of each label among its clicks.
    clicked: Vec<Vec<f64>>,
}

impl<'a> Reward<'a> {
    pub(super) fn new(
        trie: &'a LabelTrie,
        prior: &LabelPrior,
        negatives: Negatives,
        temperature: f64,
        examples: Prompted,
    ) -> Self {
        let mut reward = Self {
            trie,
            temperature,
            prior: prior.prior.iter().map(|prior| f64::from(*prior)).collect(),
            others: Vec::new(),
            examples: Vec::new(),
            clicked: Vec::new(),
        };
        let shares = negatives.shares(prior);
        for (prompt, asked) in examples {
            let Asked { clicked, .. } = &asked;
            let clicks: f64 = clicked.iter().sum();
            reward.others.push(others(&asked, &shares).to_vec());
            reward.examples.push((prompt, clicks));
            reward.clicked.push(clicked.iter().map(|n| n / clicks).collect());
        }
        reward
    }

    fn rewards(&self, scores: &[f64]) -> Vec<f64> {
        scores.iter().zip(&self.prior).map(|(score, prior)| (score - prior) / self.temperature).collect()
    }

    /// The reward of every label after every example, under two adapters.
    pub(super) fn all_rewards(
        &self,
        trainer: &Trainer<'_>,
        values: [&[f32]; 2],
    ) -> Result<[Vec<Vec<f64>>; 2], LmError> {
        let prompts: Vec<&str> = self.examples.iter().map(|(prompt, _)| prompt.as_str()).collect();
        let rewards = |scores: Vec<Vec<f64>>| scores.iter().map(|scores| self.rewards(scores)).collect();
        Ok(trainer.scores(values, &prompts)?.map(rewards))
    }
}

/// How often each label is the one that a click is compared with: what was passed over, where that is
/// known, else `shares`.
fn others<'a>(asked: &'a Asked, shares: &'a [f64]) -> &'a [f64] {
    if asked.passed_over.is_empty() { shares } else { &asked.passed_over }
}

/// Pairs of a clicked label and another one: their places, and how much each counts; 1 in all, unless a
/// label has no other.
fn pairs<'a>(clicked: &'a [f64], shares: &'a [f64]) -> impl Iterator<Item = (usize, usize, f64)> + 'a {
    let clicked = clicked.iter().enumerate().filter(|(_, share)| **share > 0.0);
    clicked.flat_map(move |(label, weight)| {
        let others: f64 = shares.iter().sum::<f64>() - shares[label];
        let other = move |(at, share): (usize, &f64)| (label, at, weight * share / others);
        shares.iter().enumerate().filter(move |(at, share)| *at != label && **share > 0.0).map(other)
    })
}

/// The share of pairs in which the clicked label has the higher value; equal ones are half right.
fn right(values: &[f64], clicked: &[f64], shares: &[f64]) -> f64 {
    let judge = |(label, other, weight): (usize, usize, f64)| match values[label].total_cmp(&values[other]) {
        std::cmp::Ordering::Greater => weight,
        std::cmp::Ordering::Equal => weight / 2.0,
        std::cmp::Ordering::Less => 0.0,
    };
    pairs(clicked, shares).map(judge).sum()
}

/// Users who were kept out, and how rightly their clicks are ranked.
pub(super) struct Judges<'a> {
    held: &'a Prompted,
    /// The share of each label in all clicks.
    popular: Vec<f64>,
    /// How often each label is the other one.
    shares: Vec<f64>,
    seed: u64,
}

impl<'a> Judges<'a> {
    pub(super) fn new(held: &'a Prompted, prior: &LabelPrior, negatives: Negatives, seed: u64) -> Self {
        Self { held, popular: prior.shares(), shares: negatives.shares(prior), seed }
    }

    /// Of each click, in order, the share of its pairs that are ranked rightly by a value of every label
    /// after every example.
    fn right(&self, values: impl IntoIterator<Item = Vec<f64>>) -> Vec<f64> {
        self.held.values().zip(values).flat_map(|(asked, values)| self.right_of(asked, &values)).collect()
    }

    /// The same of the clicks of one example.
    fn right_of(&self, asked: &Asked, values: &[f64]) -> Vec<f64> {
        let one = |by: &By| {
            let clicked: Vec<f64> = (0..values.len()).map(|at| f64::from(u8::from(at == by.label))).collect();
            right(values, &clicked, others(asked, &self.shares))
        };
        asked.by.iter().map(one).collect()
    }

    /// [`Judges::right`] if the model is told of others instead: the mean over them.
    fn placebo(&self, values: &[Vec<f64>], swapped: Swapped) -> Vec<f64> {
        let contexts: Vec<_> = self.held.values().map(Asked::click).collect();
        let each = self.held.values().zip(others_of(&contexts, swapped)).flat_map(|(asked, others)| {
            let mut mean = vec![0.0; asked.by.len()];
            for other in &others {
                let right = self.right_of(asked, &values[*other]);
                mean.iter_mut().zip(right).for_each(|(mean, right)| *mean += right / others.len() as f64);
            }
            mean
        });
        each.collect()
    }

    /// The mean over clicks, all or the novel ones; nothing where there are none.
    fn mean(&self, right: &[f64], novel: bool) -> Option<f64> {
        let own = self.clicks().zip(right).filter(|((_, by), _)| by.novel || !novel);
        let (sum, all) =
            own.fold((0.0, 0.0), |(sum, all), ((_, by), right)| (sum + by.count * right, all + by.count));
        (all > 0.0).then(|| sum / all)
    }

    /// Clicks in order, each with the number of its user.
    fn clicks(&self) -> impl Iterator<Item = (usize, &By)> {
        let clicks = || self.held.values().flat_map(|asked| &asked.by);
        let users: BTreeSet<&Row> = clicks().map(|by| &by.user).collect();
        let users: BTreeMap<&Row, usize> = users.into_iter().zip(0..).collect();
        clicks().map(move |by| (users[&by.user], by))
    }

    /// The figures of a model, by its rewards before and after training, beside counting.
    pub(super) fn figures(&self, before: Vec<Vec<f64>>, after: Vec<Vec<f64>>, train: &Prompted) -> Figures {
        let placebos = Swapped::ALL.map(|(swapped, name)| (name, self.placebo(&after, swapped)));
        let [before, after] = [before, after].map(|rewards| self.right(rewards));
        let clicks: Vec<Click<'_>> = train.values().map(Asked::click).collect();
        let by = |kind: Kind| {
            let fitted = Baseline::fit(kind, &clicks);
            self.right(self.held.values().map(|asked| fitted.chances(&asked.click())))
        };
        let popular = self.right(self.held.values().map(|_| self.popular.clone()));
        let counted = [before, popular, by(Kind::GroupPopularity), by(Kind::Markov)];
        let others: Vec<(&str, Vec<f64>)> = OTHERS.into_iter().zip(counted).chain(placebos).collect();
        let mut figures = Figures::new();
        let mut tell =
            |name: String, figure: Option<f64>| figures.extend(figure.map(|figure| (name, figure)));
        for (novel, kind) in KINDS {
            tell(kind.to_string(), self.mean(&after, novel));
            for (name, other) in &others {
                tell(format!("{kind}_{name}"), self.mean(other, novel));
                let witnesses: Vec<Witness> = self
                    .clicks()
                    .zip(after.iter().zip(other))
                    .filter(|((_, by), _)| by.novel || !novel)
                    .map(|((user, by), (ours, theirs))| Witness {
                        user,
                        weight: by.count,
                        ways: [*ours, *theirs],
                    })
                    .collect();
                let won = difference(&witnesses, self.seed);
                tell(format!("{kind}_over_{name}"), won.map(|won| won.mean));
                tell(format!("{kind}_over_{name}_low"), won.map(|won| won.low));
                tell(format!("{kind}_over_{name}_high"), won.map(|won| won.high));
            }
        }
        figures
    }
}

/// All clicks, and the novel ones.
const KINDS: [(bool, &str); 2] = [(false, "held_out"), (true, "held_out_novel")];

/// What a model is held against, beside placebos.
const OTHERS: [&str; 4] = ["untuned", "popularity", "group_popularity", "markov"];

/// The figures that a gate may bound: how good it is, by how much better than what it is held against, and
/// by how much at least.
pub(super) fn gated() -> Vec<String> {
    let over = |kind: &str, other: &str| ["", "_low"].map(|end| format!("{kind}_over_{other}{end}"));
    let of = |(_, kind): (bool, &'static str)| {
        std::iter::once(kind.to_string()).chain(OTHERS.into_iter().flat_map(move |other| over(kind, other)))
    };
    KINDS.into_iter().flat_map(of).collect()
}

impl Objective for Reward<'_> {
    fn labels(&self) -> &LabelTrie {
        self.trie
    }

    fn examples(&self) -> &[(String, f64)] {
        &self.examples
    }

    fn named(&self, example: usize) -> Vec<f64> {
        [self.clicked[example].as_slice(), &self.others[example]].concat()
    }

    fn loss(&self, example: usize, scores: &[f64], told: &mut Told) -> Loss {
        let rewards = self.rewards(scores);
        let clicked = &self.clicked[example];
        let mut loss = Loss { value: 0.0, gradient: vec![0.0; rewards.len()] };
        for (label, other, weight) in pairs(clicked, &self.others[example]) {
            let pair = reward_pair(rewards[label], rewards[other]);
            loss.value += weight * pair.value;
            loss.gradient[label] += weight * pair.chosen;
            loss.gradient[other] += weight * pair.rejected;
        }
        loss.gradient.iter_mut().for_each(|slope| *slope /= self.temperature);
        told.tell("ranked", right(&rewards, clicked, &self.others[example]));
        loss
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{row::Value, testing::slopes_are_those_of_differences};

    fn prior(clicks: [u64; 3]) -> LabelPrior {
        let names = ["a", "b", "c"].map(str::to_string).to_vec();
        LabelPrior {
            parts: vec![vec![]; 3],
            labels: names,
            prior: vec![-1.0, -2.0, -0.5],
            clicks: clicks.to_vec(),
        }
    }

    fn click(user: u64, label: usize, count: f64, novel: bool) -> By {
        By { user: Row::from([Value::U64(user)]), label, count, novel }
    }

    #[test]
    fn clicks_are_judged_by_user_and_novel_ones_apart() {
        let asked = |by: Vec<By>| Asked {
            group: String::new(),
            recent: vec![],
            allowed: vec![true; 3],
            clicked: vec![1.0; 3],
            passed_over: vec![],
            by,
        };
        // Labels are even: each is compared with the two others.
        let held = Prompted::from([
            ("p".to_string(), asked(vec![click(1, 0, 1.0, false), click(2, 1, 3.0, true)])),
            ("q".to_string(), asked(vec![click(1, 2, 2.0, true)])),
        ]);
        let (prior, even) = (prior([1, 1, 1]), vec![vec![0.0; 3]; 2]);
        // After p the first label is best and the second last; after q the third is best.
        let rewards = vec![vec![3.0, 1.0, 2.0], vec![1.0, 2.0, 3.0]];
        let told = Judges::new(&held, &prior, Negatives::Clicks, 7).figures(even, rewards, &held);
        // The first user gains a half, the second loses one: any of the two may be drawn twice.
        for (name, expected) in [
            ("held_out", (1.0 + 3.0 * 0.0 + 2.0) / 6.0),
            ("held_out_novel", 2.0 / 5.0),
            ("held_out_untuned", 0.5),
            // Told of the other prompt, only the second user's click and the last are half right.
            ("held_out_other_recents", (1.0 * 0.0 + 3.0 * 0.5 + 2.0 * 0.5) / 6.0),
            ("held_out_over_other_recents", 0.5 - 2.5 / 6.0),
            ("held_out_over_untuned", 0.0),
            ("held_out_over_untuned_low", -0.5),
            ("held_out_over_untuned_high", 0.5),
        ] {
            assert!((told[name] - expected).abs() < 1e-9, "{name}: {} instead of {expected}", told[name]);
        }
    }

    #[test]
    fn the_loss_falls_as_its_gradient_says() {
        let trie = LabelTrie::from_paths(vec![vec![1], vec![2], vec![3]], 9).unwrap();
        let asked = Asked {
            group: String::new(),
            recent: vec![],
            allowed: vec![true; 3],
            clicked: vec![3.0, 0.0, 1.0],
            passed_over: vec![],
            by: vec![],
        };
        let examples = Prompted::from([("p".to_string(), asked)]);
        let reward = Reward::new(&trie, &prior([5, 3, 2]), Negatives::Clicks, 1.0, examples.clone());
        assert_eq!(reward.examples(), [("p".to_string(), 4.0)]);
        slopes_are_those_of_differences(&reward, 0, &[-1.5, -0.3, -2.0]);
        // Twice as far from the prior, and half of it.
        let mild = Reward::new(&trie, &prior([5, 3, 2]), Negatives::Clicks, 2.0, examples);
        slopes_are_those_of_differences(&mild, 0, &[-1.5, -0.3, -2.0]);
        let told = || Told::default();
        let [near, far] = [[-1.5, -0.3, -2.0], [-2.0, 1.4, -3.5]];
        assert!(
            (reward.loss(0, &near, &mut told()).value - mild.loss(0, &far, &mut told()).value).abs() < 1e-12
        );
        // What is clicked lies far above what is not: all that is left is between the two.
        let mut told = Told::default();
        told.weigh(1.0);
        let far = reward.loss(0, &[50.0, -50.0, 49.0], &mut told);
        assert!(far.value < 1.0 && told.mean("ranked").unwrap() > 0.8, "{far:?}");
    }

    #[test]
    fn a_click_is_compared_with_what_was_passed_over_where_that_is_known() {
        let trie = LabelTrie::from_paths(vec![vec![1], vec![2], vec![3]], 9).unwrap();
        let asked = Asked {
            group: String::new(),
            recent: vec![],
            allowed: vec![true; 3],
            clicked: vec![2.0, 0.0, 0.0],
            passed_over: vec![9.0, 4.0, 0.0],
            by: vec![click(1, 0, 2.0, true)],
        };
        let examples = Prompted::from([("p".to_string(), asked)]);
        let even = vec![vec![0.0; 3]];
        let told = Judges::new(&examples, &prior([1, 2, 7]), Negatives::Clicks, 0).figures(
            even.clone(),
            even,
            &examples,
        );
        assert_eq!(told["held_out_popularity"], 0.0, "the second is more popular");
        let reward = Reward::new(&trie, &prior([5, 3, 2]), Negatives::Clicks, 1.0, examples);
        slopes_are_those_of_differences(&reward, 0, &[-1.5, -0.3, -2.0]);
        let loss = reward.loss(0, &[-1.5, -0.3, -2.0], &mut Told::default());
        assert!(loss.gradient[2] == 0.0 && loss.gradient[1] > 0.0, "{loss:?}");
        // Rewards are −0.5 and 1.7; a label is not compared with itself.
        assert!((loss.value - reward_pair(-0.5, 1.7).value).abs() < 1e-12);
    }

    #[test]
    fn among_all_labels_alike_popularity_counts() {
        let trie = LabelTrie::from_paths(vec![vec![1], vec![2], vec![3]], 9).unwrap();
        let asked = Asked {
            group: String::new(),
            recent: vec![],
            allowed: vec![true; 3],
            clicked: vec![6.0, 3.0, 1.0],
            passed_over: vec![],
            by: vec![click(1, 0, 6.0, true), click(2, 1, 3.0, true), click(3, 2, 1.0, true)],
        };
        let examples = Prompted::from([("p".to_string(), asked)]);
        let (prior, even) = (prior([6, 3, 1]), vec![vec![0.0; 3]]);
        let popularity = |negatives| {
            let judges = Judges::new(&examples, &prior, negatives, 0);
            judges.figures(even.clone(), even.clone(), &examples)["held_out_popularity"]
        };
        // The first wins both its pairs, the second one, the third none.
        assert!((popularity(Negatives::Labels) - (0.6 + 0.3 / 2.0)).abs() < 1e-12);
        let second = 0.3 * 1.0 / 7.0;
        assert!((popularity(Negatives::Clicks) - (0.6 + second)).abs() < 1e-12);
        let reward = Reward::new(&trie, &prior, Negatives::Labels, 1.0, examples.clone());
        let loss = reward.loss(0, &[-1.1, -1.1, -1.1], &mut Told::default());
        assert!(loss.gradient[0] < 0.0 && loss.gradient[2] > 0.0, "{loss:?}");
        slopes_are_those_of_differences(&reward, 0, &[-1.5, -0.3, -2.0]);
    }

    #[test]
    fn pairs_are_the_expectation_over_the_others() {
        let found: Vec<_> = pairs(&[0.75, 0.0, 0.25], &[0.5, 0.25, 0.25]).collect();
        assert_eq!(
            found,
            [(0, 1, 0.375), (0, 2, 0.375), (2, 0, 0.25 * 0.5 / 0.75), (2, 1, 0.25 * 0.25 / 0.75)]
        );
        assert!((found.iter().map(|(.., weight)| weight).sum::<f64>() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn right_is_half_where_nothing_is_known() {
        let (clicked, shares) = ([1.0, 0.0, 0.0], [0.4, 0.4, 0.2]);
        assert_eq!(right(&[3.0, 1.0, 2.0], &clicked, &shares), 1.0);
        assert_eq!(right(&[1.0, 1.0, 1.0], &clicked, &shares), 0.5);
        assert!((right(&[1.0, 0.0, 2.0], &clicked, &shares) - 2.0 / 3.0).abs() < 1e-12);
        // Popularity tells nothing of negatives that are drawn by it, and of even ones a lot.
        let popular = |clicked: [f64; 3]| right(&shares, &clicked, &shares);
        let all =
            0.4 * popular([1.0, 0.0, 0.0]) + 0.4 * popular([0.0, 1.0, 0.0]) + 0.2 * popular([0.0, 0.0, 1.0]);
        assert!((all - 0.5).abs() < 0.1, "{all}");
    }
}
