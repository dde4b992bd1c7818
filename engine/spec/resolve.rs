//! References put in: `$params.name`, `{ env: NAME }` and `{ secret: NAME }`.
//!
//! They are whole values, found in the tree after parsing, so a value keeps its type and no text is
//! ever searched or spliced: there is nothing to quote and nothing to inject. A reference that
//! cannot be resolved is reported once and leaves [`Value::Poison`], on which no reader remarks.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    LIMIT_BYTES,
    node::{Node, Value},
    secret::Secret,
    yaml,
};
use crate::diagnostic::{Diagnostic, Diagnostics, SourceText, Span, did_you_mean};

/// Looks a variable of the environment up.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Resolves all references of the document.
pub(super) fn resolve(root: &mut Node, file: &Arc<SourceText>, env: Env<'_>, problems: &mut Diagnostics) {
    let weight = root.weight();
    let mut resolver = Resolver { file, env, problems, params: BTreeMap::new(), weight, full: false };
    let Value::Map(sections) = &mut root.value else { return };
    if let Some(params) = sections.iter_mut().find(|section| *section.key == "params")
        && let Value::Map(entries) = &mut params.value.value
    {
        for entry in entries {
            resolver.param(&mut entry.value);
            resolver.params.insert(entry.key.value.clone(), entry.value.clone());
        }
    }
    for section in sections.iter_mut().filter(|section| *section.key != "params") {
        resolver.params_in(&mut section.value);
        // Below an entry only: a node may be called `env`, and `with: { env: … }` is a parameter.
        for entry in children(&mut section.value) {
            for field in named_children(entry) {
                match field.0 == "with" {
                    true => children(field.1).for_each(|value| resolver.variables_in(value)),
                    false => resolver.variables_in(field.1),
                }
            }
        }
    }
}

struct Resolver<'a> {
    file: &'a Arc<SourceText>,
    env: Env<'a>,
    problems: &'a mut Diagnostics,
    params: BTreeMap<String, Node>,
    /// Of the document as expanded so far.
    weight: usize,
    /// Whether it grew beyond the limit, which is said once.
    full: bool,
}

impl Resolver<'_> {
    /// A parameter's own value: variables, but no other parameter.
    fn param(&mut self, node: &mut Node) {
        self.variables_in(node);
        self.walk(node, &mut |resolver, node| {
            if let Value::Param(name) = &node.value {
                let message = format!("a parameter cannot refer to another (`$params.{name}`)");
                resolver.problems.push(Diagnostic::error(resolver.file, node.span.clone(), message));
                node.value = Value::Poison;
            }
        });
    }

    fn params_in(&mut self, node: &mut Node) {
        self.walk(node, &mut |resolver, node| {
            let Value::Param(name) = &node.value else { return };
            match resolver.params.get(name).cloned() {
                Some(value) if resolver.spend(value.weight(), node) => *node = value,
                Some(_) => node.value = Value::Poison,
                None => {
                    let near = did_you_mean(name, resolver.params.keys().map(String::as_str));
                    let message = format!("there is no parameter `{name}` in `params`");
                    let help = near.map(|near| format!("did you mean `$params.{near}`?"));
                    resolver
                        .problems
                        .push(Diagnostic::error(resolver.file, node.span.clone(), message).help(help));
                    node.value = Value::Poison;
                }
            }
        });
    }

    fn variables_in(&mut self, node: &mut Node) {
        self.walk(node, &mut |resolver, node| {
            let Some((kind, name, span)) = variable(node) else { return };
            let (secret, name, span) = (kind == "secret", name.to_owned(), span.clone());
            match (resolver.env)(&name) {
                Some(value) if secret => node.value = Value::Secret(Secret::new(&name, &value)),
                Some(value) if resolver.spend(value.len(), node) => {
                    node.value = match yaml::resolve_plain(&value) {
                        Value::Param(_) => Value::Text(value.clone()),
                        typed => typed,
                    };
                    node.raw = Some(value.into());
                }
                Some(_) => node.value = Value::Poison,
                None => {
                    let what = if secret { "the secret" } else { "the variable" };
                    let message = format!("{what} `{name}` is not set in the environment");
                    let help = format!("export {name}=… before the command");
                    resolver.problems.push(Diagnostic::error(resolver.file, span, message).help(help));
                    node.value = Value::Poison;
                }
            }
        });
    }

    /// Visits a tree from its root down; what a visit puts in is not visited.
    fn walk(&mut self, node: &mut Node, visit: &mut dyn FnMut(&mut Self, &mut Node)) {
        let before = matches!(node.value, Value::Param(_)) || variable(node).is_some();
        visit(self, node);
        if !before {
            children(node).for_each(|child| self.walk(child, visit));
        }
    }

    /// Counts what is put in against the limit on expansion.
    fn spend(&mut self, weight: usize, node: &Node) -> bool {
        self.weight += weight;
        let fits = self.weight <= LIMIT_BYTES;
        if !fits && !self.full {
            self.full = true;
            let message = format!("the document expands beyond {} KiB", LIMIT_BYTES / 1024);
            self.problems.push(
                Diagnostic::error(self.file, node.span.clone(), message)
                    .help("repeat less through `$params`".to_owned()),
            );
        }
        fits
    }
}

/// `env` or `secret`, the name it asks for, and where that stands.
fn variable(node: &Node) -> Option<(&str, &str, &Span)> {
    match &node.value {
        Value::Map(entries) => match entries.as_slice() {
            [only] if ["env", "secret"].contains(&only.key.as_str()) => match &only.value.value {
                Value::Text(name) => Some((only.key.as_str(), name, &only.value.span)),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

fn children(node: &mut Node) -> Box<dyn Iterator<Item = &mut Node> + '_> {
    match &mut node.value {
        Value::Seq(items) => Box::new(items.iter_mut()),
        Value::Map(entries) => Box::new(entries.iter_mut().map(|entry| &mut entry.value)),
        _ => Box::new(std::iter::empty()),
    }
}

fn named_children(node: &mut Node) -> impl Iterator<Item = (&str, &mut Node)> {
    let entries = match &mut node.value {
        Value::Map(entries) => entries.as_mut_slice(),
        _ => &mut [],
    };
    entries.iter_mut().map(|entry| (entry.key.value.as_str(), &mut entry.value))
}
