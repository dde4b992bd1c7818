//! A batch: label log-probabilities after some prompts, and the gradient of what a loss makes of them.
//!
//! Decision: the loss is a function that is handed in between the two passes. It sees label
//! log-probabilities and says how it falls with each; what method it belongs to, with what weights
//! and references, is no business of the network.

use std::ops::Range;

use super::forest::{Forest, Text};
use super::frozen::{Fit, Frozen};
use super::head::{KEPT, score};
use super::network::Tuned;
use crate::lm::adapters::{Adapters, LoraSettings};
use crate::lm::error::LmError;
use crate::lm::head::Edge;
use crate::lm::llama::Llama;
use crate::lm::model::LocalModel;
use crate::lm::trie::LabelTrie;
use crate::nn::params::Layout;

/// Prompts, each with the labels of a trie below it.
pub struct Batch<'t> {
    forest: Forest,
    edges: Vec<Edge>,
    /// Of each prompt its labels, and which edges are theirs.
    asked: Vec<(&'t LabelTrie, Range<usize>)>,
    /// What comes up from the layers that are not tuned.
    below: Vec<f32>,
}

impl<'t> Batch<'t> {
    /// From token ids, at least one of each prompt.
    pub(crate) fn new(
        network: &Llama,
        frozen: &Frozen,
        adapters: &Adapters,
        prompts: &[(&[u32], &'t LabelTrie)],
    ) -> Self {
        let texts: Vec<Text> =
            prompts.iter().map(|(prompt, trie)| Text { prompt, tree: trie.branches() }).collect();
        let (forest, places) = Forest::new(&texts);
        let mut edges = Vec::new();
        let mut asked = Vec::with_capacity(prompts.len());
        for ((_, trie), places) in prompts.iter().zip(&places) {
            let first = edges.len();
            edges.extend(trie.edges().iter().map(|edge| Edge { row: places[edge.row], ..*edge }));
            asked.push((*trie, first..edges.len()));
        }
        let below = frozen.below(network, adapters.first(), &forest);
        Self { forest, edges, asked, below }
    }

    /// Rows that go through the network: tokens of prompts and labels, equal beginnings once.
    pub fn rows(&self) -> usize {
        self.forest.len()
    }

    /// Of each prompt the log-probability of each label, under adapters with these numbers.
    pub(crate) fn scores(&self, tuned: &Tuned) -> Vec<Vec<f64>> {
        let hidden = tuned.forward(&self.forest, &self.below, None).hidden();
        self.sums(&score(&tuned.network.head, &hidden, &self.edges, 0).logs)
    }

    /// The gradient of a loss by the adapters' numbers; `dropout` is the seed and the step of what is
    /// left out, nothing if absent.
    pub(crate) fn gradient(
        &self,
        tuned: &Tuned,
        dropout: Option<(u64, u64)>,
        loss: impl FnOnce(&[Vec<f64>]) -> Vec<Vec<f64>>,
    ) -> Vec<f32> {
        let tape = tuned.forward(&self.forest, &self.below, dropout);
        let (head, hidden) = (&tuned.network.head, tape.hidden());
        let scores = score(head, &hidden, &self.edges, KEPT);
        let slopes = loss(&self.sums(&scores.logs));
        let slopes: Vec<f64> =
            self.asked.iter().zip(&slopes).flat_map(|((trie, _), s)| trie.spread(s)).collect();
        let by_hidden = scores.backward(head, &hidden, &slopes);
        let mut gradient = vec![0.0; tuned.adapters.layout().len()];
        tuned.backward(&self.forest, tape, &by_hidden, &mut gradient);
        gradient
    }

    fn sums(&self, edges: &[f64]) -> Vec<Vec<f64>> {
        self.asked.iter().map(|(trie, own)| trie.exact_sum(&edges[own.clone()])).collect()
    }
}

/// A model that is tuned. While it lives, what layers that are not tuned make of its prompts is not forgotten
/// for others.
pub struct Tuner {
    model: LocalModel,
    adapters: Adapters,
    _fit: Fit,
}

impl Tuner {
    /// Adapters for a model.
    ///
    /// # Errors
    /// If a setting is out of its range.
    pub fn new(model: &LocalModel, settings: LoraSettings) -> Result<Self, LmError> {
        let adapters = Adapters::new(model.network().sizes(), settings)?;
        Ok(Self { model: model.clone(), adapters, _fit: Fit::begin(model.frozen()) })
    }

    /// The names and places of the adapters' numbers, and how they start.
    pub fn layout(&self) -> &Layout {
        self.adapters.layout()
    }

    /// Tokenises complete chat texts that end with the assistant header, in the model's own form as where
    /// they are asked; the labels of each hang below it. What the layers that are not tuned make of a prompt is
    /// computed the first time, as far as memory allows ([`LocalModel::FROZEN_BYTES`]).
    ///
    /// # Errors
    /// If a prompt is empty, is refused by the tokenizer, or does not fit the context with its longest label.
    pub fn batch<'t>(&self, prompts: &[(&str, &'t LabelTrie)]) -> Result<Batch<'t>, LmError> {
        let available = self.model.network().sizes().context;
        let mut tokens = Vec::with_capacity(prompts.len());
        for (prompt, trie) in prompts {
            let ids = self.model.tokenizer().prompt(prompt)?;
            let needed = ids.len() + trie.depth();
            match ids.is_empty() {
                true => return Err(LmError::EmptyPrompt),
                false if needed > available => return Err(LmError::TooLong { needed, available }),
                false => tokens.push(ids),
            }
        }
        let asked: Vec<_> = tokens.iter().zip(prompts).map(|(ids, (_, trie))| (&ids[..], *trie)).collect();
        Ok(Batch::new(self.model.network(), self.model.frozen(), &self.adapters, &asked))
    }

    /// Of each prompt the log-probability of each label, under adapters with these numbers.
    pub fn scores(&self, values: &[f32], batch: &Batch) -> Vec<Vec<f64>> {
        let loaded = self.adapters.load(values);
        batch.scores(&Tuned { network: self.model.network(), adapters: &self.adapters, loaded: &loaded })
    }

    /// The gradient of a loss by the adapters' numbers. The loss is given what [`Tuner::scores`] gives and
    /// answers its derivative by each number of it; `dropout` is the seed and the step that decide what
    /// adapters do not see.
    pub fn gradient(
        &self,
        values: &[f32],
        batch: &Batch,
        dropout: Option<(u64, u64)>,
        loss: impl FnOnce(&[Vec<f64>]) -> Vec<Vec<f64>>,
    ) -> Vec<f32> {
        let loaded = self.adapters.load(values);
        let tuned = Tuned { network: self.model.network(), adapters: &self.adapters, loaded: &loaded };
        batch.gradient(&tuned, dropout, loss)
    }
}
