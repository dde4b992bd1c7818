//! What can go wrong with a language model.
//!
//! Decision: one error type for the whole module, its variants split by who can mend them: the
//! file, the model's architecture, the labels or the prompt. Everything else is an assertion.

use std::path::PathBuf;

/// An expected failure of the embedded language model.
#[derive(Debug, thiserror::Error)]
pub enum LmError {
    /// The model file cannot be opened or read.
    #[error("cannot read the model file {path}: {reason}")]
    File {
        /// The file asked for.
        path: PathBuf,
        /// What the reader said.
        reason: String,
    },
    /// The files are in order, but not of a model this engine can run.
    #[error(
        "{what} is not supported; models are Llama or Qwen2, as GGUF or a Hugging Face folder, with a byte-level BPE tokenizer"
    )]
    Unsupported {
        /// The feature, with its value.
        what: String,
    },
    /// A metadata key or a tensor is absent or has the wrong type or shape.
    #[error("the model file is malformed: {0}")]
    Malformed(String),
    /// The tokenizer refused a text.
    #[error("cannot tokenise {text:?}: {reason}")]
    Tokenise {
        /// The text, shortened.
        text: String,
        /// What the tokenizer said.
        reason: String,
    },
    /// A trie of no labels was asked for.
    #[error("at least one label is needed")]
    NoLabels,
    /// A label that cannot stand in a trie.
    #[error("label {label:?}: {reason}")]
    Label {
        /// The offending label.
        label: String,
        /// Why.
        reason: &'static str,
    },
    /// A prompt without tokens: there is nothing to condition on.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A way of writing texts that cannot be followed.
    #[error("{parameter}: {reason}")]
    Writing {
        /// Which part of it.
        parameter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A way of tuning that cannot be followed.
    #[error("{parameter}: {reason}")]
    Tuning {
        /// Which part of it.
        parameter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A prompt and its longest answer do not fit the context the model was trained for.
    #[error("the prompt needs {needed} positions with its answer, the model has {available}")]
    TooLong {
        /// Positions of the prompt and the deepest label.
        needed: usize,
        /// The model's context length.
        available: usize,
    },
}
