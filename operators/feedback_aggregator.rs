//! What users made of what they were shown, all of them together (Google-v1 4.1).
//!
//! One user's click says little, and a thousand users who had the same recent interests and were shown
//! the same label say how well it goes with them. Two decisions:
//!
//! *It is a fit*, a snapshot that is taken once and has a version. Kept up to date by every exposure it
//! would move each pair's rate and each label's prior all day long, and with them the examples of
//! whoever trains on it; but a training set has to stand still while it is trained on, and a version of
//! a model has to say of what it was made. What is kept are counts, so another minimum, normalisation or
//! grid walks no history again.
//!
//! *What a user's interests were is asked of the fold that serves*, on the clicks before the exposure
//! and nothing else. Clicks of the same second are not before it: the items of a slate are shown
//! together, and a click on one must not speak in the interests under which the next is counted.

mod counting;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::counting::{After, Counting, Feedback, Places, Tally};
use crate::{
    category_map::domain_of,
    click_filter::item_place,
    operator::{Described, Input, Inputs, Operator, Problem, Problems},
    row::{Keyed, Row, Value},
    schema::{Column, Schema, Type},
    shape::{Graph, LeafId, Shape},
};

/// Counts by recent interests and label what was shown, and how much of it was clicked.
///
/// Inputs: a source of exposures (user, item, time, and whether it was clicked), the category_map whose
/// labels are judged, and recent_categories of the clicks, a source of their own: what was shown and not
/// clicked is no history. A fourth input, users' groups, keeps the counts of each group apart. Data of
/// clicks alone, such as MovieLens, have no exposures, and no rates.
///
/// It counts once, or with `refit: { when: cycle }` in every cycle. Its rows are keyed by recent interests
/// and candidate, behind the group if there is one, and have `exposures`, `clicks`, `rate`
/// (clicks per exposure), `prior` (the rate of the candidate after whatever interests) and
/// `normalised`. Users who had clicked nothing yet are left out.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FeedbackAggregator {
    /// The column of the exposures that says whether it was clicked, a bool; where it is null, nobody
    /// knows, and the exposure does not count.
    pub clicked: String,
    /// Exposures a pair needs; those with fewer are dropped. They still count in priors.
    #[serde(default = "min_exposures")]
    pub min_exposures: u64,
    /// What a rate is compared with.
    #[serde(default)]
    pub normalise: Normalise,
    /// The grid that `normalised` is rounded to, such as 0.05: finer differences are chance. Not rounded
    /// if absent.
    #[serde(default)]
    pub round: Option<f64>,
}

/// What a rate is compared with. A comparison is from 0 to 1, and 0.5 says no better and no worse: its
/// log odds are the logarithm of the quotient of the two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Normalise {
    /// Nothing: `normalised` is the rate.
    None,
    /// The candidate's own rate after whatever interests: rate / (rate + prior). What everybody clicks
    /// gains nothing by it.
    #[default]
    Prior,
    /// The rate of everything that was shown: rate / (rate + overall). The order of candidates is that
    /// of their rates.
    Overall,
}

fn min_exposures() -> u64 {
    10
}

/// `rate` as it compares with `usual`, from 0 to 1; 0.5 where nothing was ever clicked.
fn compared(rate: f64, usual: f64) -> f64 {
    if rate + usual > 0.0 { rate / (rate + usual) } else { 0.5 }
}

/// The nearest multiple of `grid` that is at most 1.
fn rounded(value: f64, grid: f64) -> f64 {
    let steps = (value / grid).round().min((1.0 / grid + 1e-9).floor());
    steps * grid
}

impl FeedbackAggregator {
    /// The rows of what was counted.
    fn rows(&self, feedback: &Feedback) -> Vec<Keyed> {
        let mut overall = Tally::default();
        let mut priors: BTreeMap<&str, Tally> = BTreeMap::new();
        for ((_, candidate), tally) in &feedback.0 {
            overall.add(*tally);
            priors.entry(candidate).or_default().add(*tally);
        }
        let enough = feedback.0.iter().filter(|(_, tally)| tally.exposures >= self.min_exposures);
        let row = |(((group, recent), candidate), tally): (&(After, String), &Tally)| {
            let (rate, prior) = (tally.rate(), priors[candidate.as_str()].rate());
            let normalised = match self.normalise {
                Normalise::None => rate,
                Normalise::Prior => compared(rate, prior),
                Normalise::Overall => compared(rate, overall.rate()),
            };
            let normalised = self.round.map_or(normalised, |grid| rounded(normalised, grid));
            let own = [Value::list(recent.iter().map(Value::text)), Value::text(candidate)];
            let key = Row::new(group.iter().map(Value::text).chain(own));
            let counts = [tally.exposures, tally.clicks].map(Value::U64);
            let rates = [rate, prior, normalised].map(Value::float);
            (key, Row::new(counts.into_iter().chain(rates)))
        };
        enough.map(row).collect()
    }

    fn places(&self, inputs: &Inputs<'_>) -> Result<Places, Vec<Problem>> {
        let mut problems = Problems::default();
        problems.take(inputs.at_most(4));
        problems.require(self.min_exposures > 0, || Problem::with("min_exposures", "must be at least 1"));
        problems.require(self.round.is_none_or(|grid| grid > 0.0 && grid <= 0.5), || {
            Problem::with("round", "must be above 0 and at most 0.5").help("0.05 gives 21 values")
        });
        let item = item_place(inputs).map_err(|more| more.into_iter().for_each(|p| problems.push(p))).ok();
        let clicked = inputs.inputs.first().and_then(|shown| self.clicked_place(shown, &mut problems));
        let labels = inputs.inputs.get(1);
        if let Some(labels) = labels.filter(|labels| !labels.events) {
            let own = domain_of(&labels.schema, "categories");
            problems.require(own.as_deref() == Some(labels.name.as_str()), || {
                Problem::input(1, format!("`{}` does not define labels", labels.name))
                    .help("name a category_map")
            });
        }
        let recent = recent_place(inputs, &mut problems);
        let group = inputs.inputs.get(3).and_then(|_| group_place(inputs, &mut problems));
        let places = item.zip(clicked).zip(recent);
        problems.finish(places.map(|((item, clicked), recent)| Places { item, clicked, recent, group }))
    }

    fn clicked_place(&self, shown: &Input, problems: &mut Problems) -> Option<usize> {
        let found = shown.schema.column(&self.clicked);
        problems.require(found.is_some_and(|(_, column)| column.ty == Type::Bool), || {
            let (name, column) = (&shown.name, &self.clicked);
            let message = match found {
                None => format!("`{name}` has no column `{column}`; it has {}", shown.schema),
                Some((_, found)) => format!("`{column}` of `{name}` is {}, not bool", found.ty),
            };
            Problem::with("clicked", message)
                .help("rates need a source of everything that was shown, and whether it was clicked")
        });
        found.map(|(place, _)| place)
    }
}

/// Checks the third input; gives the place of its categories.
fn recent_place(inputs: &Inputs<'_>, problems: &mut Problems) -> Option<usize> {
    let recent = problems.take(inputs.relation(2, "recent_categories of clicks"))?;
    let place = problems.take(inputs.column(2, recent, "categories"))?;
    let of = recent.schema.notes.get("recents_of");
    problems.require(of.is_some(), || {
        Problem::input(2, format!("`{}` folds no clicks", recent.name)).help("name a recent_categories")
    });
    let shown = inputs.inputs.first()?;
    problems.require(of != Some(&shown.name), || {
        let message = format!("`{}` folds everything that `{}` showed", recent.name, shown.name);
        Problem::input(2, message).help(
            "interests come from clicks: read the exposures twice, the second source with `where: clicked`, and fold that",
        )
    });
    problems.require(recent.schema.key == shown.schema.key, || {
        let message = format!("`{}` and `{}` are not keyed by the same users", recent.name, shown.name);
        Problem::input(2, message).help("declare the same user column in both sources")
    });
    let (time, own) = (recent.schema.notes.get("recents_time"), shown.schema.columns.first());
    problems.require(own.is_none_or(|own| time == Some(&own.ty.to_string())), || {
        let message = format!("`{}` and `{}` have times of different units", recent.name, shown.name);
        Problem::input(2, message).help("declare the same `time: { unit }` in both sources")
    });
    Some(place)
}

/// Checks the fourth input; gives the place of its groups.
fn group_place(inputs: &Inputs<'_>, problems: &mut Problems) -> Option<usize> {
    let groups = problems.take(inputs.relation(3, "users' groups"))?;
    let shown = inputs.inputs.first()?;
    problems.require(groups.schema.key == shown.schema.key, || {
        let message = format!("`{}` and `{}` are not keyed by the same users", groups.name, shown.name);
        Problem::input(3, message).help("name the node that gives users their groups")
    });
    problems.take(inputs.column(3, groups, "group"))
}

impl Operator for FeedbackAggregator {
    fn output(&self, inputs: &Inputs<'_>) -> Result<Schema, Vec<Problem>> {
        self.places(inputs)?;
        let [shown, labels, recents] = [0, 1, 2].map(|at| &inputs.inputs[at]);
        let mut recent = Column::new("recent", Type::Text.list());
        recent.domain = domain_of(&recents.schema, "categories");
        let count = ["exposures", "clicks"].map(|name| Column::new(name, Type::U64));
        let rate = ["rate", "prior", "normalised"].map(|name| Column::new(name, Type::F64));
        let group = inputs.inputs.get(3).map(|_| Column::new("group", Type::Text));
        let key = group.into_iter().chain([recent, Column::new("candidate", Type::Text).of(&labels.name)]);
        let schema = Schema::new(key, count.into_iter().chain(rate)).with_note("feedback_on", &shown.name);
        let passed = ["recents_of", "recents_by"].into_iter();
        let passed = passed.filter_map(|note| Some((note, recents.schema.notes.get(note)?)));
        Ok(passed.fold(schema, |schema, (note, text)| schema.with_note(note, text)))
    }

    fn refits(&self) -> bool {
        true
    }

    fn build(&self, inputs: &Inputs<'_>, graph: &mut Graph) -> LeafId {
        let Ok(at) = self.places(inputs) else { unreachable!("checked by output") };
        let [shown, labels, recents] = [0, 1, 2].map(|at| &inputs.inputs[at]);
        let Shape::Fold { source, dim, kernel } = graph.leaves[recents.leaf].shape.clone() else {
            unreachable!("recent interests that name their events are folded")
        };
        let own = [shown.leaf, labels.leaf, source].into_iter().chain(inputs.inputs.get(3).map(|g| g.leaf));
        let relations: Vec<LeafId> = own.chain(dim.map(|(leaf, _)| leaf)).collect();
        let by = recents.schema.notes.get("recents_by").cloned().unwrap_or_default();
        let logic = format!("feedback_aggregator/1 {} {by}", self.clicked);
        let counting = Counting { at, recents: kernel, dim: dim.map(|(_, place)| place) };
        let fitted =
            graph.fit("counts", &relations, &[], logic, move |inputs, _, _| Ok(counting.count(inputs)));
        let fitted = graph.cheap(fitted);
        let rows = self.clone();
        graph.map_with("", fitted.leaf(), fitted, move |feedback: &Feedback, _, _, out| {
            out.extend(rows.rows(feedback));
            Ok(())
        })
    }
}

impl Described for FeedbackAggregator {
    const NAME: &'static str = "feedback_aggregator";
    const EXAMPLE: &'static str = include_str!("examples/feedback_aggregator.yaml");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aggregator(normalise: Normalise, min_exposures: u64, round: Option<f64>) -> FeedbackAggregator {
        FeedbackAggregator { clicked: "clicked".to_string(), min_exposures, normalise, round }
    }

    /// After War: Drama 2 of 10, Comedy 0 of 2; after Comedy: Drama 6 of 10.
    fn feedback() -> Feedback {
        let pair = |recent: &str, candidate: &str, clicks, exposures| {
            (((None, vec![recent.to_string()]), candidate.to_string()), Tally { exposures, clicks })
        };
        let all = [pair("War", "Drama", 2, 10), pair("War", "Comedy", 0, 2), pair("Comedy", "Drama", 6, 10)];
        Feedback(all.into())
    }

    /// Of each pair that is left: its counts, its rate, its prior and what that comes to.
    fn rows(of: &FeedbackAggregator) -> Vec<(String, [u64; 2], [f64; 3])> {
        let number = |cell: &Value| match cell {
            Value::U64(n) => *n,
            _ => unreachable!("a count"),
        };
        let row = |(key, row): Keyed| {
            let rates = [2, 3, 4].map(|at| (row[at].as_f64().unwrap() * 1e6).round() / 1e6);
            (format!("{}{}", key[0], key[1]), [number(&row[0]), number(&row[1])], rates)
        };
        of.rows(&feedback()).into_iter().map(row).collect()
    }

    #[test]
    fn rates_are_compared_with_what_was_asked() {
        let drama = [r#"["Comedy"]Drama"#, r#"["War"]Drama"#].map(str::to_string);
        let of = |normalise| -> Vec<f64> {
            let rows = rows(&aggregator(normalise, 3, None));
            assert_eq!(rows.iter().map(|(key, ..)| key.clone()).collect::<Vec<_>>(), drama);
            assert_eq!([rows[0].1, rows[1].1], [[10, 6], [10, 2]]);
            assert!(rows.iter().all(|(.., [_, prior, _])| *prior == 0.4), "both rates, and no other");
            rows.iter().map(|(.., [_, _, normalised])| *normalised).collect()
        };
        assert_eq!(of(Normalise::None), [0.6, 0.2]);
        assert_eq!(of(Normalise::Prior), [0.6, 0.333333]);
        // A pair with few exposures is dropped, but what it says of everything stays: 8 of 22.
        assert_eq!(of(Normalise::Overall), [0.622642, 0.354839]);
    }

    #[test]
    fn rates_lie_on_the_grid_and_never_above_one() {
        let rows = rows(&aggregator(Normalise::Prior, 1, Some(0.25)));
        assert_eq!(rows.iter().map(|(.., rates)| rates[2]).collect::<Vec<_>>(), [0.5, 0.5, 0.25]);
        assert_eq!(rows[1].2, [0.0, 0.0, 0.5], "nobody ever clicked it: nothing is known");
        assert_eq!(
            [rounded(1.0, 0.4), rounded(0.96, 0.1), rounded(0.0, 0.3)].map(|v| (v * 10.0).round()),
            [8.0, 10.0, 0.0]
        );
    }
}
