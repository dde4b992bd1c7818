//! Every random number of the neural parts.
//!
//! A stream is named by what it is for (seed, component, position) instead of being passed along:
//! the numbers a step sees then depend on that step alone, not on how many were drawn before it or
//! on which thread asked first, and a fit resumed at step *n* continues as if it had never stopped.
//! Only whole-number and exactly rounded arithmetic is used, so all machines draw the same values.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// A stream of random numbers that belongs to one place in one computation.
#[derive(Clone, Debug)]
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// The stream of `component` at `position` (an epoch, a step and a shard, say) under `seed`.
    pub fn new(seed: u64, component: &str, position: &[u64]) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(&seed.to_le_bytes());
        hash.update(&(component.len() as u64).to_le_bytes());
        hash.update(component.as_bytes());
        position.iter().for_each(|p| {
            hash.update(&p.to_le_bytes());
        });
        Stream(ChaCha8Rng::from_seed(*hash.finalize().as_bytes()))
    }

    /// Uniform in `0.0..1.0`, with 24 random bits.
    pub fn unit(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1 << 24) as f32
    }

    /// Uniform in `0.0..1.0`, with 53 random bits.
    pub fn unit_f64(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..bound`, for `bound > 0`; the bias of at most `bound / 2⁶⁴` is immaterial here.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.0.next_u64()) * bound as u128) >> 64) as usize
    }

    /// Fills `out` with values of mean zero and the given standard deviation. They are uniform: the
    /// shape of an initial distribution is of no consequence, and a normal one would need a
    /// logarithm, which is not the same on every machine.
    pub fn fill_centred(&mut self, deviation: f32, out: &mut [f32]) {
        let half_width = deviation * 3f32.sqrt();
        out.iter_mut().for_each(|x| *x = (2.0 * self.unit() - 1.0) * half_width);
    }

    /// Shuffles `items` (Fisher–Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// Scale factors of inverted dropout: zero with probability `rate` (to 1/65536), else
    /// `1 / (1 - rate)`.
    pub fn dropout_mask(&mut self, len: usize, rate: f32) -> Vec<f32> {
        let mut bytes = vec![0u8; 2 * len];
        self.0.fill_bytes(&mut bytes);
        let threshold = (rate * 65536.0) as u32;
        let keep = 1.0 / (1.0 - rate);
        let (pairs, _) = bytes.as_chunks::<2>();
        pairs.iter().map(|b| if u32::from(u16::from_le_bytes(*b)) < threshold { 0.0 } else { keep }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_by_every_part_of_their_name() {
        let mut first = [(1, "a", 0), (2, "a", 0), (1, "b", 0), (1, "a", 1)]
            .map(|(seed, component, at)| Stream::new(seed, component, &[at]).unit().to_bits());
        first.sort_unstable();
        assert!(first.windows(2).all(|w| w[0] != w[1]));
    }

    #[test]
    fn centred_values_have_the_deviation_asked_for() {
        let mut values = vec![0.0; 20_000];
        Stream::new(0, "test", &[]).fill_centred(0.5, &mut values);
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let variance = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 0.02, "mean {mean}");
        assert!((variance.sqrt() - 0.5).abs() < 0.01, "deviation {}", variance.sqrt());
    }

    #[test]
    fn dropout_keeps_the_expectation() {
        let mask = Stream::new(0, "test", &[]).dropout_mask(40_000, 0.3);
        let dropped = mask.iter().filter(|m| **m == 0.0).count() as f32 / mask.len() as f32;
        assert!((dropped - 0.3).abs() < 0.01, "dropped {dropped}");
        assert!((mask.iter().sum::<f32>() / mask.len() as f32 - 1.0).abs() < 0.02);
    }

    #[test]
    fn a_shuffle_is_a_permutation() {
        let mut items: Vec<usize> = (0..100).collect();
        Stream::new(7, "test", &[]).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
