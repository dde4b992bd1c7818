//! How a GGUF's `tokenizer.ggml.pre` splits text before merges are applied.
//!
//! Decision: the regular expressions are those of the models' own `tokenizer.json`. A text that is
//! split otherwise still has tokens, only not those the model was trained on, so only what was
//! checked against the originals is here.

use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

use super::error::LmError;
use super::tokenizer::bytes;

/// Words, numbers of at most so many digits, punctuation, white space.
pub(super) fn words(digits: &str) -> String {
    format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

/// The names that the splitting of Llama 3 goes by.
const LLAMA_3: [&str; 3] = ["llama-bpe", "llama-v3", "llama3"];

/// Whether a word that is a token is taken whole, whatever the merges say (Llama 3).
pub(crate) fn ignores_merges(pre: &str) -> bool {
    LLAMA_3.contains(&pre)
}

/// Sets how a tokenizer splits text.
pub(crate) fn split(tokenizer: &mut Tokenizer, pre: &str) -> Result<(), LmError> {
    let by = |pattern: String| -> Result<Vec<PreTokenizerWrapper>, LmError> {
        let split = Split::new(SplitPattern::Regex(pattern), SplitDelimiterBehavior::Isolated, false)
            .map_err(|error| LmError::Malformed(error.to_string()))?;
        Ok(vec![split.into(), ByteLevel::new(false, true, false).into()])
    };
    let steps = match pre {
        "smollm" => vec![Digits::new(true).into(), bytes().into()],
        _ if LLAMA_3.contains(&pre) => by(words(r"\p{N}{1,3}"))?,
        "qwen2" => {
            tokenizer.with_normalizer(Some(NFC)).map_err(|error| LmError::Malformed(error.to_string()))?;
            by(words(r"\p{N}"))?
        }
        other => return Err(LmError::Unsupported { what: format!("pre-tokenizer {other:?}") }),
    };
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    tokenizer.with_decoder(Some(bytes()));
    Ok(())
}
