//! Prompt templates: files of the user's, filled with what is known of a row.
//!
//! A name that a template does not know is an error and not an empty place, each step takes fuel so
//! that no template hangs, and line ends are kept as written, because a prompt ends with the header
//! of the answer and its line break.

use std::{path::Path, sync::Arc};

use minijinja::{Environment, syntax::SyntaxConfig};

use crate::operator::{Inputs, Problem};

/// A compiled template.
#[derive(Clone)]
pub(crate) struct Template(Arc<Environment<'static>>);

/// Steps a template may take.
const FUEL: u64 = 100_000;

impl Template {
    /// Reads and compiles the template file that a parameter names.
    ///
    /// # Errors
    /// If it cannot be read or is no template.
    pub(crate) fn read(inputs: &Inputs<'_>, parameter: &str, path: &Path) -> Result<Self, Problem> {
        let text = inputs.read(parameter, path)?;
        Self::compile(text)
            .map_err(|(line, error)| Problem::with(parameter, format!("{}:{line}: {error}", path.display())))
    }

    /// Compiles a template; on failure the line and the cause.
    pub(crate) fn compile(text: String) -> Result<Self, (usize, String)> {
        let place = |error: minijinja::Error| (error.line().unwrap_or(1), error.to_string());
        let mut environment = Environment::new();
        environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
        environment.set_syntax(syntax.map_err(place)?);
        environment.set_fuel(Some(FUEL));
        environment.add_template_owned("prompt", text).map_err(place)?;
        Ok(Template(Arc::new(environment)))
    }

    /// Fills the template; texts from data have gone through [`chat_safe`](crate::chat::chat_safe).
    ///
    /// # Errors
    /// If it names something that is not in `context`, or takes too long.
    pub(crate) fn render(&self, context: &serde_json::Value) -> Result<String, String> {
        let template = self.0.get_template("prompt").map_err(|e| e.to_string())?;
        template.render(minijinja::value::Serde(context)).map_err(|e| e.to_string())
    }
}
