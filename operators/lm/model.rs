//! A model as it is opened: tokenizer and network.
//!
//! Decision: weights are dequantised once, when a model is opened, and shared by all threads.

use std::path::Path;
use std::sync::Arc;

use super::error::LmError;
use super::gguf::{Gguf, unpermute};
use super::llama::Llama;
use super::sizes::Sizes;
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
