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
    label_policy::{Before, fit_prior_before},
    next_clicks::{Asked, Prompted, Targets, Which, Wired, wire},
    operator::{Described, Inputs, Operator, Problem, Problems},
    schema::Schema,
    served::ModelVersion,
    shape::{CallError, Graph, LeafId, Watch},
    tuning::{
        baselines::{Baseline, Click, Kind},
        gate::Gate,
        placebo::{Swapped, others},
        trainer::Trainer,
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
/// clicked by users who were kept out, `held_out_untuned` that of the model before; `held_out_markov` and
/// `held_out_popularity` are what counting makes of the same examples, by recent interests and by group.
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
    /// Share of the users who are kept out of training, for the figures `held_out`.
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
        let SftTrainer { targets, last, min_history, held_out, .. } = *self;
        Which { targets, last, min_history, masked: true, held_out, seed: self.training.seed }
    }

    /// The place of the item in an event.
    fn parts(&self, inputs: &Inputs<'_>) -> Result<usize, Vec<Problem>> {
        let mut problems = Problems::default();
        self.training.check("training").into_iter().for_each(|problem| problems.push(problem));
        problems.require(self.temperature > 0.0 && self.temperature.is_finite(), || {
            Problem::with("temperature", "must be a positive number")
        });
        problems
            .require(!self.continues || inputs.updates.is_some_and(|model| model.version.is_some()), || {
                Problem::with("continues", "goes with `refit: { when: cycle }` only")
            });
        let item = self.which().check(inputs, &mut problems);
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
        let logic = format!("sft_trainer/1 {} {parameters} {logic}", model.digest());
        let (model, training) = (model.clone(), self.training.clone());
        let job = Job { operator: SftTrainer::NAME, examples: Box::new(clicks), model, training };
        let temperature = self.temperature;
        let first = inputs.updates.and_then(|model| model.version);
        job.build(graph, &relations, prior, logic, (first, self.continues), move |given, watch| {
            train(given, temperature, watch)
        })
    }
}

impl Described for SftTrainer {
    const NAME: &'static str = "sft_trainer";
    const EXAMPLE: &'static str = include_str!("examples/sft_trainer.yaml");
}

/// What counting makes of users who were kept out.
fn counted(train: &Prompted, held: &Prompted) -> [(&'static str, Option<f64>); 2] {
    let [train, held] = [train, held].map(|of| of.values().map(Asked::click).collect::<Vec<Click<'_>>>());
    let of = |kind: Kind| Baseline::fit(kind, &train).log_likelihood(&held);
    [("held_out_markov", of(Kind::Markov)), ("held_out_popularity", of(Kind::GroupPopularity))]
}

fn train(given: Given<'_>, temperature: f64, watch: &mut dyn Watch) -> Result<ModelVersion, CallError> {
    let Given { making, prior, trie, start, examples: [train, held] } = given;
    let counted = counted(&train, &held);
    let contexts: Vec<_> = held.values().map(Asked::click).collect();
    let swapped = Swapped::ALL.map(|(swapped, name)| (name, others(&contexts, swapped)));
    let [train, held] = [train, held].map(|examples| Sft::new(trie, prior, temperature, examples));
    let judge = |trainer: &Trainer<'_>, before: &[f32], after: &[f32]| {
        let [before, after] = [held.scores(trainer, before)?, held.scores(trainer, after)?];
        let of = |scores: &[Vec<f64>]| held.log_likelihood(scores);
        let mut judged = known(&[("held_out_untuned", of(&before)), ("held_out", of(&after))]);
        judged.extend(known(&counted));
        let placebo = |(name, others): &(&str, Vec<Vec<usize>>)| {
            Some((format!("held_out_{name}"), held.placebo(&after, others)?))
        };
        judged.extend(swapped.iter().filter_map(placebo));
        Ok(judged)
    };
    making.version(&train, start, (&judge, &Gate::default()), watch)
}
