//! The report of an epoch as text: a table of nodes, the summary last.

use std::fmt::Write;

use crate::runtime::report::{Basis, NodeReport, Report};

fn count(n: u64, basis: Basis) -> String {
    match basis {
        Basis::Exact => n.to_string(),
        Basis::Bound => format!("≤{n}"),
        Basis::Estimate => format!("~{n}"),
    }
}

fn cells(node: &NodeReport) -> [String; 6] {
    let dash = || "–".to_string();
    let (calls, memo) = match node.infers {
        true => (count(node.calls.calls, node.calls_basis), node.calls.memo_hits.to_string()),
        false => (dash(), dash()),
    };
    let why = match (node.calls.errors, node.gone) {
        (0, 0) if node.trains => "trains a model".to_string(),
        (0, 0) => String::new(),
        (0, gone) => format!("{gone} keys vanish"),
        (errors, _) => format!("{errors} calls failed"),
    };
    [node.node.clone(), node.keys.to_string(), count(node.changed, node.changed_basis), calls, memo, why]
}

/// Which epoch, and what came in.
fn heading(report: &Report) -> String {
    let verb = if report.dry { "at epoch" } else { "committed epoch" };
    let mut out = format!("{} {verb} {}", report.pipeline, report.epoch);
    for input in &report.inputs {
        let _ = write!(out, ", {}: +{} −{} rows", input.source, input.rows, input.retractions);
        if input.rejected > 0 {
            let _ = write!(out, " ({} records did not parse)", input.rejected);
        }
    }
    out
}

/// The report on one line: what came in, what changed where it is served, what it cost.
pub fn line(report: &Report) -> String {
    let mut out = heading(report);
    for (name, at) in &report.sinks {
        let node = &report.nodes[*at];
        let _ = write!(out, "; {name}: {} keys", count(node.changed, node.changed_basis));
    }
    for node in report.nodes.iter().filter(|node| node.backlog > 0) {
        let _ = write!(out, "; {}: {} requests wait", node.node, node.backlog);
    }
    let _ = writeln!(out, "; {} calls, {:.3} s", report.language_calls(), report.seconds);
    out
}

/// The whole report for a person.
pub fn text(report: &Report) -> String {
    let mut out = heading(report);
    out.push_str("\n\n");
    for (node, kind) in &report.spec_changes {
        let _ = writeln!(out, "spec: {node} ({kind})");
    }
    let header = ["node", "keys", "changed", "calls", "memo", "why"].map(str::to_string);
    let rows: Vec<[String; 6]> = std::iter::once(header).chain(report.nodes.iter().map(cells)).collect();
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    for row in &rows {
        let _ = write!(out, "{:<w$}", row[0], w = widths[0]);
        for at in 1..5 {
            let _ = write!(out, "  {:>w$}", row[at], w = widths[at]);
        }
        let _ = writeln!(out, "  {}", row[5]);
    }
    out.push('\n');
    out.push_str(&summary(report));
    out
}

/// What is left for a later epoch to ask.
pub fn waiting(report: &Report) -> String {
    let waiting = report.nodes.iter().filter(|node| node.backlog > 0);
    let line = |node: &NodeReport| {
        format!("{}: {} requests wait for its `after`; --flush asks them now\n", node.node, node.backlog)
    };
    waiting.map(line).collect()
}

/// What training a model takes.
fn training(dry: bool, node: &NodeReport) -> Option<String> {
    let (cost, seconds) = node.training?;
    let (steps, prompts, tokens) = (cost.steps, cost.prompts, cost.prompt_tokens);
    let verb = if dry { "trains" } else { "trained" };
    let time = match (dry, seconds > 0.0) {
        (true, true) => format!("about {seconds:.1} s"),
        (true, false) => "in a time that no run has measured yet".to_string(),
        (false, _) => format!("{seconds:.1} s"),
    };
    Some(format!("{} {verb} {steps} steps on {prompts} prompts, {tokens} prompt tokens, {time}\n", node.node))
}

fn summary(report: &Report) -> String {
    let language = report.nodes.iter().filter(|node| node.language);
    let (mut calls, mut computed, mut reused, mut written, mut seconds) = (0, 0, 0, 0, 0.0);
    let mut unmeasured = false;
    for node in language {
        calls += node.calls.calls;
        computed += node.calls.cost.prompt_tokens;
        reused += node.calls.cost.reused_prompt_tokens;
        written += node.calls.cost.completion_tokens;
        seconds += node.calls.seconds;
        unmeasured |= node.calls.calls > 0 && node.calls.seconds == 0.0;
    }
    let written = match (written, report.dry) {
        (0, _) => String::new(),
        (written, true) => format!(", at most {written} tokens written"),
        (written, false) => format!(", {written} tokens written"),
    };
    // A plan's seconds are those of earlier calls of the same node; a first run has none to go by.
    let time = match report.dry {
        true if unmeasured => ", in a time that no run has measured yet".to_owned(),
        true => format!(", about {seconds:.1} s"),
        false => format!(", {seconds:.1} s"),
    };
    let mut out: String = report.nodes.iter().filter_map(|node| training(report.dry, node)).collect();
    let _ = write!(
        out,
        "{calls} language-model calls, {computed} prompt tokens ({reused} more reused){written}{time}"
    );
    if let Some((money, currency)) = report.money() {
        let _ = write!(out, ", {money:.4} {currency}");
    }
    out.push('\n');
    for (name, at) in &report.sinks {
        let node = &report.nodes[*at];
        let _ = writeln!(out, "{name}: {} keys change", count(node.changed, node.changed_basis));
    }
    out.push_str(&waiting(report));
    let _ = writeln!(out, "{:.1} s in all", report.seconds);
    out
}
