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
        baselines::{Baseline, Click, Kind},
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
/// `held_out_popularity` are what counting makes of the same examples, by recent interests and by group;
/// `held_out_over_untuned`, `held_out_over_markov` and `held_out_over_popularity` are the differences.
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
    /// Whether training goes on from the version in use, instead of from the model as it is; in cycles only.
    #[serde(default, skip_serializing_if = "is_not")]
    pub continues: bool,
    /// What a version must keep to be put in use, in cycles only: bounds (`least`, `most`) of its figures
    /// `held_out`, `held_out_over_untuned`, `held_out_over_markov`, `held_out_over_popularity`. Untuned is what
    /// training began at: with `continues: true` the version in use.
    #[serde(default, skip_serializing_if = "Gate::is_open")]
    pub gate: Gate,
    /// How it is trained.
    #[serde(default)]
    pub training: Training,
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
        let job = Job { operator: SftTrainer::NAME, examples: Box::new(clicks), model, training };
        let (temperature, gate) = (self.temperature, self.gate.clone());
        let first = inputs.updates.and_then(|model| model.version);
        job.build(graph, &relations, prior, logic, (first, self.continues), move |given, watch| {
            train(given, (temperature, &gate), watch)
        })
    }
}

impl Described for SftTrainer {
    const NAME: &'static str = "sft_trainer";
    const EXAMPLE: &'static str = include_str!("examples/sft_trainer.yaml");
}

/// The figures that a gate may bound.
const GATED: [&str; 4] =
    ["held_out", "held_out_over_untuned", "held_out_over_markov", "held_out_over_popularity"];

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
fn counted(train: &Prompted, held: &Prompted) -> [(&'static str, Option<f64>); 2] {
    let [train, held] = [train, held].map(|of| of.values().map(Asked::click).collect::<Vec<Click<'_>>>());
    let of = |kind: Kind| Baseline::fit(kind, &train).log_likelihood(&held);
    [("held_out_markov", of(Kind::Markov)), ("held_out_popularity", of(Kind::GroupPopularity))]
}

fn train(
    given: Given<'_>,
    (temperature, gate): (f64, &Gate),
    watch: &mut dyn Watch,
) -> Result<ModelVersion, CallError> {
    let Given { making, prior, trie, start, examples: [train, held, choose] } = given;
    let counted = counted(&train, &held);
    let contexts: Vec<_> = held.values().map(Asked::click).collect();
    let swapped = Swapped::ALL.map(|(swapped, name)| (name, others(&contexts, swapped)));
    let [train, held, choose] =
        [train, held, choose].map(|examples| Sft::new(trie, prior, temperature, examples));
    let judge = |trainer: &Trainer<'_>, before: &[f32], after: &[f32]| {
        let [before, after] = held.scores(trainer, [before, after])?;
        let of = |scores: &[Vec<f64>]| held.log_likelihood(scores);
        let mut judged = known(&[("held_out_untuned", of(&before)), ("held_out", of(&after))]);
        judged.extend(known(&counted));
        judged.extend(over(&judged));
        let placebo = |(name, others): &(&str, Vec<Vec<usize>>)| {
            Some((format!("held_out_{name}"), held.placebo(&after, others)?))
        };
        judged.extend(swapped.iter().filter_map(placebo));
        Ok(judged)
    };
    making.version([&train, &choose], start, (&judge, gate), watch)
}
