//! Supervised tuning of the novelty model: what users clicked next, as serving would have asked
//! (CoEA eq. 8 and 9).
//!
//! An example is a prompt as it stood just before a click, and the label of that click. Recent
//! interests are those of that time; group and profile are as they were fitted, so an event that is
//! predicted must be newer than what they were fitted on: `last` is at most what the long-term side
//! leaves out. Equal prompts are one example, whose target is the share of each label: the gradient
//! is the same and the network runs once.

mod examples;
mod objective;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use self::{
    examples::{Asked, Making, Prompted},
    objective::Sft,
};
use crate::{
    category_map::{CategoryTable, domain_of},
    chat::spoken,
    click_filter::item_place,
    label_policy::{LabelPrior, fit_prior},
    language_model::LanguageModel,
    lm::{LabelTrie, LmError, LocalModel, Lora},
    operator::{Described, Inputs, Operator, Problem, Problems},
    row::{Row, Value},
    schema::{Column, Schema, Type},
    served::{ModelVersion, VERSION},
    shape::{CallError, Graph, LeafId, Loaded, Shape, Snapshot, Watch, present},
    tuning::{
        baselines::{Baseline, Click, Kind},
        trainer::{Checkpoint, Objective, Trainer},
        training::Training,
    },
};

/// Tunes a novelty model on the labels that users clicked next.
///
/// Inputs: the source of events, the category_map whose labels are predicted, and the prompt_builder
/// that serves. The node names the model in `updates`; all nodes that ask it then ask the tuned one.
/// Its rows are the figures of training: by step and name.
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
    /// How it is trained.
    #[serde(default)]
    pub training: Training,
}

/// Which clicks are predicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Targets {
    /// Those on a label that the user had not met in the whole history before.
    #[default]
    Novel,
    /// All.
    All,
}

fn min_history() -> u64 {
    2
}

fn held_out() -> f64 {
    0.1
}

impl SftTrainer {
    /// The place of the item in an event.
    fn parts(&self, inputs: &Inputs<'_>) -> Result<usize, Vec<Problem>> {
        let mut problems = Problems::default();
        problems.take(inputs.at_most(3));
        problems.take(inputs.updated());
        problems.require(self.last > 0, || Problem::with("last", "must be at least 1"));
        problems.require((0.0..1.0).contains(&self.held_out), || {
            Problem::with("held_out", "must be at least 0 and below 1")
        });
        self.training.check("training").into_iter().for_each(|problem| problems.push(problem));
        if let Some(labels) = problems.take(inputs.relation(1, "a category_map of labels")) {
            let own = domain_of(&labels.schema, "categories");
            problems.require(own.as_deref() == Some(labels.name.as_str()), || {
                Problem::input(1, format!("`{}` does not define labels", labels.name))
                    .help("name a category_map")
            });
        }
        if let Some(prompts) = problems.take(inputs.relation(2, "a prompt_builder")) {
            let folded = prompts.schema.notes.get("recents_of");
            let events = inputs.inputs.first().map(|events| &events.name);
            problems.require(folded.is_some() && folded == events, || {
                let events = events.map_or("", String::as_str);
                Problem::input(
                    2,
                    format!("the prompts of `{}` are not written from `{events}`", prompts.name),
                )
                .help("name a prompt_builder over recent_categories of the same events")
            });
        }
        let place = item_place(inputs).map_err(|more| more.into_iter().for_each(|p| problems.push(p))).ok();
        problems.finish(place)
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
        let [events, labels, prompts] = [0, 1, 2].map(|at| &inputs.inputs[at]);
        let (Some(table), Some(recipe)) =
            (graph.labels_of::<CategoryTable>(&labels.name), graph.recipe_of(&prompts.name).cloned())
        else {
            unreachable!("the inputs are a category_map and a prompt_builder")
        };
        let Shape::Fold { dim, kernel, .. } = graph.leaves[recipe.recents.0].shape.clone() else {
            unreachable!("recent interests that name their events are folded")
        };
        let neutral = prompts.schema.notes.get("neutral_prompt").cloned().unwrap_or_default();
        let prior = fit_prior(graph, table, model.clone(), neutral);
        let relations = [events.leaf, labels.leaf, recipe.groups.0, recipe.profiles.0];
        let relations: Vec<LeafId> = relations.into_iter().chain(dim.map(|(leaf, _)| leaf)).collect();
        let parameters = serde_json::to_string(self).unwrap_or_default();
        let recents = prompts.schema.notes.get("recents_by").cloned().unwrap_or_default();
        let logic = format!("sft_trainer/1 {} {parameters} {} {recents}", model.digest(), recipe.logic);
        let dim = dim.map(|(_, place)| place);
        let making = Making { how: self.clone(), item, recipe, recents: kernel, dim };
        let job = Job { making, model: model.clone() };
        let fitted =
            graph.long_fit(VERSION, &relations, &[prior.leaf()], logic, move |inputs, read, watch| {
                job.train(inputs, read, watch)
            });
        graph.publish_version(fitted);
        graph.map_with("", fitted.leaf(), fitted, |version: &ModelVersion, _, _, out| {
            out.extend(version.adapter().map(figures).unwrap_or_default());
            Ok(())
        })
    }
}

impl Described for SftTrainer {
    const NAME: &'static str = "sft_trainer";
    const EXAMPLE: &'static str = include_str!("examples/sft_trainer.yaml");
}

/// The columns of the figures of training.
fn figures_schema() -> Schema {
    let key = [Column::new("step", Type::U64), Column::new("figure", Type::Text)];
    Schema::new(key, [Column::new("value", Type::F64)])
}

/// The figures of training that an adapter remembers.
fn figures(adapter: &Lora) -> Vec<(Row, Row)> {
    let steps = adapter.lineage()["log"].as_array().into_iter().flatten();
    let rows = (1..).zip(steps).flat_map(|(step, figures)| {
        let figures = figures.as_object().into_iter().flatten();
        figures.filter_map(move |(name, value)| {
            let key = Row::from([Value::U64(step), Value::text(name)]);
            Some((key, Row::from([Value::float(value.as_f64()?)])))
        })
    });
    rows.collect()
}

/// What counting makes of users who were kept out.
fn counted(train: &Prompted, held: &Prompted) -> [(&'static str, Option<f64>); 2] {
    let [train, held] = [train, held].map(|of| of.values().map(Asked::click).collect::<Vec<Click<'_>>>());
    let of = |kind: Kind| Baseline::fit(kind, &train).log_likelihood(&held);
    [("held_out_markov", of(Kind::Markov)), ("held_out_popularity", of(Kind::GroupPopularity))]
}

/// Training, with all it needs beside the data.
struct Job {
    making: Making,
    model: Arc<dyn LanguageModel>,
}

impl Job {
    fn train(
        &self,
        inputs: &[&dyn Snapshot],
        read: &[Loaded],
        watch: &mut dyn Watch,
    ) -> Result<ModelVersion, CallError> {
        let prior = present::<LabelPrior>(read.first())?;
        let network = self.model.network()?;
        let failed = |error: LmError| CallError::Failed(error.to_string());
        let trie = LabelTrie::new(network.tokenizer(), &spoken(&prior.labels)).map_err(failed)?;
        let [train, held] = self.making.examples(inputs, prior)?;
        if train.is_empty() {
            return Err(
                "no user clicked a label that could be predicted; `targets: all` predicts more".into()
            );
        }
        let counted = counted(&train, &held);
        let [train, held] = [train, held].map(|examples| Sft::new(&trie, prior, examples));
        let training = &self.making.how.training;
        let kept = watch.kept()?;
        let mut trainer = Trainer::new(training, &train, &network, kept.as_deref()).map_err(failed)?;
        let untuned = held.log_likelihood(&trainer, &trainer.untuned()).map_err(failed)?;
        trainer.run(watch)?;
        let tuned = held.log_likelihood(&trainer, &trainer.checkpoint().values).map_err(failed)?;
        let held_out = [("held_out", tuned), ("held_out_untuned", untuned)].into_iter().chain(counted);
        self.version(&network, &trainer, &train, held_out).map_err(failed)
    }

    /// The trained version, with where it comes from.
    fn version(
        &self,
        network: &LocalModel,
        trainer: &Trainer<'_>,
        data: &Sft<'_>,
        held_out: impl Iterator<Item = (&'static str, Option<f64>)>,
    ) -> Result<ModelVersion, LmError> {
        let Checkpoint { values, log, .. } = trainer.checkpoint();
        let mut log = log.clone();
        if let Some(last) = log.last_mut() {
            last.extend(held_out.filter_map(|(name, figure)| Some((name.to_string(), figure?))));
        }
        let lineage = json!({
            "operator": SftTrainer::NAME, "base": self.model.digest(), "parent": null, "data": data.digest(),
            "prompts": data.examples().len(), "training": self.making.how.training, "log": log,
        });
        let lora = network.adapter(self.making.how.training.lora(), values, lineage)?;
        Ok(ModelVersion::of(lora))
    }
}
