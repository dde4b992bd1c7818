//! The part of an entry that belongs to its operator, connector or model: `with`.
//!
//! serde stops at the first mistake. To report them all, the value at fault is poisoned in a copy
//! of the tree and the copy is read again, until it reads or nothing is left to poison.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::{
    de::{Fault, FaultKind, NodeDe, one_of},
    node::{Node, Step, Value},
    secret::WANTED,
};
use crate::diagnostic::{Diagnostic, Diagnostics, SourceText, Span, did_you_mean};

/// Mistakes after which a block is given up.
const MAX_FAULTS: usize = 64;

/// Parameters with their places, not yet of any type.
#[derive(Clone, Debug)]
pub struct Block {
    pub(super) file: Arc<SourceText>,
    /// A map; empty where the user wrote none.
    pub(super) node: Node,
}

impl Block {
    /// The parameters as a value of type `T`; `owner` is what messages call their taker
    /// ("unknown parameter `min_click` of click_filter").
    ///
    /// A key that `T` does not know is an error, also without `deny_unknown_fields`. An enum's
    /// variant with a value is written `{ variant: value }`. Avoid `flatten`, `untagged` and
    /// internal tags in `T`: serde buffers them, and places and good messages are lost.
    ///
    /// # Errors
    /// All mistakes found. None at all when their cause was reported while loading.
    pub fn parse<T: DeserializeOwned>(&self, owner: &str) -> Result<T, Diagnostics> {
        let fault = match T::deserialize(NodeDe(&self.node)) {
            Ok(value) => return Ok(value),
            Err(fault) => fault,
        };
        let (mut node, mut problems, mut next) = (self.node.clone(), Diagnostics::new(), Some(fault));
        for _ in 0..MAX_FAULTS {
            let Some(mut fault) = next else { break };
            fault.path.reverse();
            problems.extend(self.explain(&node, &fault, owner));
            if let FaultKind::UnknownKey { key, .. } = fault.kind {
                fault.path.push(Step::Key(key));
            }
            match node.at_mut(&fault.path) {
                Some(place) if !fault.path.is_empty() => place.value = Value::Poison,
                _ => break,
            }
            next = T::deserialize(NodeDe(&node)).err();
        }
        problems.sort();
        Err(problems)
    }

    /// Where the value at a path was written; of a path that leads beyond, as far as it leads.
    /// Items of lists are counted from `0`.
    pub fn span_of(&self, path: &[&str]) -> Span {
        let mut node = &self.node;
        for step in path {
            let index = step.parse().ok().map(Step::Index);
            let next = node.get(step).or_else(|| node.step(&index?));
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node.span.clone()
    }

    /// Whether there is no parameter.
    pub fn is_empty(&self) -> bool {
        self.node.entries().is_none_or(<[_]>::is_empty)
    }

    /// The meaning without the writing, for hashes: keys sorted, `1.0` as `1`, no comments, secrets
    /// by name.
    pub fn canonical_json(&self) -> serde_json::Value {
        match self.node.value {
            Value::Map(_) => self.node.canonical_json(),
            _ => serde_json::json!({}),
        }
    }

    /// The message for a fault; none when it follows from one already reported.
    fn explain(&self, root: &Node, fault: &Fault, owner: &str) -> Option<Diagnostic> {
        let node = root.at(&fault.path)?;
        let name = dotted(&fault.path);
        let label = if name.is_empty() { owner.to_owned() } else { format!("`{name}` of {owner}") };
        let inner = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
        let error = |message: String| Diagnostic::error(&self.file, node.span.clone(), message);
        Some(match &fault.kind {
            FaultKind::UnknownKey { key, known } => {
                let span = node.entries()?.iter().find(|entry| *entry.key == *key)?.key.span.clone();
                let help = match (did_you_mean(key, known.iter().copied()), known) {
                    (Some(near), _) => format!("did you mean `{near}`?"),
                    (None, []) => "it takes none here".to_owned(),
                    (None, known) => format!("known here: `{}`", known.join("`, `")),
                };
                let message = format!("unknown parameter `{}` of {owner}", inner(key));
                Diagnostic::error(&self.file, span, message).help(help)
            }
            FaultKind::Missing(key) if excused(node, key) => return None,
            FaultKind::Missing(key) => error(format!("{owner} needs the parameter `{}`", inner(key))),
            FaultKind::UnknownWord { word, known } => {
                let near =
                    did_you_mean(word, known.iter().copied()).map(|near| format!("did you mean `{near}`?"));
                error(format!("{label} cannot be `{word}`")).help(near.unwrap_or_else(|| one_of(known)))
            }
            // Not `found`: what stands there may be the secret itself.
            FaultKind::Wants(wants) if wants == WANTED => error(format!("{label} wants {WANTED}")),
            FaultKind::Wants(wants) => {
                let quote = matches!(node.value, Value::Int(_) | Value::Float(_) | Value::Bool(_))
                    && ["a string", "string"].contains(&wants.as_str());
                let number = matches!(node.value, Value::Int(_));
                error(format!("{label} wants {}, found {}", plainly(wants, number), node.found()))
                    .help(quote.then(|| "quote it to make it text".to_owned()))
            }
            FaultKind::Secret => error(format!("{label} cannot be a secret")),
            FaultKind::Length(_) | FaultKind::Custom(_) if has_poison(node) => return None,
            FaultKind::Length(wants) => {
                error(format!("{label} wants {}, found another length", plainly(wants, false)))
            }
            FaultKind::Custom(message) => error(format!("{label}: {message}")),
            FaultKind::Ignored | FaultKind::Poison => return None,
        })
    }
}

fn has_poison(node: &Node) -> bool {
    match &node.value {
        Value::Seq(items) => items.iter().any(|item| item.value == Value::Poison),
        Value::Map(entries) => entries.iter().any(|entry| entry.value.value == Value::Poison),
        _ => node.value == Value::Poison,
    }
}

/// `sample.fraction`, `columns[2]`.
fn dotted(path: &[Step]) -> String {
    path.iter().fold(String::new(), |name, step| match step {
        Step::Key(key) if name.is_empty() => key.clone(),
        Step::Key(key) => format!("{name}.{key}"),
        Step::Index(index) => format!("{name}[{index}]"),
    })
}

/// Whether a missing key is there, but wrong or mistyped, and so reported.
fn excused(map: &Node, key: &str) -> bool {
    map.entries().unwrap_or_default().iter().any(|entry| {
        let written = entry.key.as_str();
        entry.value.value == Value::Poison && (written == key || did_you_mean(written, [key]).is_some())
    })
}

/// serde's name of a type, for people; with its range when a whole number was `found`.
fn plainly(wants: &str, found: bool) -> String {
    match wants {
        "u8" | "u16" | "u32" | "u64" | "usize" | "u128" if !found => "a whole number".to_owned(),
        "u8" | "u16" | "u32" => {
            let bits: u32 = wants[1..].parse().unwrap_or(32);
            format!("a whole number from 0 to {}", (1u64 << bits) - 1)
        }
        "u64" | "usize" | "u128" => "a whole number, 0 or more".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "isize" | "i128" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a string" | "string" => "text".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a character" => "one character".to_owned(),
        "a sequence" => "a list".to_owned(),
        "unit" => "nothing".to_owned(),
        _ if wants.starts_with("struct ") => "a map".to_owned(),
        _ => {
            match wants.strip_prefix("an array of length ").or_else(|| wants.strip_prefix("a tuple of size "))
            {
                Some(length) => format!("a list of {length}"),
                None => wants.to_owned(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::spec::{Secret, parse};

    /// The `with` of a node, with `PORT` and `TOKEN` in the environment.
    fn block(with: &str, sets: &[&str]) -> Block {
        let text =
            format!("version: 1\nname: d\nparams: {{ few: 2 }}\nnodes:\n  a:\n    op: x\n    with: {with}\n");
        let file = Arc::new(SourceText::new("p.yaml", text));
        let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
        let env = |name: &str| {
            [("PORT", "6379"), ("TOKEN", "hunter2")].iter().find(|v| v.0 == name).map(|v| v.1.into())
        };
        let (spec, problems) = parse(file, &sets, &env);
        assert!(problems.is_empty(), "{problems}");
        spec.unwrap().nodes.remove(0).spec.with
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Link {
        port: u16,
        host: String,
        #[serde(default)]
        rate: f64,
        password: Option<Secret>,
    }

    #[test]
    fn values_reach_the_type() {
        let link: Link = block("{ port: $params.few, host: h, rate: 1, password: { secret: TOKEN } }", &[])
            .parse("x")
            .unwrap();
        assert_eq!((link.port, link.host.as_str(), link.rate), (2, "h", 1.0));
        assert_eq!(link.password.unwrap().reveal(), "hunter2");
    }

    #[test]
    fn a_variable_is_a_number_or_text_as_its_field_wants() {
        let link: Link = block("{ port: { env: PORT }, host: { env: PORT } }", &[]).parse("x").unwrap();
        assert_eq!((link.port, link.host.as_str()), (6379, "6379"));
    }

    #[test]
    fn no_type_but_secret_takes_a_secret() {
        let block = block("{ a: [{ secret: TOKEN }] }", &[]);
        for problems in [
            block.parse::<serde_json::Value>("x").unwrap_err(),
            block.parse::<std::collections::BTreeMap<String, Vec<String>>>("x").unwrap_err(),
        ] {
            assert!(problems.to_string().contains("`a[0]` of x cannot be a secret"), "{problems}");
        }
        assert!(!format!("{block:?}").contains("hunter2"));
    }

    #[test]
    fn a_type_that_forgot_to_deny_unknown_keys_denies_them() {
        let problems = block("{ port: 1, host: h, zone: 3, prot: 2 }", &[]).parse::<Link>("x").unwrap_err();
        let messages: Vec<&str> = problems.iter().map(|problem| problem.message.as_str()).collect();
        assert_eq!(messages, ["unknown parameter `zone` of x", "unknown parameter `prot` of x"]);
        assert_eq!(problems[1].help.as_deref(), Some("did you mean `port`?"));
    }

    #[test]
    fn spans_are_where_values_were_written() {
        let block = block("{ a: $params.few, b: [x, { c: 1 }], d: 0 }", &["nodes.a.with.d=5"]);
        let at = |line, col| Span::At { line, col, len: 1 };
        assert_eq!(block.span_of(&[]), at(7, 11));
        assert_eq!(block.span_of(&["a"]), at(3, 16));
        assert_eq!(block.span_of(&["b", "1", "c"]), at(7, 41));
        assert_eq!(block.span_of(&["b", "0", "beyond"]), at(7, 33));
        assert_eq!(block.span_of(&["d"]), Span::Flag("--set nodes.a.with.d=5".into()));
    }

    #[test]
    fn hashes_see_meaning_only() {
        let one = block("{ b: 1.0, a: { env: PORT } }  # a comment", &[]);
        let two = block("\n      a: 6379\n      b: 1", &[]);
        assert_eq!(one.canonical_json().to_string(), r#"{"a":6379,"b":1}"#);
        assert_eq!(one.canonical_json(), two.canonical_json());
        assert_eq!(block("", &[]).canonical_json().to_string(), "{}");
        assert!(block("", &[]).is_empty() && !one.is_empty());
    }
}
