//! `--set PATH=VALUE`: one value of the document replaced from the command line.
//!
//! An override edits the tree before parameters are put in, so it can set a parameter, a reference
//! or a plain value alike, and all that reads the tree later reports the flag as the value's place.

use std::sync::Arc;

use super::{
    node::{Entry, Node, Value},
    yaml,
};
use crate::diagnostic::{Diagnostic, Diagnostics, SourceText, Span, Spanned, did_you_mean};

/// Applies the overrides in order; those that cannot be applied are reported and left out.
pub(super) fn apply(root: &mut Node, sets: &[String], file: &Arc<SourceText>, problems: &mut Diagnostics) {
    for set in sets {
        let span = Span::Flag(format!("--set {set}").into());
        if let Err((message, help)) = apply_one(root, set, &span) {
            problems.push(Diagnostic::error(file, span, message).help(help));
        }
    }
}

/// What is wrong, and the way out.
type Refusal = (String, Option<String>);

fn apply_one(root: &mut Node, set: &str, span: &Span) -> Result<(), Refusal> {
    let Some((path, value)) = set.split_once('=') else {
        return Err(("it has no `=`".to_owned(), Some("write --set path.to.param=value".to_owned())));
    };
    let steps: Vec<&str> = path.trim().split('.').collect();
    let Some((leaf, parents)) = steps.split_last().filter(|_| steps.iter().all(|step| !step.is_empty()))
    else {
        return Err((format!("`{path}` is not a path"), Some("write --set path.to.param=value".to_owned())));
    };
    let value = read_value(value, span)?;
    let mut node = root;
    for (depth, step) in parents.iter().enumerate() {
        let here = steps[..depth].join(".");
        let entries = entries_of(node, &here)?;
        match entries.iter().position(|entry| *entry.key == *step) {
            Some(index) => node = &mut entries[index].value,
            None => return Err(unknown(step, entries, &here)),
        }
    }
    let here = parents.join(".");
    let entries = entries_of(node, &here)?;
    match entries.iter_mut().find(|entry| *entry.key == **leaf) {
        Some(entry) => entry.value = value,
        None if parents.iter().any(|step| ["with", "params"].contains(step)) => {
            entries.push(Entry { key: Spanned { value: leaf.to_string(), span: span.clone() }, value });
        }
        None => return Err(unknown(leaf, entries, &here)),
    }
    Ok(())
}

fn entries_of<'a>(node: &'a mut Node, path: &str) -> Result<&'a mut Vec<Entry>, Refusal> {
    let found = node.found();
    match &mut node.value {
        Value::Map(entries) => Ok(entries),
        _ if path.is_empty() => Err((format!("the pipeline is {found}, not a map"), None)),
        _ => Err((format!("`{path}` is {found}, not a map"), None)),
    }
}

fn unknown(step: &str, entries: &[Entry], path: &str) -> Refusal {
    let place = if path.is_empty() { "the pipeline" } else { path };
    let near = did_you_mean(step, entries.iter().map(|entry| entry.key.as_str()));
    (format!("{place} has no `{step}`"), near.map(|near| format!("did you mean `{near}`?")))
}

/// A bare value has the type of an unquoted scalar; quotes, lists and maps are read as YAML.
fn read_value(text: &str, span: &Span) -> Result<Node, Refusal> {
    if !text.starts_with(['"', '\'', '[', '{']) {
        return Ok(Node::new(span.clone(), yaml::resolve_plain(text.trim())));
    }
    let mut problems = Diagnostics::new();
    let parsed = yaml::parse(&Arc::new(SourceText::new("", text)), &mut problems);
    match (parsed, problems.first()) {
        (Ok(mut node), None) => {
            node.place_at(span);
            Ok(node)
        }
        (Err(problem), _) => Err((problem.message, problem.help)),
        (Ok(_), Some(problem)) => Err((problem.message.clone(), None)),
    }
}
