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
    choose_labels::{ChooseLabels, cells},
    choosing::{Choosing, Question, pick},
    label_policy::{Before, LabelPrior, ScoreLabels, allowed, draws, fit_prior_before},
    operator::{Described, Inputs, Operator, Problem, Problems},
    published::Proposals,
    row::{Row, Value},
    schema::{Column, Schema},
    served::Served,
    shape::{Fitted, Graph, LeafId},
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
    /// How often labels are drawn where a prompt says nothing.
    #[serde(default)]
    pub prior: Before,
    /// Seed of the draws.
    #[serde(default)]
    pub seed: u64,
    /// How much of the label set the model looks at.
    #[serde(default)]
    pub decoding: Decoding,
}

/// How much of a label set the model looks at. The candidates are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decoding {
    /// All of it. What is remembered is the whole distribution, so that other candidates, temperatures
    /// and seeds cost no further call.
    #[default]
    Full,
    /// What may be among the candidates: for label sets of hundreds and more. Every key is a call of
    /// its own.
    Lazy,
}

/// The note of a relation of candidates that names the model which knows the probability of all labels.
pub(crate) const PROPOSED_BY: &str = "proposed_by";
/// The note that names the column of items whose labels these are.
pub(crate) const PROPOSED_OF: &str = "proposed_of";

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
        problems.require(self.temperature > 0.0 || self.prior == Before::Even, || {
            Problem::with("prior", "means nothing where nothing is drawn")
                .help("give a `temperature` above 0")
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

impl Operator for LlmSampler {
    fn output(&self, inputs: &Inputs<'_>) -> Result<Schema, Vec<Problem>> {
        let columns = self.columns(inputs)?;
        let prompts = &inputs.inputs[0].schema;
        let candidates =
            Column::new("candidates", crate::align::scored_categories()).of(&inputs.inputs[1].name);
        let mut schema =
            Schema::new(prompts.key.clone(), [prompts.columns[columns.recent].clone(), candidates]);
        if self.decoding == Decoding::Full {
            let model = inputs.model.map_or("", |model| &model.name);
            let item = inputs.inputs[1].schema.key.first().map_or("", |item| &item.name);
            schema = schema.with_note(PROPOSED_BY, model).with_note(PROPOSED_OF, item);
        }
        Ok(schema)
    }

    fn model_kinds(&self) -> &'static [&'static str] {
        &["language_model"]
    }

    fn build(&self, inputs: &Inputs<'_>, graph: &mut Graph) -> LeafId {
        let (Ok(at), Ok(model)) = (self.columns(inputs), inputs.served()) else {
            unreachable!("checked by output")
        };
        let Some(labels) = graph.labels_of::<CategoryTable>(&inputs.inputs[1].name) else {
            unreachable!("the input is a category_map")
        };
        let prompts = inputs.inputs[0].leaf;
        let neutral = inputs.inputs[0].schema.notes.get("neutral_prompt").cloned().unwrap_or_default();
        let prior =
            fit_prior_before(graph, labels, model.base().clone(), neutral, (self.prior, self.temperature));
        match self.decoding {
            Decoding::Full => self.all_labels(at, inputs, graph, (labels, prior), &model),
            Decoding::Lazy => self.best_labels(at, graph, prompts, prior, &model),
        }
    }
}

impl LlmSampler {
    fn how(&self, prior: &LabelPrior) -> Choosing {
        let count = usize::try_from(self.candidates).unwrap_or(usize::MAX);
        Choosing { prior: prior.prior.clone(), temperature: self.temperature, count }
    }

    fn draws(&self, prior: &LabelPrior, recent: &Value, key: &Row) -> Vec<f64> {
        let allowed = allowed(prior, recent.as_list().unwrap_or_default());
        draws(&prior.labels, &allowed, self.seed, key)
    }

    /// Candidates out of the distribution over all labels.
    fn all_labels(
        &self,
        at: Columns,
        inputs: &Inputs<'_>,
        graph: &mut Graph,
        (labels, prior): (Fitted<CategoryTable>, Fitted<LabelPrior>),
        model: &Served,
    ) -> LeafId {
        let prompts = inputs.inputs[0].leaf;
        let requests = graph.map("requests", prompts, move |key, row, out| {
            out.push((key.clone(), Row::from([row[at.prompt].clone()])));
            Ok(())
        });
        let answers = graph.infer_with(
            "answers",
            requests,
            &model.artifacts(&[labels.leaf()]),
            ScoreLabels(model.clone()),
        );
        graph.publish_proposals(Proposals {
            prompts: inputs.inputs[0].clone(),
            labels: inputs.inputs[1].clone(),
            prior,
            answers,
            version: model.version(),
            temperature: self.temperature,
        });
        let answered = graph.join("answered", prompts, answers, move |key, prompt, answer, out| {
            out.push((key.clone(), Row::from([prompt[at.recent].clone(), answer[0].clone()])));
        });
        let sampler = self.clone();
        graph.map_with("", answered, prior, move |prior, key, row, out| {
            let logprobs = row[1].as_floats().ok_or("an answer is not a vector")?;
            let best = pick(&sampler.how(prior), &logprobs, &sampler.draws(prior, &row[0], key));
            out.push((key.clone(), Row::from([row[0].clone(), cells(prior, best)])));
            Ok(())
        })
    }

    /// Candidates found without looking at all labels.
    fn best_labels(
        &self,
        at: Columns,
        graph: &mut Graph,
        prompts: LeafId,
        prior: Fitted<LabelPrior>,
        model: &Served,
    ) -> LeafId {
        let requests = graph.map("requests", prompts, move |key, row, out| {
            let asked = Row::from([row[at.prompt].clone(), row[at.recent].clone()]);
            out.push((key.clone(), asked.concat(key)));
            Ok(())
        });
        let sampler = self.clone();
        let question = move |prior: &LabelPrior, asked: &Row| Question {
            prompt: asked[0].as_text().unwrap_or_default().to_string(),
            draws: sampler.draws(prior, &asked[1], &Row(asked[2..].into())),
        };
        let kernel = ChooseLabels {
            model: model.clone(),
            name: format!("seed {}", self.seed),
            temperature: self.temperature,
            count: usize::try_from(self.candidates).unwrap_or(usize::MAX),
            question,
        };
        let answers = graph.infer_with("answers", requests, &model.artifacts(&[prior.leaf()]), kernel);
        graph.join("", prompts, answers, move |key, prompt, answer, out| {
            out.push((key.clone(), Row::from([prompt[at.recent].clone(), answer[0].clone()])));
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
            clicks: vec![1; 3],
        };
        assert_eq!(allowed(&prior, &[Value::text("Drama")]), [false, true, true]);
        assert_eq!(allowed(&prior, &[Value::text("Drama"), Value::text("War")]), [false; 3]);
        assert_eq!(allowed(&prior, &[]), [true; 3]);
    }
}
