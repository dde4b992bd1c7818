//! The logging policy: what was shown, and with which probability.
//!
//! It is the recommender that was there before: it knows what users of an age and gender like on
//! average, and mixes that with chance. A slate is a systematic sample of categories: their inclusion
//! probabilities, which sum to the slate's length, are laid end to end, and one random number picks the
//! points u, u + 1, u + 2 …. So no category comes twice and each has *exactly* its probability, where
//! drawing one after the other without replacement would leave it unknown. One order of the line gives
//! few slates, on which neighbours never meet; so there are several orders for each segment and day.
//!
//! ```text
//! p(c | s) = ε/C + (1 − ε)·softmax_c(η·Σ_g P(g | s)·τ(g, c))
//! π(c | s) = min(1, λ·p(c | s)),  λ such that Σ_c π(c | s) = K
//! π(i | s) = π(c(i) | s)·P(i | c(i)),  c(i) the category that item i is shown for
//! ```
//!
//! with ε `exploration` and η `greed` of the parameters, s the segment and K the slate.

use super::{
    draws::Draws,
    parameters::Parameters,
    population::{Population, SEGMENTS},
    preferences::Preferences,
};

/// Orders in which a segment's categories are laid on a day.
pub(super) const ORDERS: usize = 16;

/// Inclusion probabilities of categories.
#[derive(Debug)]
pub struct Policy {
    /// π, segment by segment.
    inclusion: Vec<Vec<f64>>,
    orders: Draws,
}

impl Policy {
    pub(super) fn new(parameters: &Parameters, population: &Population, preferences: &Preferences) -> Self {
        let slate = f64::from(parameters.slate);
        let of = |segment| included(&mixed(parameters, segment, population, preferences), slate);
        Policy { inclusion: (0..SEGMENTS).map(of).collect(), orders: Draws::new(parameters.seed, "orders") }
    }

    /// π(c | s), category by category.
    pub(super) fn inclusion(&self, segment: usize) -> &[f64] {
        &self.inclusion[segment]
    }

    /// One of the [`ORDERS`] lines of a segment on a day.
    pub(super) fn line(&self, segment: usize, day: u32, order: usize) -> Line<'_> {
        let inclusion = self.inclusion(segment);
        let number = segment * ORDERS + order;
        let mut order: Vec<u16> = (0..inclusion.len() as u16).collect();
        self.orders.at(number as u64, u64::from(day) << 32).shuffle(&mut order);
        let mut sum = 0.0;
        let ends = order.iter().map(|category| {
            sum += inclusion[usize::from(*category)];
            sum
        });
        Line { ends: ends.collect(), order, inclusion }
    }
}

/// Categories laid end to end, each as long as its inclusion probability.
pub(super) struct Line<'a> {
    order: Vec<u16>,
    ends: Vec<f64>,
    inclusion: &'a [f64],
}

impl Line<'_> {
    /// The categories under the points `unit`, `unit` + 1 and so on, with their inclusion
    /// probabilities; `unit` is below 1.
    pub fn sample(&self, unit: f64, slate: u32) -> impl Iterator<Item = (usize, f64)> {
        let mut free = 0;
        (0..slate as usize).map(move |point| {
            let under = self.ends.partition_point(|end| *end <= unit + point as f64);
            // Sums are rounded: a category that is always in may lie under two points, and the last
            // point behind the end, both by some 1e-14. So each point takes a free place and leaves
            // one to every point after it.
            let at = under.max(free).min(self.order.len() - (slate as usize - point));
            free = at + 1;
            let category = usize::from(self.order[at]);
            (category, self.inclusion[category])
        })
    }
}

/// p(c | s).
fn mixed(
    parameters: &Parameters,
    segment: usize,
    population: &Population,
    preferences: &Preferences,
) -> Vec<f64> {
    let categories = parameters.categories as usize;
    let mut liked = vec![0.0; categories];
    for (group, share) in population.given_segment(segment).into_iter().enumerate() {
        for (liked, taste) in liked.iter_mut().zip(preferences.of_group(group)) {
            *liked += share * taste;
        }
    }
    let most = liked.iter().copied().fold(f64::MIN, f64::max);
    let weights: Vec<f64> = liked.iter().map(|liked| libm::exp(parameters.greed * (liked - most))).collect();
    let all: f64 = weights.iter().sum();
    let chance = parameters.exploration / categories as f64;
    weights.iter().map(|weight| chance + (1.0 - parameters.exploration) * weight / all).collect()
}

/// π(c | s): what would be shown more than always is shown always, and the others share the rest.
fn included(chances: &[f64], slate: f64) -> Vec<f64> {
    let mut always = vec![false; chances.len()];
    loop {
        let sure = always.iter().filter(|always| **always).count() as f64;
        let rest: f64 = chances.iter().zip(&always).filter(|(_, always)| !**always).map(|(p, _)| p).sum();
        let scale = if rest > 0.0 { (slate - sure) / rest } else { 0.0 };
        let mut more = false;
        for (chance, always) in chances.iter().zip(&mut always) {
            more |= !*always && scale * chance >= 1.0;
            *always |= scale * chance >= 1.0;
        }
        if !more {
            let share = |(chance, always): (&f64, &bool)| if *always { 1.0 } else { scale * chance };
            return chances.iter().zip(&always).map(share).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(change: impl Fn(&mut Parameters)) -> (Parameters, Policy) {
        let mut parameters = Parameters::default();
        change(&mut parameters);
        let population = Population::new(&parameters);
        let policy = Policy::new(&parameters, &population, &Preferences::new(&parameters));
        (parameters, policy)
    }

    #[test]
    fn propensities_are_probabilities_and_sum_to_the_slate() {
        for (slate, greed) in [(1, 2.0), (10, 2.0), (10, 20.0), (39, 20.0), (40, 2.0)] {
            let (parameters, policy) = policy(|p| (p.slate, p.greed) = (slate, greed));
            for segment in 0..SEGMENTS {
                let inclusion = policy.inclusion(segment);
                let sum: f64 = inclusion.iter().sum();
                assert!((sum - f64::from(slate)).abs() < 1e-9, "{sum} for {slate}");
                let least = parameters.exploration / f64::from(parameters.categories) - 1e-12;
                assert!(inclusion.iter().all(|p| (least..=1.0).contains(p)), "{inclusion:?}");
            }
        }
    }

    #[test]
    fn the_policy_follows_features_and_explores_as_much_as_it_was_told() {
        let (_, greedy) = policy(|p| p.exploration = 0.001);
        assert_ne!(greedy.inclusion(0), greedy.inclusion(SEGMENTS - 1));
        let (_, uniform) = policy(|p| p.exploration = 1.0);
        assert!(uniform.inclusion(3).iter().all(|p| (p - 0.25).abs() < 1e-12));
    }

    #[test]
    fn samples_have_no_category_twice_and_each_as_often_as_its_propensity() {
        let (_, policy) = policy(|p| (p.slate, p.greed) = (10, 8.0));
        let (draws, samples) = (Draws::new(1, "test"), 40_000);
        let mut shown = [0u32; 40];
        for n in 0..samples {
            let line = policy.line(2, n % 40, 7);
            let mut slate: Vec<usize> =
                line.sample(draws.unit(u64::from(n), 0), 10).map(|(category, _)| category).collect();
            slate.iter().for_each(|category| shown[*category] += 1);
            slate.sort_unstable();
            slate.dedup();
            assert_eq!(slate.len(), 10);
        }
        for (shown, p) in shown.iter().zip(policy.inclusion(2)) {
            let (rate, error) = (f64::from(*shown) / f64::from(samples), (p * (1.0 - p) / 40_000.0).sqrt());
            assert!((rate - p).abs() <= 4.5 * error + 1e-12, "shown {rate}, propensity {p}");
        }
    }

    #[test]
    fn every_category_meets_every_other_on_some_day() {
        let (_, policy) = policy(|p| p.exploration = 1.0);
        let mut met = std::collections::BTreeSet::new();
        let draws = Draws::new(2, "test");
        for n in 0..20_000 {
            let slate: Vec<usize> = policy
                .line(0, n / 16 % 25, n as usize % 16)
                .sample(draws.unit(u64::from(n), 0), 10)
                .map(|(c, _)| c)
                .collect();
            slate.iter().for_each(|a| met.extend(slate.iter().map(|b| (*a, *b))));
        }
        assert_eq!(met.len(), 40 * 40);
    }
}
