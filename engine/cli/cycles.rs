//! `--cycles`: what cycles did, and in a plan what one would take.

use std::fmt::Write;

use serde_json::{Value as Json, json};

use super::tree;
use crate::runtime::{
    cycles::{Cycle, Made, Outcome},
    foreseen::Foreseen,
    report::Basis,
};

/// Digits of a digest that name a version.
const SHORT: usize = 16;

/// A cycle that was done, for a person.
pub fn text(cycle: &Cycle) -> String {
    let mut out = String::new();
    if cycle.made.is_empty() {
        let _ = writeln!(out, "cycle {}: nothing could be made anew", cycle.number);
    }
    for made in &cycle.made {
        let _ = writeln!(out, "cycle {}: {}", cycle.number, line(made));
    }
    cycle.epochs.iter().for_each(|epoch| out.push_str(&tree::line(epoch)));
    out
}

fn line(made: &Made) -> String {
    let Made { node, version, .. } = made;
    let of = made.model.as_ref().map(|model| format!(" of {model}")).unwrap_or_default();
    let short = &version[..SHORT.min(version.len())];
    let became = match &made.outcome {
        Outcome::Used => "in use".to_string(),
        Outcome::Same => "as before".to_string(),
        Outcome::Refused(why) => format!("refused: {}", why.join("; ")),
        Outcome::Nothing(why) => return format!("{node} made nothing: {why}"),
    };
    let training = made.training.map(|(cost, seconds)| {
        format!(", {} steps on {} prompts in {seconds:.1} s", cost.steps, cost.prompts)
    });
    format!("{node} made {short}{of}{}; {became}", training.unwrap_or_default())
}

/// A cycle that was done, as a document.
pub fn json(cycle: &Cycle) -> Json {
    let made = |made: &Made| {
        let (outcome, why) = match &made.outcome {
            Outcome::Used => ("used", Vec::new()),
            Outcome::Same => ("same", Vec::new()),
            Outcome::Refused(why) => ("refused", why.clone()),
            Outcome::Nothing(why) => ("nothing", vec![why.clone()]),
        };
        json!({
            "node": made.node, "model": made.model, "version": made.version, "outcome": outcome, "why": why,
            "training": made.training.map(|(cost, seconds)| json!({
                "steps": cost.steps, "prompts": cost.prompts, "prompt_tokens": cost.prompt_tokens,
                "seconds": seconds,
            })),
            "figures": made.figures.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        })
    };
    json!({
        "cycle": cycle.number,
        "made": cycle.made.iter().map(made).collect::<Vec<_>>(),
        "epochs": cycle.epochs.iter().map(|epoch| epoch.to_json()).collect::<Vec<_>>(),
    })
}

/// What cycles would take, for a person.
pub fn foreseen_text(cycles: u64, foreseen: &[Foreseen]) -> String {
    let mut out = String::new();
    for of in foreseen {
        let model = of.model.as_deref().unwrap_or_default();
        let training = match &of.training {
            None => "trains on what is not known yet".to_string(),
            Some((cost, seconds)) => {
                let about = if of.basis == Basis::Exact { "" } else { "about " };
                let time = match *seconds > 0.0 {
                    true => format!("about {seconds:.1} s"),
                    false => "in a time that no run has measured yet".to_string(),
                };
                format!("trains {about}{} steps on {} prompts, {time}", cost.steps, cost.prompts)
            }
        };
        let asked = of.calls.map_or("who knows how often".to_string(), |calls| format!("≤{calls} calls"));
        let _ =
            writeln!(out, "each cycle: {} {training}; a new version of {model} is asked {asked}", of.node);
    }
    let most = calls(cycles, foreseen).map_or("an unknown number of".to_string(), |n| format!("at most {n}"));
    let _ = writeln!(out, "{cycles} cycles: {most} language-model calls");
    out
}

/// Calls of so many cycles at most; nothing if nobody can tell.
pub fn calls(cycles: u64, foreseen: &[Foreseen]) -> Option<u64> {
    let each = foreseen.iter().map(|of| of.calls).sum::<Option<u64>>()?;
    Some(cycles.saturating_mul(each))
}

/// What cycles would take, as a document.
pub fn foreseen_json(cycles: u64, foreseen: &[Foreseen]) -> Json {
    let each = |of: &Foreseen| {
        json!({
            "node": of.node, "model": of.model,
            "training": of.training.map(|(cost, seconds)| json!({
                "steps": cost.steps, "prompts": cost.prompts, "prompt_tokens": cost.prompt_tokens,
                "seconds": seconds,
            })),
            "calls": of.calls,
            "basis": { "training": of.basis.word(), "calls": if of.calls.is_some() { Basis::Bound } else { Basis::Estimate }.word() },
        })
    };
    json!({ "count": cycles, "each": foreseen.iter().map(each).collect::<Vec<_>>() })
}
