//! The tree to [`Spec`]: sections, entries, fields.
//!
//! Written by hand, not derived, because the shape is small and closed, and reading field by field
//! reports every mistake of the file in one pass, where serde would stop at the first.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    Block, ModelSpec, Named, NodeSpec, SinkSpec, SourceSpec, Spec,
    node::{Entry, Node, Value},
};
use crate::diagnostic::{Diagnostic, Diagnostics, SourceText, Span, Spanned, did_you_mean};

pub(super) const SPEC_KEYS: &[&str] = &["version", "name", "params", "sources", "models", "nodes", "sinks"];
pub(super) const SOURCE_KEYS: &[&str] = &["connector", "with"];
pub(super) const MODEL_KEYS: &[&str] = &["kind", "base", "price", "with"];
pub(super) const NODE_KEYS: &[&str] = &["op", "in", "model", "updates", "with", "refit", "after", "limits"];
pub(super) const SINK_KEYS: &[&str] = &["connector", "in", "with"];

/// Reads the document; nothing if it is not a map with a name.
pub(super) fn read(root: &Node, file: &Arc<SourceText>, problems: &mut Diagnostics) -> Option<Spec> {
    let mut reader = Reader { file, problems, unread: BTreeSet::new() };
    let top = reader.fields(root, &root.span, "the pipeline", SPEC_KEYS)?;
    let version = reader.version(&top);
    let name = reader.needed_text(&top, "name");
    let params = reader.section(&top, "params", |_, entry| Some(entry.value.canonical_json()));
    let sources = reader.section(&top, "sources", Reader::source);
    let models = reader.section(&top, "models", Reader::model);
    let nodes = reader.section(&top, "nodes", Reader::node);
    let sinks = reader.section(&top, "sinks", Reader::sink);
    if top.get("nodes").is_none() {
        reader.missing(&top, "nodes");
    }
    let unread = reader.unread;
    Some(Spec {
        file: Arc::clone(file),
        version: version?,
        name: name?,
        params,
        sources,
        models,
        nodes,
        sinks,
        unread,
    })
}

pub(super) struct Reader<'a> {
    file: &'a Arc<SourceText>,
    pub(super) problems: &'a mut Diagnostics,
    unread: BTreeSet<String>,
}

/// The entries of one map, and what messages call it.
pub(super) struct Fields<'a> {
    entries: &'a [Entry],
    pub(super) what: String,
    span: Span,
}

impl<'a> Fields<'a> {
    pub(super) fn get(&self, key: &str) -> Option<&'a Node> {
        self.entries.iter().find(|entry| *entry.key == key).map(|entry| &entry.value)
    }
}

impl Reader<'_> {
    pub(super) fn error(&mut self, span: &Span, message: String, help: Option<String>) {
        self.problems.push(Diagnostic::error(self.file, span.clone(), message).help(help));
    }

    /// The entries of a map all of whose keys should be `known`.
    fn fields<'a>(&mut self, node: &'a Node, span: &Span, what: &str, known: &[&str]) -> Option<Fields<'a>> {
        let entries = self.map(node, what)?;
        for entry in entries.iter().filter(|entry| !known.contains(&entry.key.as_str())) {
            let help = match did_you_mean(&entry.key, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here: `{}`", known.join("`, `")),
            };
            self.error(&entry.key.span, format!("unknown key `{}` in {what}", entry.key.value), Some(help));
        }
        Some(Fields { entries, what: what.to_owned(), span: span.clone() })
    }

    fn map<'a>(&mut self, node: &'a Node, what: &str) -> Option<&'a [Entry]> {
        let entries = node.entries();
        if entries.is_none() && node.value != Value::Poison {
            self.error(&node.span, format!("{what} wants a map, found {}", node.found()), None);
        }
        entries
    }

    fn missing(&mut self, fields: &Fields<'_>, key: &str) {
        self.error(&fields.span, format!("{} needs `{key}`", fields.what), None);
    }

    /// Text, if the key is there.
    fn text(&mut self, fields: &Fields<'_>, key: &str) -> Option<Spanned<String>> {
        let node = fields.get(key).filter(|node| node.value != Value::Null)?;
        self.text_of(node, &format!("`{key}` of {}", fields.what))
    }

    fn text_of(&mut self, node: &Node, what: &str) -> Option<Spanned<String>> {
        let span = node.span.clone();
        match (&node.value, &node.raw) {
            (Value::Text(value), _) => return Some(Spanned { value: value.clone(), span }),
            (_, Some(raw)) => return Some(Spanned { value: raw.to_string(), span }),
            (Value::Poison, _) => {}
            (value, _) => {
                let quote = matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_));
                let help = quote.then(|| "quote it to make it text".to_owned());
                self.error(&span, format!("{what} wants text, found {}", node.found()), help);
            }
        }
        None
    }

    fn needed_text(&mut self, fields: &Fields<'_>, key: &str) -> Option<Spanned<String>> {
        if fields.get(key).is_none_or(|node| node.value == Value::Null) {
            self.missing(fields, key);
        }
        self.text(fields, key)
    }

    /// A map left to its taker; an empty one where none is written.
    pub(super) fn block(&mut self, fields: &Fields<'_>, key: &str) -> Block {
        let absent = || Node::new(fields.span.clone(), Value::Map(Vec::new()));
        let node = match fields.get(key) {
            Some(node) if node.value == Value::Poison => absent(),
            Some(node) => match self.map(node, &format!("`{key}` of {}", fields.what)) {
                Some(entries) => Node::new(node.span.clone(), Value::Map(entries.to_vec())),
                None => absent(),
            },
            None => absent(),
        };
        Block { file: Arc::clone(self.file), node }
    }

    fn version(&mut self, top: &Fields<'_>) -> Option<Spanned<u64>> {
        let Some(node) = top.get("version") else {
            self.error(&top.span, "the pipeline needs `version: 1`".to_owned(), None);
            return None;
        };
        match node.value {
            Value::Int(1) => return Some(Spanned { value: 1, span: node.span.clone() }),
            Value::Poison => {}
            Value::Int(other) => {
                let help = "this engine reads version 1".to_owned();
                self.error(&node.span, format!("version {other} is unknown"), Some(help));
            }
            _ => {
                self.error(&node.span, format!("`version` wants the number 1, found {}", node.found()), None)
            }
        }
        None
    }

    /// The entries of a section, in document order; those that cannot be read are noted.
    fn section<T>(
        &mut self,
        top: &Fields<'_>,
        section: &str,
        read: impl Fn(&mut Self, &Entry) -> Option<T>,
    ) -> Vec<Named<T>> {
        let Some(entries) = top.get(section).and_then(|node| self.map(node, &format!("`{section}`"))) else {
            return Vec::new();
        };
        let mut all = Vec::with_capacity(entries.len());
        for entry in entries {
            match read(self, entry) {
                Some(spec) => all.push(Named { name: entry.key.clone(), spec }),
                None => drop(self.unread.insert(entry.key.value.clone())),
            }
        }
        all
    }

    fn entry<'a>(&mut self, kind: &str, entry: &'a Entry, known: &[&str]) -> Option<Fields<'a>> {
        let what = format!("{kind} `{}`", entry.key.value);
        self.fields(&entry.value, &entry.key.span, &what, known)
    }

    fn source(&mut self, entry: &Entry) -> Option<SourceSpec> {
        let fields = self.entry("source", entry, SOURCE_KEYS)?;
        let connector = self.needed_text(&fields, "connector");
        let with = self.block(&fields, "with");
        Some(SourceSpec { connector: connector?, with })
    }

    fn model(&mut self, entry: &Entry) -> Option<ModelSpec> {
        let fields = self.entry("model", entry, MODEL_KEYS)?;
        let (kind, base) = (self.needed_text(&fields, "kind"), self.text(&fields, "base"));
        let (price, with) = (self.block(&fields, "price"), self.block(&fields, "with"));
        Some(ModelSpec { kind: kind?, base, price, with })
    }

    fn node(&mut self, entry: &Entry) -> Option<NodeSpec> {
        let fields = self.entry("node", entry, NODE_KEYS)?;
        let op = self.needed_text(&fields, "op");
        let inputs = self.inputs(&fields);
        let (model, updates) = (self.text(&fields, "model"), self.text(&fields, "updates"));
        let with = self.block(&fields, "with");
        let (refit, after, limits) = (self.refit(&fields), self.after(&fields), self.limits(&fields));
        Some(NodeSpec { op: op?, inputs: inputs?, model, updates, with, refit, after, limits })
    }

    fn sink(&mut self, entry: &Entry) -> Option<SinkSpec> {
        let fields = self.entry("sink", entry, SINK_KEYS)?;
        let (connector, input) = (self.needed_text(&fields, "connector"), self.needed_text(&fields, "in"));
        let with = self.block(&fields, "with");
        Some(SinkSpec { connector: connector?, input: input?, with })
    }

    /// `in: name` or `in: [name, …]`.
    fn inputs(&mut self, fields: &Fields<'_>) -> Option<Vec<Spanned<String>>> {
        let what = format!("`in` of {}", fields.what);
        match fields.get("in") {
            None => Some(Vec::new()),
            Some(Node { value: Value::Null, .. }) => Some(Vec::new()),
            Some(Node { value: Value::Seq(items), .. }) => {
                // Read all of them, for their problems, before the first `None` counts.
                let names: Vec<_> = items.iter().map(|item| self.text_of(item, &what)).collect();
                names.into_iter().collect()
            }
            Some(node) if matches!(node.value, Value::Text(_) | Value::Poison) || node.raw.is_some() => {
                self.text_of(node, &what).map(|name| vec![name])
            }
            Some(node) => {
                self.error(
                    &node.span,
                    format!("{what} wants a name or a list of names, found {}", node.found()),
                    None,
                );
                None
            }
        }
    }
}
