//! `explain`: why a user is served what they are served, from their clicks to the filter.
//!
//! Everything is read from the tables of the last epoch; nothing is computed again, so what is
//! shown is what decided. The lookup is the one that serving runs.

mod document;

use std::collections::BTreeMap;

use coea_operators::{
    row::{Row, Value},
    schema::Schema,
};
use serde_json::Value as Json;

use self::document::{Candidate, Click, Counted, Explanation, History, LongTerm, Tried, shown};
use super::{Common, Failure, Format, lookup::note_unknown, output};
use crate::{
    plan::PlanNode,
    serve::{
        Found, Places, Served, View, lookup,
        lookup::{Attempt, key_text, may_serve, texts},
    },
    spec,
    state::StateError,
};

/// Newest events that are shown.
const NEWEST: usize = 10;

/// Why a user is served what they are served.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
    /// The user.
    #[arg(long, value_name = "ID")]
    pub user: String,
}

/// Runs the command.
///
/// # Errors
/// As `lookup`.
pub fn run(args: &Args) -> Result<(), Failure> {
    let view = output::open(&args.common)?;
    let plan = view.plan.clone();
    let places = Places::find(&plan)?;
    let found = lookup(&view, &places, &args.user)?;
    note_unknown(&found, &args.common);
    let threshold = threshold(&args.common, &view, &places)?;
    let explanation = explain(&view, &places, found, threshold)?;
    match args.common.format {
        Format::Json => output::document(&explanation),
        Format::Text => output::text(&shown(&explanation)),
    }
}

/// The threshold as the pipeline writes it: parameters are no part of the plan.
fn threshold(common: &Common, view: &View, places: &Places<'_>) -> Result<Option<f64>, Failure> {
    let Some(align) = above(view, places, "align") else { return Ok(None) };
    let spec = spec::load(&common.pipeline, &common.set, &|name| std::env::var(name).ok())?;
    let node = spec.nodes.iter().find(|node| node.name.value == align.name);
    Ok(node.and_then(|node| node.spec.with.canonical_json()["threshold"].as_f64()))
}

/// The last node of an operator above the store, itself included.
fn above<'a>(view: &'a View, places: &Places<'_>, op: &str) -> Option<&'a PlanNode> {
    view.nodes_above(places.entries).into_iter().rfind(|node| node.op == op)
}

fn explain(
    view: &View,
    places: &Places<'_>,
    found: Found,
    threshold: Option<f64>,
) -> Result<Explanation, StateError> {
    let attempt = &found.attempts[found.chosen];
    let answer = found.answer;
    let group = Row::from([Value::text(&answer.group)]);
    let cell = |table: &str, schema: &Schema, key: &Row, column: &str| {
        let row = view.row(table, key)?;
        let at = schema.column(column).map(|(at, _)| at);
        Ok::<_, StateError>(row.zip(at).and_then(|(row, at)| row.get(at).cloned()))
    };
    let proposed = match above(view, places, "llm_sampler") {
        Some(node) => pairs(cell(&node.name, &node.schema, &attempt.key, "candidates")?.as_ref()),
        None => Vec::new(),
    };
    let rated = match above(view, places, "scorer") {
        Some(node) => pairs(cell(&node.name, &node.schema, &attempt.key, "scored")?.as_ref()),
        None => Vec::new(),
    };
    let profile = cell(&places.profiles.name, places.profiles.schema, &group, "profile")?;
    let prompt = cell(&places.prompt.name, &places.prompt.schema, &attempt.key, "prompt")?;
    let judge = Judge { places, attempt, served: &answer.categories, threshold };
    Ok(Explanation {
        schema: "coea.explain/1",
        history: history(view, places, &found.user)?,
        long_term: long_term(view, places, &found.user)?,
        profile: profile.map(|text| text.to_string()),
        attempts: found.attempts.iter().map(tried).collect(),
        prompt: prompt.map(|text| text.to_string()),
        threshold,
        candidates: judge.candidates(&proposed, &rated),
        user: answer.user,
        group: answer.group,
        csid: answer.csid,
        cold_start: answer.cold_start,
        recent: answer.recent,
        key: answer.key,
        rung: answer.rung.word(),
        served: answer.categories,
        model_versions: answer.model_versions,
    })
}

fn tried(attempt: &Attempt) -> Tried {
    Tried {
        rung: attempt.rung.word(),
        key: key_text(&attempt.key),
        found: attempt.found,
        categories: attempt.listed.len(),
        left: attempt.left,
    }
}

/// The (name, score) pairs of a cell.
fn pairs(cell: Option<&Value>) -> Vec<(String, f64)> {
    let pair = |cell: &Value| {
        let [name, score] = cell.as_list()? else { return None };
        Some((name.to_string(), score.as_f64()?))
    };
    cell.and_then(Value::as_list).unwrap_or_default().iter().filter_map(pair).collect()
}

fn history(view: &View, places: &Places<'_>, user: &Row) -> Result<History, StateError> {
    let mut history = History::default();
    let Some(events) = places.events else { return Ok(history) };
    let mut newest: Vec<(Row, i64)> = Vec::new();
    view.walk(events, user, &mut |event, count| {
        let time = event.first().map(Value::to_json);
        history.events += count.unsigned_abs();
        history.last = history.last.take().or_else(|| time.clone());
        history.first = time;
        if newest.len() < NEWEST {
            newest.push((event.clone(), count));
        }
        true
    })?;
    for (event, count) in newest {
        let item = places.item.and_then(|at| event.get(at)).cloned().unwrap_or_default();
        let labels = match places.labels {
            Some(labels) => view.row(&labels.name, &Row::from([item.clone()]))?,
            None => None,
        };
        history.newest.push(Click {
            time: event.first().map_or(Json::Null, Value::to_json),
            item: item.to_json(),
            categories: texts(labels.as_ref().and_then(|row| row.first())),
            count,
        });
    }
    Ok(history)
}

/// What the filter above the groups kept of the history.
fn long_term(view: &View, places: &Places<'_>, user: &Row) -> Result<LongTerm, StateError> {
    let above = places.groups.0.node.map(|node| view.nodes_above(node)).unwrap_or_default();
    let filter = above.into_iter().rfind(|node| node.op == "click_filter");
    let Some((node, at)) = filter.and_then(|node| Some((node, node.schema.column("categories")?.0))) else {
        return Ok(LongTerm::default());
    };
    let row = view.row(&node.name, user)?;
    let clicks = row.as_ref().and_then(|row| row.get(at)).and_then(Value::as_list).unwrap_or_default();
    Ok(LongTerm { kept: clicks.len(), categories: counted(clicks) })
}

/// How many lists name each category; most first, equals by name.
fn counted(clicks: &[Value]) -> Vec<Counted> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for name in clicks.iter().flat_map(|click| texts(Some(click))) {
        *counts.entry(name).or_default() += 1;
    }
    let mut counted: Vec<Counted> =
        counts.into_iter().map(|(category, clicks)| Counted { category, clicks }).collect();
    counted.sort_by_key(|c| std::cmp::Reverse(c.clicks));
    counted
}

/// Says of each candidate how far it came.
struct Judge<'a> {
    places: &'a Places<'a>,
    attempt: &'a Attempt,
    served: &'a [Served],
    threshold: Option<f64>,
}

impl Judge<'_> {
    /// Every candidate with its fate; where nothing proposes, those of the entry.
    fn candidates(&self, proposed: &[(String, f64)], rated: &[(String, f64)]) -> Vec<Candidate> {
        let score = |scores: &[(String, f64)], name: &str| {
            scores.iter().find(|(known, _)| known == name).map(|(_, score)| *score)
        };
        let mut names: Vec<&str> = self.attempt.listed.iter().map(|s| s.category.as_str()).collect();
        let rest = proposed.iter().map(|(name, _)| name.as_str());
        let rest: Vec<&str> = rest.filter(|name| !names.contains(name)).collect();
        names.extend(rest);
        let one = |name: &str| {
            let entry = self.attempt.listed.iter().find(|s| s.category == name);
            let served = self.served.iter().any(|s| s.category == name);
            let relevance = score(rated, name).or(entry.map(|s| s.score));
            Candidate {
                category: name.to_string(),
                novelty: score(proposed, name),
                relevance,
                passed: entry.is_some(),
                seen: entry.is_some_and(|s| s.seen),
                served,
                why: match entry {
                    None => dropped(relevance, self.threshold),
                    Some(_) if served => "served".to_string(),
                    Some(entry) if !may_serve(entry, self.places.sink.kv.novel_to) => {
                        "in this user's history".to_string()
                    }
                    Some(_) => format!("{} others are better", self.served.len()),
                },
            }
        };
        names.into_iter().map(one).collect()
    }
}

/// Why a candidate is not in the store.
fn dropped(relevance: Option<f64>, threshold: Option<f64>) -> String {
    match (relevance, threshold) {
        (Some(relevance), Some(threshold)) if relevance > threshold => {
            "better ones took the places kept".to_string()
        }
        (_, Some(threshold)) => format!("not above the threshold {threshold}"),
        (_, None) => "not kept".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_kept_has_a_reason() {
        assert_eq!(dropped(Some(0.4), Some(0.5)), "not above the threshold 0.5");
        assert_eq!(dropped(Some(0.6), Some(0.5)), "better ones took the places kept");
        assert_eq!(dropped(Some(0.6), None), "not kept");
    }

    #[test]
    fn long_term_interests_are_counted_most_first() {
        let click = |names: &[&str]| Value::list(names.iter().map(Value::text));
        let counted = counted(&[click(&["Drama", "War"]), click(&["War"]), click(&["Comedy"])]);
        let shown: Vec<String> = counted.iter().map(|c| format!("{} {}", c.category, c.clicks)).collect();
        assert_eq!(shown, ["War 2", "Comedy 1", "Drama 1"]);
    }
}
