//! The pairwise loss in expectation, and the share of pairs that are ranked rightly.

use crate::{
    label_policy::LabelPrior,
    lm::{LabelTrie, LmError},
    next_clicks::{Asked, Prompted},
    tuning::{
        baselines::{Baseline, Click, Kind},
        loss::{Loss, reward_pair},
        trainer::{Objective, Told, Trainer},
    },
};

/// `E[−ln σ(r(c) − r(c′))]` over clicked labels `c` and others `c′`, `r = ℓ − ℓ₀`.
pub(super) struct Reward<'a> {
    trie: &'a LabelTrie,
    prior: Vec<f64>,
    /// Of each example how often each label is the other one.
    others: Vec<Vec<f64>>,
    examples: Vec<(String, f64)>,
    /// Of each example the share of each label among its clicks.
    clicked: Vec<Vec<f64>>,
}

impl<'a> Reward<'a> {
    pub(super) fn new(trie: &'a LabelTrie, prior: &LabelPrior, examples: Prompted) -> Self {
        let mut reward = Self {
            trie,
            prior: prior.prior.iter().map(|prior| f64::from(*prior)).collect(),
            others: Vec::new(),
            examples: Vec::new(),
            clicked: Vec::new(),
        };
        let shares = prior.shares();
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
        scores.iter().zip(&self.prior).map(|(score, prior)| score - prior).collect()
    }

    /// The share of pairs that are ranked rightly; nothing where there is none.
    pub(super) fn ranked(&self, trainer: &Trainer<'_>, values: &[f32]) -> Result<Option<f64>, LmError> {
        let prompts: Vec<&str> = self.examples.iter().map(|(prompt, _)| prompt.as_str()).collect();
        let scores = trainer.scores(values, &prompts)?;
        let each = scores.iter().zip(&self.clicked).zip(&self.others).zip(&self.examples);
        let each = each.map(|(((scores, clicked), others), (_, weight))| {
            (*weight, right(&self.rewards(scores), clicked, others))
        });
        Ok(mean(each))
    }
}

/// How often each label is the one that a click is compared with: what was passed over, where that is
/// known, else `shares`.
fn others<'a>(asked: &'a Asked, shares: &'a [f64]) -> &'a [f64] {
    if asked.passed_over.is_empty() { shares } else { &asked.passed_over }
}

/// A weighted mean; nothing of nothing.
fn mean(each: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let (sum, weight) =
        each.fold((0.0, 0.0), |(sum, all), (weight, value)| (sum + weight * value, all + weight));
    (weight > 0.0).then(|| sum / weight)
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

/// What counting makes of users who were kept out.
pub(super) fn counted(shares: &[f64], train: &Prompted, held: &Prompted) -> [(&'static str, Option<f64>); 3] {
    let clicks: Vec<Click<'_>> = train.values().map(Asked::click).collect();
    let of = |value: &dyn Fn(&Click<'_>) -> Vec<f64>| {
        mean(held.values().map(|asked| {
            let click = asked.click();
            let clicks: f64 = click.clicked.iter().sum();
            let clicked: Vec<f64> = click.clicked.iter().map(|n| n / clicks).collect();
            (clicks, right(&value(&click), &clicked, others(asked, shares)))
        }))
    };
    let by = |kind: Kind| {
        let fitted = Baseline::fit(kind, &clicks);
        of(&|click| fitted.chances(click))
    };
    [
        ("held_out_popularity", of(&|_| shares.to_vec())),
        ("held_out_group_popularity", by(Kind::GroupPopularity)),
        ("held_out_markov", by(Kind::Markov)),
    ]
}

impl Objective for Reward<'_> {
    fn labels(&self) -> &LabelTrie {
        self.trie
    }

    fn examples(&self) -> &[(String, f64)] {
        &self.examples
    }

    fn target(&self, example: usize) -> &[f64] {
        &self.clicked[example]
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
        told.tell("ranked", right(&rewards, clicked, &self.others[example]));
        loss
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::slopes_are_those_of_differences;

    fn prior(clicks: [u64; 3]) -> LabelPrior {
        let names = ["a", "b", "c"].map(str::to_string).to_vec();
        LabelPrior {
            parts: vec![vec![]; 3],
            labels: names,
            prior: vec![-1.0, -2.0, -0.5],
            clicks: clicks.to_vec(),
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
        };
        let reward = Reward::new(&trie, &prior([5, 3, 2]), Prompted::from([("p".to_string(), asked)]));
        assert_eq!(reward.examples(), [("p".to_string(), 4.0)]);
        slopes_are_those_of_differences(&reward, 0, &[-1.5, -0.3, -2.0]);
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
        };
        let examples = Prompted::from([("p".to_string(), asked)]);
        let counted = counted(&[0.1, 0.2, 0.7], &examples, &examples);
        assert_eq!(counted[0], ("held_out_popularity", Some(0.0)), "the second is more popular");
        let reward = Reward::new(&trie, &prior([5, 3, 2]), examples);
        slopes_are_those_of_differences(&reward, 0, &[-1.5, -0.3, -2.0]);
        let loss = reward.loss(0, &[-1.5, -0.3, -2.0], &mut Told::default());
        assert!(loss.gradient[2] == 0.0 && loss.gradient[1] > 0.0, "{loss:?}");
        // Rewards are −0.5 and 1.7; a label is not compared with itself.
        assert!((loss.value - reward_pair(-0.5, 1.7).value).abs() < 1e-12);
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
