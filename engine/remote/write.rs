//! Texts from a server: [`Writing`] in the words of the protocol.

use coea_operators::{
    language_model::{Writing, Written},
    lm::satisfies,
    shape::Cost,
};
use serde_json::{Map, Value as Json, json};

use super::{
    Asking,
    failure::Failure,
    protocol::{Completion, constrain, guess, request},
    seed,
};

/// What a text costs at most.
pub(super) fn expected(how: &Writing, prompt: &str) -> Cost {
    Cost { prompt_tokens: guess(prompt), completion_tokens: how.max_tokens as u64, ..Cost::default() }
}

/// A text for a prompt.
pub(super) fn write(asking: &mut Asking<'_>, how: &Writing, prompt: &str) -> Result<Written, Failure> {
    let (path, mut body) = request(asking.settings, prompt);
    parameters(how, prompt, &mut body);
    if let Some(schema) = &how.schema {
        constrain(asking.settings, schema, &mut body);
    }
    let before = asking.cost.completion_tokens;
    let answer: Completion = asking.post(path, &Json::Object(body), expected(how, prompt))?;
    let choice = answer.choices.first();
    let Some((choice, text)) = choice.and_then(|choice| Some((choice, choice.text()?))) else {
        return Err(Failure::Question("the server gave no text".to_string()));
    };
    let finished = choice.finish_reason.as_deref() != Some("length");
    if let Some(schema) = &how.schema {
        let why = match serde_json::from_str::<Json>(text) {
            Ok(document) if satisfies(&document, schema) => None,
            Ok(_) => Some("does not satisfy its schema: does the server know `response_format`?"),
            Err(_) if finished => Some("is no JSON"),
            Err(_) => Some("was cut before it was JSON"),
        };
        if let Some(why) = why {
            return Err(Failure::Question(format!("the server's text {why}")));
        }
    }
    let tokens = asking.cost.completion_tokens - before;
    Ok(Written { text: text.to_string(), tokens, finished })
}

fn parameters(how: &Writing, prompt: &str, body: &mut Map<String, Json>) {
    body.insert("max_tokens".into(), json!(how.max_tokens));
    body.insert("temperature".into(), json!(how.temperature));
    body.insert("top_p".into(), json!(how.top_p));
    body.insert("seed".into(), json!(seed(how.seed, prompt)));
    if !how.stop.is_empty() {
        body.insert("stop".into(), json!(how.stop));
    }
    if how.repetition_penalty != 1.0 {
        // No parameter of the protocol: llama.cpp and vLLM each have their own name for it.
        body.insert("repeat_penalty".into(), json!(how.repetition_penalty));
        body.insert("repetition_penalty".into(), json!(how.repetition_penalty));
    }
}
