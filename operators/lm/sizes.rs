//! The sizes and constants of a network, read from what a model's files say of themselves.
//!
//! Decision: what this engine does not compute is refused by its name; a network run without its
//! rotary scaling or its window still writes text, only not the model's.

use super::attention::Heads;
use super::error::LmError;
use super::gguf::Gguf;

/// The sizes and constants of a network.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    pub(crate) inner: usize,
    pub(crate) vocab: usize,
    pub(crate) context: usize,
    pub(crate) heads: Heads,
    pub(crate) rope_base: f32,
    pub(crate) epsilon: f32,
    /// Whether the output weights are the embedding table.
    pub(crate) tied: bool,
}

impl Sizes {
    pub(crate) fn read(file: &Gguf) -> Result<Self, LmError> {
        let unsupported = |what: String| Err(LmError::Unsupported { what });
        let architecture = file.string("general.architecture")?;
        if architecture != "llama" {
            return unsupported(format!("architecture {architecture:?}"));
        }
        let integer = |key: &str| file.integer(&format!("llama.{key}"));
        let hidden = integer("embedding_length")?;
        let queries = integer("attention.head_count")?;
        let keys = integer("attention.head_count_kv")?;
        if queries == 0 || keys == 0 || hidden % (2 * queries) != 0 || queries % keys != 0 {
            return Err(LmError::Malformed(format!("{queries} heads, {keys} key heads, width {hidden}")));
        }
        let size = hidden / queries;
        for key in ["rope.dimension_count", "attention.key_length", "attention.value_length"] {
            if file.find(&format!("llama.{key}")).is_some() && integer(key)? != size {
                return unsupported(format!("{key} {} with heads of {size}", integer(key)?));
            }
        }
        for key in ["llama.rope.scaling.type", "llama.rope.scale_linear", "llama.expert_count"] {
            if file.find(key).is_some() {
                return unsupported(format!("metadata key {key:?}"));
            }
        }
        if file.has_tensor("rope_freqs.weight") {
            return unsupported("scaled rotary embedding (rope_freqs.weight)".to_owned());
        }
        Ok(Self {
            layers: integer("block_count")?,
            hidden,
            inner: integer("feed_forward_length")?,
            vocab: file.strings("tokenizer.ggml.tokens")?.len(),
            context: integer("context_length")?,
            heads: Heads { queries, keys, size },
            rope_base: file.float("llama.rope.freq_base")?,
            epsilon: file.float("llama.attention.layer_norm_rms_epsilon")?,
            tied: !file.has_tensor("output.weight"),
        })
    }
}
