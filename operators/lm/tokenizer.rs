//! The tokenizer that belongs to a model.
//!
//! Decision: built with the Hugging Face crate from the model's own files, a GGUF's metadata or a
//! folder's `tokenizer.json`. A GGUF names the splitting of text only by `tokenizer.ggml.pre`, so it
//! is chosen here, and an unknown one is an error: a wrong guess still yields tokens, only not those
//! the model was trained on. Weights are not needed, so a plan can be priced without loading them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, ModelWrapper, Tokenizer};

use super::chat_template::ChatTemplate;
use super::error::LmError;
use super::folder::read_json;
use super::gguf::Gguf;
use super::pretokenize::{ignores_merges, split};
use super::vocabulary::Vocabulary;

/// `tokenizer.ggml.token_type` of control tokens, of tokens users added, and of padding.
const CONTROL: usize = 3;
const ADDED: usize = 4;
const UNUSED: usize = 5;

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
    /// What makes prompts of conversations, for a model that does not read ChatML.
    template: Option<ChatTemplate>,
}

impl LmTokenizer {
    /// Reads the tokenizer of a GGUF file or of a Hugging Face folder, without the weights.
    ///
    /// # Errors
    /// If the file cannot be read, or has a tokenizer other than byte-level BPE, split in a way that
    /// is not known.
    pub fn open(path: &Path) -> Result<Self, LmError> {
        if path.is_dir() { Self::of_folder(path) } else { Self::of_gguf(&Gguf::open(path)?) }
    }

    fn of_gguf(file: &Gguf) -> Result<Self, LmError> {
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
        let types = file.integers("tokenizer.ggml.token_type")?;
        if types.len() != tokens.len() {
            return Err(LmError::Malformed(format!("{} tokens, {} token types", tokens.len(), types.len())));
        }
        let pre = file.string("tokenizer.ggml.pre")?;
        let vocab = tokens.iter().zip(0..).map(|(token, id)| ((*token).to_owned(), id));
        let mut bpe = BPE::new(vocab.collect(), merges.collect::<Result<_, LmError>>()?);
        bpe.ignore_merges = ignores_merges(pre);
        let mut plain = Tokenizer::new(bpe);
        split(&mut plain, pre)?;
        let controls = tokens.iter().zip(&types).filter(|(_, kind)| [CONTROL, ADDED].contains(kind));
        let mut control = plain.clone();
        control
            .add_special_tokens(controls.map(|(token, _)| AddedToken::from((*token).to_owned(), true)))
            .map_err(|e| LmError::Malformed(e.to_string()))?;
        let end = file.integer("tokenizer.ggml.eos_token_id")?;
        if end >= tokens.len() {
            return Err(LmError::Malformed(format!("end token {end} of a vocabulary of {}", tokens.len())));
        }
        let template = file.string("tokenizer.chat_template").ok();
        let marker = |name: &str| {
            let id = file.integer(&format!("tokenizer.ggml.{name}_id")).ok();
            id.and_then(|id| tokens.get(id)).map(|token| (*token).to_owned()).unwrap_or_default()
        };
        let template = ChatTemplate::needed(&tokens, template, marker)?;
        let of = |kinds: &[usize]| types.iter().map(|kind| kinds.contains(kind)).collect::<Vec<_>>();
        let (added, hidden) = (of(&[ADDED]), of(&[CONTROL, UNUSED]));
        let end = end as u32;
        let vocabulary = Vocabulary::byte_level(&tokens, &added, hidden, BTreeSet::from([end]))?;
        Ok(Self(Arc::new(Inner { control, plain, end, vocabulary, template })))
    }

    fn of_folder(folder: &Path) -> Result<Self, LmError> {
        let path = folder.join("tokenizer.json");
        let control = Tokenizer::from_file(&path)
            .map_err(|error| LmError::File { path: path.clone(), reason: error.to_string() })?;
        if !matches!(control.get_model(), ModelWrapper::BPE(bpe) if !bpe.byte_fallback) {
            return Err(LmError::Unsupported { what: "a tokenizer that is not byte-level BPE".to_owned() });
        }
        // The same without added tokens: markers are text.
        let mut plain = Tokenizer::new(control.get_model().clone());
        plain
            .with_normalizer(control.get_normalizer().cloned())
            .map_err(|e| LmError::Malformed(e.to_string()))?;
        plain.with_pre_tokenizer(control.get_pre_tokenizer().cloned());
        let config = read_json(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        let tokens = control.get_vocab(true);
        let count = tokens.values().max().map_or(0, |last| *last as usize + 1);
        let mut spelled = vec![""; count];
        tokens.iter().for_each(|(token, id)| spelled[*id as usize] = token);
        let (mut added, mut hidden) = (vec![false; count], vec![false; count]);
        for (id, token) in control.get_added_tokens_decoder() {
            (added[id as usize], hidden[id as usize]) = (true, token.special);
        }
        let ends = ends(folder, &config, &tokens)?;
        let end = *ends.first().ok_or_else(|| LmError::Malformed("no end token is named".to_owned()))?;
        if let Some(wrong) = ends.iter().find(|id| **id as usize >= count) {
            return Err(LmError::Malformed(format!("end token {wrong} of a vocabulary of {count}")));
        }
        let text = match std::fs::read_to_string(folder.join("chat_template.jinja")) {
            Ok(text) => Some(text),
            Err(_) => template_of(&config["chat_template"]),
        };
        let template = ChatTemplate::needed(&spelled, text.as_deref(), |name| text_of(&config[name]))?;
        let vocabulary = Vocabulary::byte_level(&spelled, &added, hidden, ends.into_iter().collect())?;
        Ok(Self(Arc::new(Inner { control, plain, end, vocabulary, template })))
    }

    /// Token ids of a prompt, which is a conversation in ChatML or a single question: as it is for a
    /// model that reads ChatML, or that has no form of its own; else in the form of the model.
    ///
    /// # Errors
    /// If the model's template refuses the conversation.
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>, LmError> {
        match &self.0.template {
            None => self.encode(text, true),
            Some(template) => self.encode(&template.render(text)?, true),
        }
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

/// The tokens that end an answer, first the one that ends a turn of a conversation.
fn ends(
    folder: &Path,
    config: &Value,
    tokens: &std::collections::HashMap<String, u32>,
) -> Result<Vec<u32>, LmError> {
    let mut ends: Vec<u32> = tokens.get(&text_of(&config["eos_token"])).copied().into_iter().collect();
    for file in ["generation_config.json", "config.json"] {
        let named = read_json(&folder.join(file))?.unwrap_or_default();
        let listed = named["eos_token_id"].as_array().cloned().unwrap_or(vec![named["eos_token_id"].clone()]);
        ends.extend(listed.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok()));
    }
    Ok(ends)
}

/// A token in `tokenizer_config.json`: a text, or an object that holds one.
fn text_of(value: &Value) -> String {
    value.as_str().or(value["content"].as_str()).unwrap_or_default().to_owned()
}

/// The chat template: a text, or one named `default` among several.
fn template_of(value: &Value) -> Option<String> {
    let named = value.as_array().into_iter().flatten().find(|one| one["name"] == "default");
    value.as_str().or(named.and_then(|one| one["template"].as_str())).map(str::to_owned)
}

/// The decoder of byte-level vocabularies.
pub(crate) fn bytes() -> ByteLevel {
    ByteLevel::new(false, true, true)
}
