//! Every random number of a world, addressed instead of drawn in turn.
//!
//! A ChaCha8 stream is a function of key, stream and block. The key is what a number is for and under
//! which seed, stream and block are whom it concerns (a user and a day, a group and a category). So any
//! number can be had without those before it: a day does not depend on other days, a user not on other
//! users, nothing on threads, and the truth needs no file. Only whole-number and exactly rounded
//! arithmetic is used here, so all machines draw the same.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// All streams of one purpose under one seed.
#[derive(Clone, Debug)]
pub(super) struct Draws(ChaCha8Rng);

impl Draws {
    /// The streams of a purpose.
    pub fn new(seed: u64, purpose: &str) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(b"world/1 ");
        hash.update(&seed.to_le_bytes());
        hash.update(purpose.as_bytes());
        Draws(ChaCha8Rng::from_seed(*hash.finalize().as_bytes()))
    }

    /// The numbers at a place. A block has eight of them; whoever takes more reads on into the next
    /// blocks, so places in use must then be further apart.
    pub fn at(&self, stream: u64, block: u64) -> Draw {
        let mut draw = self.0.clone();
        draw.set_stream(stream);
        draw.set_word_pos(16 * u128::from(block));
        Draw(draw)
    }

    /// The one number at a place, uniform in `0.0..1.0`.
    pub fn unit(&self, stream: u64, block: u64) -> f64 {
        self.at(stream, block).unit()
    }
}

/// Numbers from one place on.
pub(super) struct Draw(ChaCha8Rng);

impl Draw {
    /// Uniform in `0.0..1.0`, with 53 random bits.
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..bound`, for `bound > 0`; the bias of at most `bound / 2⁶⁴` is immaterial here.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.0.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// Of mean 0 and deviation 1, nearly normal, within ±2√3: the sum of four uniform numbers, which
    /// unlike a normal one needs no logarithm and no cosine.
    pub fn deviate(&mut self) -> f64 {
        let (a, b) = (self.0.next_u64(), self.0.next_u64());
        let sum = (a >> 32) + (a & 0xffff_ffff) + (b >> 32) + (b & 0xffff_ffff);
        ((sum + 2) as f64 / (1u64 << 32) as f64 - 2.0) * 3f64.sqrt()
    }

    /// Shuffles (Fisher–Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ_by_every_part_of_their_address() {
        let mut bits = [(1, "a", 0, 0), (2, "a", 0, 0), (1, "b", 0, 0), (1, "a", 1, 0), (1, "a", 0, 1)]
            .map(|(seed, purpose, stream, block)| Draws::new(seed, purpose).unit(stream, block).to_bits());
        bits.sort_unstable();
        assert!(bits.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn a_block_holds_eight_numbers_and_then_comes_the_next() {
        let draws = Draws::new(1, "test");
        let mut draw = draws.at(3, 5);
        let ninth = (0..9).map(|_| draw.unit()).last();
        assert_eq!(ninth, Some(draws.unit(3, 6)));
    }

    #[test]
    fn deviates_have_mean_zero_and_deviation_one() {
        let mut draw = Draws::new(1, "test").at(0, 0);
        let values: Vec<f64> = (0..40_000).map(|_| draw.deviate()).collect();
        let mean = values.iter().sum::<f64>() / 40_000.0;
        let variance = values.iter().map(|v| v * v).sum::<f64>() / 40_000.0;
        assert!(mean.abs() < 0.02, "mean {mean}");
        assert!((variance - 1.0).abs() < 0.03, "variance {variance}");
    }
}
