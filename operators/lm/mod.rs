//! The embedded language model and closed-set decoding with it.
//!
//! Decision: the labels a pipeline asks about are known beforehand, so the model is never sampled
//! token by token. One forward pass over a prompt and the trie of all labels gives the exact
//! log-probability of every label; candidates, losses and divergences are arithmetic on those.

mod adapters;
mod attention;
mod batch;
mod best;
mod cache;
#[cfg(test)]
mod cache_tests;
mod chat_template;
mod closed_set;
mod error;
#[cfg(test)]
mod fixtures_tests;
mod folder;
#[cfg(test)]
mod formats_tests;
mod forward;
mod generate;
mod ggml;
mod gguf;
mod head;
mod kernel;
mod keys_values;
mod llama;
mod lora;
mod math;
mod matmul;
mod model;
mod panels;
mod peft;
#[cfg(test)]
mod peft_tests;
mod prefix;
mod pretokenize;
mod prompts;
mod simd;
mod sizes;
mod spread;
#[cfg(test)]
mod testing;
mod tokenizer;
mod train;
#[cfg(test)]
mod transformers_tests;
mod transposed;
mod trie;
mod vocabulary;
mod weights;

pub use adapters::LoraSettings;
pub use best::best_labels;
pub use closed_set::{price, score_labels};
pub use error::LmError;
pub use generate::{check_writing, satisfies, write_texts};
pub use lora::Lora;
pub use model::LocalModel;
pub use tokenizer::LmTokenizer;
pub use train::{Batch, Tuner};
pub use trie::LabelTrie;
