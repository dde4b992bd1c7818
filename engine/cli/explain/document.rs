//! The document that `explain` prints, and the same for a person.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value as Json;

use crate::{cli::output, serve::Served};

#[derive(Serialize)]
pub(super) struct Explanation {
    pub(super) schema: &'static str,
    pub(super) user: Json,
    pub(super) history: History,
    pub(super) long_term: LongTerm,
    pub(super) group: String,
    pub(super) csid: Vec<u64>,
    pub(super) cold_start: bool,
    pub(super) profile: Option<String>,
    pub(super) recent: Vec<String>,
    pub(super) attempts: Vec<Tried>,
    pub(super) key: String,
    pub(super) rung: &'static str,
    pub(super) prompt: Option<String>,
    pub(super) threshold: Option<f64>,
    pub(super) candidates: Vec<Candidate>,
    pub(super) served: Vec<Served>,
    pub(super) model_versions: BTreeMap<String, String>,
}

#[derive(Default, Serialize)]
pub(super) struct History {
    pub(super) events: u64,
    pub(super) first: Option<Json>,
    pub(super) last: Option<Json>,
    pub(super) newest: Vec<Click>,
}

#[derive(Serialize)]
pub(super) struct Click {
    pub(super) time: Json,
    pub(super) item: Json,
    pub(super) categories: Vec<String>,
    pub(super) count: i64,
}

#[derive(Default, Serialize)]
pub(super) struct LongTerm {
    /// Clicks that speak for lasting interests.
    pub(super) kept: usize,
    /// How many of them carry each category, most first.
    pub(super) categories: Vec<Counted>,
}

#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Counted {
    pub(super) category: String,
    pub(super) clicks: u64,
}

#[derive(Serialize)]
pub(super) struct Tried {
    pub(super) rung: &'static str,
    pub(super) key: String,
    pub(super) found: bool,
    pub(super) categories: usize,
    pub(super) left: usize,
}

/// A label that the novelty model proposed for the key that answered.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Candidate {
    pub(super) category: String,
    pub(super) novelty: Option<f64>,
    pub(super) relevance: Option<f64>,
    pub(super) passed: bool,
    pub(super) seen: bool,
    pub(super) served: bool,
    pub(super) why: String,
}

/// The explanation for a person.
pub(super) fn shown(e: &Explanation) -> String {
    let number = |n: Option<f64>| n.map_or_else(|| "–".to_string(), |n| format!("{n:.3}"));
    let listed = |names: &[String]| if names.is_empty() { "none".to_string() } else { names.join(", ") };
    let time = |time: &Option<Json>| time.as_ref().map_or_else(|| "–".to_string(), Json::to_string);
    let mut text = format!(
        "user {}: {} events from {} to {}\n",
        e.user,
        e.history.events,
        time(&e.history.first),
        time(&e.history.last)
    );
    let clicks = e.history.newest.iter().map(|click| {
        vec![format!("  {}", click.time), format!("item {}", click.item), listed(&click.categories)]
    });
    text += &output::columns(&clicks.collect::<Vec<_>>());
    let kept: Vec<String> =
        e.long_term.categories.iter().map(|c| format!("{} {}", c.category, c.clicks)).collect();
    text += &format!("\nlong-term: {} clicks kept ({})\n", e.long_term.kept, listed(&kept));
    let cold = if e.cold_start { ", cold start" } else { "" };
    text += &format!("group: {} from codes {:?}{cold}\n", e.group, e.csid);
    text += &format!("profile: {}\n", e.profile.as_deref().unwrap_or("none"));
    text += &format!("recent: {}\n\nkeys tried\n", listed(&e.recent));
    let attempts = e.attempts.iter().map(|a| {
        let what = match a.found {
            true => format!("{} of {} categories left", a.left, a.categories),
            false => "no entry".to_string(),
        };
        vec![format!("  {}", a.rung), a.key.clone(), what]
    });
    text += &output::columns(&attempts.collect::<Vec<_>>());
    text += &format!("answered by {} ({})\n", e.key, e.rung);
    if let Some(prompt) = &e.prompt {
        let indented: Vec<String> = prompt.lines().map(|line| format!("  {line}")).collect();
        text += &format!("\nprompt\n{}\n", indented.join("\n"));
    }
    let header = ["  candidate", "novelty", "relevance", ""].map(String::from).to_vec();
    let rows = e
        .candidates
        .iter()
        .map(|c| vec![format!("  {}", c.category), number(c.novelty), number(c.relevance), c.why.clone()]);
    text += &format!("\n{}", output::columns(&[header].into_iter().chain(rows).collect::<Vec<_>>()));
    let versions = e.model_versions.iter().map(|(name, digest)| vec![format!("  {name}"), digest.clone()]);
    text + "\nmodel versions\n" + &output::columns(&versions.collect::<Vec<_>>())
}
