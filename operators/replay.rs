//! The serving operators on histories that had ended earlier.
//!
//! What a model is trained on is what it would have been asked at some time: the prompt of a user as
//! serving would have written it just before an event. So nothing here says what recent interests or a
//! prompt are. The recipe is taken from the nodes that serve, kernel and all; a training set that
//! differs from what is served cannot be written down.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    prompt_builder::render,
    row::{Row, Value},
    shape::{Counts, Event, FoldKernel, KernelError, LeafId, Snapshot},
    template::Template,
};

/// How a prompt_builder makes its prompts.
#[derive(Clone)]
pub struct PromptRecipe {
    /// What decides a prompt beside the relations.
    pub(crate) logic: String,
    pub(crate) template: Template,
    /// Groups by user, and the group's column.
    pub(crate) groups: (LeafId, usize),
    /// Profiles by group, and the profile's column.
    pub(crate) profiles: (LeafId, usize),
    /// Recent interests by user, and their column.
    pub(crate) recents: (LeafId, usize),
}

/// A key's events, oldest first, each with its count.
pub(crate) type Events = Vec<(Row, u64)>;

/// A relation by its key; of a key with several rows the last.
pub(crate) fn table(rows: &dyn Snapshot) -> BTreeMap<Row, Row> {
    let mut table = BTreeMap::new();
    rows.for_each(&mut |key, row, _| {
        table.insert(key.clone(), row.clone());
    });
    table
}

/// The histories of an event source by key.
pub(crate) fn histories(events: &dyn Snapshot) -> BTreeMap<Row, Events> {
    let mut histories: BTreeMap<Row, Events> = BTreeMap::new();
    events.for_each(&mut |key, event, count| {
        histories.entry(key.clone()).or_default().push((event.clone(), u64::try_from(count).unwrap_or(0)));
    });
    histories
}

/// A fold with what it looks up.
pub(crate) struct Replayed<'a> {
    pub(crate) kernel: &'a Arc<dyn FoldKernel>,
    /// The relation by item, and the item's place in an event.
    pub(crate) dim: Option<(&'a BTreeMap<Row, Row>, usize)>,
}

impl Replayed<'_> {
    /// What the fold says of a key when these were its events.
    pub(crate) fn rows(&self, key: &Row, events: &[(Row, u64)]) -> Vec<Row> {
        let dim = |event: &Row| {
            let (table, place) = self.dim?;
            table.get(&Row::from([event[place].clone()]))
        };
        // An event whose item nobody knows waits for it, and is no part of a history.
        let seen = || {
            let known = events.iter().rev().map(|(row, count)| (row, *count, dim(row)));
            known.filter(|(_, count, dim)| *count > 0 && (self.dim.is_none() || dim.is_some()))
        };
        let mut counts = Counts::new();
        if self.kernel.counts() {
            for (row, count, dim) in seen() {
                let mut values = Vec::new();
                self.kernel.counted(&Event { row, count, dim }, &mut values);
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                values.into_iter().for_each(|value| *counts.entry(value).or_default() += count);
            }
        }
        let mut rows = Vec::new();
        let mut walk = |visit: &mut dyn FnMut(&Event<'_>) -> bool| {
            for (row, count, dim) in seen() {
                if !visit(&Event { row, count, dim }) {
                    break;
                }
            }
        };
        self.kernel.emit(key, &mut walk, &counts, &mut rows);
        rows
    }
}

/// Writes prompts by a recipe, of users whose group and profile stand as they were fitted.
pub(crate) struct Prompts<'a> {
    pub(crate) recipe: &'a PromptRecipe,
    pub(crate) groups: &'a BTreeMap<Row, Row>,
    pub(crate) profiles: &'a BTreeMap<Row, Row>,
}

impl Prompts<'_> {
    /// The group of a user, where there is one.
    pub(crate) fn group(&self, user: &Row) -> Option<&str> {
        self.groups.get(user)?[self.recipe.groups.1].as_text()
    }

    /// The prompt of a user with these recent interests; nothing for a user without a group, or whose
    /// group has no profile.
    pub(crate) fn prompt(&self, user: &Row, recent: &[Value]) -> Result<Option<String>, KernelError> {
        let Some(group) = self.group(user) else { return Ok(None) };
        let Some(profile) = self.profiles.get(&Row::from([Value::text(group)])) else { return Ok(None) };
        let profile = profile[self.recipe.profiles.1].as_text().unwrap_or_default();
        render(&self.recipe.template, group, profile, recent).map(Some)
    }
}
