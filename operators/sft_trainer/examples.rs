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
    tuning::baselines::Click,
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

/// Examples by prompt.
pub(super) type Prompted = BTreeMap<String, Asked>;

/// What a prompt says, the labels it may be answered with, and how often each was the answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    pub(super) group: String,
    pub(super) recent: Vec<String>,
    pub(super) allowed: Vec<bool>,
    pub(super) clicked: Vec<f64>,
}

impl Asked {
    /// As what counting sees of it.
    pub(super) fn click(&self) -> Click<'_> {
        Click { group: &self.group, recent: &self.recent, allowed: &self.allowed, clicked: &self.clicked }
    }
}

impl Making {
    /// The examples by prompt: those to train on, and those kept out.
    pub(super) fn examples(
        &self,
        inputs: &[&dyn Snapshot],
        prior: &LabelPrior,
    ) -> Result<[Prompted; 2], KernelError> {
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

    fn walk(&self, user: &Row, events: &[(Row, u64)], into: &mut Prompted) -> Result<(), KernelError> {
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
        into: &mut Prompted,
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
            let none = || Asked {
                group: self.prompts.group(user).unwrap_or_default().to_string(),
                recent: recent.iter().filter_map(|name| Some(name.as_text()?.to_string())).collect(),
                allowed: allowed.clone(),
                clicked: vec![0.0; allowed.len()],
            };
            into.entry(prompt.clone()).or_insert_with(none).clicked[*label] += count as f64;
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
        tuning::training::Training,
    };

    struct Rows(Vec<(Row, Row, i64)>);

    impl Snapshot for Rows {
        fn for_each(&self, visit: &mut dyn FnMut(&Row, &Row, i64)) {
            self.0.iter().for_each(|(key, row, count)| visit(key, row, *count));
        }
    }

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
        }
    }

    /// Prompt → clicks by label, of those to train on.
    fn made(history: &[(u64, u64, i64)], targets: Targets, last: u64) -> Vec<(String, Vec<f64>)> {
        let how = SftTrainer { targets, last, min_history: 1, held_out: 0.0, training: Training::default() };
        let template =
            Template::compile("{{ group }} {{ profile }} {{ recent | join('+') }}".into()).unwrap();
        let recipe = PromptRecipe {
            logic: String::new(),
            template,
            groups: (0, 0),
            profiles: (0, 0),
            recents: (0, 0),
        };
        let making = Making { how, item: 1, recipe, recents: Arc::new(Newest), dim: Some(1) };
        let inputs = inputs(history);
        let inputs: Vec<&dyn Snapshot> = inputs.iter().map(|rows| rows as &dyn Snapshot).collect();
        let [train, held] = making.examples(&inputs, &prior()).unwrap();
        assert!(held.is_empty());
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
    fn an_event_of_an_unknown_item_is_no_history() {
        let history = [(1, 1, 1), (1, 9, 1), (1, 2, 1)];
        assert_eq!(made(&history, Targets::Novel, 9), [("g P War+1".to_string(), vec![1.0, 0.0, 0.0])]);
    }

    #[test]
    fn the_same_users_are_kept_out_whoever_else_there_is() {
        let how = |seed| SftTrainer {
            targets: Targets::All,
            last: 1,
            min_history: 1,
            held_out: 0.3,
            training: Training { seed, ..Training::default() },
        };
        let template = Template::compile(String::new()).unwrap();
        let recipe = PromptRecipe {
            logic: String::new(),
            template,
            groups: (0, 0),
            profiles: (0, 0),
            recents: (0, 0),
        };
        let making = |seed| Making {
            how: how(seed),
            item: 1,
            recipe: recipe.clone(),
            recents: Arc::new(Newest),
            dim: None,
        };
        let out = |seed| -> Vec<u64> {
            (0..2000).filter(|user| making(seed).kept_out(&Row::from([Value::U64(*user)]))).collect()
        };
        assert!((500..700).contains(&out(1).len()), "{}", out(1).len());
        assert_ne!(out(1), out(2));
    }
}
