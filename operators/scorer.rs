//! The relevance model: how well candidates fit a key (CoEA eq. 13).
//!
//! The candidate stands last in the prompt, so one pass over the label trie scores every label: one
//! call per key, not one per candidate, and the call does not wait for the candidates. Until a
//! reward model is trained the score is zero-shot: the win rate against the other labels, prior
//! subtracted.

use std::{collections::BTreeSet, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    align::{scored, scored_categories},
    category_map::CategoryTable,
    choose_labels::ChooseLabels,
    choosing::Question,
    label_policy::{LabelPrior, ScoreLabels, even, fit_prior, label_domain, win_rates},
    llm_sampler::PROPOSED_BY,
    operator::{Described, Inputs, Operator, Problem, Problems},
    prompt_builder::{read_template, render},
    row::{Row, Value},
    schema::{Column, Schema},
    served::Served,
    shape::{Fitted, Graph, KernelError, LeafId},
    template::Template,
    tuning::loss::sigmoid,
};

/// Scores candidates by the relevance model; a score is from 0 to 1, an expected win rate by default.
///
/// Inputs: candidates by key, and the prompts whose keys they have.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scorer {
    /// The relevance template (minijinja), which sees `profile`, `group` and `recent`.
    pub template: PathBuf,
    /// What a candidate's win rate is over.
    #[serde(default)]
    pub against: Against,
    /// What a score says.
    #[serde(default)]
    pub normalise: Normalise,
}

/// What a score says, from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Normalise {
    /// How often the candidate wins against whom it is compared with: what `objective: pairwise` trains.
    #[default]
    WinRate,
    /// How far its reward is above the mean reward of whom it is compared with, through a sigmoid: above
    /// 0.5 is better than the mean.
    Centred,
    /// The sigmoid of its reward, compared with nobody: the rate itself, if the model was trained with
    /// `objective: pointwise`, and no more than an order of candidates otherwise.
    Sigmoid,
}

impl Normalise {
    /// The score of each label, of which each is compared with the others in proportion to their shares.
    fn of(self, rewards: &[f32], shares: &[f64]) -> Vec<f64> {
        let shifted = |by: f64| rewards.iter().map(|reward| sigmoid(f64::from(*reward) - by)).collect();
        match self {
            Normalise::WinRate => win_rates(rewards, shares),
            Normalise::Centred => {
                let sum: f64 = rewards.iter().zip(shares).map(|(r, share)| share * f64::from(*r)).sum();
                let all: f64 = shares.iter().sum();
                shifted(if all > 0.0 { sum / all } else { 0.0 })
            }
            Normalise::Sigmoid => shifted(0.0),
        }
    }
}

/// Whom candidates are compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Against {
    /// All other labels. One call per prompt, which does not wait for the candidates.
    #[default]
    Labels,
    /// All other labels, in proportion to their clicks: what a reward_trainer compares with, unless it says
    /// `negatives: labels`. A label that everybody clicks has to be better than others that everybody clicks.
    Clicked,
    /// The other candidates: for label sets of hundreds and more. The model looks at the candidates
    /// alone.
    Candidates,
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
        problems.require(self.normalise != Normalise::Sigmoid || self.against != Against::Clicked, || {
            Problem::with("against", "with `normalise: sigmoid` a candidate is compared with nobody")
                .help("remove it, or say `normalise: win_rate` or `centred`")
        });
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

/// The note of a relation of scored candidates that names the node which proposed them, where the relevance
/// of every label is known.
pub(crate) const CANDIDATES: &str = "candidates_of";

/// The name in a cell of name and score.
fn name(cell: &Value) -> Option<Value> {
    cell.as_list().and_then(|pair| pair.first()).cloned()
}

/// Name and score of a cell.
fn score(cell: &Value) -> Option<(Value, f32)> {
    let pair = cell.as_list()?;
    Some((pair.first()?.clone(), pair.get(1)?.as_f64()? as f32))
}

/// The candidates with the win rate that `scores` (label, rate) gives them.
fn rate(candidates: &[Value], scores: &[Value]) -> Vec<Value> {
    let rate_of =
        |candidate: &Value| scores.iter().find(|cell| name(cell).as_ref() == Some(candidate)).cloned();
    candidates.iter().filter_map(name).filter_map(|candidate| rate_of(&candidate)).collect()
}

impl Operator for Scorer {
    fn output(&self, inputs: &Inputs<'_>) -> Result<Schema, Vec<Problem>> {
        let parts = self.parts(inputs)?;
        let novel = &inputs.inputs[0].schema;
        let column = Column::new("scored", scored_categories()).of(&parts.labels);
        let schema = Schema::new(novel.key.clone(), [novel.columns[parts.recent].clone(), column]);
        if self.against == Against::Candidates || !novel.notes.contains_key(PROPOSED_BY) {
            return Ok(schema);
        }
        // Whoever makes pairs of this wants to know what was proposed, and what prompts were made of.
        let passed = novel.notes.iter().chain(inputs.inputs[1].schema.notes.get_key_value("recents_of"));
        let schema = schema.with_note(CANDIDATES, &inputs.inputs[0].name);
        Ok(passed.fold(schema, |schema, (note, text)| schema.with_note(note, text)))
    }

    fn model_kinds(&self) -> &'static [&'static str] {
        &["language_model", "reward_model"]
    }

    fn build(&self, inputs: &Inputs<'_>, graph: &mut Graph) -> LeafId {
        let (Ok(parts), Ok(model)) = (self.parts(inputs), inputs.served()) else {
            unreachable!("checked by output")
        };
        let Some(labels) = graph.labels_of::<CategoryTable>(&parts.labels) else {
            unreachable!("the candidates' domain is a category_map")
        };
        let neutral = render(&parts.template, "", "", &[]).unwrap_or_default();
        let prior = fit_prior(graph, labels, model.base().clone(), neutral);
        let asked = [0, 1].map(|at| inputs.inputs[at].leaf);
        let temperature = inputs.model.map_or(1.0, |model| model.temperature) as f32;
        let normalise = self.normalise;
        let rates = move |scores: &[f32], shares: &[f64]| {
            normalise.of(&scores.iter().map(|score| score / temperature).collect::<Vec<f32>>(), shares)
        };
        match self.against {
            Against::Labels => against_labels(parts, graph, asked, (labels, prior), &model, (false, rates)),
            Against::Clicked => against_labels(parts, graph, asked, (labels, prior), &model, (true, rates)),
            Against::Candidates => against_candidates(parts, graph, asked, prior, &model, rates),
        }
    }
}

impl Parts {
    /// The relevance prompt of a key.
    fn prompt(&self, key: &Row, row: &Row) -> Result<Value, KernelError> {
        let profile = row[self.profile].as_text().unwrap_or_default();
        let recent = row[self.prompt_recent].as_list().unwrap_or_default();
        let group = key[0].as_text().unwrap_or_default();
        Ok(Value::text(render(&self.template, group, profile, recent)?))
    }
}

/// What scores of labels say, of which each is compared with the others in proportion to their shares.
trait Rating: Fn(&[f32], &[f64]) -> Vec<f64> + Send + Sync + 'static {}

impl<F: Fn(&[f32], &[f64]) -> Vec<f64> + Send + Sync + 'static> Rating for F {}

fn against_labels(
    parts: Parts,
    graph: &mut Graph,
    [novel, prompts]: [LeafId; 2],
    (labels, prior): (Fitted<CategoryTable>, Fitted<LabelPrior>),
    model: &Served,
    (clicked, rates): (bool, impl Rating),
) -> LeafId {
    let Parts { recent, candidates, .. } = parts;
    let requests = graph.map("requests", prompts, move |key, row, out| {
        out.push((key.clone(), Row::from([parts.prompt(key, row)?])));
        Ok(())
    });
    let answers =
        graph.infer_with("answers", requests, &model.artifacts(&[labels.leaf()]), ScoreLabels(model.clone()));
    // By key, every label with its rate: what pairs are made of.
    let rates = graph.map_with("rates", answers, prior, move |prior, key, row, out| {
        let scores = prior.scores(&row[0].as_floats().ok_or("an answer is not a vector")?);
        let shares = if clicked { prior.shares() } else { even(scores.len()) };
        let rates = rates(&scores, &shares);
        let cells = prior.labels.iter().zip(rates).map(|(name, rate)| scored(Value::text(name), rate));
        out.push((key.clone(), Row::from([Value::list(cells)])));
        Ok(())
    });
    graph.publish_rates(rates);
    graph.join("", novel, rates, move |key, novel, rates, out| {
        let scored =
            rate(novel[candidates].as_list().unwrap_or_default(), rates[0].as_list().unwrap_or_default());
        out.push((key.clone(), Row::from([novel[recent].clone(), Value::list(scored)])));
    })
}

fn against_candidates(
    parts: Parts,
    graph: &mut Graph,
    [novel, prompts]: [LeafId; 2],
    prior: Fitted<LabelPrior>,
    model: &Served,
    rates: impl Rating,
) -> LeafId {
    let Parts { recent, candidates, .. } = parts;
    let relevance = graph.map("relevance_prompts", prompts, move |key, row, out| {
        out.push((key.clone(), Row::from([parts.prompt(key, row)?])));
        Ok(())
    });
    let requests = graph.join("requests", novel, relevance, move |key, novel, prompt, out| {
        let names = novel[candidates].as_list().unwrap_or_default().iter().filter_map(name);
        out.push((key.clone(), Row::from([prompt[0].clone(), Value::list(names)])));
    });
    let question = |prior: &LabelPrior, asked: &Row| {
        let names: BTreeSet<&str> =
            asked[1].as_list().unwrap_or_default().iter().filter_map(Value::as_text).collect();
        let draw = |label: &String| if names.contains(label.as_str()) { 0.0 } else { f64::NEG_INFINITY };
        Question {
            prompt: asked[0].as_text().unwrap_or_default().to_string(),
            draws: prior.labels.iter().map(draw).collect(),
        }
    };
    let (name, artifacts) = ("candidates".to_string(), model.artifacts(&[prior.leaf()]));
    let kernel = ChooseLabels { model: model.clone(), name, temperature: 0.0, count: usize::MAX, question };
    let answers = graph.infer_with("answers", requests, &artifacts, kernel);
    graph.join("", novel, answers, move |key, novel, answer, out| {
        let scores: Vec<(Value, f32)> =
            answer[0].as_list().unwrap_or_default().iter().filter_map(score).collect();
        let rates = rates(&scores.iter().map(|(_, score)| *score).collect::<Vec<f32>>(), &even(scores.len()));
        let rates: Vec<Value> =
            scores.into_iter().zip(rates).map(|((name, _), rate)| scored(name, rate)).collect();
        let scored = rate(novel[candidates].as_list().unwrap_or_default(), &rates);
        out.push((key.clone(), Row::from([novel[recent].clone(), Value::list(scored)])));
    })
}

impl Described for Scorer {
    const NAME: &'static str = "scorer";
    const EXAMPLE: &'static str = include_str!("examples/scorer.yaml");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_say_what_was_asked() {
        let rewards = [0.5f32, -1.0, 2.0];
        let close = |found: Vec<f64>, expected: [f64; 3]| {
            found.iter().zip(expected).for_each(|(found, expected)| assert!((found - expected).abs() < 1e-6));
        };
        close(Normalise::WinRate.of(&rewards, &even(3)), [0.5, 0.114_926, 0.885_074]);
        close(Normalise::Centred.of(&rewards, &even(3)), [0.5, 0.182_426, 0.817_574]);
        close(Normalise::Centred.of(&rewards, &[0.5, 0.5, 0.0]), [0.679_179, 0.320_821, 0.904_651]);
        close(Normalise::Sigmoid.of(&rewards, &even(3)), [0.622_459, 0.268_941, 0.880_797]);
    }

    #[test]
    fn candidates_keep_their_order_and_take_their_rates() {
        let cell = |name: &str, score| scored(Value::text(name), score);
        let rated =
            rate(&[cell("b", -1.0), cell("a", -2.0)], &[cell("a", 0.1), cell("b", 0.9), cell("c", 0.5)]);
        assert_eq!(rated, [cell("b", 0.9), cell("a", 0.1)]);
    }
}
