//! The tokenizer that belongs to a GGUF file.
//!
//! Decision: built from the file's own vocabulary and merges with the Hugging Face crate, but the
//! splitting of text is chosen here by the file's `tokenizer.ggml.pre`, and an unknown one is an
//! error: a wrong guess still yields tokens, only not those the model was trained on. Weights are
//! not needed, so a plan can be priced without loading the model.

use std::path::Path;
use std::sync::Arc;

use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, Tokenizer};

use super::error::LmError;
use super::gguf::Gguf;
use super::vocabulary::Vocabulary;

/// `tokenizer.ggml.token_type` of control tokens, and of tokens users added.
const CONTROL_TYPES: [usize; 2] = [3, 4];

/// Text to token ids, exactly as the model's own tokenizer. Cheap to clone.
#[derive(Clone)]
pub struct LmTokenizer(Arc<Inner>);

struct Inner {
    /// Control tokens in the text are parsed.
    control: Tokenizer,
    /// Control tokens are text like any other.
    plain: Tokenizer,
    end: u32,
    vocabulary: Vocabulary,
}

impl LmTokenizer {
    /// Reads the tokenizer of a GGUF file, without its weights.
    ///
    /// # Errors
    /// If the file is no GGUF, or has a tokenizer other than byte-level BPE split as `smollm`.
    pub fn open(path: &Path) -> Result<Self, LmError> {
        Self::read(&Gguf::open(path)?)
    }

    pub(crate) fn read(file: &Gguf) -> Result<Self, LmError> {
        let unsupported =
            |what: &str, found: &str| LmError::Unsupported { what: format!("{what} {found:?}") };
        match file.string("tokenizer.ggml.model")? {
            "gpt2" => (),
            other => return Err(unsupported("tokenizer model", other)),
        }
        let tokens = file.strings("tokenizer.ggml.tokens")?;
        let merges = file.strings("tokenizer.ggml.merges")?.into_iter().map(|merge| {
            let (a, b) =
                merge.split_once(' ').ok_or_else(|| LmError::Malformed(format!("merge {merge:?}")))?;
            Ok((a.to_owned(), b.to_owned()))
        });
        let vocab = tokens.iter().zip(0..).map(|(token, id)| ((*token).to_owned(), id));
        let bpe = BPE::new(vocab.collect(), merges.collect::<Result<_, LmError>>()?);
        let mut plain = Tokenizer::new(bpe);
        match file.string("tokenizer.ggml.pre")? {
            "smollm" => {
                let bytes = ByteLevel::new(false, true, true);
                plain.with_pre_tokenizer(Some(Sequence::new(vec![Digits::new(true).into(), bytes.into()])))
            }
            other => return Err(unsupported("pre-tokenizer", other)),
        };
        plain.with_decoder(Some(ByteLevel::new(false, true, true)));
        let types = file.integers("tokenizer.ggml.token_type")?;
        if types.len() != tokens.len() {
            return Err(LmError::Malformed(format!("{} tokens, {} token types", tokens.len(), types.len())));
        }
        let controls = tokens.iter().zip(&types).filter(|(_, kind)| CONTROL_TYPES.contains(kind));
        let mut control = plain.clone();
        control
            .add_special_tokens(controls.map(|(token, _)| AddedToken::from((*token).to_owned(), true)))
            .map_err(|e| LmError::Malformed(e.to_string()))?;
        let end = file.integer("tokenizer.ggml.eos_token_id")?;
        if end >= tokens.len() {
            return Err(LmError::Malformed(format!("end token {end} of a vocabulary of {}", tokens.len())));
        }
        let end = end as u32;
        let of = |which: usize| types.iter().map(|kind| *kind == which).collect::<Vec<_>>();
        let vocabulary = Vocabulary::byte_level(&tokens, &of(CONTROL_TYPES[1]), of(CONTROL_TYPES[0]), end)?;
        Ok(Self(Arc::new(Inner { control, plain, end, vocabulary })))
    }

    /// Token ids of a text; no token is added at either end.
    ///
    /// With `control`, markers such as `<|im_start|>` become their control token; without, they
    /// are spelled out like any text, which is what data put into prompts should be.
    ///
    /// # Errors
    /// If the tokenizer refuses the text (a byte-level one has no reason to).
    pub fn encode(&self, text: &str, control: bool) -> Result<Vec<u32>, LmError> {
        let tokenizer = if control { &self.0.control } else { &self.0.plain };
        let encoding = tokenizer.encode_fast(text, false).map_err(|e| LmError::Tokenise {
            text: text.chars().take(80).collect(),
            reason: e.to_string(),
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of some tokens, control tokens included.
    ///
    /// # Errors
    /// If the tokenizer refuses the tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String, LmError> {
        self.0
            .control
            .decode(ids, false)
            .map_err(|e| LmError::Tokenise { text: format!("{ids:?}"), reason: e.to_string() })
    }

    /// What each token writes.
    pub(crate) fn vocabulary(&self) -> &Vocabulary {
        &self.0.vocabulary
    }

    /// The token that ends an answer.
    pub fn end_token(&self) -> u32 {
        self.0.end
    }
}
