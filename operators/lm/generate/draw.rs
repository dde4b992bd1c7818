//! The next token from a row of logits.
//!
//! Decision: a draw is a function of the logits and of one number from a stream that is named by
//! seed, prompt and step; so a text does not depend on which others are written beside it. The
//! vocabulary is never sorted: the few tokens that hold nearly all the mass are picked out first.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::language_model::Writing;
use crate::lm::math::boltzmann;

/// Relative weight from which tokens are looked at first; less likely ones follow in steps.
const LIKELY: f32 = 1.0 / 64.0;

/// The draws of one text.
pub(crate) struct Draws(ChaCha8Rng);

impl Draws {
    /// The stream of a seed and a prompt.
    pub(crate) fn new(seed: u64, prompt: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"coea write/1");
        hasher.update(&seed.to_le_bytes());
        prompt.iter().for_each(|token| _ = hasher.update(&token.to_le_bytes()));
        Self(ChaCha8Rng::from_seed(*hasher.finalize().as_bytes()))
    }

    /// Goes to the draws of a step.
    pub(crate) fn begin(&mut self, step: u64) {
        self.0.set_stream(step);
        self.0.set_word_pos(0);
    }

    /// The next number of the step, in 0..1.
    fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Lowers the logits of tokens that were written (Keskar et al. 2019, section 4.1, with the sign
/// respected).
pub(crate) fn penalise(logits: &mut [f32], penalty: f64, written: impl Iterator<Item = u32>) {
    for token in written {
        let logit = &mut logits[token as usize];
        *logit = if *logit > 0.0 { *logit / penalty as f32 } else { *logit * penalty as f32 };
    }
}

/// The token to write; a logit of −∞ excludes one. `None` if all are excluded, or some logit is no
/// number. The logits are used up, except at temperature 0.
pub(crate) fn choose(logits: &mut [f32], how: &Writing, draws: &mut Draws) -> Option<u32> {
    let (best, top) = best(logits)?;
    if how.temperature == 0.0 {
        return Some(best);
    }
    boltzmann(logits, top, (1.0 / how.temperature).min(f64::from(f32::MAX)) as f32);
    let total: f64 = logits.iter().map(|weight| f64::from(*weight)).sum();
    if !total.is_finite() {
        return None;
    }
    if how.top_p >= 1.0 {
        let all = logits.iter().copied().zip(0..);
        return Some(at(all, draws.uniform() * total).unwrap_or(best));
    }
    let (nucleus, mass) = nucleus(logits, how.top_p * total);
    Some(at(nucleus.into_iter(), draws.uniform() * mass).unwrap_or(best))
}

/// The first of the largest logits, if it is finite and all are numbers.
fn best(logits: &[f32]) -> Option<(u32, f32)> {
    let mut best = (0, f32::NEG_INFINITY);
    let mut numbers = true;
    for (token, logit) in (0..).zip(logits) {
        numbers &= !logit.is_nan();
        if *logit > best.1 {
            best = (token, *logit);
        }
    }
    (numbers && best.1.is_finite()).then_some(best)
}

/// The most probable tokens that hold `wanted` of the mass, and their mass; ties by token.
fn nucleus(weights: &[f32], wanted: f64) -> (Vec<(f32, u32)>, f64) {
    let mut least = LIKELY;
    let mut tokens: Vec<(f32, u32)>;
    loop {
        tokens = weights.iter().copied().zip(0..).filter(|(weight, _)| *weight >= least).collect();
        let mass: f64 = tokens.iter().map(|(weight, _)| f64::from(*weight)).sum();
        if mass >= wanted || least == f32::MIN_POSITIVE {
            break;
        }
        least = (least * LIKELY).max(f32::MIN_POSITIVE);
    }
    tokens.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut mass = 0.0;
    let within = |(weight, _): &(f32, u32)| {
        let open = mass < wanted;
        mass += if open { f64::from(*weight) } else { 0.0 };
        open
    };
    let tokens: Vec<_> = tokens.into_iter().take_while(within).collect();
    (tokens, mass)
}

/// The token in which the running sum of weights passes `point`.
fn at(mut weights: impl Iterator<Item = (f32, u32)>, point: f64) -> Option<u32> {
    let mut sum = 0.0;
    let passes = |(weight, _): &(f32, u32)| {
        sum += f64::from(*weight);
        sum > point
    };
    weights.find(passes).map(|(_, token)| token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writing(temperature: f64, top_p: f64) -> Writing {
        Writing { temperature, top_p, ..super::super::tests::greedy(10) }
    }

    fn shares(logits: &[f32], how: &Writing) -> Vec<f64> {
        let mut shares = vec![0.0; logits.len()];
        let mut draws = Draws::new(7, &[1, 2]);
        for step in 0..20_000 {
            draws.begin(step);
            shares[choose(&mut logits.to_vec(), how, &mut draws).unwrap() as usize] += 1.0 / 20_000.0;
        }
        shares
    }

    #[test]
    fn draws_follow_the_softmax_at_their_temperature() {
        let logits = [0.5, 2.0, -1.0, f32::NEG_INFINITY, 1.0, -60.0];
        for temperature in [0.7, 1.0, 2.0] {
            let weights: Vec<f64> = logits.iter().map(|l| (f64::from(*l) / temperature).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (share, weight) in shares(&logits, &writing(temperature, 1.0)).iter().zip(&weights) {
                assert!((share - weight / total).abs() < 0.012, "{temperature}: {share} {}", weight / total);
            }
        }
    }

    #[test]
    fn the_nucleus_is_the_smallest_set_with_the_mass() {
        // Probabilities 0.4, 0.2, 0.2, 0.15, 0.05: ties go to the lower token.
        let logits = [0.2f32, 0.05, 0.4, 0.2, 0.15].map(f32::ln);
        let drawn = |top_p| -> Vec<usize> {
            let shares = shares(&logits, &writing(1.0, top_p));
            (0..5).filter(|token| shares[*token] > 0.0).collect()
        };
        assert_eq!(drawn(0.3), [2]);
        assert_eq!(drawn(0.5), [0, 2]);
        assert_eq!(drawn(0.75), [0, 2, 3]);
        assert_eq!(drawn(0.9), [0, 2, 3, 4]);
        let shares = shares(&logits, &writing(1.0, 0.5));
        assert!((shares[2] - 2.0 / 3.0).abs() < 0.012, "{shares:?}");
    }

    #[test]
    fn a_nucleus_of_unlikely_tokens_is_found() {
        // One token of a third of the mass, and 60,000 that share the rest.
        let mut logits = vec![0f32; 60_001];
        logits[17] = (30_000f32).ln();
        let shares = shares(&logits, &writing(1.0, 0.9));
        assert!((shares[17] - 1.0 / 2.7).abs() < 0.012, "{}", shares[17]);
        assert_eq!(shares[60_000], 0.0);
    }

    #[test]
    fn greedy_takes_the_first_of_the_best() {
        let mut draws = Draws::new(0, &[]);
        let mut choose = |logits: &[f32]| choose(&mut logits.to_vec(), &writing(0.0, 1.0), &mut draws);
        assert_eq!(choose(&[1.0, 3.0, 3.0]), Some(1));
        assert_eq!(choose(&[f32::NEG_INFINITY; 3]), None);
        assert_eq!(choose(&[1.0, f32::NAN]), None);
    }

    #[test]
    fn a_penalty_lowers_logits_of_either_sign() {
        let mut logits = [2.0, -2.0, 0.0, 1.0];
        penalise(&mut logits, 2.0, [0, 1, 2].into_iter());
        assert_eq!(logits, [1.0, -4.0, 0.0, 1.0]);
    }

    #[test]
    fn streams_are_named_by_seed_prompt_and_step() {
        let first = |seed, prompt: &[u32], step| {
            let mut draws = Draws::new(seed, prompt);
            draws.begin(step);
            draws.uniform()
        };
        let one = first(1, &[1, 2], 3);
        assert_eq!(one, first(1, &[1, 2], 3));
        for other in [first(2, &[1, 2], 3), first(1, &[1, 3], 3), first(1, &[1, 2], 4)] {
            assert_ne!(one, other);
        }
        let mut draws = Draws::new(1, &[1, 2]);
        draws.begin(9);
        draws.uniform();
        draws.begin(3);
        assert_eq!(draws.uniform(), one);
    }
}
