//! Events whose item the side input does not know: rows of the error relation while they wait.

use std::collections::BTreeSet;

use coea_operators::row::{Row, Value};

use super::Update;

/// The (item, user) pairs of one fold that wait for an item's row.
#[derive(Default)]
pub(super) struct Unknown {
    /// The fold's node.
    node: String,
    /// Its source.
    source: String,
    pairs: BTreeSet<(Row, Row)>,
    errors: Vec<Update>,
}

impl Unknown {
    pub fn new(node: &str, source: &str) -> Self {
        Unknown { node: node.to_string(), source: source.to_string(), ..Unknown::default() }
    }

    /// Takes up pairs that are in the error relation already.
    pub fn restore(&mut self, pairs: Vec<(Row, Row)>) {
        self.pairs.extend(pairs);
    }

    /// Notes whether a pair waits: its events are there, and its item is not.
    pub fn note(&mut self, item: &Row, user: &Row, waits: bool) {
        let pair = (item.clone(), user.clone());
        let changed = if waits { self.pairs.insert(pair) } else { self.pairs.remove(&pair) };
        if changed {
            let key = Row::new(
                [Value::text(&self.node)].into_iter().chain(user.iter().cloned()).chain(item.iter().cloned()),
            );
            let item: Vec<String> = item.iter().map(Value::to_string).collect();
            let cause =
                format!("item {} of {} is not known yet; its events wait", item.join(","), self.source);
            self.errors.push(((key, Row::from([Value::text(cause)])), if waits { 1 } else { -1 }));
        }
    }

    /// Changes of the error relation since the last call.
    pub fn take(&mut self) -> Vec<Update> {
        std::mem::take(&mut self.errors)
    }
}

/// The pairs (item, user) that rows of the error relation of `node` speak of.
pub fn unknown_pairs(node: &str, rows: &[Update], user_width: usize) -> Vec<(Row, Row)> {
    let of_node = rows.iter().filter(|((key, _), _)| key.first().and_then(Value::as_text) == Some(node));
    of_node
        .filter(|((key, _), _)| key.len() == user_width + 2)
        .map(|((key, _), _)| {
            let user = Row::new(key[1..=user_width].iter().cloned());
            (Row::new(key[user_width + 1..].iter().cloned()), user)
        })
        .collect()
}
