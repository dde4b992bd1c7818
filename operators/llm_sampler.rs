//! The novelty model: proposes labels a key has not met (CoEA eq. 10).
//!
//! The labels are a closed set, so instead of decoding token by token the model is asked once for
//! the exact probability of every label, and candidates are drawn from that. The answer that is
//! paid for and remembered is the distribution: other temperatures, seeds or numbers of candidates
//! cost no further call.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    category_map::CategoryTable,
    label_policy::{LabelPrior, ScoreLabels, fit_prior, sample},
    operator::{Described, Inputs, Operator, Problem, Problems},
    row::{Row, Value},
    schema::{Column, Schema},
    shape::{Graph, LeafId},
};

/// Draws candidate labels for each prompt from a language model.
///
/// Inputs: prompts, and the category_map whose labels are the candidates.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LlmSampler {
    /// Distinct candidates drawn per key.
    pub candidates: u64,
    /// Temperature of the draw; 0 takes the most probable.
    #[serde(default = "one")]
    pub temperature: f64,
    /// Seed of the draws.
    #[serde(default)]
    pub seed: u64,
}

fn one() -> f64 {
    1.0
}

/// The places of the prompt's columns.
#[derive(Clone, Copy)]
struct Columns {
    recent: usize,
    prompt: usize,
}

impl LlmSampler {
    fn columns(&self, inputs: &Inputs<'_>) -> Result<Columns, Vec<Problem>> {
        let mut problems = Problems::default();
        problems.take(inputs.at_most(2));
        problems.take(inputs.language_model());
        problems.require(self.candidates > 0, || Problem::with("candidates", "must be at least 1"));
        problems.require(self.temperature >= 0.0 && self.temperature.is_finite(), || {
            Problem::with("temperature", "must be a finite number from 0 up")
        });
        let prompts = problems.take(inputs.relation(0, "prompts"));
        if let Some(labels) = problems.take(inputs.relation(1, "a category_map of labels")) {
            let own = crate::category_map::domain_of(&labels.schema, "categories");
            problems.require(own.as_deref() == Some(labels.name.as_str()), || {
                Problem::input(1, format!("`{}` does not define labels", labels.name))
                    .help("name a category_map")
            });
        }
        let columns = prompts.and_then(|input| {
            problems.require(input.schema.notes.contains_key("neutral_prompt"), || {
                Problem::input(0, format!("`{}` has no content-free prompt", input.name))
                    .help("name a prompt_builder")
            });
            let recent = problems.take(inputs.column(0, input, "recent"))?;
            Some(Columns { recent, prompt: problems.take(inputs.column(0, input, "prompt"))? })
        });
        problems.finish(columns)
    }
}

/// Labels that are not wholly made of recent interests.
fn allowed(prior: &LabelPrior, recent: &[Value]) -> Vec<bool> {
    let met = |part: &String| recent.iter().any(|r| r.as_text() == Some(part));
    prior.parts.iter().map(|parts| !parts.iter().all(met)).collect()
}

impl Operator for LlmSampler {
    fn output(&self, inputs: &Inputs<'_>) -> Result<Schema, Vec<Problem>> {
        let columns = self.columns(inputs)?;
        let prompts = &inputs.inputs[0].schema;
        let candidates =
            Column::new("candidates", crate::align::scored_categories()).of(&inputs.inputs[1].name);
        Ok(Schema::new(prompts.key.clone(), [prompts.columns[columns.recent].clone(), candidates]))
    }

    fn model_kinds(&self) -> &'static [&'static str] {
        &["language_model"]
    }

    fn build(&self, inputs: &Inputs<'_>, graph: &mut Graph) -> LeafId {
        let (Ok(at), Ok(model)) = (self.columns(inputs), inputs.language_model()) else {
            unreachable!("checked by output")
        };
        let Some(labels) = graph.labels_of::<CategoryTable>(&inputs.inputs[1].name) else {
            unreachable!("the input is a category_map")
        };
        let prompts = inputs.inputs[0].leaf;
        let neutral = inputs.inputs[0].schema.notes.get("neutral_prompt").cloned().unwrap_or_default();
        let prior = fit_prior(graph, labels, model.clone(), neutral);
        let requests = graph.map("requests", prompts, move |key, row, out| {
            out.push((key.clone(), Row::from([row[at.prompt].clone()])));
            Ok(())
        });
        let answers = graph.infer_with("answers", requests, labels, ScoreLabels(model.clone()));
        let answered = graph.join("answered", prompts, answers, move |key, prompt, answer, out| {
            out.push((key.clone(), Row::from([prompt[at.recent].clone(), answer[0].clone()])));
        });
        let sampler = self.clone();
        graph.map_with("", answered, prior, move |prior, key, row, out| {
            let logprobs = row[1].as_floats().ok_or("an answer is not a vector")?;
            let scores = prior.scores(&logprobs);
            let allowed = allowed(prior, row[0].as_list().unwrap_or_default());
            let draws = (sampler.seed, key);
            let n = usize::try_from(sampler.candidates).unwrap_or(usize::MAX);
            let drawn = sample(&prior.labels, &scores, &allowed, sampler.temperature, draws, n);
            let cell = |at: usize| crate::align::scored(Value::text(&prior.labels[at]), scores[at].into());
            out.push((key.clone(), Row::from([row[0].clone(), Value::list(drawn.into_iter().map(cell))])));
            Ok(())
        })
    }
}

impl Described for LlmSampler {
    const NAME: &'static str = "llm_sampler";
    const EXAMPLE: &'static str = include_str!("examples/llm_sampler.yaml");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_left_out_only_when_all_its_interests_are_recent() {
        let parts = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        let prior = LabelPrior {
            labels: parts(&["Drama", "Drama War", "War"]),
            parts: vec![parts(&["Drama"]), parts(&["Drama", "War"]), parts(&["War"])],
            prior: vec![0.0; 3],
        };
        assert_eq!(allowed(&prior, &[Value::text("Drama")]), [false, true, true]);
        assert_eq!(allowed(&prior, &[Value::text("Drama"), Value::text("War")]), [false; 3]);
        assert_eq!(allowed(&prior, &[]), [true; 3]);
    }
}
