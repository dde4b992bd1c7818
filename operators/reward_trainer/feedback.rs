//! Examples from collective feedback: rates by recent interests instead of clicks by user.
//!
//! Decision: what is kept out of training is whole sets of interests, as in Google-v1 5.2. Feedback is of
//! all users together, so no user can be kept out of it; and what a relevance model is for is the sets
//! of which too little is known.

use std::collections::BTreeMap;

use crate::{
    asked::{Asked, Examples, Prompted},
    category_map::domain_of,
    label_policy::{LabelPrior, allowed},
    next_clicks::NextClicks,
    operator::{Inputs, Problem, Problems},
    replay::{PromptRecipe, Prompts, table},
    row::{Row, Value},
    shape::{KernelError, Snapshot},
    tuning::held_out::{HeldOut, Parts},
};

/// Checks the fourth input: feedback on the labels that are judged, after the interests that prompts say.
pub(super) fn check(inputs: &Inputs<'_>, problems: &mut Problems) {
    let what = "the feedback_aggregator whose rates are learnt from";
    let Some(feedback) = problems.take(inputs.relation(3, what)) else { return };
    let schema = &feedback.schema;
    if !schema.notes.contains_key("feedback_on") {
        let message = format!("`{}` aggregates no feedback", feedback.name);
        return problems.push(Problem::input(3, message).help("name a feedback_aggregator"));
    }
    let judged = schema.key.iter().find(|column| column.name == "candidate");
    let labels = inputs.inputs.get(1).map(|labels| &labels.name);
    problems.require(judged.and_then(|column| column.domain.as_ref()) == labels, || {
        let (own, labels) = (&feedback.name, labels.map_or("", String::as_str));
        Problem::input(3, format!("`{own}` judges other labels than those of `{labels}`"))
            .help("give both the same category_map")
    });
    let Some(prompts) = inputs.inputs.get(2) else { return };
    let asked = domain_of(&prompts.schema, "recent");
    let known = schema.key.iter().find(|column| column.name == "recent");
    let same = |note| schema.notes.get(note) == prompts.schema.notes.get(note);
    let agree =
        same("recents_of") && same("recents_by") && known.is_some_and(|column| column.domain == asked);
    problems.require(agree, || {
        let (own, prompts) = (&feedback.name, &prompts.name);
        Problem::input(3, format!("`{own}` counts by other interests than the prompts of `{prompts}` say"))
            .help("give both the same recent_categories")
    });
}

/// What was shown after some interests.
#[derive(Clone, Copy)]
struct Shown {
    label: usize,
    exposures: f64,
    clicks: f64,
    normalised: f64,
}

/// Whose interests, and which; everybody's if there is no group.
type After = (Option<String>, Row);

/// Feedback by what was before; labels by their place among `labels`.
fn feedback(rows: &dyn Snapshot, labels: &[String]) -> BTreeMap<After, Vec<Shown>> {
    let mut found: BTreeMap<After, Vec<Shown>> = BTreeMap::new();
    let count = |cell: &Value| if let Value::U64(n) = cell { *n as f64 } else { 0.0 };
    rows.for_each(&mut |key, row, _| {
        // A group stands first, where there is one.
        let (group, key) = key.split_at(key.len().saturating_sub(2));
        let group = group.first().and_then(|group| Some(group.as_text()?.to_string()));
        let candidate = key[1].as_text().unwrap_or_default();
        // A candidate that is no label any more has nothing that could be scored.
        let Ok(label) = labels.binary_search_by(|label| label.as_str().cmp(candidate)) else { return };
        let normalised = row[4].as_f64().unwrap_or_default();
        let shown = Shown { label, exposures: count(&row[0]), clicks: count(&row[1]), normalised };
        found.entry((group, Row::from([key[0].clone()]))).or_default().push(shown);
    });
    found
}

/// Clicks, with what was passed over after the same interests in place of labels in proportion to clicks.
pub(super) struct PassedOver {
    /// Of users' histories, on all relations but the last, which is the feedback.
    pub(super) clicks: NextClicks,
}

impl Examples for PassedOver {
    fn examples(&self, inputs: &[&dyn Snapshot], prior: &LabelPrior) -> Result<Parts<Prompted>, KernelError> {
        let Some((rows, inputs)) = inputs.split_last() else { return Err("the feedback is missing".into()) };
        let feedback = feedback(*rows, &prior.labels);
        if feedback.is_empty() {
            // Without anything that was passed over there is nothing to compare a click with.
            return Ok([const { Prompted::new() }; 3]);
        }
        let mut made = self.clicks.examples(inputs, prior)?;
        compare(&mut made, feedback, prior.labels.len());
        Ok(made)
    }

    fn nothing(&self) -> &'static str {
        self.clicks.nothing()
    }
}

/// Notes with each example what was passed over after its interests; after interests of too few who were
/// shown something, what everybody passed over.
fn compare(made: &mut Parts<Prompted>, feedback: BTreeMap<After, Vec<Shown>>, labels: usize) {
    let mut all = vec![0.0; labels];
    let mut after: BTreeMap<After, Vec<f64>> = BTreeMap::new();
    let grouped = feedback.keys().any(|(group, _)| group.is_some());
    for (before, shown) in feedback {
        let own = after.entry(before).or_insert_with(|| vec![0.0; labels]);
        for Shown { label, exposures, clicks, .. } in shown {
            own[label] += exposures - clicks;
            all[label] += exposures - clicks;
        }
    }
    let names = |recent: &[String]| Row::from([Value::list(recent.iter().map(Value::text))]);
    for asked in made.iter_mut().flat_map(BTreeMap::values_mut) {
        let group = grouped.then(|| asked.group.clone());
        let own = after.get(&(group, names(&asked.recent)));
        let own = own.filter(|own| own.iter().filter(|n| **n > 0.0).count() > 1);
        asked.passed_over = own.unwrap_or(&all).clone();
    }
}

/// How much a pair of interests and candidate counts.
pub(super) type Weigh = fn(f64) -> f64;

/// Rates: of each label that was shown after some interests, a click for the normalised part of what it
/// counts, and none for the rest.
pub(super) struct Rates {
    pub(super) recipe: PromptRecipe,
    /// Of so many exposures.
    pub(super) weigh: Weigh,
    /// The sets of interests that are kept out.
    pub(super) held_out: HeldOut,
}

impl Examples for Rates {
    /// Given groups by user, profiles by group, and the feedback.
    ///
    /// Feedback of no group is said to each, and counts by the group's share of the users.
    fn examples(&self, inputs: &[&dyn Snapshot], prior: &LabelPrior) -> Result<Parts<Prompted>, KernelError> {
        let [groups, profiles] = [0, 1].map(|at| table(inputs[at]));
        let prompts = Prompts { recipe: &self.recipe, groups: &groups, profiles: &profiles };
        let mut members: BTreeMap<&str, (&Row, f64)> = BTreeMap::new();
        for user in groups.keys() {
            let group = prompts.group(user).unwrap_or_default();
            members.entry(group).or_insert((user, 0.0)).1 += 1.0 / groups.len() as f64;
        }
        let labels = prior.labels.len();
        let mut made = [const { Prompted::new() }; 3];
        for ((own, key), shown) in feedback(inputs[2], &prior.labels) {
            let recent = key[0].as_list().unwrap_or_default();
            let into = &mut made[self.held_out.part("interests ", &key)];
            let meant = |group: &str| own.as_deref().is_none_or(|own| own == group);
            for (group, (user, share)) in members.iter().filter(|(group, _)| meant(group)) {
                let share = if own.is_some() { 1.0 } else { *share };
                let Some(prompt) = prompts.prompt(user, recent)? else { continue };
                let asked = into.entry(prompt).or_insert_with(|| Asked {
                    group: group.to_string(),
                    recent: recent.iter().filter_map(|name| Some(name.as_text()?.to_string())).collect(),
                    allowed: allowed(prior, recent),
                    clicked: vec![0.0; labels],
                    passed_over: vec![0.0; labels],
                    by: vec![],
                });
                for Shown { label, exposures, normalised, .. } in &shown {
                    let weight = share * (self.weigh)(*exposures);
                    asked.clicked[*label] += weight * normalised;
                    asked.passed_over[*label] += weight * (1.0 - normalised);
                }
            }
        }
        Ok(made)
    }

    fn nothing(&self) -> &'static str {
        "there is no feedback to learn from; a smaller `min_exposures` or `held_out` leaves more"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{template::Template, testing::Rows, tuning::training::Training};

    fn prior() -> LabelPrior {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        LabelPrior {
            labels: names(&["Comedy", "Drama", "War"]),
            parts: vec![names(&["Comedy"]), names(&["Drama"]), names(&["War"])],
            prior: vec![0.0; 3],
            clicks: vec![1; 3],
        }
    }

    /// (interest, candidate, exposures, clicks, normalised)
    fn rows(of: &[(&str, &str, u64, u64, f64)]) -> Rows {
        let row = |(recent, candidate, exposures, clicks, normalised): &(&str, &str, u64, u64, f64)| {
            let key = Row::from([Value::list([Value::text(recent)]), Value::text(candidate)]);
            let counts = [exposures, clicks].map(|n| Value::U64(*n));
            (key, Row::new(counts.into_iter().chain([0.0, 0.0, *normalised].map(Value::float))), 1)
        };
        Rows(of.iter().map(row).collect())
    }

    /// Users 1 to 3 are of group a, 4 of b; b's profile is the same or another.
    fn rates(
        template: &str,
        weigh: Weigh,
        (held_out, seed): (f64, u64),
    ) -> Parts<Vec<(String, Vec<f64>, Vec<f64>)>> {
        let text = |key: Value, text: &str| (Row::from([key]), Row::from([Value::text(text)]), 1);
        let groups =
            Rows((1..5).map(|user| text(Value::U64(user), if user < 4 { "a" } else { "b" })).collect());
        let profiles = Rows(["a", "b"].map(|group| text(Value::text(group), "P")).to_vec());
        let template = Template::compile(template.to_string()).unwrap();
        let recipe = PromptRecipe {
            logic: String::new(),
            template,
            groups: (0, 0),
            profiles: (0, 0),
            recents: (0, 0),
        };
        let feedback = rows(&[
            ("Drama", "War", 8, 8, 1.0),
            ("War", "Comedy", 4, 1, 0.5),
            ("War", "Sold", 9, 9, 0.5),
            ("War", "War", 20, 0, 0.0),
        ]);
        let held_out = HeldOut::new(held_out, &Training { seed, ..Training::default() });
        let made = Rates { recipe, weigh, held_out }.examples(&[&groups, &profiles, &feedback], &prior());
        made.unwrap().map(|made| {
            made.into_iter().map(|(prompt, asked)| (prompt, asked.clicked, asked.passed_over)).collect()
        })
    }

    #[test]
    fn each_group_is_told_the_same_and_counts_by_its_users() {
        let [train, held, _] = rates("{{ group }}{{ recent | join }}", |n| n, (0.0, 1));
        assert!(held.is_empty());
        let expected = [
            ("aDrama", [0.0, 0.0, 6.0], [0.0; 3]),
            ("aWar", [1.5, 0.0, 0.0], [1.5, 0.0, 15.0]),
            ("bDrama", [0.0, 0.0, 2.0], [0.0; 3]),
            ("bWar", [0.5, 0.0, 0.0], [0.5, 0.0, 5.0]),
        ];
        let expected =
            expected.map(|(prompt, clicked, passed)| (prompt.to_string(), clicked.to_vec(), passed.to_vec()));
        assert_eq!(train, expected);
        // Groups whose prompts are equal are one example; and pairs may count the same.
        let [train, ..] = rates("{{ profile }}{{ recent | join }}", |_| 1.0, (0.0, 1));
        assert_eq!(train[1], ("PWar".to_string(), vec![0.5, 0.0, 0.0], vec![0.5, 0.0, 1.0]));
    }

    #[test]
    fn interests_are_kept_out_for_all_groups_together() {
        let of = |made: &[(String, Vec<f64>, Vec<f64>)]| {
            made.iter().map(|(prompt, ..)| prompt.clone()).collect::<Vec<_>>()
        };
        let mut seen = [0; 3];
        for seed in 0..20 {
            let all = rates("{{ recent | join }}{{ group }}", |n| n, (0.5, seed)).map(|made| of(&made));
            for (made, seen) in all.iter().zip(&mut seen) {
                *seen += made.len();
                for name in ["Drama", "War"] {
                    let groups = ["a", "b"].map(|group| made.contains(&format!("{name}{group}")));
                    assert_eq!(groups[0], groups[1], "{made:?}");
                }
            }
        }
        assert!(seen[0] + seen[1] == 80 && seen[..2].iter().all(|n| *n > 20), "{seen:?}");
    }

    #[test]
    fn clicks_are_compared_with_what_was_passed_over_after_the_same_interests() {
        let asked = |recent: &str| Asked {
            group: String::new(),
            recent: vec![recent.to_string()],
            allowed: vec![true; 3],
            clicked: vec![1.0, 0.0, 0.0],
            passed_over: vec![],
            by: vec![],
        };
        let prompted = ["War", "Drama", "Noir"].map(|recent| (recent.to_string(), asked(recent)));
        let mut made = [Prompted::from(prompted), Prompted::new(), Prompted::new()];
        let shown =
            rows(&[("Drama", "War", 8, 6, 0.0), ("War", "Comedy", 4, 1, 0.0), ("War", "Drama", 5, 0, 0.0)]);
        compare(&mut made, feedback(&shown, &prior().labels), 3);
        let passed: Vec<_> = made[0].values().map(|asked| asked.passed_over.clone()).collect();
        // After Drama only War was shown, after Noir nothing: both are compared with everything.
        assert_eq!(passed, [vec![3.0, 5.0, 2.0], vec![3.0, 5.0, 2.0], vec![3.0, 5.0, 0.0]]);
    }
}
