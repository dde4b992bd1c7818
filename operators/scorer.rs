//! The relevance model: how well candidates fit a key (CoEA eq. 13).
//!
//! The candidate stands last in the prompt, so one pass over the label trie scores every label: one
//! call per key, not one per candidate, and the call does not wait for the candidates. Until a
//! reward model is trained the score is zero-shot: the win rate against the other labels, prior
//! subtracted.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    align::{scored, scored_categories},
    category_map::CategoryTable,
    label_policy::{ScoreLabels, fit_prior, label_domain, win_rates},
    operator::{Described, Inputs, Operator, Problem, Problems},
    prompt_builder::{read_template, render},
    row::{Row, Value},
    schema::{Column, Schema},
    shape::{Graph, LeafId},
    template::Template,
};

/// Scores candidates by the relevance model; a score is an expected win rate from 0 to 1.
///
/// Inputs: candidates by key, and the prompts whose keys they have.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scorer {
    /// The relevance template (minijinja), which sees `profile`, `group` and `recent`.
    pub template: PathBuf,
}

/// Places of the columns the scorer reads, its template, and the node that defines the labels.
struct Parts {
    recent: usize,
    candidates: usize,
    profile: usize,
    prompt_recent: usize,
    template: Template,
    labels: String,
}

impl Scorer {
    fn parts(&self, inputs: &Inputs<'_>) -> Result<Parts, Vec<Problem>> {
        let mut problems = Problems::default();
        problems.take(inputs.at_most(2));
        problems.take(inputs.language_model());
        let template = problems.take(read_template(inputs, "template", &self.template));
        let novel = problems.take(inputs.relation(0, "candidates by key"));
        let prompt = problems.take(inputs.relation(1, "prompts"));
        let parts = template.zip(novel.zip(prompt)).and_then(|(template, (novel, prompt))| {
            problems.require(novel.schema.key == prompt.schema.key, || {
                let (a, b) = (&novel.name, &prompt.name);
                Problem::input(1, format!("`{a}` and `{b}` have different keys"))
                    .help("name the prompts that the candidates were drawn for")
            });
            let candidates = problems.take(inputs.column(0, novel, "candidates"))?;
            Some(Parts {
                recent: problems.take(inputs.column(0, novel, "recent"))?,
                candidates,
                profile: problems.take(inputs.column(1, prompt, "profile"))?,
                prompt_recent: problems.take(inputs.column(1, prompt, "recent"))?,
                template,
                labels: problems.take(label_domain(inputs, 0, &novel.schema, "candidates"))?,
            })
        });
        problems.finish(parts)
    }
}

/// The candidates with the win rate that `scores` (label, rate) gives them.
fn rate(candidates: &[Value], scores: &[Value]) -> Vec<Value> {
    let first = |cell: &Value| cell.as_list().and_then(|pair| pair.first()).cloned();
    let rate_of = |name: &Value| scores.iter().find(|cell| first(cell).as_ref() == Some(name)).cloned();
    candidates.iter().filter_map(first).filter_map(|name| rate_of(&name)).collect()
}

impl Operator for Scorer {
    fn output(&self, inputs: &Inputs<'_>) -> Result<Schema, Vec<Problem>> {
        let parts = self.parts(inputs)?;
        let novel = &inputs.inputs[0].schema;
        let column = Column::new("scored", scored_categories()).of(&parts.labels);
        Ok(Schema::new(novel.key.clone(), [novel.columns[parts.recent].clone(), column]))
    }

    fn model_kinds(&self) -> &'static [&'static str] {
        &["language_model", "reward_model"]
    }

    fn build(&self, inputs: &Inputs<'_>, graph: &mut Graph) -> LeafId {
        let (Ok(parts), Ok(model)) = (self.parts(inputs), inputs.language_model()) else {
            unreachable!("checked by output")
        };
        let Some(labels) = graph.labels_of::<CategoryTable>(&parts.labels) else {
            unreachable!("the candidates' domain is a category_map")
        };
        let Parts { recent, candidates, profile, prompt_recent, template, .. } = parts;
        let neutral = render(&template, "", "", &[]).unwrap_or_default();
        let prior = fit_prior(graph, labels, model.clone(), neutral);
        let requests = graph.map("requests", inputs.inputs[1].leaf, move |key, row, out| {
            let profile = row[profile].as_text().unwrap_or_default();
            let recent = row[prompt_recent].as_list().unwrap_or_default();
            let group = key[0].as_text().unwrap_or_default();
            out.push((key.clone(), Row::from([Value::text(render(&template, group, profile, recent)?)])));
            Ok(())
        });
        let answers = graph.infer_with("answers", requests, labels, ScoreLabels(model.clone()));
        let rates = graph.map_with("rates", answers, prior, |prior, key, row, out| {
            let rates = win_rates(&prior.scores(&row[0].as_floats().ok_or("an answer is not a vector")?));
            let cells = prior.labels.iter().zip(rates).map(|(name, rate)| scored(Value::text(name), rate));
            out.push((key.clone(), Row::from([Value::list(cells)])));
            Ok(())
        });
        graph.join("", inputs.inputs[0].leaf, rates, move |key, novel, rates, out| {
            let scored =
                rate(novel[candidates].as_list().unwrap_or_default(), rates[0].as_list().unwrap_or_default());
            out.push((key.clone(), Row::from([novel[recent].clone(), Value::list(scored)])));
        })
    }
}

impl Described for Scorer {
    const NAME: &'static str = "scorer";
    const EXAMPLE: &'static str = include_str!("examples/scorer.yaml");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_keep_their_order_and_take_their_rates() {
        let cell = |name: &str, score| scored(Value::text(name), score);
        let rated =
            rate(&[cell("b", -1.0), cell("a", -2.0)], &[cell("a", 0.1), cell("b", 0.9), cell("c", 0.5)]);
        assert_eq!(rated, [cell("b", 0.9), cell("a", 0.1)]);
    }
}
