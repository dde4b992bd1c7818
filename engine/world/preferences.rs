//! What users like: θ(u, c, d), the part of a click's logit that is about user, category and day.
//!
//! ```text
//! θ(u, c, d) = τ(g(u), c) + δ·z(u, c) + ρ·√3·tri(d / P(u, c) + φ(u, c)) + β·[c is hot on day d]
//! τ(g, c)    = σ·(√κ·z(g, department of c) + √(1 − κ)·z(g, c))
//! ```
//!
//! with σ `taste`, κ `kinship`, δ `deviation`, ρ `drift` and β `burst` of the parameters, z of mean 0
//! and deviation 1, tri a triangle wave from −1 to 1 with period 1 (its deviation is 1/√3), P from one
//! to two `drift_days`, φ any phase. All of it is a closed form in user, category and day: a drift that
//! is a random walk would have to be walked, and then a question about day 30 would cost thirty.
//! Kinship is what makes something new and yet relevant: who likes a department's categories probably
//! likes the one of it that was never shown.

use super::{draws::Draws, names, parameters::Parameters};

/// The preferences of all users and groups.
#[derive(Debug)]
pub struct Preferences {
    categories: usize,
    /// τ, group by group.
    tastes: Vec<f64>,
    own: Draws,
    bursts: Draws,
    deviation: f64,
    /// ρ·√3.
    swing: f64,
    drift_days: f64,
    burst: f64,
    burst_days: u64,
    burst_every: u64,
}

impl Preferences {
    pub(super) fn new(parameters: &Parameters) -> Self {
        Preferences {
            categories: parameters.categories as usize,
            tastes: tastes(parameters),
            own: Draws::new(parameters.seed, "own preferences"),
            bursts: Draws::new(parameters.seed, "bursts"),
            deviation: parameters.deviation,
            swing: parameters.drift * 3f64.sqrt(),
            drift_days: parameters.drift_days,
            burst: parameters.burst,
            burst_days: u64::from(parameters.burst_days),
            burst_every: u64::from(parameters.burst_every),
        }
    }

    /// τ of a group, category by category.
    pub fn of_group(&self, group: usize) -> &[f64] {
        &self.tastes[group * self.categories..][..self.categories]
    }

    /// θ of a user of a group.
    pub(super) fn of_user(&self, user: u32, group: usize, category: usize, day: u64) -> f64 {
        let mut own = self.own.at(u64::from(user), category as u64);
        let shift = self.deviation * own.deviate();
        let period = self.drift_days * (1.0 + own.unit());
        let drift = self.swing * triangle(day as f64 / period + own.unit());
        self.of_group(group)[category] + shift + drift + self.of_day(category, day)
    }

    /// β while a category is hot, else 0: once in each `burst_every` days, for `burst_days`.
    pub(super) fn of_day(&self, category: usize, day: u64) -> f64 {
        let begin = day - day % self.burst_every;
        let room = self.burst_every - self.burst_days;
        let mut draw = self.bursts.at(category as u64, day / self.burst_every);
        let first = begin + draw.below(room + 1);
        if (first..first + self.burst_days).contains(&day) { self.burst } else { 0.0 }
    }
}

/// The tastes of all groups, one after the other.
fn tastes(parameters: &Parameters) -> Vec<f64> {
    let categories = parameters.categories as usize;
    let departments = names::departments(categories);
    let of_departments = Draws::new(parameters.seed, "taste of departments");
    let of_categories = Draws::new(parameters.seed, "taste of categories");
    let (shared, own) = (parameters.kinship.sqrt(), (1.0 - parameters.kinship).sqrt());
    let taste = |group: u64, category: usize| {
        let department = of_departments.at(group, (category % departments) as u64).deviate();
        let category = of_categories.at(group, category as u64).deviate();
        parameters.taste * (shared * department + own * category)
    };
    let groups = 0..u64::from(parameters.groups);
    groups
        .flat_map(|group| (0..categories).map(move |category| (group, category)))
        .map(|(group, category)| taste(group, category))
        .collect()
}

/// From −1 at 0 to 1 at ½ and back.
fn triangle(turns: f64) -> f64 {
    let turn = turns - turns.floor();
    1.0 - 4.0 * (turn - 0.5).abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preferences(change: impl Fn(&mut Parameters)) -> Preferences {
        let mut parameters = Parameters::default();
        change(&mut parameters);
        Preferences::new(&parameters)
    }

    /// Mean and deviation.
    fn moments(values: &[f64]) -> (f64, f64) {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / values.len() as f64;
        (mean, variance.sqrt())
    }

    #[test]
    fn a_user_stays_near_the_group_and_drifts_as_far_as_was_asked() {
        let with = preferences(|p| (p.burst, p.deviation) = (0.0, 0.0));
        let off = |user: u32, day: u64| with.of_user(user, 3, 5, day) - with.of_group(3)[5];
        // Days far apart in another rhythm for each user: a sample of all phases.
        let (mean, deviation) = moments(&(0..4_000).map(|user| off(user, 1_000)).collect::<Vec<_>>());
        assert!(mean.abs() < 0.03 && (deviation - 0.5).abs() < 0.02, "{mean} {deviation}");
        // Slow: the whole way up takes at least half of 60 days.
        let most = 2.0 * 0.5 * 3f64.sqrt() / 30.0;
        for day in 0..200 {
            let step = (off(1, day + 1) - off(1, day)).abs();
            assert!(step > 0.0 && step <= most + 1e-12, "a step of {step} on day {day}");
        }
    }

    #[test]
    fn own_preferences_have_the_deviation_that_was_asked_for() {
        let with = preferences(|p| (p.burst, p.drift) = (0.0, 0.0));
        let off = |user: u32| with.of_user(user, 0, 7, 0) - with.of_group(0)[7];
        let (mean, deviation) = moments(&(0..4_000).map(off).collect::<Vec<_>>());
        assert!(mean.abs() < 0.04 && (deviation - 0.6).abs() < 0.02, "{mean} {deviation}");
    }

    #[test]
    fn without_drift_and_bursts_no_day_differs() {
        let still = preferences(|p| (p.burst, p.drift) = (0.0, 0.0));
        for day in 1..200 {
            assert_eq!(still.of_user(9, 2, 4, day), still.of_user(9, 2, 4, 0));
        }
    }

    #[test]
    fn a_category_is_hot_for_some_days_in_a_row_once_in_each_period() {
        let with = preferences(|p| (p.burst, p.burst_days, p.burst_every) = (2.5, 4, 40));
        let mut firsts = std::collections::BTreeSet::new();
        for category in 0..40 {
            for period in 0..5 {
                let days = period * 40..(period + 1) * 40;
                let hot: Vec<u64> = days.filter(|day| with.of_day(category, *day) == 2.5).collect();
                assert_eq!(hot, (hot[0]..hot[0] + 4).collect::<Vec<_>>());
                firsts.insert(hot[0] % 40);
            }
        }
        assert!(firsts.len() > 25, "bursts begin on any day: {firsts:?}");
        let user =
            |day: u64| with.of_user(1, 0, 0, day) - preferences(|p| p.burst = 0.0).of_user(1, 0, 0, day);
        let hot = (0..40).filter(|day| (user(*day) - 2.5).abs() < 1e-9).count();
        assert_eq!(hot, 4);
    }

    #[test]
    fn categories_of_a_department_are_liked_together_as_far_as_kinship_says() {
        let correlation = |kinship: f64| {
            let with = preferences(|p| (p.kinship, p.groups) = (kinship, 3_000));
            let departments = names::departments(40);
            let product = |other: usize| {
                let of = |group: usize| with.of_group(group)[0] * with.of_group(group)[other];
                (0..3_000).map(of).sum::<f64>() / 3_000.0 / (1.2 * 1.2)
            };
            (product(departments), product(1))
        };
        let ((kin, other), (no_kin, _)) = (correlation(0.5), correlation(0.0));
        assert!(
            (kin - 0.5).abs() < 0.07 && other.abs() < 0.07 && no_kin.abs() < 0.07,
            "{kin} {other} {no_kin}"
        );
    }
}
