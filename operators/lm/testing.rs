//! What the tests of the language model share: reproducible noise and the real model's file.
//!
//! Decision: a missing model file fails the tests that need it instead of skipping them, so that a
//! green run always means the reference vectors were met.

use std::path::PathBuf;

/// File name of the embedded default model.
pub const MODEL_FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// The default model's file: in `COEA_TEST_MODEL_DIR`, or in the cache where the engine puts it.
///
/// # Panics
/// If the file is not there, saying how to fetch it.
pub fn model_path() -> PathBuf {
    let env = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = || {
        env("COEA_CACHE")
            .or_else(|| env("XDG_CACHE_HOME").map(|dir| dir.join("coea")))
            .or_else(|| env("HOME").map(|dir| dir.join(".cache/coea")))
            .unwrap_or_default()
            .join("models")
    };
    let path = env("COEA_TEST_MODEL_DIR").unwrap_or_else(cache).join(MODEL_FILE);
    assert!(
        path.is_file(),
        "{} is missing: fetch it with `coea-engine models fetch smollm2-135m-instruct`, or name its folder \
         in COEA_TEST_MODEL_DIR",
        path.display()
    );
    path
}

/// `n` reproducible numbers in −1…1.
#[cfg(test)]
pub(crate) fn noise(seed: u64, n: usize) -> Vec<f32> {
    use rand::{Rng, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.next_u32() as f32 / (u32::MAX as f32 / 2.0) - 1.0).collect()
}

/// `n` reproducible tokens of [`small_network`]'s vocabulary, none of the first 16.
#[cfg(test)]
pub(crate) fn tokens(seed: u64, n: usize) -> Vec<u32> {
    noise(seed, n).iter().map(|x| 16 + ((x + 1.0) * 40.0) as u32).collect()
}

/// A network with random weights: three layers, grouped heads, sizes that fill no tile or panel.
#[cfg(test)]
pub(crate) fn small_network(seed: u64) -> super::llama::Llama {
    use super::attention::Heads;
    use super::llama::{Llama, Sizes};
    let heads = Heads { queries: 6, keys: 2, size: 6 };
    let (hidden, inner, vocab) = (36, 52, 101);
    let (rope_base, epsilon) = (1e4, 1e-5);
    let sizes =
        Sizes { layers: 3, hidden, inner, vocab, context: 512, heads, rope_base, epsilon, tied: true };
    let mut stream = seed << 8;
    Llama::load(sizes, &mut |_, shape| {
        stream += 1;
        let scale = 2.0 / (shape[shape.len() - 1] as f32).sqrt();
        Ok(noise(stream, shape.iter().product()).iter().map(|w| w * scale).collect())
    })
    .unwrap()
}
