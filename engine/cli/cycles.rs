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
    // Those of a trained version are dozens, and the table `training` has them.
    let trained = made.figures.iter().any(|(name, _)| name == "learning_rate");
    let told = if trained { String::new() } else { figures(&made.figures) };
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
pub fn foreseen_text(foreseen: &Foresight) -> String {
    let mut out = String::new();
    if let Some(renewal) = &foreseen.renewal {
        out.push_str(&renewal_text(renewal));
    }
    for of in &foreseen.models {
        let model = of.model.as_deref().unwrap_or_default();
        if let Some(why) = &of.kept {
            let _ = writeln!(out, "first cycle: {} stays as it is: {why}", of.node);
            continue;
        }
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
        let asked = of.most().map_or("who knows how often".to_string(), |calls| format!("≤{calls} calls"));
        let _ =
            writeln!(out, "each cycle: {} {training}; a new version of {model} is asked {asked}", of.node);
    }
    let most = match calls(foreseen) {
        (calls, true) => format!("at most {calls}"),
        (_, false) => "an unknown number of".to_string(),
    };
    let _ = writeln!(out, "{} cycles: {most} language-model calls", foreseen.cycles);
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

/// The models that are asked anew in these cycles, or may be.
fn asked(foreseen: &Foresight) -> impl Iterator<Item = &Foreseen> {
    foreseen.models.iter().filter(|of| foreseen.cycles > 1 || of.kept.is_none())
}

/// Calls of a node in all cycles, at most, as far as they are known.
pub fn calls_of(foreseen: &Foresight, node: &str) -> u64 {
    let each = asked(foreseen).filter_map(|of| of.calls.as_ref()?.get(node));
    let renewal = foreseen.renewal.as_ref().and_then(|renewal| renewal.report.as_ref());
    let renewal = renewal.and_then(|report| report.calls().get(node).copied()).unwrap_or_default();
    each.sum::<u64>().saturating_mul(foreseen.cycles) + renewal
}

/// Calls of all cycles as far as they are known, and whether that is the most there can be: of models whose
/// turn comes later, and of renewals after the first ones, nobody can tell.
pub fn calls(foreseen: &Foresight) -> (u64, bool) {
    let several = foreseen.cycles > 1;
    let each: Vec<Option<u64>> = asked(foreseen).map(Foreseen::most).collect();
    let models = each.iter().flatten().sum::<u64>().saturating_mul(foreseen.cycles);
    let (renewal, known) = match &foreseen.renewal {
        None => (0, true),
        Some(Renewal { made, report }) => {
            (report.as_ref().map_or(0, Report::language_calls), made.is_some() && !several)
        }
    };
    (models + renewal, known && each.iter().all(Option::is_some))
}

/// What cycles would take, as a document.
pub fn foreseen_json(foreseen: &Foresight) -> Json {
    let each = |of: &Foreseen| {
        json!({
            "node": of.node, "model": of.model,
            "training": of.training.map(|(cost, seconds)| json!({
                "steps": cost.steps, "prompts": cost.prompts, "prompt_tokens": cost.prompt_tokens,
                "seconds": seconds,
            })),
            "calls": of.most(), "calls_of": of.calls, "kept": of.kept,
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
        "count": foreseen.cycles,
        "renewal": foreseen.renewal.as_ref().map(renewal),
        "each": foreseen.models.iter().map(each).collect::<Vec<_>>(),
    })
}
