//! Examples for training: what users clicked next, and what serving would have asked just before.
//!
//! Decision: an example is found by walking each history once with nothing but what came before, so
//! that no later event can reach a prompt or a target by construction. Group and profile are as they
//! were fitted: an event that is predicted must be newer than what they were fitted on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    asked::{Asked, By, Examples, Prompted},
    category_map::{CategoryTable, domain_of},
    click_filter::item_place,
    label_policy::{LabelPrior, allowed},
    operator::{Input, Inputs, Problem, Problems},
    replay::{PromptRecipe, Prompts, Replayed, histories, table},
    row::Row,
    shape::{Fitted, FoldKernel, Graph, KernelError, LeafId, Shape, Snapshot},
    tuning::held_out::{HeldOut, Parts},
};

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

/// Which clicks become examples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Which {
    pub(crate) targets: Targets,
    /// The newest events of each user, which are predicted.
    pub(crate) last: u64,
    /// Events a user needs before one that is predicted.
    pub(crate) min_history: u64,
    /// Whether labels are ruled out whose interests are all recent, as serving does.
    pub(crate) masked: bool,
    /// The users who are kept out of training.
    pub(crate) held_out: HeldOut,
}

impl Which {
    /// Checks the parameters, and the inputs: events, a category_map, a prompt_builder. Gives the place of
    /// the item in an event.
    pub(crate) fn check(&self, inputs: &Inputs<'_>, problems: &mut Problems) -> Option<usize> {
        problems.take(inputs.at_most(3));
        problems.take(inputs.updated());
        problems.require(self.last > 0, || Problem::with("last", "must be at least 1"));
        problems.require((0.0..1.0).contains(&self.held_out.share()), || {
            Problem::with("held_out", "must be at least 0 and below 1")
        });
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
                let (prompts, events) = (&prompts.name, events.map_or("", String::as_str));
                Problem::input(2, format!("the prompts of `{prompts}` are not written from `{events}`"))
                    .help("name a prompt_builder over recent_categories of the same events")
            });
        }
        item_place(inputs).map_err(|more| more.into_iter().for_each(|p| problems.push(p))).ok()
    }

    /// Checks that nothing of what is predicted went into what it is predicted from.
    pub(crate) fn check_unseen(&self, inputs: &Inputs<'_>, problems: &mut Problems) {
        if let [events, _, prompts, ..] = inputs.inputs {
            problems.take(prompts.schema.unseen(&prompts.name, &events.name, self.last));
        }
    }
}

/// Examples as a graph makes them.
pub(crate) struct Wired {
    pub(crate) clicks: NextClicks,
    /// The labels that are predicted.
    pub(crate) labels: Fitted<CategoryTable>,
    /// What [`NextClicks::examples`] is to be given.
    pub(crate) relations: Vec<LeafId>,
    /// What decides the examples beside the relations.
    pub(crate) logic: String,
}

/// Wires examples to events, a category_map and a prompt_builder that [`Which::check`] accepts; `with` may
/// change how prompts are written.
pub(crate) fn wire(
    which: Which,
    item: usize,
    [events, labels, prompts]: [&Input; 3],
    graph: &Graph,
    with: impl FnOnce(&mut PromptRecipe),
) -> Wired {
    let (Some(table), Some(mut recipe)) =
        (graph.labels_of::<CategoryTable>(&labels.name), graph.recipe_of(&prompts.name).cloned())
    else {
        unreachable!("the inputs are a category_map and a prompt_builder")
    };
    let Shape::Fold { dim, kernel, .. } = graph.leaves[recipe.recents.0].shape.clone() else {
        unreachable!("recent interests that name their events are folded")
    };
    with(&mut recipe);
    let own = [events.leaf, labels.leaf, recipe.groups.0, recipe.profiles.0];
    let relations = own.into_iter().chain(dim.map(|(leaf, _)| leaf)).collect();
    let recents = prompts.schema.notes.get("recents_by").cloned().unwrap_or_default();
    let logic = format!("{} {recents}", recipe.logic);
    let clicks = NextClicks { which, item, recipe, recents: kernel, dim: dim.map(|(_, place)| place) };
    Wired { clicks, labels: table, relations, logic }
}

/// What examples are made with.
pub(crate) struct NextClicks {
    which: Which,
    /// The item's place in an event.
    item: usize,
    recipe: PromptRecipe,
    recents: Arc<dyn FoldKernel>,
    /// The place in an event of what recent interests look up.
    dim: Option<usize>,
}

impl Examples for NextClicks {
    fn examples(&self, inputs: &[&dyn Snapshot], prior: &LabelPrior) -> Result<Parts<Prompted>, KernelError> {
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
        let mut made = [const { Prompted::new() }; 3];
        for (user, events) in histories(inputs[0]) {
            scene.walk(&user, &events, &mut made[self.which.held_out.part("", &user)])?;
        }
        Ok(made)
    }

    fn nothing(&self) -> &'static str {
        "no click could be learnt from; `targets: all` and a larger `last` give more"
    }
}

/// Everything that stands while histories are walked.
struct Scene<'a> {
    making: &'a NextClicks,
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

    fn walk(&self, user: &Row, events: &[(Row, u64)], into: &mut Prompted) -> Result<(), KernelError> {
        let Which { last, min_history, targets, .. } = self.making.which;
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        // As the click_filter leaves them out: an event that occurs twice is two of the newest.
        let newest = events.iter().rev().scan(0, |newer, (_, count)| {
            *newer += count;
            (*newer <= last).then_some(())
        });
        let first = (events.len() - newest.count()).max(size(min_history));
        let mut met: BTreeSet<usize> = BTreeSet::new();
        for (at, (event, count)) in events.iter().enumerate() {
            let labels = self.labels_of(event);
            if at >= first {
                let wanted = labels.iter().map(|label| (*label, !met.contains(label)));
                let wanted: Vec<(usize, bool)> =
                    wanted.filter(|(_, novel)| targets == Targets::All || *novel).collect();
                self.example(user, &events[..at], &wanted, *count, into)?;
            }
            met.extend(labels);
        }
        Ok(())
    }

    /// Adds what was clicked after `before`: labels, and whether they are novel.
    fn example(
        &self,
        user: &Row,
        before: &[(Row, u64)],
        clicked: &[(usize, bool)],
        count: u64,
        into: &mut Prompted,
    ) -> Result<(), KernelError> {
        if clicked.is_empty() {
            return Ok(());
        }
        let rows = self.recents.rows(user, before);
        let place = self.making.recipe.recents.1;
        // Without recent interests serving asks a key of the group, which no click of a user speaks for.
        let Some(recent) = rows.first().and_then(|row| row[place].as_list()) else { return Ok(()) };
        let allowed = match self.making.which.masked {
            true => allowed(self.prior, recent),
            false => vec![true; self.prior.labels.len()],
        };
        let Some(prompt) = self.prompts.prompt(user, recent)? else { return Ok(()) };
        for (label, novel) in clicked.iter().copied().filter(|(label, _)| allowed[*label]) {
            let none = || Asked {
                group: self.prompts.group(user).unwrap_or_default().to_string(),
                recent: recent.iter().filter_map(|name| Some(name.as_text()?.to_string())).collect(),
                allowed: allowed.clone(),
                clicked: vec![0.0; allowed.len()],
                passed_over: vec![],
                by: vec![],
            };
            let asked = into.entry(prompt.clone()).or_insert_with(none);
            asked.clicked[label] += count as f64;
            asked.by.push(By { user: user.clone(), label, count: count as f64, novel });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        row::Value,
        shape::{Counts, Walk},
        template::Template,
        testing::Rows,
    };

    /// The categories of the newest event, and how many events there are.
    struct Newest;

    impl FoldKernel for Newest {
        fn counted(&self, _: &crate::shape::Event<'_>, out: &mut Vec<Value>) {
            out.push(Value::Null);
        }

        fn counts(&self) -> bool {
            true
        }

        fn emit(&self, _: &Row, walk: &mut Walk<'_>, counts: &Counts, out: &mut Vec<Row>) {
            let mut newest = vec![];
            walk(&mut |event| {
                newest.extend(
                    event.dim.into_iter().flat_map(|dim| dim[0].as_list().unwrap_or_default().to_vec()),
                );
                false
            });
            newest.push(Value::text(counts[&Value::Null].to_string()));
            out.push(Row::from([Value::list(newest)]));
        }
    }

    fn texts(names: &[&str]) -> Value {
        Value::list(names.iter().map(Value::text))
    }

    /// Items 1 to 3 are War, Drama and both; their label is the combination.
    fn inputs(history: &[(u64, u64, i64)]) -> Vec<Rows> {
        let event = |(at, (user, item, count)): (usize, &(u64, u64, i64))| {
            (Row::from([Value::U64(*user)]), Row::from([Value::I64(at as i64), Value::U64(*item)]), *count)
        };
        let mut events: Vec<_> = history.iter().enumerate().map(event).collect();
        events.sort();
        let by_item = |of: [&[&str]; 3]| {
            let rows = (1u64..).zip(of);
            Rows(
                rows.map(|(item, names)| (Row::from([Value::U64(item)]), Row::from([texts(names)]), 1))
                    .collect(),
            )
        };
        let group = |user: u64| (Row::from([Value::U64(user)]), Row::from([Value::text("g")]), 1);
        vec![
            Rows(events),
            by_item([&["War"], &["Drama"], &["Drama War"]]),
            Rows(vec![group(1), group(2)]),
            Rows(vec![(Row::from([Value::text("g")]), Row::from([Value::text("P")]), 1)]),
            by_item([&["War"], &["Drama"], &["Drama", "War"]]),
        ]
    }

    fn prior() -> LabelPrior {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        LabelPrior {
            labels: names(&["Drama", "Drama War", "War"]),
            parts: vec![names(&["Drama"]), names(&["Drama", "War"]), names(&["War"])],
            prior: vec![0.0; 3],
            clicks: vec![1; 3],
        }
    }

    /// Prompt → clicks by label, of those to train on.
    fn made(history: &[(u64, u64, i64)], targets: Targets, last: u64) -> Vec<(String, Vec<f64>)> {
        let which = Which { targets, last, min_history: 1, masked: true, held_out: HeldOut::nobody() };
        let template =
            Template::compile("{{ group }} {{ profile }} {{ recent | join('+') }}".into()).unwrap();
        let recipe = PromptRecipe {
            logic: String::new(),
            template,
            groups: (0, 0),
            profiles: (0, 0),
            recents: (0, 0),
        };
        let making = NextClicks { which, item: 1, recipe, recents: Arc::new(Newest), dim: Some(1) };
        let inputs = inputs(history);
        let inputs: Vec<&dyn Snapshot> = inputs.iter().map(|rows| rows as &dyn Snapshot).collect();
        let [train, judge, choose] = making.examples(&inputs, &prior()).unwrap();
        assert!(judge.is_empty() && choose.is_empty());
        train.into_iter().map(|(prompt, asked)| (prompt, asked.clicked)).collect()
    }

    #[test]
    fn an_example_is_what_serving_would_have_asked_before_the_click() {
        // War, Drama, both, War: the last is no news.
        let history = [(1, 1, 1), (1, 2, 1), (1, 3, 1), (1, 1, 1)];
        let drama = ("g P War+1".to_string(), vec![1.0, 0.0, 0.0]);
        let both = ("g P Drama+2".to_string(), vec![0.0, 1.0, 0.0]);
        assert_eq!(made(&history, Targets::Novel, 9), [both.clone(), drama.clone()]);
        // War is then also among the recent interests, so serving would not propose it.
        assert_eq!(made(&history, Targets::All, 9), [both.clone(), drama]);
        assert_eq!(made(&history, Targets::Novel, 2), [both]);
        assert_eq!(made(&history, Targets::Novel, 1), []);
        // What comes later changes nothing before.
        assert_eq!(made(&history[..3], Targets::Novel, 9), made(&history, Targets::Novel, 9));
    }

    #[test]
    fn equal_prompts_are_one_example() {
        let history = [(1, 1, 1), (1, 2, 2), (2, 1, 1), (2, 3, 1), (3, 1, 1), (3, 2, 1)];
        // The third user has no group; two equal clicks are two.
        assert_eq!(made(&history, Targets::Novel, 9), [("g P War+1".to_string(), vec![2.0, 1.0, 0.0])]);
    }

    #[test]
    fn an_event_that_occurs_twice_is_two_of_the_newest() {
        // What is left out of the long term when two are, is the last alone.
        let history = [(1, 1, 1), (1, 2, 1), (1, 3, 2)];
        let both = ("g P Drama+2".to_string(), vec![0.0, 2.0, 0.0]);
        let drama = ("g P War+1".to_string(), vec![1.0, 0.0, 0.0]);
        assert_eq!(made(&history, Targets::Novel, 1), []);
        assert_eq!(made(&history, Targets::Novel, 2), std::slice::from_ref(&both));
        assert_eq!(made(&history, Targets::Novel, 3), [both, drama]);
    }

    #[test]
    fn an_event_of_an_unknown_item_is_no_history() {
        let history = [(1, 1, 1), (1, 9, 1), (1, 2, 1)];
        assert_eq!(made(&history, Targets::Novel, 9), [("g P War+1".to_string(), vec![1.0, 0.0, 0.0])]);
    }
}
