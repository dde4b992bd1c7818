//! The positioned tree between YAML text and typed structs.
//!
//! Every value and every key keeps the place it was *written*: an alias points at its anchor, a
//! parameter at its definition, an override at its flag. That is where a user has to mend it, and
//! one rule serves files, anchors, parameters and flags alike.

use serde_json::json;

use super::secret::Secret;
use crate::diagnostic::{Span, Spanned};

/// A value with its place.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    /// Where it was written.
    pub span: Span,
    /// What was written.
    pub value: Value,
    /// The characters of a value from the environment, which has no quotes to say that it is text.
    pub raw: Option<Box<str>>,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    /// Within the ranges of `u64` and `i64`.
    Int(i128),
    Float(f64),
    Text(String),
    Seq(Vec<Node>),
    Map(Vec<Entry>),
    /// `$params.name`, until it is resolved.
    Param(String),
    /// A resolved `{ secret: NAME }`.
    Secret(Secret),
    /// Wrong, and reported: whoever reads it says nothing more.
    Poison,
}

/// One `key: value` of a map, in the order written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub key: Spanned<String>,
    pub value: Node,
}

/// A step into a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

impl Node {
    pub fn new(span: Span, value: Value) -> Self {
        Node { span, value, raw: None }
    }

    /// The entries of a map; an absent value (`nodes:` and nothing after it) is an empty one.
    pub fn entries(&self) -> Option<&[Entry]> {
        match &self.value {
            Value::Map(entries) => Some(entries),
            Value::Null => Some(&[]),
            _ => None,
        }
    }

    /// The value of a map's key.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries()?.iter().find(|entry| *entry.key == key).map(|entry| &entry.value)
    }

    /// The node one step down.
    pub fn step(&self, step: &Step) -> Option<&Node> {
        match (step, &self.value) {
            (Step::Key(key), Value::Map(_)) => self.get(key),
            (Step::Index(index), Value::Seq(items)) => items.get(*index),
            _ => None,
        }
    }

    /// The node at a path.
    pub fn at(&self, path: &[Step]) -> Option<&Node> {
        path.iter().try_fold(self, |node, step| node.step(step))
    }

    /// The node at a path, to change.
    pub fn at_mut(&mut self, path: &[Step]) -> Option<&mut Node> {
        path.iter().try_fold(self, |node, step| match (step, &mut node.value) {
            (Step::Key(key), Value::Map(entries)) => {
                entries.iter_mut().find(|entry| *entry.key == *key).map(|entry| &mut entry.value)
            }
            (Step::Index(index), Value::Seq(items)) => items.get_mut(*index),
            _ => None,
        })
    }

    /// Bytes of the tightest writing of the tree, about: what the limit on expansion counts.
    pub fn weight(&self) -> usize {
        match &self.value {
            Value::Text(text) | Value::Param(text) => text.len() + 2,
            Value::Seq(items) => items.iter().map(Node::weight).sum::<usize>() + 2,
            Value::Map(entries) => {
                entries.iter().map(|e| e.key.len() + 2 + e.value.weight()).sum::<usize>() + 2
            }
            _ => 2,
        }
    }

    /// Gives every node of the tree the same place.
    pub fn place_at(&mut self, span: &Span) {
        self.span = span.clone();
        match &mut self.value {
            Value::Seq(items) => items.iter_mut().for_each(|item| item.place_at(span)),
            Value::Map(entries) => entries.iter_mut().for_each(|entry| {
                entry.key.span = span.clone();
                entry.value.place_at(span);
            }),
            _ => {}
        }
    }

    /// What a person would call the value: `text "two"`, `3`, `a list`.
    pub fn found(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Float(value) => format!("{value:?}"),
            Value::Text(text) => match text.char_indices().nth(40) {
                Some((cut, _)) => format!("text {:?}…", &text[..cut]),
                None => format!("text {text:?}"),
            },
            Value::Seq(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
            Value::Param(name) => format!("$params.{name}"),
            Value::Secret(_) => "a secret".to_owned(),
            Value::Poison => "a mistake".to_owned(),
        }
    }

    /// The meaning alone: keys sorted, `1.0` as `1`, secrets by name, infinities as text.
    pub fn canonical_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null | Value::Poison => json!(null),
            Value::Bool(value) => json!(value),
            Value::Int(value) => whole(*value),
            Value::Float(value) if value.fract() == 0.0 && value.abs() < 2f64.powi(53) => {
                whole(*value as i128)
            }
            Value::Float(value) if value.is_finite() => json!(value),
            Value::Float(value) => json!({ "float": value.to_string() }),
            Value::Text(text) => json!(text),
            Value::Seq(items) => items.iter().map(Node::canonical_json).collect(),
            Value::Map(entries) => {
                let mut pairs: Vec<_> =
                    entries.iter().map(|e| (e.key.value.clone(), e.value.canonical_json())).collect();
                // `serde_json` keeps insertion order when some crate of the build asks it to.
                pairs.sort_by(|a, b| a.0.cmp(&b.0));
                serde_json::Value::Object(pairs.into_iter().collect())
            }
            Value::Param(name) => json!(format!("$params.{name}")),
            Value::Secret(secret) => json!({ "secret": secret.name() }),
        }
    }
}

/// A JSON number of a value within the ranges of `u64` and `i64`.
fn whole(value: i128) -> serde_json::Value {
    match u64::try_from(value) {
        Ok(value) => json!(value),
        Err(_) => json!(value as i64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(value: Value) -> Node {
        Node::new(Span::File, value)
    }

    fn map(pairs: &[(&str, Value)]) -> Value {
        let entry = |(key, value): &(&str, Value)| Entry {
            key: Spanned { value: key.to_string(), span: Span::File },
            value: node(value.clone()),
        };
        Value::Map(pairs.iter().map(entry).collect())
    }

    #[test]
    fn canonical_json_forgets_order_and_the_writing_of_numbers() {
        let one = node(map(&[("b", Value::Float(1.0)), ("a", Value::Float(0.5))]));
        let two = node(map(&[("a", Value::Float(0.5)), ("b", Value::Int(1))]));
        assert_eq!(one.canonical_json().to_string(), r#"{"a":0.5,"b":1}"#);
        assert_eq!(one.canonical_json(), two.canonical_json());
        assert_eq!(node(Value::Int(u64::MAX.into())).canonical_json(), json!(u64::MAX));
        assert_eq!(node(Value::Int(i64::MIN.into())).canonical_json(), json!(i64::MIN));
    }

    #[test]
    fn canonical_json_tells_text_from_what_it_spells() {
        for (value, text) in
            [(Value::Int(1), "1"), (Value::Bool(true), "true"), (Value::Float(f64::INFINITY), "inf")]
        {
            assert_ne!(node(value).canonical_json(), node(Value::Text(text.into())).canonical_json());
        }
    }

    #[test]
    fn canonical_json_knows_secrets_by_name() {
        let secret = node(Value::Secret(Secret::new("TOKEN", "hunter2")));
        assert_eq!(secret.canonical_json(), json!({ "secret": "TOKEN" }));
    }
}
