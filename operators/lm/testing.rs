//! What the tests of the language model share: reproducible noise and the real model's file.
//!
//! Decision: the real model is fetched as the product fetches it; one that cannot be had fails the
//! tests that need it instead of skipping them, so that a green run always means the reference
//! vectors were met.

use std::path::PathBuf;

/// The default model's file, fetched if it is not at hand.
pub(crate) fn model_path() -> PathBuf {
    coea_engine::fetch::model("smollm2-135m-instruct").unwrap().path
}

/// `n` reproducible numbers in −1…1.
pub(crate) fn noise(seed: u64, n: usize) -> Vec<f32> {
    use rand::{Rng, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.next_u32() as f32 / (u32::MAX as f32 / 2.0) - 1.0).collect()
}

/// `n` reproducible tokens of [`small_network`]'s vocabulary, none of the first 16.
pub(crate) fn tokens(seed: u64, n: usize) -> Vec<u32> {
    noise(seed, n).iter().map(|x| 16 + ((x + 1.0) * 40.0) as u32).collect()
}

/// A network with random weights: three layers, grouped heads, sizes that fill no tile or panel.
pub(crate) fn small_network(seed: u64) -> super::llama::Llama {
    network_of(seed, 101)
}

/// [`small_network`] with another vocabulary.
pub(crate) fn network_of(seed: u64, vocab: usize) -> super::llama::Llama {
    use super::attention::Heads;
    use super::llama::Llama;
    use super::sizes::Sizes;
    use super::weights::Rows;
    let heads = Heads { queries: 6, keys: 2, size: 6 };
    let (hidden, inner) = (36, 52);
    let (rope_base, epsilon) = (1e4, 1e-5);
    let sizes = Sizes {
        layers: 3,
        hidden,
        inner,
        vocab,
        context: 512,
        heads,
        rope_base,
        epsilon,
        tied: true,
        biases: false,
        output_bias: false,
        scaled: false,
    };
    let mut stream = seed << 8;
    Llama::load(sizes, &mut |_, shape| {
        stream += 1;
        let scale = 2.0 / (shape[shape.len() - 1] as f32).sqrt();
        Ok(Rows::F32(noise(stream, shape.iter().product()).iter().map(|w| w * scale).collect()))
    })
    .unwrap()
}
