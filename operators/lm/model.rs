//! A model as it is opened: tokenizer and network, from a GGUF file or a Hugging Face folder.
//!
//! Decision: weights are packed once, when a model is opened, and shared by all threads. The two
//! formats differ in names and in the order of some rows, and that ends here: behind this file there
//! is one network. What it computed for the beginnings of prompts is kept beside it, for all that
//! share it, within a bound; so is what its lower layers make of prompts that adapters are trained on.

use std::path::Path;
use std::sync::Arc;

use super::cache::Cache;
use super::error::LmError;
use super::folder::Folder;
use super::gguf::Gguf;
use super::llama::Llama;
use super::sizes::Sizes;
use super::tokenizer::LmTokenizer;
use super::train::Frozen;
use super::weights::Rows;

/// A loaded model with its tokenizer. Cheap to clone, shared between threads.
#[derive(Clone)]
pub struct LocalModel {
    tokenizer: LmTokenizer,
    network: Arc<Llama>,
    cache: Arc<Cache>,
    frozen: Arc<Frozen>,
}

impl LocalModel {
    /// Bytes of keys and values of beginnings of prompts that an opened model keeps, at most: 256 MiB,
    /// 5,800 tokens of the default model.
    pub const CACHE_BYTES: usize = 256 << 20;

    /// Bytes of what layers below adapters make of prompts that are trained on, at most: 512 MiB, 220,000
    /// tokens of the default model.
    pub const FROZEN_BYTES: usize = 512 << 20;

    /// Loads a GGUF file, or a folder with `config.json`, safetensors and `tokenizer.json`; weights
    /// stay as narrow as they are.
    ///
    /// # Errors
    /// If a file cannot be read, or the model is none of Llama or Qwen2.
    pub fn open(path: &Path) -> Result<Self, LmError> {
        let tokenizer = LmTokenizer::open(path)?;
        let network = if path.is_dir() { from_folder(path)? } else { from_gguf(path)? };
        if tokenizer.vocabulary().len() > network.sizes().vocab {
            let (tokens, rows) = (tokenizer.vocabulary().len(), network.sizes().vocab);
            return Err(LmError::Malformed(format!("{tokens} tokens, but embeddings of {rows}")));
        }
        let cache = Arc::new(Cache::new(network.sizes(), Self::CACHE_BYTES));
        let frozen = Arc::new(Frozen::new(Self::FROZEN_BYTES));
        Ok(Self { tokenizer, network: Arc::new(network), cache, frozen })
    }

    /// The same weights, with a memory of its own for the beginnings of prompts, which is empty and
    /// holds at most so many bytes. That changes how much is computed, and no answer.
    pub fn with_cache(&self, bytes: usize) -> Self {
        let cache = Arc::new(Cache::new(self.network.sizes(), bytes));
        Self { cache, ..self.clone() }
    }

    /// Another network over the same vocabulary; nothing that was computed by this one is kept for it.
    pub(super) fn with_network(&self, network: Llama) -> Self {
        let cache = Arc::new(Cache::new(network.sizes(), self.cache.bound()));
        let frozen = Arc::new(Frozen::new(Self::FROZEN_BYTES));
        Self { network: Arc::new(network), cache, frozen, ..self.clone() }
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

    pub(crate) fn cache(&self) -> &Cache {
        &self.cache
    }

    pub(super) fn frozen(&self) -> &Arc<Frozen> {
        &self.frozen
    }
}

fn from_gguf(path: &Path) -> Result<Llama, LmError> {
    let mut file = Gguf::open(path)?;
    let sizes = Sizes::read(&file)?;
    // Only files of the llama architecture have their rotary rows interleaved.
    let permuted = file.string("general.architecture")? == "llama";
    Llama::load(sizes, &mut |name, shape| {
        let rows = ["attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias"];
        let weights = file.tensor(name, shape)?;
        Ok(match permuted && rows.iter().any(|end| name.ends_with(end)) {
            true => weights.unpermuted(sizes.heads.size, shape.get(1).copied().unwrap_or(1)),
            false => weights,
        })
    })
}

fn from_folder(path: &Path) -> Result<Llama, LmError> {
    let folder = Folder::open(path)?;
    let (sizes, rope) = (folder.sizes()?, folder.rope()?);
    Llama::load(sizes, &mut |name, shape| match rope {
        Some(rope) if name == "rope_freqs.weight" => {
            Ok(Rows::F32(rope.factors(sizes.rope_base, sizes.heads.size)))
        }
        _ => folder.tensor(name, shape),
    })
}
