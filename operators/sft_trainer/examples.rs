//! Examples for supervised tuning: what serving would have asked just before each click.
//!
//! Decision: an example is found by walking each history once with nothing but what came before, so
//! that no later event can reach a prompt or a target by construction.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{SftTrainer, Targets};
use crate::{
    label_policy::{LabelPrior, allowed},
    nn::random::Stream,
    ordered::encode_row,
    replay::{PromptRecipe, Prompts, Replayed, histories, table},
    row::Row,
    shape::{FoldKernel, KernelError, Snapshot},
};

/// What examples are made with.
pub(super) struct Making {
    pub(super) how: SftTrainer,
    /// The item's place in an event.
    pub(super) item: usize,
    pub(super) recipe: PromptRecipe,
    pub(super) recents: Arc<dyn FoldKernel>,
    /// The place in an event of what recent interests look up.
    pub(super) dim: Option<usize>,
}

/// A prompt, the labels it may be answered with, and how often each was the answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    pub(super) allowed: Vec<bool>,
    pub(super) clicked: Vec<f64>,
}

impl Making {
    /// The examples by prompt: those to train on, and those kept out.
    pub(super) fn examples(
        &self,
        inputs: &[&dyn Snapshot],
        prior: &LabelPrior,
    ) -> Result<[BTreeMap<String, Asked>; 2], KernelError> {
        let [labels, groups, profiles] = [1, 2, 3].map(|at| table(inputs[at]));
        let dims = inputs.get(4).map(|dim| table(*dim));
        let places = prior.labels.iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect();
        let scene = Scene {
            making: self,
            prior,
            labels,
            places,
            prompts: Prompts { recipe: &self.recipe, groups: &groups, profiles: &profiles },
            recents: Replayed { kernel: &self.recents, dim: dims.as_ref().zip(self.dim) },
        };
        let mut made = [BTreeMap::new(), BTreeMap::new()];
        for (user, events) in histories(inputs[0]) {
            scene.walk(&user, &events, &mut made[usize::from(self.kept_out(&user))])?;
        }
        Ok(made)
    }

    /// Whether a user is kept out: by name, whoever else there is.
    fn kept_out(&self, user: &Row) -> bool {
        let name = blake3::hash(&encode_row(user)).to_hex();
        Stream::new(self.how.training.seed, &format!("held out {name}"), &[]).unit_f64() < self.how.held_out
    }
}

/// Everything that stands while histories are walked.
struct Scene<'a> {
    making: &'a Making,
    prior: &'a LabelPrior,
    /// Labels by item.
    labels: BTreeMap<Row, Row>,
    places: BTreeMap<&'a str, usize>,
    prompts: Prompts<'a>,
    recents: Replayed<'a>,
}

impl Scene<'_> {
    /// The labels of an event, by place.
    fn labels_of(&self, event: &Row) -> Vec<usize> {
        let row = self.labels.get(&Row::from([event[self.making.item].clone()]));
        let names = row.and_then(|row| row[0].as_list()).unwrap_or_default();
        names.iter().filter_map(|name| self.places.get(name.as_text()?).copied()).collect()
    }

    fn walk(
        &self,
        user: &Row,
        events: &[(Row, u64)],
        into: &mut BTreeMap<String, Asked>,
    ) -> Result<(), KernelError> {
        let SftTrainer { last, min_history, targets, .. } = self.making.how;
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let first = events.len().saturating_sub(size(last)).max(size(min_history));
        let mut met: BTreeSet<usize> = BTreeSet::new();
        for (at, (event, count)) in events.iter().enumerate() {
            let labels = self.labels_of(event);
            if at >= first {
                let wanted = |label: &&usize| targets == Targets::All || !met.contains(*label);
                let wanted: Vec<usize> = labels.iter().filter(wanted).copied().collect();
                self.example(user, &events[..at], &wanted, *count, into)?;
            }
            met.extend(labels);
        }
        Ok(())
    }

    /// Adds what was clicked after `before`.
    fn example(
        &self,
        user: &Row,
        before: &[(Row, u64)],
        clicked: &[usize],
        count: u64,
        into: &mut BTreeMap<String, Asked>,
    ) -> Result<(), KernelError> {
        if clicked.is_empty() {
            return Ok(());
        }
        let rows = self.recents.rows(user, before);
        let place = self.making.recipe.recents.1;
        // Without recent interests serving asks a key of the group, which no click of a user speaks for.
        let Some(recent) = rows.first().and_then(|row| row[place].as_list()) else { return Ok(()) };
        let allowed = allowed(self.prior, recent);
        let Some(prompt) = self.prompts.prompt(user, recent)? else { return Ok(()) };
        for label in clicked.iter().filter(|label| allowed[**label]) {
            let none = || Asked { allowed: allowed.clone(), clicked: vec![0.0; allowed.len()] };
            into.entry(prompt.clone()).or_insert_with(none).clicked[*label] += count as f64;
        }
        Ok(())
    }
}
