//! The models of a pipeline, and which of them a node may name.

use std::{collections::BTreeMap, sync::Arc};

use coea_operators::{language_model::LanguageModel, operator::Model};
use serde::Deserialize;

use super::Lowering;
use crate::{
    diagnostic::{Spanned, did_you_mean},
    models::is_remote,
    price::Price,
    remote::settings::Settings,
    spec::{Block, ModelSpec, Named, NodeSpec},
};

/// The kinds of models there are.
const MODEL_KINDS: [&str; 4] = ["language_model", "reward_model", "csa_encoder", "rq_quantizer"];

/// The kind of models that judge.
const REWARD: &str = "reward_model";

/// The parameters of a reward model on this machine.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Reward {
    temperature: f64,
}

impl Default for Reward {
    fn default() -> Self {
        Self { temperature: 1.0 }
    }
}

impl Lowering<'_> {
    /// The models by name; a name whose entry is wrong is noted as broken.
    pub(super) fn models(&mut self) -> BTreeMap<String, Model> {
        let mut models = BTreeMap::new();
        for named in &self.spec.models {
            let (name, kind) = (named.name.value.clone(), &named.spec.kind);
            if !MODEL_KINDS.contains(&kind.as_str()) {
                let near = did_you_mean(kind, MODEL_KINDS).map(|near| format!("did you mean `{near}`?"));
                let help = near.unwrap_or_else(|| format!("there are `{}`", MODEL_KINDS.join("`, `")));
                self.error(&kind.span, format!("unknown kind of model `{}`", kind.value), Some(help));
                self.broken.insert(name);
                continue;
            }
            let language = match kind.ends_with("_model") {
                true => self.language(named),
                false => {
                    self.fitted(named);
                    None
                }
            };
            if language.is_none() && kind.ends_with("_model") {
                self.broken.insert(name);
                continue;
            }
            let Some(temperature) = self.temperature(&named.spec) else {
                self.broken.insert(name);
                continue;
            };
            let kind = kind.value.clone();
            let model =
                Model { name: name.clone(), kind, language, temperature, version: None, parent: None };
            models.insert(name, model);
        }
        models
    }

    /// The language model of an entry, embedded or on a server.
    fn language(&mut self, named: &Named<ModelSpec>) -> Option<Arc<dyn LanguageModel>> {
        let ModelSpec { kind, base, with, .. } = &named.spec;
        let price = self.price(named)?;
        let Some(base) = base else {
            let help = "add `base: smollm2-135m-instruct`, the path of a GGUF file or a Hugging Face folder, or the URL of a server";
            self.error(&kind.span, format!("a {} needs a base", kind.value), Some(help.to_string()));
            return None;
        };
        let model = match is_remote(base) {
            true => {
                let settings = self.settings(with, price.as_ref())?;
                self.provider.remote(base, settings, price)
            }
            false if with.is_empty() || kind.as_str() == REWARD => self.provider.language(base),
            false => {
                let help = "remove them, or write the URL of a server as `base`".to_string();
                let message = "only a model on a server and a reward_model take parameters";
                self.error(&with.span_of(&[]), message, Some(help));
                return None;
            }
        };
        model.map_err(|message| self.error(&base.span, message, None)).ok()
    }

    /// What the rewards of a model are divided by; `None` if it is wrong.
    fn temperature(&mut self, model: &ModelSpec) -> Option<f64> {
        if model.kind.as_str() != REWARD || model.base.as_ref().is_some_and(|base| is_remote(base)) {
            return Some(1.0);
        }
        let Reward { temperature } = match model.with.parse("a reward_model") {
            Ok(reward) => reward,
            Err(problems) => {
                self.problems.extend(problems);
                return None;
            }
        };
        let wrong = !(temperature > 0.0 && temperature.is_finite());
        if wrong {
            let message = "`temperature` of a reward_model must be a positive number".to_string();
            self.error(&model.with.span_of(&["temperature"]), message, None);
        }
        (!wrong).then_some(temperature)
    }

    /// The parameters of a model on a server.
    fn settings(&mut self, with: &Block, price: Option<&Price>) -> Option<Settings> {
        let settings: Settings = match with.parse("a model on a server") {
            Ok(settings) => settings,
            Err(problems) => {
                self.problems.extend(problems);
                return None;
            }
        };
        let wrong = settings.check(price);
        for (path, message) in &wrong {
            let name = path.join(".");
            self.error(&with.span_of(path), format!("`{name}` of a model on a server {message}"), None);
        }
        wrong.is_empty().then_some(settings)
    }

    /// The price of a model's tokens, noted by its name; `None` if it is wrong.
    fn price(&mut self, named: &Named<ModelSpec>) -> Option<Option<Price>> {
        let block = &named.spec.price;
        if block.is_empty() {
            return Some(None);
        }
        let price: Price = match block.parse("the price of a model") {
            Ok(price) => price,
            Err(problems) => {
                self.problems.extend(problems);
                return None;
            }
        };
        if let Err((field, message)) = price.check() {
            self.error(&block.span_of(&[field]), message, None);
            return None;
        }
        if let Some(other) = self.prices.values().find(|other| other.currency != price.currency) {
            let message = format!("a price in {}, and another in {}", price.currency, other.currency);
            let help = Some("write all prices of a pipeline in one currency".to_string());
            self.error(&block.span_of(&["currency"]), message, help);
            return None;
        }
        self.prices.insert(named.name.value.clone(), price.clone());
        Some(Some(price))
    }

    /// What a model that the pipeline fits has no use for.
    fn fitted(&mut self, named: &Named<ModelSpec>) {
        let ModelSpec { kind, base, with, price } = &named.spec;
        let given = [
            base.as_ref().map(|base| (base.span.clone(), "base")),
            (!with.is_empty()).then(|| (with.span_of(&[]), "parameters")),
            (!price.is_empty()).then(|| (price.span_of(&[]), "price")),
        ];
        for (span, what) in given.into_iter().flatten() {
            let message = format!("a {} has no {what}; it is fitted", kind.value);
            self.error(&span, message, Some("remove it".to_string()));
        }
    }

    /// The model that is named, in the version that a node makes of it: `Some(None)` if none is named,
    /// `None` if the name is wrong.
    pub(super) fn model(
        &mut self,
        name: Option<&Spanned<String>>,
        models: &BTreeMap<String, Model>,
    ) -> Option<Option<Model>> {
        let Some(name) = name else { return Some(None) };
        if let Some(model) = models.get(name.as_str()) {
            return Some(Some(self.in_use(model)));
        }
        if !self.broken.contains(name.as_str()) {
            self.unknown("model", name, models.keys().map(String::as_str).collect());
        }
        None
    }

    /// The model that a node makes versions of: as it is, or for cycles as it is asked.
    pub(super) fn updated(
        &mut self,
        named: &Named<NodeSpec>,
        models: &BTreeMap<String, Model>,
    ) -> Option<Option<Model>> {
        let NodeSpec { updates, .. } = &named.spec;
        match updates.as_ref().and_then(|name| models.get(name.as_str())) {
            Some(model) if !self.between(&named.spec) => Some(Some(model.clone())),
            _ => self.model(updates.as_ref(), models),
        }
    }

    /// A model in the version that it is asked in. Where cycles make versions, the first one is made
    /// here, for whoever comes first.
    fn in_use(&mut self, model: &Model) -> Model {
        let late = self.spec.nodes.iter().find(|node| {
            node.spec.updates.as_ref().is_some_and(|of| of.value == model.name) && self.between(&node.spec)
        });
        let before = self.updaters.get(&model.name).and_then(|updaters| updaters.before.clone());
        let parent =
            before.as_ref().and_then(|node| self.graph.version_of(node).zip(self.graph.adapter_of(node)));
        let Some(late) = late.map(|node| node.name.value.clone()) else {
            let version = before.and_then(|node| self.graph.version_of(&node));
            return Model { version, ..model.clone() };
        };
        if self.graph.version_of(&late).is_none() {
            let base = model.language.as_ref().map(|language| language.digest()).unwrap_or_default();
            self.graph.begin(&late);
            self.graph.first_version(&base, before.as_deref());
        }
        Model { version: self.graph.version_of(&late), parent, ..model.clone() }
    }

    /// A model that the operator has no use for is a mistake, not a decoration; `kinds` are those that it
    /// wants in a field.
    pub(super) fn fitting_model(
        &mut self,
        op: &str,
        name: Option<&Spanned<String>>,
        model: Option<&Model>,
        (field, kinds): (&str, &[&str]),
    ) {
        let (Some(name), Some(model)) = (name, model) else { return };
        if kinds.contains(&model.kind.as_str()) {
            return;
        }
        let help = match kinds {
            [] => format!("remove `{field}`"),
            kinds => format!("name a model of kind `{}`", kinds.join("` or `")),
        };
        let message = match field {
            "updates" => format!("{op} makes no versions of `{}`, a {}", name.value, model.kind),
            _ => format!("{op} has no use for `{}`, a {}", name.value, model.kind),
        };
        self.error(&name.span, message, Some(help));
    }

    /// Notes who makes versions of a model on this machine: one node before it is asked, and one in cycles.
    pub(super) fn only_updater(&mut self, named: &Named<NodeSpec>) {
        let Some(model) = &named.spec.updates else { return };
        let spec = self.spec.models.iter().find(|known| known.name.value == model.value);
        if spec.and_then(|known| known.spec.base.as_ref()).is_some_and(|base| is_remote(base)) {
            let message = format!("`{}` is on a server, where it cannot be updated", model.value);
            let help = "give the model a `base` on this machine: a name, a GGUF file or a folder".to_string();
            self.error(&model.span, message, Some(help));
        }
        let node = named.name.value.clone();
        let between = self.between(&named.spec);
        let updaters = self.updaters.entry(model.value.clone()).or_default();
        let place = if between { &mut updaters.between } else { &mut updaters.before };
        if let Some(first) = place {
            let message = format!("`{}` is already updated by `{first}`", model.value);
            let help = "give one of them a model of its own".to_string();
            self.error(&model.span, message, Some(help));
            return;
        }
        *place = Some(node);
    }
}
