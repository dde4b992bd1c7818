//! How operators have texts written: the parameters users give, and the inference itself.
//!
//! A request is the whole prompt, and everything else that decides the text is part of the logic;
//! so rows with equal prompts share one text, and nothing is written twice.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::{
    language_model::{Answered, Writing, Written},
    lm,
    operator::Problem,
    row::{Row, Value},
    served::Served,
    shape::{CallError, Cost, InferKernel, KernelError, Loaded},
};

/// How a text is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WritingParameters {
    /// Tokens a text may have at most.
    pub max_tokens: usize,
    /// Temperature of the draws; 0 takes the most probable token.
    pub temperature: f64,
    /// Only the most probable tokens that hold this share of the mass are drawn; 1 keeps all.
    pub top_p: f64,
    /// Tokens already written become less likely by this factor; 1 is off.
    pub repetition_penalty: f64,
    /// Texts that end the answer; they are no part of it.
    pub stop: Vec<String>,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for WritingParameters {
    fn default() -> Self {
        let Writing { max_tokens, temperature, top_p, repetition_penalty, stop, seed, .. } =
            Writing::default();
        WritingParameters { max_tokens, temperature, top_p, repetition_penalty, stop, seed }
    }
}

impl WritingParameters {
    /// The parameters as the model takes them, with a schema or none.
    ///
    /// # Errors
    /// If they make no sense, placed at the parameter `name` that holds them, or the schema is not
    /// supported.
    pub(crate) fn writing(&self, name: &str, schema: Option<&Json>) -> Result<Writing, Problem> {
        let WritingParameters { max_tokens, temperature, top_p, repetition_penalty, stop, seed } =
            self.clone();
        let schema = schema.cloned().map(Arc::new);
        let how = Writing { max_tokens, temperature, top_p, repetition_penalty, stop, seed, schema };
        lm::check_writing(&how).map_err(|error| Problem::with(name, error.to_string()))?;
        Ok(how)
    }
}

/// Has a text written for each request, which is one prompt.
pub(crate) struct WriteTexts {
    pub(crate) model: Served,
    pub(crate) how: Writing,
}

impl WriteTexts {
    fn prompts(requests: &[Row]) -> Vec<String> {
        requests.iter().map(|row| row[0].as_text().unwrap_or_default().to_string()).collect()
    }

    /// A text with a schema that came to no end is no document.
    fn row(&self, written: Written) -> Result<Row, KernelError> {
        if self.how.schema.is_some() && !written.finished {
            return Err(format!("the document does not end within {} tokens", self.how.max_tokens));
        }
        Ok(Row::from([Value::text(&written.text)]))
    }
}

impl InferKernel for WriteTexts {
    fn logic(&self) -> String {
        // A plain struct of numbers and texts always has a JSON form.
        let how = serde_json::to_string(&self.how).unwrap_or_default();
        format!("write_texts/1 {} {how}", self.model.base().digest())
    }

    fn cheap(&self) -> bool {
        false
    }

    fn run(
        &self,
        artifacts: &[Loaded],
        requests: &[Row],
        answered: &mut Answered<'_, Row>,
    ) -> Result<Cost, CallError> {
        let prompts = Self::prompts(requests);
        let model = self.model.model(artifacts)?;
        model.write(&self.how, &prompts, &mut |at, text| answered(at, text.and_then(|text| self.row(text))))
    }

    fn price(&self, requests: &[Row]) -> Result<Cost, CallError> {
        let mut cost = self.model.base().price(&Self::prompts(requests))?;
        cost.completion_tokens += (requests.len() * self.how.max_tokens) as u64;
        Ok(cost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Echo;
    use serde_json::json;

    fn kernel(change: impl Fn(&mut Writing)) -> WriteTexts {
        let mut how = Writing::default();
        change(&mut how);
        WriteTexts { model: Served::new(Arc::new(Echo), None), how }
    }

    #[test]
    fn everything_that_decides_a_text_is_in_the_logic() {
        let changes: [fn(&mut Writing); 7] = [
            |how| how.max_tokens = 5,
            |how| how.temperature = 0.5,
            |how| how.top_p = 0.9,
            |how| how.repetition_penalty = 1.1,
            |how| how.stop.push("x".to_string()),
            |how| how.seed = 3,
            |how| how.schema = Some(Arc::new(json!({"type": "null"}))),
        ];
        let mut all: Vec<String> = changes.iter().map(|change| kernel(change).logic()).collect();
        all.push(kernel(|_| ()).logic());
        assert!(all.iter().all(|logic| logic.contains("echo")));
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 8);
    }

    #[test]
    fn the_price_of_a_text_is_at_most_its_limit() {
        let requests = ["a", "b", "c"].map(|prompt| Row::from([Value::text(prompt)]));
        let cost = kernel(|how| how.max_tokens = 7).price(&requests).unwrap();
        assert_eq!((cost.prompt_tokens, cost.completion_tokens), (3, 21));
    }

    #[test]
    fn half_a_document_is_an_error() {
        let requests = ["null", "nu"].map(|prompt| Row::from([Value::text(prompt)]));
        let mut heard = Vec::new();
        let mut hear = |_, answer: Result<Row, KernelError>| {
            heard.push(answer.is_ok());
            std::ops::ControlFlow::Continue(())
        };
        kernel(|how| how.schema = Some(Arc::new(json!({"type": "null"}))))
            .run(&[], &requests, &mut hear)
            .unwrap();
        kernel(|_| ()).run(&[], &requests, &mut hear).unwrap();
        assert_eq!(heard, [true, false, true, true]);
    }
}
