//! Supervised tuning of the novelty model: what users clicked next, as serving would have asked
//! (CoEA eq. 8 and 9).
//!
//! An example is a prompt as it stood just before a click, and the label of that click. Recent
//! interests are those of that time; group and profile are as they were fitted, so an event that is
//! predicted must be newer than what they were fitted on: `last` is at most what the long-term side
//! leaves out. Equal prompts are one example, whose target is the share of each label: the gradient
//! is the same and the network runs once.

mod objective;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::objective::Sft;
use crate::{
    asked::{Asked, Prompted},
    label_policy::{Before, fit_prior_before},
    next_clicks::{Targets, Which, Wired, wire},
    operator::{Described, Inputs, Operator, Problem, Problems},
    schema::Schema,
    served::ModelVersion,
    shape::{CallError, Graph, LeafId, Watch},
    tuning::{
        baselines::{Baseline, Click, Kind, NaiveBayes},
        gate::Gate,
        held_out::HeldOut,
        placebo::{Swapped, others},
        trainer::{Figures, Trainer},
        training::Training,
        version::{Given, Job, figures_schema, known},
    },
};

/// Tunes a novelty model on the labels that users clicked next.
///
/// Inputs: the source of events, the category_map whose labels are predicted, and the prompt_builder
/// that serves. The node names the model in `updates`; all nodes that ask it then ask the tuned one.
///
/// Its rows are the figures of training: by step and name. `held_out` is the mean log-likelihood of what was
/// clicked by users who were kept out, `held_out_untuned` that of the model that training began at; `held_out_markov` and
/// `held_out_popularity` are what counting makes of the same examples, by recent interests and by group, and
/// `held_out_naive_bayes` by both together; `held_out_over_untuned` and so on are the differences.
/// `held_out_other_recents` and `held_out_other_groups` are placebos: the model is told of others.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SftTrainer {
    /// Which clicks are predicted.
    #[serde(default)]
    pub targets: Targets,
    /// The newest events of each user, which are predicted. No more than the `exclude_last` of the
    /// long-term side: groups and profiles must not have seen them.
    pub last: u64,
    /// Events a user needs before one that is predicted.
    #[serde(default = "min_history")]
    pub min_history: u64,
    /// Share of the users who are kept out of training, for the figures `held_out`; with `choose_every` of half
    /// of them.
    #[serde(default = "held_out")]
    pub held_out: f64,
    /// Temperature of the policy that is trained: that of the sampler that serves. An untuned model is
    /// far too sure of itself at 1.
    #[serde(default = "one")]
    pub temperature: f64,
    /// How often labels are drawn where a prompt says nothing: as in the sampler that serves.
    #[serde(default)]
    pub prior: Before,
    /// So many imagined clicks join those after each prompt that is trained on, spread as its group's and its
    /// interests' clicks say together (naive Bayes). With few clicks a prompt, what is learnt is otherwise chance.
    #[serde(default, skip_serializing_if = "none")]
    pub smoothing: f64,
    /// Whether training goes on from the version in use, instead of from the model as it is; in cycles only.
    #[serde(default, skip_serializing_if = "is_not")]
    pub continues: bool,
    /// What a version must keep to be put in use, in cycles only: bounds (`least`, `most`) of its figures
    /// `held_out`, `held_out_over_untuned`, `held_out_over_markov`, `held_out_over_popularity`,
    /// `held_out_over_naive_bayes`. Untuned is what training began at: with `continues: true` the version in use.
    #[serde(default, skip_serializing_if = "Gate::is_open")]
    pub gate: Gate,
    /// How it is trained.
    #[serde(default)]
    pub training: Training,
}

/// Whether there is nothing to smooth with, so that it need not be written.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde asks for")]
fn none(clicks: &f64) -> bool {
    *clicks == 0.0
}

/// Whether a flag is not set, so that it need not be written.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde asks for")]
pub(crate) fn is_not(flag: &bool) -> bool {
    !flag
}

pub(crate) fn one() -> f64 {
    1.0
}

pub(crate) fn min_history() -> u64 {
    2
}

pub(crate) fn held_out() -> f64 {
    0.1
}

impl SftTrainer {
    fn which(&self) -> Which {
        let SftTrainer { targets, last, min_history, .. } = *self;
        let held_out = HeldOut::new(self.held_out, &self.training);
        Which { targets, last, min_history, masked: true, held_out }
    }

    /// The place of the item in an event.
    fn parts(&self, inputs: &Inputs<'_>) -> Result<usize, Vec<Problem>> {
        let mut problems = Problems::default();
        self.training.check("training", self.held_out).into_iter().for_each(|problem| problems.push(problem));
        problems.require(self.temperature > 0.0 && self.temperature.is_finite(), || {
            Problem::with("temperature", "must be a positive number")
        });
        problems.require(self.smoothing >= 0.0 && self.smoothing.is_finite(), || {
            Problem::with("smoothing", "must be a finite number from 0 up")
        });
        let cycles = inputs.updates.is_some_and(|model| model.version.is_some());
        problems.require(!self.continues || cycles, || {
            Problem::with("continues", "goes with `refit: { when: cycle }` only")
        });
        let gate = self.gate.check_held_out(&GATED, self.held_out, cycles);
        gate.into_iter().for_each(|problem| problems.push(problem));
        let item = self.which().check(inputs, &mut problems);
        self.which().check_unseen(inputs, &mut problems);
        problems.finish(item)
    }
}

impl Operator for SftTrainer {
    fn output(&self, inputs: &Inputs<'_>) -> Result<Schema, Vec<Problem>> {
        self.parts(inputs)?;
        Ok(figures_schema())
    }

    fn updated_kinds(&self) -> &'static [&'static str] {
        &["language_model"]
    }

    fn build(&self, inputs: &Inputs<'_>, graph: &mut Graph) -> LeafId {
        let (Ok(item), Ok(model)) = (self.parts(inputs), inputs.updated()) else {
            unreachable!("checked by output")
        };
        let given = [0, 1, 2].map(|at| &inputs.inputs[at]);
        let Wired { clicks, labels, relations, logic } = wire(self.which(), item, given, graph, |_| ());
        let neutral = inputs.inputs[2].schema.notes.get("neutral_prompt").cloned().unwrap_or_default();
        let before = (self.prior, self.temperature);
        let prior = fit_prior_before(graph, labels, model.clone(), neutral, before);
        let parameters = serde_json::to_string(self).unwrap_or_default();
        let logic = format!("sft_trainer/2 {} {parameters} {logic}", model.digest());
        let (model, training) = (model.clone(), self.training.clone());
        let parameters = serde_json::to_value(self).unwrap_or_default();
        let (operator, examples) = (SftTrainer::NAME, Box::new(clicks));
        let job = Job { operator, examples, model, training, parameters };
        let how = self.clone();
        let first = inputs.updates.and_then(|model| model.version);
        job.build(graph, &relations, prior, logic, (first, self.continues), move |given, watch| {
            train(given, &how, watch)
        })
    }
}

impl Described for SftTrainer {
    const NAME: &'static str = "sft_trainer";
    const EXAMPLE: &'static str = include_str!("examples/sft_trainer.yaml");
}

/// The figures that a gate may bound.
const GATED: [&str; 5] = [
    "held_out",
    "held_out_over_untuned",
    "held_out_over_markov",
    "held_out_over_popularity",
    "held_out_over_naive_bayes",
];

/// By how much a model is better than what it is held against.
fn over(judged: &Figures) -> Figures {
    let own = judged.get("held_out").copied();
    let over = |name: &&str| {
        let other = judged.get(&name.replace("over_", ""))?;
        Some((name.to_string(), own? - other))
    };
    GATED[1..].iter().filter_map(over).collect()
}

/// What counting makes of users who were kept out.
fn counted(train: &[Click<'_>], held: &[Click<'_>], both: &NaiveBayes) -> Figures {
    let of = |kind: Kind| Baseline::fit(kind, train).log_likelihood(held);
    known(&[
        ("held_out_markov", of(Kind::Markov)),
        ("held_out_popularity", of(Kind::GroupPopularity)),
        ("held_out_naive_bayes", both.log_likelihood(held)),
    ])
}

/// Joins so many imagined clicks to those after each prompt, as `both` spreads them; what a prompt counts
/// does not change.
fn smooth(examples: &mut Prompted, clicks: f64, both: &NaiveBayes) {
    for asked in examples.values_mut() {
        let (chances, all) = (both.chances(&asked.click()), asked.clicked.iter().sum::<f64>());
        let join = |(own, chance): (&mut f64, f64)| *own = all * (*own + clicks * chance) / (all + clicks);
        asked.clicked.iter_mut().zip(chances).for_each(join);
    }
}

fn train(given: Given<'_>, how: &SftTrainer, watch: &mut dyn Watch) -> Result<ModelVersion, CallError> {
    let (temperature, gate) = (how.temperature, &how.gate);
    let Given { making, prior, trie, start, examples: [mut train, held, choose] } = given;
    let clicks: Vec<Click<'_>> = train.values().map(Asked::click).collect();
    let contexts: Vec<Click<'_>> = held.values().map(Asked::click).collect();
    let both = NaiveBayes::fit(&clicks);
    let counted = counted(&clicks, &contexts, &both);
    let swapped = Swapped::ALL.map(|(swapped, name)| (name, others(&contexts, swapped)));
    smooth(&mut train, how.smoothing, &both);
    let [train, held, choose] =
        [train, held, choose].map(|examples| Sft::new(trie, prior, temperature, examples));
    let judge = |trainer: &Trainer<'_>, before: &[f32], after: &[f32]| {
        let [before, after] = held.scores(trainer, [before, after])?;
        let of = |scores: &[Vec<f64>]| held.log_likelihood(scores);
        let mut judged = known(&[("held_out_untuned", of(&before)), ("held_out", of(&after))]);
        judged.extend(counted.clone());
        judged.extend(over(&judged));
        let placebo = |(name, others): &(&str, Vec<Vec<usize>>)| {
            Some((format!("held_out_{name}"), held.placebo(&after, others)?))
        };
        judged.extend(swapped.iter().filter_map(placebo));
        Ok(judged)
    };
    making.version([&train, &choose], start, (&judge, gate), watch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imagined_clicks_move_what_is_wanted_and_not_what_it_counts() {
        let asked = |group: &str, clicked: [f64; 2]| Asked {
            group: group.to_string(),
            recent: vec![],
            allowed: vec![true; 2],
            clicked: clicked.to_vec(),
            passed_over: vec![],
            by: vec![],
        };
        let examples = [("p", asked("a", [30.0, 10.0])), ("q", asked("b", [1.0, 0.0]))];
        let examples = Prompted::from(examples.map(|(prompt, asked)| (prompt.to_string(), asked)));
        let clicks: Vec<Click<'_>> = examples.values().map(Asked::click).collect();
        let both = NaiveBayes::fit(&clicks);
        let [p, q] = ["p", "q"].map(|prompt| both.chances(&examples[prompt].click())[0]);
        assert!(q < 0.9, "a single click is no certainty: {q}");
        let smoothed = |clicks: f64| {
            let mut examples = examples.clone();
            smooth(&mut examples, clicks, &both);
            ["p", "q"].map(|prompt| examples[prompt].clicked.clone())
        };
        assert_eq!(smoothed(0.0), [vec![30.0, 10.0], vec![1.0, 0.0]]);
        let [of_p, of_q] = smoothed(40.0);
        assert!(
            (of_p.iter().sum::<f64>() - 40.0).abs() < 1e-9 && (of_q.iter().sum::<f64>() - 1.0).abs() < 1e-9
        );
        assert!((of_p[0] - 40.0 * (30.0 + 40.0 * p) / 80.0).abs() < 1e-9, "{of_p:?}");
        assert!((of_q[0] - (1.0 + 40.0 * q) / 41.0).abs() < 1e-9, "{of_q:?}");
    }
}
