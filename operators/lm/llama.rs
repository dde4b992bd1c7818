//! The llama network: its sizes, its weights, and loading them.
//!
//! Decision: related matrices over the same input are packed as one, and the embedding table is the
//! output weights where the model ties them, so that nothing is held twice.

use std::path::Path;
use std::sync::Arc;

use super::attention::Heads;
use super::error::LmError;
use super::gguf::{Gguf, unpermute};
use super::head::Head;
use super::matmul::Matrix;
use super::tokenizer::LmTokenizer;

/// A loaded model with its tokenizer. Cheap to clone, shared between threads.
#[derive(Clone)]
pub struct LocalModel {
    tokenizer: LmTokenizer,
    network: Arc<Llama>,
}

impl LocalModel {
    /// Loads a GGUF file, its weights dequantised to f32.
    ///
    /// # Errors
    /// If the file cannot be read, or holds a model other than a plain llama.
    pub fn open(path: &Path) -> Result<Self, LmError> {
        let mut file = Gguf::open(path)?;
        let tokenizer = LmTokenizer::read(&file)?;
        let sizes = Sizes::read(&file)?;
        let network = Llama::load(sizes, &mut |name, shape| match file.tensor(name, shape) {
            Ok(w) if name.ends_with("attn_q.weight") || name.ends_with("attn_k.weight") => {
                Ok(unpermute(&w, sizes.heads.size, shape[1]))
            }
            other => other,
        })?;
        Ok(Self { tokenizer, network: Arc::new(network) })
    }

    /// The tokenizer the model was trained with.
    pub fn tokenizer(&self) -> &LmTokenizer {
        &self.tokenizer
    }

    /// Bytes the weights take in memory.
    pub fn memory_bytes(&self) -> usize {
        self.network.bytes()
    }

    pub(crate) fn network(&self) -> &Llama {
        &self.network
    }
}

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
    fn read(file: &Gguf) -> Result<Self, LmError> {
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

/// Gives a tensor by its GGUF name after checking its shape; query and key rows in rotation order.
pub(crate) type Source<'a> = dyn FnMut(&str, &[usize]) -> Result<Vec<f32>, LmError> + 'a;

pub(super) struct Layer {
    pub(super) attention_norm: Vec<f32>,
    /// `[query | key | value]` over the same input.
    pub(super) projection: Matrix,
    pub(super) output: Matrix,
    pub(super) inner_norm: Vec<f32>,
    /// `[gate | up]` over the same input.
    pub(super) gate_up: Matrix,
    pub(super) down: Matrix,
}

impl Layer {
    fn load(sizes: &Sizes, layer: usize, source: &mut Source) -> Result<Self, LmError> {
        let (hidden, inner) = (sizes.hidden, sizes.inner);
        let (q, kv) = (sizes.heads.query_width(), sizes.heads.key_width());
        let mut get = |name: &str, shape: &[usize]| source(&format!("blk.{layer}.{name}.weight"), shape);
        let (wq, wk, wv) =
            (get("attn_q", &[q, hidden])?, get("attn_k", &[kv, hidden])?, get("attn_v", &[kv, hidden])?);
        let (gate, up) = (get("ffn_gate", &[inner, hidden])?, get("ffn_up", &[inner, hidden])?);
        Ok(Self {
            attention_norm: get("attn_norm", &[hidden])?,
            projection: Matrix::pack(&[&wq, &wk, &wv], hidden),
            output: Matrix::pack(&[&get("attn_output", &[hidden, q])?], q),
            inner_norm: get("ffn_norm", &[hidden])?,
            gate_up: Matrix::pack(&[&gate, &up], hidden),
            down: Matrix::pack(&[&get("ffn_down", &[hidden, inner])?], inner),
        })
    }
}

/// The weights of a llama network.
pub(crate) struct Llama {
    pub(super) sizes: Sizes,
    /// The embedding table, where it is not the output weights.
    pub(super) embedding: Option<Matrix>,
    pub(super) layers: Vec<Layer>,
    pub(super) head: Head,
    /// Angle per position of each rotated pair.
    pub(super) frequencies: Vec<f64>,
}

impl Llama {
    /// Takes all weights from `source`.
    pub(crate) fn load(sizes: Sizes, source: &mut Source) -> Result<Self, LmError> {
        let table = source("token_embd.weight", &[sizes.vocab, sizes.hidden])?;
        let table = Matrix::pack(&[&table], sizes.hidden);
        let (embedding, output) = match sizes.tied {
            true => (None, table),
            false => {
                let output = source("output.weight", &[sizes.vocab, sizes.hidden])?;
                (Some(table), Matrix::pack(&[&output], sizes.hidden))
            }
        };
        let size = sizes.heads.size;
        let frequency = |i: usize| (sizes.rope_base as f64).powf(-2.0 * i as f64 / size as f64);
        Ok(Self {
            sizes,
            embedding,
            layers: (0..sizes.layers).map(|i| Layer::load(&sizes, i, source)).collect::<Result<_, _>>()?,
            head: Head::new(output, source("output_norm.weight", &[sizes.hidden])?, sizes.epsilon),
            frequencies: (0..size / 2).map(frequency).collect(),
        })
    }

    /// The sizes of the network.
    pub(crate) fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// The output weights.
    pub(crate) fn head(&self) -> &Head {
        &self.head
    }

    /// Bytes of all weights.
    pub(crate) fn bytes(&self) -> usize {
        let layer = |l: &Layer| {
            let matrices = [&l.projection, &l.output, &l.gate_up, &l.down];
            matrices.iter().map(|m| m.bytes()).sum::<usize>()
                + size_of_val(&l.attention_norm[..])
                + size_of_val(&l.inner_norm[..])
        };
        self.layers.iter().map(layer).sum::<usize>()
            + self.embedding.as_ref().map_or(0, Matrix::bytes)
            + self.head.bytes()
    }
}
