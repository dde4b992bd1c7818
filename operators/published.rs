//! What nodes of a graph tell one another beside their rows: label sets, versions of models, how prompts
//! are written, what is proposed and how it is judged.
//!
//! An operator finds what it needs by the name of an input, typed, so that what is trained on is what
//! serves, kernel and all, and no parameter has to say it a second time.

use std::collections::BTreeMap;

use crate::{
    label_policy::LabelPrior,
    lm::LoraSettings,
    operator::Input,
    preference_pairs::Pairs,
    replay::PromptRecipe,
    served::{ModelVersion, VERSION},
    shape::{Artifact, Fitted, Graph, LeafId, Shape, present},
};

/// What was told so far, by node.
#[derive(Default)]
pub(crate) struct Published {
    label_sets: BTreeMap<String, LeafId>,
    versions: BTreeMap<String, (LeafId, Option<LoraSettings>)>,
    recipes: BTreeMap<String, PromptRecipe>,
    proposals: BTreeMap<String, Proposals>,
    rates: BTreeMap<String, LeafId>,
    pairs: BTreeMap<String, LeafId>,
}

/// What a sampler proposes to each key, and out of what.
#[derive(Clone)]
pub(crate) struct Proposals {
    /// The prompts, by key.
    pub(crate) prompts: Input,
    /// The category_map whose labels are proposed.
    pub(crate) labels: Input,
    pub(crate) prior: Fitted<LabelPrior>,
    /// By key, the log-probability of every label.
    pub(crate) answers: LeafId,
    /// The version of the model that proposes, where the pipeline fits one.
    pub(crate) version: Option<Fitted<ModelVersion>>,
    /// At which the candidates are drawn.
    pub(crate) temperature: f64,
}

impl Graph {
    /// Adds the version that a model begins with, where cycles make the next ones: that of another
    /// node, or the model as it is.
    pub fn first_version(&mut self, base: &str, parent: Option<&str>) {
        let parent = parent.and_then(|node| self.version_of(node).zip(self.adapter_of(node)));
        let (artifacts, logic) = match parent {
            None => (vec![], format!("first_version/1 {base}")),
            Some((leaf, _)) => {
                let Shape::Fit { logic, .. } = &self.leaves[leaf.leaf()].shape else { return };
                (vec![leaf.leaf()], format!("first_version/1 {base} {logic}"))
            }
        };
        let first = self.fit(VERSION, &[], &artifacts, logic, |_, artifacts, _| match artifacts.first() {
            None => Ok(ModelVersion::default()),
            parent => Ok(ModelVersion::clone(present(parent)?)),
        });
        let first = self.cheap(first);
        self.publish_version(first, parent.map(|(_, settings)| settings));
    }

    /// Declares that the current node makes versions of the model it updates, and of what size their
    /// adapters are, where that is known.
    pub fn publish_version(&mut self, fitted: Fitted<ModelVersion>, adapter: Option<LoraSettings>) {
        self.published.versions.insert(self.node.clone(), (fitted.leaf(), adapter));
    }

    /// The versions of a node that declared some.
    pub fn version_of(&self, node: &str) -> Option<Fitted<ModelVersion>> {
        self.published.versions.get(node).map(|(leaf, _)| Fitted::at(*leaf))
    }

    /// The size of the adapters that a node makes, where it is known.
    pub fn adapter_of(&self, node: &str) -> Option<LoraSettings> {
        self.published.versions.get(node)?.1
    }

    /// Declares what the current node proposes, and out of what.
    pub(crate) fn publish_proposals(&mut self, proposals: Proposals) {
        self.published.proposals.insert(self.node.clone(), proposals);
    }

    /// What a node that declared it proposes.
    pub(crate) fn proposals_of(&self, node: &str) -> Option<&Proposals> {
        self.published.proposals.get(node)
    }

    /// Declares where the current node keeps the relevance of every label.
    pub(crate) fn publish_rates(&mut self, rates: LeafId) {
        self.published.rates.insert(self.node.clone(), rates);
    }

    /// Where a node that declared it keeps the relevance of every label.
    pub(crate) fn rates_of(&self, node: &str) -> Option<LeafId> {
        self.published.rates.get(node).copied()
    }

    /// Declares that the current node makes pairs.
    pub(crate) fn publish_pairs(&mut self, fitted: Fitted<Pairs>) {
        self.published.pairs.insert(self.node.clone(), fitted.leaf());
    }

    /// The pairs of a node that makes some.
    pub(crate) fn pairs_of(&self, node: &str) -> Option<Fitted<Pairs>> {
        self.published.pairs.get(node).map(|leaf| Fitted::at(*leaf))
    }

    /// Declares how the current node makes prompts.
    pub(crate) fn publish_recipe(&mut self, recipe: PromptRecipe) {
        self.published.recipes.insert(self.node.clone(), recipe);
    }

    /// How a node that declared it makes prompts.
    pub(crate) fn recipe_of(&self, node: &str) -> Option<&PromptRecipe> {
        self.published.recipes.get(node)
    }

    /// The label set of a node that declared one.
    pub fn labels_of<A: Artifact>(&self, node: &str) -> Option<Fitted<A>> {
        self.published.label_sets.get(node).map(|leaf| Fitted::at(*leaf))
    }
    /// Declares that the current node's labels are those of `fitted`.
    pub fn publish_labels<A: Artifact>(&mut self, fitted: Fitted<A>) {
        self.published.label_sets.insert(self.node.clone(), fitted.leaf());
    }
}
