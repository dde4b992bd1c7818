//! Training the relevance model: what users click wins against what they might have clicked
//! (CoEA eq. 12 and 14), or rates that all of them together gave (Google-v1 4.1).
//!
//! All labels are scored in one pass, so the pairwise loss need not draw its negatives: it is the
//! expectation over them, exactly. They are labels in proportion to their clicks, because a model that
//! tells clicked labels from any label learns first of all what is popular; who wants that says so. Where a
//! source knows what was shown and not clicked, that is better; MovieLens does not. What was shown also has rates,
//! and a model of them says by itself how good a label is, where pairs only say which one is better.

mod bootstrap;
mod feedback;
mod pairwise;
mod parameters;
mod pointwise;

pub use self::parameters::{Negatives, Weights};

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::{
    feedback::{PassedOver, Rates},
    pairwise::{Judges, Reward},
    pointwise::Pointwise,
};
use crate::{
    asked::Examples,
    label_policy::fit_prior,
    next_clicks::{Targets, Which, Wired, wire},
    operator::{Described, Inputs, Operator, Problem, Problems},
    prompt_builder::{read_template, render},
    replay::PromptRecipe,
    schema::Schema,
    served::ModelVersion,
    sft_trainer::{held_out, is_not},
    shape::{CallError, Graph, LeafId, Watch},
    template::Template,
    tuning::{
        gate::Gate,
        held_out::HeldOut,
        trainer::Trainer,
        training::Training,
        version::{Given, Job, figures_schema, known},
    },
};

/// Trains a relevance model on clicks against other labels, or on the rates of what was shown.
///
/// Inputs: the source of events, the category_map whose labels are judged, the prompt_builder
/// that serves, and for `objective: pointwise` and `negatives: exposures` a feedback_aggregator. The node
/// names the model in `updates`; scorers that ask it then ask the trained one.
///
/// Its rows are the figures of training: by step and name. `pairwise`: `held_out` is the share of pairs
/// that are ranked rightly, of a click of users who were kept out and a label it is compared with; beside it
/// stand counting and the untuned model, by how much each is beaten (`over`), between which bounds that lies
/// with 95% if other users were drawn (`low`, `high`), and all of it for novel clicks alone; and so do
/// placebos, the same model told of `other_groups` or `other_recents`.
/// `pointwise`: `held_out` is the mean log-likelihood of the rates after interests that were kept out,
/// `held_out_most` what is possible at most; `held_out_calibration` how far rates lie from what was said,
/// by tenths; `held_out_f1` and `held_out_ndcg` compare the order of candidates with that of their
/// rates. Beside each stand the untuned model's, and what counting makes of it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewardTrainer {
    /// The relevance template: the scorer's.
    pub template: PathBuf,
    /// What it is trained towards.
    #[serde(default)]
    pub objective: Aim,
    /// Pairwise: which clicks are learnt from; all if absent.
    #[serde(default)]
    pub targets: Option<Targets>,
    /// Pairwise, required: the newest events of each user, which are learnt from. No more than the
    /// `exclude_last` of the long-term side: groups and profiles must not have seen them.
    #[serde(default)]
    pub last: Option<u64>,
    /// Pairwise: events a user needs before one that is learnt from; 2 if absent.
    #[serde(default)]
    pub min_history: Option<u64>,
    /// Pairwise: what a clicked label is compared with; `clicks` if absent.
    #[serde(default)]
    pub negatives: Option<Negatives>,
    /// Pointwise: what a pair of interests and candidate counts; `exposures` if absent.
    #[serde(default)]
    pub weights: Option<Weights>,
    /// Pointwise: how many labels are served, for F1 and NDCG; 5 if absent.
    #[serde(default)]
    pub serve: Option<u64>,
    /// What is kept out of training, for the figures `held_out`: this share of the users, or with
    /// `pointwise` of the sets of recent interests; with `choose_every` half of it is for the figures.
    #[serde(default = "held_out")]
    pub held_out: f64,
    /// Whether training goes on from the version in use, instead of from the model as it is; in cycles only.
    #[serde(default, skip_serializing_if = "is_not")]
    pub continues: bool,
    /// What a version must keep to be put in use, in cycles only: bounds (`least`, `most`) of its figures of
    /// what was kept out: `held_out`, with `pairwise` by how much it is better than what it is held against
    /// (`held_out_over_untuned`, and with `_low` the lower end of the interval; `held_out_novel_…` of novel
    /// clicks; untuned is what training began at, with `continues: true` the version in use), with `pointwise` also `held_out_f1`, `held_out_ndcg` and `held_out_calibration`.
    #[serde(default, skip_serializing_if = "Gate::is_open")]
    pub gate: Gate,
    /// How it is trained.
    #[serde(default)]
    pub training: Training,
}

/// What a relevance model is trained towards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Aim {
    /// A label that was clicked has a higher reward than others. Scores are win rates.
    #[default]
    Pairwise,
    /// The sigmoid of a label's reward is its rate, `normalised` as the feedback_aggregator says it: scores
    /// with `normalise: sigmoid` mean something by themselves.
    Pointwise,
}

/// What was checked: the place of the item in an event, the template and its digest.
struct Parts {
    item: usize,
    template: Template,
    digest: String,
}

impl RewardTrainer {
    fn which(&self) -> Which {
        let RewardTrainer { targets, last, min_history, .. } = *self;
        Which {
            targets: targets.unwrap_or(Targets::All),
            last: last.unwrap_or(1),
            min_history: min_history.unwrap_or_else(crate::sft_trainer::min_history),
            masked: false,
            held_out: HeldOut::new(self.held_out, &self.training),
        }
    }

    fn parts(&self, inputs: &Inputs<'_>) -> Result<Parts, Vec<Problem>> {
        let mut problems = Problems::default();
        self.training.check("training", self.held_out).into_iter().for_each(|problem| problems.push(problem));
        self.check_parameters(&mut problems);
        let cycles = inputs.updates.is_some_and(|model| model.version.is_some());
        problems.require(!self.continues || cycles, || {
            Problem::with("continues", "goes with `refit: { when: cycle }` only")
        });
        let gate = self.gate.check_held_out(&self.gated(), self.held_out, cycles);
        gate.into_iter().for_each(|problem| problems.push(problem));
        let first = &inputs.inputs[..inputs.inputs.len().min(3)];
        let item = self.which().check(&Inputs { inputs: first, ..*inputs }, &mut problems);
        if self.objective == Aim::Pairwise && self.last.is_some() {
            self.which().check_unseen(inputs, &mut problems);
        }
        if self.reads_feedback() {
            problems.take(inputs.at_most(4));
            feedback::check(inputs, &mut problems);
        } else if let Some(extra) = inputs.inputs.get(3) {
            let remedy = "say `objective: pointwise` or `negatives: exposures`, or remove it";
            problems.push(Problem::input(3, format!("nothing is learnt from `{}`", extra.name)).help(remedy));
        }
        let template = problems.take(read_template(inputs, "template", &self.template));
        let digest = inputs.files.borrow().get(&self.template).cloned().unwrap_or_default();
        problems.finish(item.zip(template).map(|(item, template)| Parts { item, template, digest }))
    }

    /// The examples, with the relations they are made of and what else decides them.
    fn examples(
        &self,
        Wired { clicks, mut relations, logic, .. }: Wired,
        recipe: PromptRecipe,
        inputs: &Inputs<'_>,
    ) -> (Box<dyn Examples>, Vec<LeafId>, String) {
        let feedback = inputs.inputs.get(3).map(|feedback| feedback.leaf);
        match (self.objective, feedback) {
            (Aim::Pointwise, feedback) => {
                let given = [recipe.groups.0, recipe.profiles.0].into_iter().chain(feedback).collect();
                let weigh = self.weights.unwrap_or_default().of();
                let held_out = HeldOut::new(self.held_out, &self.training);
                let logic = recipe.logic.clone();
                (Box::new(Rates { recipe, weigh, held_out }), given, logic)
            }
            (Aim::Pairwise, Some(feedback)) => {
                relations.push(feedback);
                (Box::new(PassedOver { clicks }), relations, logic)
            }
            (Aim::Pairwise, None) => (Box::new(clicks), relations, logic),
        }
    }
}

impl Operator for RewardTrainer {
    fn output(&self, inputs: &Inputs<'_>) -> Result<Schema, Vec<Problem>> {
        self.parts(inputs)?;
        Ok(figures_schema())
    }

    fn updated_kinds(&self) -> &'static [&'static str] {
        &["reward_model"]
    }

    fn build(&self, inputs: &Inputs<'_>, graph: &mut Graph) -> LeafId {
        let (Ok(Parts { item, template, digest }), Ok(model)) = (self.parts(inputs), inputs.updated()) else {
            unreachable!("checked by output")
        };
        let Some(mut recipe) = graph.recipe_of(&inputs.inputs[2].name).cloned() else {
            unreachable!("the third input is a prompt_builder")
        };
        let neutral = render(&template, "", "", &[]).unwrap_or_default();
        (recipe.template, recipe.logic) = (template, digest);
        let own = recipe.clone();
        let wired =
            wire(self.which(), item, [0, 1, 2].map(|at| &inputs.inputs[at]), graph, |recipe| *recipe = own);
        let prior = fit_prior(graph, wired.labels, model.clone(), neutral);
        let (examples, relations, logic) = self.examples(wired, recipe, inputs);
        let temperature = inputs.updates.map_or(1.0, |model| model.temperature);
        let parameters = serde_json::to_string(self).unwrap_or_default();
        let logic = format!("reward_trainer/3 {} {parameters} {logic}", model.digest());
        let logic = if temperature == 1.0 { logic } else { format!("{logic} at {temperature}") };
        let (model, training) = (model.clone(), self.training.clone());
        let parameters = serde_json::to_value(self).unwrap_or_default();
        let job = Job { operator: RewardTrainer::NAME, examples, model, training, parameters };
        let served = usize::try_from(self.serve.unwrap_or(SERVED)).unwrap_or(usize::MAX);
        let first = (inputs.updates.and_then(|model| model.version), self.continues);
        let (negatives, gate) = (self.negatives.unwrap_or_default(), self.gate.clone());
        match self.objective {
            Aim::Pairwise => job.build(graph, &relations, prior, logic, first, move |given, watch| {
                pairs((negatives, temperature, &gate), given, watch)
            }),
            Aim::Pointwise => job.build(graph, &relations, prior, logic, first, move |given, watch| {
                rates((served, temperature, &gate), given, watch)
            }),
        }
    }
}

/// Labels that are served, unless it is said otherwise: as many as a sink serves.
const SERVED: u64 = 5;

impl Described for RewardTrainer {
    const NAME: &'static str = "reward_trainer";
    const EXAMPLE: &'static str = include_str!("examples/reward_trainer.yaml");
}

fn pairs(
    (negatives, temperature, gate): (Negatives, f64, &Gate),
    given: Given<'_>,
    watch: &mut dyn Watch,
) -> Result<ModelVersion, CallError> {
    let Given { making, prior, trie, start, examples: [train, held, choose] } = given;
    let judges = Judges::new(&held, prior, negatives, making.training.seed);
    let counts = train.clone();
    let [train, judged, choose] = [train, held.clone(), choose]
        .map(|examples| Reward::new(trie, prior, negatives, temperature, examples));
    let judge = |trainer: &Trainer<'_>, before: &[f32], after: &[f32]| {
        let [before, after] = judged.all_rewards(trainer, [before, after])?;
        Ok(judges.figures(before, after, &counts))
    };
    making.version([&train, &choose], start, (&judge, gate), watch)
}

fn rates(
    (serve, temperature, gate): (usize, f64, &Gate),
    given: Given<'_>,
    watch: &mut dyn Watch,
) -> Result<ModelVersion, CallError> {
    let Given { making, prior, trie, start, examples } = given;
    let [train, held, choose] =
        examples.each_ref().map(|examples| Pointwise::new(trie, prior, temperature, examples));
    let judge = |trainer: &Trainer<'_>, before: &[f32], after: &[f32]| {
        let mut judged = held.figures("_counted", serve, &held.counted(&train));
        let [before, after] = held.judged(trainer, [before, after])?;
        judged.extend(held.figures("_untuned", serve, &before));
        judged.extend(held.figures("", serve, &after));
        judged.extend(known(&[("held_out_most", held.most())]));
        Ok(judged)
    };
    making.version([&train, &choose], start, (&judge, gate), watch)
}
