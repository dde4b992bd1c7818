//! A model's own form of conversations, for models that do not read ChatML.
//!
//! Decision: prompts are written once, in ChatML, and taken apart into their turns where a model
//! wants another form; its own template puts them together. They are written for Python: methods
//! of its texts and lists are there, `raise_exception` is, and tools and documents are none. There is
//! no clock, so that a prompt is the same tomorrow.

use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::json;

use super::error::LmError;
use crate::chat::messages;

/// The token that begins a turn of ChatML.
const CHATML: &str = "<|im_start|>";
/// Steps a template may take.
const FUEL: u64 = 1_000_000;

/// A compiled template.
pub(crate) struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    begin: String,
    end: String,
}

impl ChatTemplate {
    /// The template of a model, if its tokens are not those of ChatML and it has one; `marker` gives
    /// the text of `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// If it is no template.
    pub(crate) fn needed(
        tokens: &[&str],
        text: Option<&str>,
        marker: impl Fn(&str) -> String,
    ) -> Result<Option<Self>, LmError> {
        let Some(text) = text.filter(|_| !tokens.contains(&CHATML)) else { return Ok(None) };
        let wrong = |error: Error| LmError::Malformed(format!("chat template: {error}"));
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(wrong)?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned("chat", text.to_owned()).map_err(wrong)?;
        let (begin, end) = (marker("bos_token"), marker("eos_token"));
        Ok(Some(Self { environment: Arc::new(environment), begin, end }))
    }

    /// The prompt of a conversation that is written in ChatML.
    ///
    /// # Errors
    /// If the template refuses it.
    pub(crate) fn render(&self, chatml: &str) -> Result<String, LmError> {
        let turn = |m: &crate::chat::Message| json!({ "role": m.role, "content": m.content });
        let turns: Vec<_> = messages(chatml).iter().map(turn).collect();
        let context = json!({
            "messages": turns,
            "tools": null,
            "documents": null,
            "add_generation_prompt": true,
            "bos_token": self.begin,
            "eos_token": self.end,
        });
        let render = || self.environment.get_template("chat")?.render(Serde(&context));
        render().map_err(|error| LmError::Tokenise {
            text: chatml.chars().take(80).collect(),
            reason: format!("chat template: {error}"),
        })
    }
}
