//! What goes over the wire: bodies of requests, and answers in the forms that servers give them.
//!
//! Log-probabilities come in two forms. Chat, and llama.cpp everywhere, has a list of positions with
//! entries; completions of OpenAI and vLLM have parallel lists and maps. Both become [`Entry`]s, so
//! that scoring knows one form.

use std::collections::BTreeMap;

use coea_operators::{chat, shape::Cost};
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use super::{
    client::{Answer, Path},
    settings::{Api, Settings},
};

/// Bytes of text that are taken for a token before a server has counted.
const BYTES_PER_TOKEN: usize = 4;

/// About how many tokens a text has: a token for every four bytes, as in English prose.
pub(super) fn guess(text: &str) -> u64 {
    (text.len() / BYTES_PER_TOKEN + 1) as u64
}

/// Tokens as a server counted them.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Usage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    prompt_tokens_details: Option<Details>,
}

#[derive(Clone, Debug, Deserialize)]
struct Details {
    cached_tokens: Option<u64>,
}

impl Usage {
    pub fn cost(&self) -> Cost {
        let cached = self.prompt_tokens_details.as_ref().and_then(|details| details.cached_tokens);
        let cached = cached.unwrap_or(0).min(self.prompt_tokens);
        Cost {
            prompt_tokens: self.prompt_tokens - cached,
            reused_prompt_tokens: cached,
            completion_tokens: self.completion_tokens,
            ..Cost::default()
        }
    }
}

/// The answer to a request for text.
#[derive(Debug, Deserialize)]
pub(super) struct Completion {
    pub choices: Vec<Choice>,
    usage: Option<Usage>,
}

impl Answer for Completion {
    fn usage(&self) -> Option<&Usage> {
        self.usage.as_ref()
    }
}

/// One text.
#[derive(Debug, Deserialize)]
pub(super) struct Choice {
    text: Option<String>,
    message: Option<Message>,
    logprobs: Option<Logprobs>,
    pub finish_reason: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Message {
    content: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Logprobs {
    content: Option<Vec<Position>>,
    tokens: Option<Vec<String>>,
    token_logprobs: Option<Vec<Option<f64>>>,
    top_logprobs: Option<Vec<Option<BTreeMap<String, f64>>>>,
}

#[derive(Debug, Deserialize)]
struct Position {
    id: Option<u32>,
    token: String,
    bytes: Option<Vec<u8>>,
    logprob: f64,
    #[serde(default)]
    top_logprobs: Vec<Entry>,
}

/// A token that might stand at a position.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Entry {
    /// Its id, where the server tells.
    pub id: Option<u32>,
    /// Its text.
    pub token: String,
    /// Its bytes, where the server tells.
    bytes: Option<Vec<u8>>,
    /// Its log-probability.
    pub logprob: f64,
}

impl Entry {
    /// An entry of a map; vLLM writes ids as `token_id:7` where it is asked to.
    fn named(token: &str, logprob: f64) -> Self {
        let id = token.strip_prefix("token_id:").and_then(|id| id.parse().ok());
        Entry { id, token: token.to_string(), bytes: None, logprob }
    }

    /// What the token stands for.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_deref().filter(|bytes| !bytes.is_empty()).unwrap_or(self.token.as_bytes())
    }
}

impl Choice {
    /// The text.
    pub fn text(&self) -> Option<&str> {
        // A message without content is an empty one.
        self.text.as_deref().or(self.message.as_ref().map(|message| message.content.as_deref().unwrap_or("")))
    }

    /// The first token, and those that were more probable or nearly so.
    pub fn first(&self) -> Option<(Entry, Vec<Entry>)> {
        let logprobs = self.logprobs.as_ref()?;
        if let Some(position) = logprobs.content.as_ref().and_then(|content| content.first()) {
            let Position { id, token, bytes, logprob, top_logprobs } = position;
            let entry = Entry { id: *id, token: token.clone(), bytes: bytes.clone(), logprob: *logprob };
            return Some((entry, top_logprobs.clone()));
        }
        let token = logprobs.tokens.as_ref()?.first()?;
        let logprob = (*logprobs.token_logprobs.as_ref()?.first()?)?;
        let top = logprobs.top_logprobs.as_ref().and_then(|top| top.first()?.as_ref());
        let top = top.into_iter().flatten().map(|(token, logprob)| Entry::named(token, *logprob));
        Some((Entry::named(token, logprob), top.collect()))
    }
}

/// Token ids of a text.
#[derive(Debug, Deserialize)]
pub(super) struct Tokens {
    pub tokens: Vec<u32>,
}

impl Answer for Tokens {
    fn usage(&self) -> Option<&Usage> {
        None
    }
}

/// A request for the ids of a text, in the words of llama.cpp and of vLLM.
pub(super) fn tokenize(settings: &Settings, text: &str, special: bool) -> Json {
    json!({
        "model": settings.model,
        "content": text,
        "prompt": text,
        "add_special": special,
        "add_special_tokens": special,
        "parse_special": true,
    })
}

/// A request for text: the path, and a body without the parameters of sampling.
pub(super) fn request(settings: &Settings, prompt: &str) -> (Path, Map<String, Json>) {
    let mut body: Map<String, Json> = settings.extra.clone().into_iter().collect();
    body.insert("model".into(), json!(settings.model));
    match settings.api {
        Api::Completions => {
            body.insert("prompt".into(), json!(prompt));
            (Path::Api("/completions"), body)
        }
        Api::Chat => {
            let turns = chat::messages(prompt);
            let turn = |turn: &chat::Message| json!({ "role": turn.role, "content": turn.content });
            body.insert("messages".into(), turns.iter().map(turn).collect());
            (Path::Api("/chat/completions"), body)
        }
    }
}

/// Asks for text that a JSON Schema allows: as the protocol has it, and with completions also as
/// llama.cpp does.
pub(super) fn constrain(settings: &Settings, schema: &Json, body: &mut Map<String, Json>) {
    let format = json!({ "name": "answer", "schema": schema, "strict": true });
    body.insert("response_format".into(), json!({ "type": "json_schema", "json_schema": format }));
    if settings.api == Api::Completions {
        body.insert("json_schema".into(), schema.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(json: &str) -> (Entry, Vec<Entry>) {
        serde_json::from_str::<Completion>(json).unwrap().choices[0].first().unwrap()
    }

    #[test]
    fn both_forms_of_log_probabilities_are_read() {
        let (token, top) = first(
            r#"{"choices":[{"text":"é","logprobs":{"content":[{"id":7,"token":"�","bytes":[195],"logprob":-1.5,
            "top_logprobs":[{"id":2,"token":"","bytes":[],"logprob":-0.5}]}]}}]}"#,
        );
        assert_eq!((token.id, token.bytes(), token.logprob), (Some(7), &[195u8][..], -1.5));
        assert_eq!((top[0].id, top[0].bytes()), (Some(2), &b""[..]));
        let (token, top) = first(
            r#"{"choices":[{"text":"a","logprobs":{"tokens":["token_id:7"],"token_logprobs":[-1.5],
            "top_logprobs":[{"b":-0.5,"token_id:7":-1.5}]}}]}"#,
        );
        assert_eq!((token.id, token.logprob), (Some(7), -1.5));
        assert_eq!(top, [Entry::named("b", -0.5), Entry::named("token_id:7", -1.5)]);
    }

    #[test]
    fn tokens_found_in_a_cache_are_told_apart() {
        let json =
            r#"{"prompt_tokens":10,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":8}}"#;
        let cost = serde_json::from_str::<Usage>(json).unwrap().cost();
        assert_eq!((cost.prompt_tokens, cost.reused_prompt_tokens, cost.completion_tokens), (2, 8, 2));
    }

    #[test]
    fn a_prompt_is_text_or_messages() {
        let prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
        let mut settings: Settings = serde_json::from_str(r#"{"model":"m","extra":{"top_k":0}}"#).unwrap();
        let (path, body) = request(&settings, prompt);
        assert_eq!(
            (path, &body["prompt"], &body["top_k"]),
            (Path::Api("/completions"), &json!(prompt), &json!(0))
        );
        settings.api = Api::Chat;
        let (path, body) = request(&settings, prompt);
        assert_eq!(path, Path::Api("/chat/completions"));
        assert_eq!(body["messages"][1], json!({ "role": "user", "content": "Hi" }));
        assert_eq!(body["messages"].as_array().map(Vec::len), Some(2));
    }
}
