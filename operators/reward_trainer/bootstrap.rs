//! Whether one way of ranking beats another, beyond the luck of who was asked.
//!
//! Decision: clicks of one user are no independent witnesses, so users are drawn anew, not clicks; and
//! both ways are judged on the same draw, because most of what varies between users is common to both
//! (a paired bootstrap, Efron 1979).

use std::collections::BTreeMap;

use crate::nn::random::Stream;

/// Times that users are drawn anew.
const DRAWS: usize = 2000;

/// A click: whose it is, what it counts, and how right each of two ways ranks it, from 0 to 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Witness {
    pub(super) user: usize,
    pub(super) weight: f64,
    pub(super) ways: [f64; 2],
}

/// A mean, and between which bounds it lies with 95%.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Estimate {
    pub(super) mean: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// By how much the first way is better than the second; nothing without witnesses.
pub(super) fn difference(witnesses: &[Witness], seed: u64) -> Option<Estimate> {
    let mut users: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    for Witness { user, weight, ways } in witnesses {
        let (sum, all) = users.entry(*user).or_default();
        *sum += weight * (ways[0] - ways[1]);
        *all += weight;
    }
    let users: Vec<(f64, f64)> = users.into_values().collect();
    let mean = |drawn: &mut dyn Iterator<Item = (f64, f64)>| {
        let (sum, all) = drawn.fold((0.0, 0.0), |(sum, all), (s, a)| (sum + s, all + a));
        sum / all
    };
    if users.iter().all(|(_, all)| *all <= 0.0) {
        return None;
    }
    let mut stream = Stream::new(seed, "users drawn anew", &[]);
    let mut means: Vec<f64> =
        (0..DRAWS).map(|_| mean(&mut (0..users.len()).map(|_| users[stream.below(users.len())]))).collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means[((DRAWS - 1) as f64 * share).round() as usize];
    Some(Estimate { mean: mean(&mut users.iter().copied()), low: at(0.025), high: at(0.975) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn witnesses(users: usize, clicks: usize, ways: impl Fn(usize) -> [f64; 2]) -> Vec<Witness> {
        let of = |at: usize| Witness { user: at / clicks, weight: 1.0, ways: ways(at / clicks) };
        (0..users * clicks).map(of).collect()
    }

    #[test]
    fn what_all_share_says_nothing_and_what_half_of_them_say_is_unsure() {
        let same = difference(&witnesses(40, 3, |_| [0.7, 0.7]), 1).unwrap();
        assert_eq!(same, Estimate { mean: 0.0, low: 0.0, high: 0.0 });
        let unsure = difference(&witnesses(40, 3, |user| [(user % 2) as f64, 0.5]), 1).unwrap();
        assert!(unsure.mean.abs() < 1e-12 && unsure.low < -0.1 && unsure.high > 0.1, "{unsure:?}");
        // The standard error is that of forty users, not of a hundred and twenty clicks: 0.5/√40 = 0.079.
        assert!((unsure.high - unsure.low - 2.0 * 1.96 * 0.079).abs() < 0.03, "{unsure:?}");
        let sure = difference(&witnesses(40, 3, |_| [0.8, 0.7]), 1).unwrap();
        assert!((sure.low - 0.1).abs() < 1e-9 && (sure.high - 0.1).abs() < 1e-9);
        assert_eq!(difference(&[], 1), None);
    }
}
