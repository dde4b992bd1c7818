//! A version of a model: trained, judged by users who were kept out, with where it comes from.
//!
//! Decision: a version carries its figures with it, step by step. They are what a person asks of it
//! first, what a gate decides by, and they must not get lost when the version moves.

use std::sync::Arc;

use serde_json::json;

use super::{
    gate::Gate,
    held_out::{Parts, somebody_judges},
    trainer::{Figures, Objective, Trainer},
    training::Training,
};
use crate::{
    asked::{Examples, Prompted},
    chat::spoken,
    label_policy::LabelPrior,
    language_model::LanguageModel,
    lm::{LabelTrie, LmError, LocalModel, Lora},
    row::{Row, Value},
    schema::{Column, Schema, Type},
    served::{ModelVersion, VERSION},
    shape::{CallError, Fitted, Graph, LeafId, Loaded, Snapshot, Watch, present},
};

/// Training as a node of a graph does it: on what, of which model, and how.
pub(crate) struct Job {
    /// The operator.
    pub(crate) operator: &'static str,
    pub(crate) examples: Box<dyn Examples>,
    pub(crate) model: Arc<dyn LanguageModel>,
    pub(crate) training: Training,
    /// All of its parameters, as they are written down with what it makes.
    pub(crate) parameters: serde_json::Value,
}

/// What a trainer makes its objective of.
pub(crate) struct Given<'a> {
    pub(crate) making: Making<'a>,
    pub(crate) prior: &'a LabelPrior,
    pub(crate) trie: &'a LabelTrie,
    pub(crate) start: Start,
    /// The examples.
    pub(crate) examples: Parts<Prompted>,
}

impl Job {
    /// Adds the fit that makes versions, on the examples' `relations`; gives the leaf of its figures. If
    /// there is a `first` version, it is made in cycles and takes the place of that; and goes on from the
    /// one in use, if it `continues`.
    pub(crate) fn build(
        self,
        graph: &mut Graph,
        relations: &[LeafId],
        prior: Fitted<LabelPrior>,
        logic: String,
        (first, continues): (Option<Fitted<ModelVersion>>, bool),
        train: impl Fn(Given<'_>, &mut dyn Watch) -> Result<ModelVersion, CallError> + Send + Sync + 'static,
    ) -> LeafId {
        let settings = self.training.lora();
        let role = if first.is_some() { "candidate" } else { VERSION };
        let job = Arc::new(self);
        let priced = job.clone();
        let used = first.filter(|_| continues).map(Fitted::leaf);
        let artifacts: Vec<LeafId> = std::iter::once(prior.leaf()).chain(used).collect();
        let fitted = graph.long_fit(role, relations, &artifacts, logic, move |inputs, read, watch| {
            job.train(inputs, read, &train, watch)
        });
        graph.priced(fitted, move |inputs, read| {
            priced.examples.cost(inputs, read, &priced.training, &priced.model)
        });
        if let Some(first) = first {
            graph.between(fitted, first);
            return figures_of(graph, first);
        }
        graph.publish_version(fitted, Some(settings));
        figures_of(graph, fitted)
    }

    fn train(
        &self,
        inputs: &[&dyn Snapshot],
        read: &[Loaded],
        train: &dyn Fn(Given<'_>, &mut dyn Watch) -> Result<ModelVersion, CallError>,
        watch: &mut dyn Watch,
    ) -> Result<ModelVersion, CallError> {
        let prior = present::<LabelPrior>(read.first())?;
        let network = self.model.network()?;
        let trie = LabelTrie::new(network.tokenizer(), &spoken(&prior.labels)).map_err(|e| e.to_string())?;
        let examples = self.examples.examples(inputs, prior)?;
        if examples[0].is_empty() {
            return Err(CallError::Nothing(self.examples.nothing().to_string()));
        }
        somebody_judges(&self.training, &examples, Prompted::is_empty)?;
        let Self { operator, model, training, parameters, .. } = self;
        let making = Making { operator, model, network: &network, training, parameters };
        let used = read.get(1).map(|used| present::<ModelVersion>(Some(used))).transpose()?;
        let start = used.map_or_else(|| Ok(Start::default()), |used| making.start(used))?;
        train(Given { making, prior, trie: &trie, start, examples }, watch)
    }
}

/// What is made by whom, of what, and how.
pub(crate) struct Making<'a> {
    /// The operator.
    pub(crate) operator: &'static str,
    pub(crate) model: &'a Arc<dyn LanguageModel>,
    pub(crate) network: &'a LocalModel,
    pub(crate) training: &'a Training,
    /// All of the operator's parameters.
    pub(crate) parameters: &'a serde_json::Value,
}

/// How a version does where it was not trained, given the adapters' numbers before and after.
pub(crate) type Judge<'a> = dyn Fn(&Trainer<'_>, &[f32], &[f32]) -> Result<Figures, LmError> + 'a;

/// Where training begins: nowhere, or at a version.
#[derive(Default)]
pub(crate) struct Start {
    /// The adapter's numbers.
    pub(crate) values: Option<Vec<f32>>,
    /// The digest of the version.
    pub(crate) parent: Option<String>,
}

impl Making<'_> {
    /// Training that goes on from a version.
    ///
    /// # Errors
    /// If its adapter has another size than what is trained.
    pub(crate) fn start(&self, used: &ModelVersion) -> Result<Start, CallError> {
        let parent = Some(used.digest());
        let Some(adapter) = used.adapter() else { return Ok(Start { values: None, parent }) };
        let (theirs, ours) = (adapter.settings(), self.training.lora());
        if (theirs.rank, theirs.alpha, theirs.top) != (ours.rank, ours.alpha, ours.top) {
            let help = "write the size that it has, or begin at the model as it is: `models promote … base`";
            return Err(format!("the version in use has another size than `training`; {help}").into());
        }
        let values = self.network.adapter_values(adapter).map_err(|error| error.to_string())?;
        Ok(Start { values: Some(values), parent })
    }

    /// Trains a version, towards an objective and chosen by another one. What `judge` says of it is among the
    /// figures of the last step, and what the gate says of that is part of the version.
    ///
    /// # Errors
    /// If training fails, or is stopped.
    pub(crate) fn version(
        &self,
        [objective, choose]: [&dyn Objective; 2],
        start: Start,
        (judge, gate): (&Judge<'_>, &Gate),
        watch: &mut dyn Watch,
    ) -> Result<ModelVersion, CallError> {
        let failed = |error: LmError| CallError::Failed(error.to_string());
        let kept = watch.kept()?;
        let mut trainer =
            Trainer::new(self.training, objective, self.network, start.values.as_deref(), kept.as_deref())
                .map_err(failed)?
                .choosing_by(choose);
        trainer.run(watch)?;
        let (values, chosen) = trainer.chosen();
        let before = start.values.unwrap_or_else(|| trainer.untuned());
        let judged = judge(&trainer, &before, values).map_err(failed)?;
        let refused = gate.refuses(&judged);
        let mut log = trainer.checkpoint().log.clone();
        if let Some(last) = log.last_mut() {
            last.extend(judged);
            last.extend(self.training.choose_every.map(|_| ("chosen_step".to_string(), chosen as f64)));
        }
        let lineage = json!({
            "operator": self.operator, "base": self.model.digest(), "parent": start.parent, "refused": refused,
            "data": digest(objective), "prompts": objective.examples().len(),
            "parameters": self.parameters, "training": self.training, "log": log,
        });
        let lora = self.network.adapter(self.training.lora(), values, lineage).map_err(failed)?;
        Ok(ModelVersion::of(lora))
    }
}

/// What names the examples.
fn digest(objective: &dyn Objective) -> String {
    let mut hasher = blake3::Hasher::new();
    for (at, (prompt, weight)) in objective.examples().iter().enumerate() {
        hasher.update(&(prompt.len() as u64).to_le_bytes());
        hasher.update(prompt.as_bytes());
        hasher.update(&weight.to_le_bytes());
        objective.named(at).iter().for_each(|share| {
            hasher.update(&share.to_le_bytes());
        });
    }
    hasher.finalize().to_hex().to_string()
}

/// The figures of the training that made the version in use, as rows.
pub(crate) fn figures_of(graph: &mut Graph, version: Fitted<ModelVersion>) -> LeafId {
    graph.map_with("", version.leaf(), version, |version: &ModelVersion, _, _, out| {
        out.extend(version.figures());
        Ok(())
    })
}

/// Figures by name, of those that are known.
pub(crate) fn known(figures: &[(&str, Option<f64>)]) -> Figures {
    figures.iter().filter_map(|(name, figure)| Some((name.to_string(), (*figure)?))).collect()
}

/// The columns of the figures of training.
pub(crate) fn figures_schema() -> Schema {
    let key = [Column::new("step", Type::U64), Column::new("figure", Type::Text)];
    Schema::new(key, [Column::new("value", Type::F64)])
}

/// The figures of training that an adapter remembers.
pub(crate) fn figures(adapter: &Lora) -> Vec<(Row, Row)> {
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
