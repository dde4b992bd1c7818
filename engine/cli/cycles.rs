//! `--cycles`: what cycles did, and in a plan what one would take.

use std::fmt::Write;

use serde_json::{Value as Json, json};

use super::tree;
use crate::runtime::{
    cycles::{Cycle, Made, Outcome},
    foreseen::{Foreseen, Foresight, Renewal},
    report::{Basis, Report},
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
        Outcome::Kept(why) => return format!("{node} stays as it is: {why}"),
        Outcome::Nothing(why) => return format!("{node} made nothing: {why}"),
    };
    let training = made.training.map(|(cost, seconds)| {
        format!(", {} steps on {} prompts in {seconds:.1} s", cost.steps, cost.prompts)
    });
    let told = match made.training {
        Some(_) => String::new(),
        None => figures(&made.figures),
    };
    format!("{node} made {short}{of}{}; {became}{told}", training.unwrap_or_default())
}

fn figures(figures: &[(String, f64)]) -> String {
    let all: Vec<String> = figures.iter().map(|(name, value)| format!("{name} {value:.3}")).collect();
    if all.is_empty() { String::new() } else { format!(" ({})", all.join(", ")) }
}

/// A cycle that was done, as a document.
pub fn json(cycle: &Cycle) -> Json {
    json!({
        "cycle": cycle.number,
        "made": cycle.made.iter().map(made_json).collect::<Vec<_>>(),
        "epochs": cycle.epochs.iter().map(|epoch| epoch.to_json()).collect::<Vec<_>>(),
    })
}

fn made_json(made: &Made) -> Json {
    let (outcome, why) = match &made.outcome {
        Outcome::Used => ("used", Vec::new()),
        Outcome::Same => ("same", Vec::new()),
        Outcome::Refused(why) => ("refused", why.clone()),
        Outcome::Kept(why) => ("kept", vec![why.clone()]),
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
}

/// What cycles would take, for a person.
pub fn foreseen_text(cycles: u64, foreseen: &Foresight) -> String {
    let mut out = String::new();
    if let Some(renewal) = &foreseen.renewal {
        out.push_str(&renewal_text(renewal));
    }
    for of in &foreseen.models {
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

fn renewal_text(renewal: &Renewal) -> String {
    let mut out = String::new();
    match &renewal.made {
        None => out.push_str("first cycle: what is renewed moves what is not known yet\n"),
        Some(made) => made.iter().for_each(|made| {
            let _ = writeln!(out, "first cycle: {}", line(made));
        }),
    }
    renewal.report.iter().for_each(|report| out.push_str(&tree::text(report)));
    out
}

/// Calls of so many cycles at most; nothing if nobody can tell, as of renewals after the first ones.
pub fn calls(cycles: u64, foreseen: &Foresight) -> Option<u64> {
    let each = foreseen.models.iter().map(|of| of.calls).sum::<Option<u64>>()?;
    let renewal = match &foreseen.renewal {
        None => 0,
        Some(Renewal { made: Some(_), report }) if cycles == 1 => {
            report.as_ref().map_or(0, Report::language_calls)
        }
        Some(_) => return None,
    };
    Some(cycles.saturating_mul(each) + renewal)
}

/// What cycles would take, as a document.
pub fn foreseen_json(cycles: u64, foreseen: &Foresight) -> Json {
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
    let renewal = |renewal: &Renewal| {
        json!({
            "made": renewal.made.as_ref().map(|made| made.iter().map(made_json).collect::<Vec<_>>()),
            "epoch": renewal.report.as_ref().map(Report::to_json),
        })
    };
    json!({
        "count": cycles,
        "renewal": foreseen.renewal.as_ref().map(renewal),
        "each": foreseen.models.iter().map(each).collect::<Vec<_>>(),
    })
}
