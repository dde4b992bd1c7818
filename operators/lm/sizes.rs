//! The sizes and constants of a network, read from what a model's files say of themselves.
//!
//! Decision: what this engine does not compute is refused by its name; a network run without its
//! rotary scaling or its window still writes text, only not the model's.

use serde::Deserialize;
use serde_json::Value;

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
    /// Whether queries, keys and values have biases (Qwen2).
    pub(crate) biases: bool,
    /// Whether the output of attention has one too.
    pub(crate) output_bias: bool,
    /// Whether the rotary frequencies are divided by factors, `rope_freqs.weight`.
    pub(crate) scaled: bool,
}

impl Sizes {
    /// Reads the metadata of a GGUF file of a llama or qwen2 model.
    pub(crate) fn read(file: &Gguf) -> Result<Self, LmError> {
        let unsupported = |what: String| Err(LmError::Unsupported { what });
        let architecture = file.string("general.architecture")?;
        if !matches!(architecture, "llama" | "qwen2") {
            return unsupported(format!("architecture {architecture:?}"));
        }
        let key = |key: &str| format!("{architecture}.{key}");
        let integer = |name: &str| file.integer(&key(name));
        let hidden = integer("embedding_length")?;
        let queries = integer("attention.head_count")?;
        let keys = match file.find(&key("attention.head_count_kv")) {
            Some(_) => integer("attention.head_count_kv")?,
            None => queries,
        };
        let size = match file.find(&key("attention.key_length")) {
            Some(_) => integer("attention.key_length")?,
            None => hidden / queries.max(1),
        };
        for name in ["rope.dimension_count", "attention.value_length"] {
            if file.find(&key(name)).is_some() && integer(name)? != size {
                return unsupported(format!("{name} {} with heads of {size}", integer(name)?));
            }
        }
        for name in ["rope.scaling.type", "rope.scale_linear", "expert_count", "attention.sliding_window"] {
            let harmless = file.string(&key(name)).is_ok_and(|value| value == "none");
            if file.find(&key(name)).is_some() && !harmless && integer(name).ok() != Some(0) {
                return unsupported(format!("metadata key {:?}", key(name)));
            }
        }
        let base = file.find(&key("rope.freq_base"));
        let sizes = Self {
            layers: integer("block_count")?,
            hidden,
            inner: integer("feed_forward_length")?,
            vocab: file.strings("tokenizer.ggml.tokens")?.len(),
            context: integer("context_length")?,
            heads: Heads { queries, keys, size },
            rope_base: base.map_or(Ok(10_000.0), |_| file.float(&key("rope.freq_base")))?,
            epsilon: file.float(&key("attention.layer_norm_rms_epsilon"))?,
            tied: !file.has_tensor("output.weight"),
            biases: file.has_tensor("blk.0.attn_q.bias"),
            output_bias: file.has_tensor("blk.0.attn_output.bias"),
            scaled: file.has_tensor("rope_freqs.weight"),
        };
        sizes.checked()
    }

    /// That the sizes fit together.
    pub(crate) fn checked(self) -> Result<Self, LmError> {
        let Heads { queries, keys, size } = self.heads;
        let wrong = queries == 0 || keys == 0 || size == 0 || size % 2 == 1 || queries % keys.max(1) != 0;
        if wrong || self.hidden == 0 || self.inner == 0 || self.vocab == 0 {
            let hidden = self.hidden;
            return Err(LmError::Malformed(format!("{queries} heads, {keys} key heads, width {hidden}")));
        }
        Ok(self)
    }
}

/// Rotary scaling of Llama 3.1: long waves are slowed, short ones kept, those between blended.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Llama3Rope {
    factor: f64,
    low_freq_factor: f64,
    high_freq_factor: f64,
    original_max_position_embeddings: f64,
}

impl Llama3Rope {
    /// Reads `rope_scaling`; nothing where nothing is scaled.
    ///
    /// # Errors
    /// If it is scaled in another way.
    pub(crate) fn read(scaling: Option<&Value>) -> Result<Option<Self>, LmError> {
        let Some(scaling) = scaling.filter(|scaling| !scaling.is_null()) else { return Ok(None) };
        let kind = scaling.get("rope_type").or(scaling.get("type")).and_then(Value::as_str);
        match kind {
            None | Some("default") => Ok(None),
            Some("llama3") => serde_json::from_value(scaling.clone())
                .map(Some)
                .map_err(|error| LmError::Malformed(format!("config.json: rope_scaling: {error}"))),
            Some(other) => Err(LmError::Unsupported { what: format!("rotary scaling {other:?}") }),
        }
    }

    /// By what the frequency of each pair is divided.
    pub(crate) fn factors(&self, base: f32, size: usize) -> Vec<f32> {
        let original = self.original_max_position_embeddings;
        let factor = |i: usize| {
            let frequency = f64::from(base).powf(-2.0 * i as f64 / size as f64);
            let wave = 2.0 * std::f64::consts::PI / frequency;
            if wave < original / self.high_freq_factor {
                return 1.0;
            }
            if wave > original / self.low_freq_factor {
                return self.factor as f32;
            }
            let smooth =
                (original / wave - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
            (1.0 / ((1.0 - smooth) / self.factor + smooth)) as f32
        };
        (0..size / 2).map(factor).collect()
    }
}
