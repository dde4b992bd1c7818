//! Training the relevance model: what users click wins against what they might have clicked
//! (CoEA eq. 12 and 14).
//!
//! All labels are scored in one pass, so the pairwise loss need not draw its negatives: it is the
//! expectation over them, exactly. They are labels in proportion to their clicks, because a model that
//! tells clicked labels from any label learns what is popular and nothing else. Where a source knows
//! what was shown and not clicked, that would be better; MovieLens does not.

mod objective;

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::objective::{Reward, counted};
use crate::{
    label_policy::fit_prior,
    next_clicks::{Targets, Which, Wired, wire},
    operator::{Described, Inputs, Operator, Problems},
    prompt_builder::{read_template, render},
    schema::Schema,
    served::ModelVersion,
    sft_trainer::{held_out, min_history},
    shape::{CallError, Graph, LeafId, Watch},
    template::Template,
    tuning::{
        gate::Gate,
        trainer::Trainer,
        training::Training,
        version::{Given, Job, Start, figures_schema, known},
    },
};

/// Trains a relevance model on clicks against labels that are clicked as often elsewhere.
///
/// Inputs: the source of events, the category_map whose labels are judged, and the prompt_builder
/// that serves. The node names the model in `updates`; scorers that ask it then ask the trained one,
/// whose scores are win rates `against: clicked`. Its rows are the figures of training: by step and
/// name; `held_out` is the share of pairs of a click and such a label that are ranked rightly.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewardTrainer {
    /// The relevance template: the scorer's.
    pub template: PathBuf,
    /// Which clicks are learnt from.
    #[serde(default = "all")]
    pub targets: Targets,
    /// The newest events of each user, which are learnt from. No more than the `exclude_last` of the
    /// long-term side: groups and profiles must not have seen them.
    pub last: u64,
    /// Events a user needs before one that is learnt from.
    #[serde(default = "min_history")]
    pub min_history: u64,
    /// Share of the users who are kept out of training, for the figures `held_out`.
    #[serde(default = "held_out")]
    pub held_out: f64,
    /// How it is trained.
    #[serde(default)]
    pub training: Training,
}

fn all() -> Targets {
    Targets::All
}

impl RewardTrainer {
    fn which(&self) -> Which {
        let RewardTrainer { targets, last, min_history, held_out, .. } = *self;
        Which { targets, last, min_history, masked: false, held_out, seed: self.training.seed }
    }

    /// The place of the item in an event, the template and its digest.
    fn parts(&self, inputs: &Inputs<'_>) -> Result<(usize, Template, String), Vec<crate::operator::Problem>> {
        let mut problems = Problems::default();
        self.training.check("training").into_iter().for_each(|problem| problems.push(problem));
        let item = self.which().check(inputs, &mut problems);
        let template = problems.take(read_template(inputs, "template", &self.template));
        let digest = inputs.files.borrow().get(&self.template).cloned().unwrap_or_default();
        problems.finish(item.zip(template).map(|(item, template)| (item, template, digest)))
    }
}

impl Operator for RewardTrainer {
    fn output(&self, inputs: &Inputs<'_>) -> Result<Schema, Vec<crate::operator::Problem>> {
        self.parts(inputs)?;
        Ok(figures_schema())
    }

    fn updated_kinds(&self) -> &'static [&'static str] {
        &["reward_model"]
    }

    fn build(&self, inputs: &Inputs<'_>, graph: &mut Graph) -> LeafId {
        let (Ok((item, template, digest)), Ok(model)) = (self.parts(inputs), inputs.updated()) else {
            unreachable!("checked by output")
        };
        let neutral = render(&template, "", "", &[]).unwrap_or_default();
        let with = |recipe: &mut crate::replay::PromptRecipe| {
            recipe.template = template;
            recipe.logic = digest;
        };
        let given = [0, 1, 2].map(|at| &inputs.inputs[at]);
        let Wired { clicks, labels, relations, logic } = wire(self.which(), item, given, graph, with);
        let prior = fit_prior(graph, labels, model.clone(), neutral);
        let parameters = serde_json::to_string(self).unwrap_or_default();
        let logic = format!("reward_trainer/1 {} {parameters} {logic}", model.digest());
        let (model, training) = (model.clone(), self.training.clone());
        let job = Job { operator: RewardTrainer::NAME, clicks, model, training };
        let first = inputs.updates.and_then(|model| model.version);
        job.build(graph, &relations, prior, logic, first, train)
    }
}

impl Described for RewardTrainer {
    const NAME: &'static str = "reward_trainer";
    const EXAMPLE: &'static str = include_str!("examples/reward_trainer.yaml");
}

fn train(given: Given<'_>, watch: &mut dyn Watch) -> Result<ModelVersion, CallError> {
    let Given { making, prior, trie, examples: [train, held] } = given;
    let counted = counted(&prior.shares(), &train, &held);
    let [train, held] = [train, held].map(|examples| Reward::new(trie, prior, examples));
    let judge = |trainer: &Trainer<'_>, before: &[f32], after: &[f32]| {
        let of = |values| held.ranked(trainer, values);
        let mut judged = known(&[("held_out_untuned", of(before)?), ("held_out", of(after)?)]);
        judged.extend(known(&counted));
        Ok(judged)
    };
    making.version(&train, Start::default(), (&judge, &Gate::default()), watch)
}
