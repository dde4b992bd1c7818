//! The models of a pipeline, and which of them a node may name.

use std::collections::BTreeMap;

use coea_operators::operator::Model;

use super::Lowering;
use crate::{diagnostic::did_you_mean, spec::NodeSpec};

/// The kinds of models there are.
const MODEL_KINDS: [&str; 4] = ["language_model", "reward_model", "csa_encoder", "rq_quantizer"];

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
            for (block, what) in [(&named.spec.with, "parameters"), (&named.spec.price, "prices")] {
                if !block.is_empty() {
                    let help = Some("remove them".to_string());
                    self.error(&block.span_of(&[]), format!("{what} of models are not built yet"), help);
                }
            }
            let language = match (&named.spec.base, kind.ends_with("_model")) {
                (Some(base), true) => match self.provider.language(base) {
                    Ok(model) => Some(model),
                    Err(message) => {
                        self.error(&base.span, message, None);
                        self.broken.insert(name.clone());
                        None
                    }
                },
                (None, true) => {
                    let help = "add `base: smollm2-135m-instruct`, or the path of a GGUF file or a Hugging Face folder".to_string();
                    self.error(&kind.span, format!("a {} needs a base", kind.value), Some(help));
                    None
                }
                (Some(base), false) => {
                    let help = Some("remove it".to_string());
                    self.error(&base.span, format!("a {} has no base; it is fitted", kind.value), help);
                    None
                }
                (None, false) => None,
            };
            models.insert(name.clone(), Model { name, kind: kind.value.clone(), language });
        }
        models
    }

    /// The model a node names: `Some(None)` if it names none, `None` if the name is wrong.
    pub(super) fn model(
        &mut self,
        node: &NodeSpec,
        models: &BTreeMap<String, Model>,
    ) -> Option<Option<Model>> {
        let Some(name) = &node.model else { return Some(None) };
        if let Some(model) = models.get(name.as_str()) {
            return Some(Some(model.clone()));
        }
        if !self.broken.contains(name.as_str()) {
            self.unknown("model", name, models.keys().map(String::as_str).collect());
        }
        None
    }

    /// A model that the operator has no use for is a mistake, not a decoration.
    pub(super) fn fitting_model(&mut self, node: &NodeSpec, model: Option<&Model>, kinds: &[&str]) {
        let (Some(name), Some(model)) = (&node.model, model) else { return };
        if kinds.contains(&model.kind.as_str()) {
            return;
        }
        let help = match kinds {
            [] => "remove `model`".to_string(),
            kinds => format!("name a model of kind `{}`", kinds.join("` or `")),
        };
        let message = format!("{} has no use for `{}`, a {}", node.op.value, name.value, model.kind);
        self.error(&name.span, message, Some(help));
    }
}
