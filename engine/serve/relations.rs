//! Every table a state holds, by the name a user gives it, as typed rows.
//!
//! `dump` prints these rows and `query` selects from them, so both agree on names, columns and
//! order. Key columns come first; rows come in order of the key, each as often as it counts.

use std::collections::BTreeMap;

use coea_operators::{
    row::{Row, Value},
    schema::{Column, Type},
};

use super::{
    lookup::key_text,
    places::{Table, scored_column},
    view::View,
};
use crate::{
    plan::{Plan, PlanNode, PlanSource},
    runtime::{cycles, driver::source_table},
    state::StateError,
};

/// A table by kind; the numbers are places in the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// The store: entries of scored categories, of this node.
    Store(usize),
    /// A node's output.
    Node(usize),
    /// The groups, from this group_profile node, with the users they have now.
    Groups(usize),
    /// Remembered model answers.
    Memo,
    /// Records that did not parse.
    DeadLetters,
    /// Retractions whose insert has not come.
    Unmatched,
    /// Rows and calls that failed.
    Errors,
    /// What cycles made, and what became of it.
    Cycles,
    /// The figures of training, step by step, also of what was not put in use.
    Training,
    /// A source's rows.
    Source(usize),
}

/// The tables every state has.
const FIXED: [(&str, Relation); 6] = [
    ("memo", Relation::Memo),
    ("dead_letters", Relation::DeadLetters),
    ("unmatched_retractions", Relation::Unmatched),
    ("errors", Relation::Errors),
    (cycles::CYCLES, Relation::Cycles),
    (cycles::TRAINING, Relation::Training),
];

fn text(names: &[&str]) -> Vec<Column> {
    names.iter().map(|name| Column::new(name, Type::Text)).collect()
}

impl Relation {
    /// The table of a name: a sink's, a node's, one that every state has, or a source's.
    pub fn find(plan: &Plan, name: &str) -> Option<Relation> {
        let all = Self::all(plan).into_iter().chain(Self::sources(plan));
        all.into_iter().find(|(known, _)| known == name).map(|(_, relation)| relation)
    }

    /// The tables that `dump` prints, by name. Where names meet, a sink hides a node, and a node a
    /// table that every state has.
    pub fn all(plan: &Plan) -> Vec<(String, Relation)> {
        let sink = |at: usize| match scored_column(&plan.nodes[at]) {
            Some(_) => Relation::Store(at),
            None => Relation::Node(at),
        };
        let sinks = plan.sinks.iter().map(|s| (s.name.clone(), sink(s.node)));
        let nodes = plan.nodes.iter().enumerate().map(|(at, n)| (n.name.clone(), Relation::Node(at)));
        let profiles = plan.nodes.iter().position(|node| node.op == "group_profile");
        let groups = profiles.map(|at| ("groups".to_string(), Relation::Groups(at)));
        let fixed = FIXED.iter().map(|(name, relation)| (name.to_string(), *relation));
        let mut all: Vec<(String, Relation)> = Vec::new();
        for (name, relation) in sinks.chain(nodes).chain(groups).chain(fixed) {
            if all.iter().all(|(known, _)| *known != name) {
                all.push((name, relation));
            }
        }
        all
    }

    /// The sources, by name; no node has the name of one.
    pub fn sources(plan: &Plan) -> Vec<(String, Relation)> {
        let source = |(at, source): (usize, &PlanSource)| (source.name.clone(), Relation::Source(at));
        plan.sources.iter().enumerate().map(source).collect()
    }

    /// The columns.
    pub fn columns(self, plan: &Plan) -> Vec<Column> {
        match self {
            Relation::Store(at) => {
                let mut columns = text(&["key", "group"]);
                columns.push(Column::new("recent", Type::Text.list()));
                columns.push(Column::new("stale", Type::Bool));
                columns.extend(scored_column(&plan.nodes[at]).map(|(_, column)| column.clone()));
                columns
            }
            Relation::Node(at) => plan.nodes[at].schema.all().cloned().collect(),
            Relation::Groups(at) => {
                let mut columns: Vec<Column> = plan.nodes[at].schema.all().cloned().collect();
                columns.push(Column::new("users", Type::U64));
                columns
            }
            Relation::Memo => {
                let mut columns = text(&["key", "node"]);
                columns.push(Column::new("unused_since", Type::U64));
                columns
            }
            Relation::DeadLetters => {
                let mut columns = text(&["source", "file"]);
                columns.extend(["line", "byte"].map(|name| Column::new(name, Type::U64)));
                columns.extend(text(&["cause", "raw"]));
                columns
            }
            Relation::Unmatched => {
                let cells = ["key", "row"].map(|name| Column::new(name, Type::Text.list()));
                text(&["source"]).into_iter().chain(cells).collect()
            }
            Relation::Errors => {
                let key = Column::new("key", Type::Text.list());
                vec![Column::new("node", Type::Text), key, Column::new("cause", Type::Text)]
            }
            Relation::Cycles => cycles::columns(),
            Relation::Training => cycles::training_columns(),
            Relation::Source(at) => plan.sources[at].table.schema.clone(),
        }
    }
}

/// The cells as texts.
fn spelled(cells: &[Value]) -> Value {
    Value::list(cells.iter().map(|cell| Value::text(cell.to_string())))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Relation {
    /// The stored table behind it, whose rows it shows one by one; nothing where it is put together
    /// from several.
    pub(super) fn stored(self, plan: &Plan) -> Option<&str> {
        match self {
            Relation::Store(at) | Relation::Node(at) => Some(&plan.nodes[at].name),
            Relation::DeadLetters => Some("dead_letters"),
            Relation::Unmatched => Some("unmatched_retractions"),
            Relation::Errors => Some("errors"),
            Relation::Cycles => Some(cycles::CYCLES),
            Relation::Training => Some(cycles::TRAINING),
            Relation::Groups(_) | Relation::Memo | Relation::Source(_) => None,
        }
    }

    /// How many columns are the key.
    pub fn key_width(self, plan: &Plan) -> usize {
        match self {
            Relation::Store(_) | Relation::Memo => 1,
            Relation::Node(at) | Relation::Groups(at) => plan.nodes[at].schema.key.len(),
            Relation::DeadLetters => 3,
            Relation::Unmatched | Relation::Errors | Relation::Cycles => 2,
            Relation::Training => 4,
            Relation::Source(at) => plan.sources[at].key.len(),
        }
    }
}

impl View {
    /// Visits the rows of a table.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn for_each(&self, relation: Relation, visit: &mut dyn FnMut(Row)) -> Result<(), StateError> {
        let plan = self.plan.clone();
        match relation {
            Relation::Groups(at) => self.groups(&plan, &plan.nodes[at], visit),
            Relation::Memo => self.memo.for_each(&mut |key, answer| {
                let since = answer.unused_since.map_or(Value::Null, Value::U64);
                visit(Row::from([Value::text(hex(key)), Value::text(answer.node), since]));
            }),
            Relation::Source(at) => self.source_rows(&plan.sources[at], visit),
            stored => self.rows(stored.stored(&plan).unwrap_or_default(), &mut |key, row| {
                visit(self.shown(stored, &key, &row));
            }),
        }
    }

    /// A row of a stored table in the columns of its relation.
    pub(super) fn shown(&self, relation: Relation, key: &Row, row: &Row) -> Row {
        match relation {
            Relation::Store(at) => {
                let cell = |name: &str| {
                    let column = self.plan.nodes[at].schema.column(name);
                    column.and_then(|(at, _)| row.get(at)).cloned().unwrap_or_default()
                };
                let group = key.first().cloned().unwrap_or_default();
                // A key whose call failed has no row, so a row that is there is fresh.
                let stale = Value::Bool(false);
                Row::from([Value::text(key_text(key)), group, cell("recent"), stale, cell("categories")])
            }
            Relation::Unmatched => {
                let source = Value::text(self.source_name(key));
                Row::from([source, spelled(key.get(1..).unwrap_or_default()), spelled(row)])
            }
            Relation::Errors => {
                let node = key.first().cloned().unwrap_or_default();
                let cause = row.first().cloned().unwrap_or_default();
                Row::from([node, spelled(key.get(1..).unwrap_or_default()), cause])
            }
            _ => key.concat(row),
        }
    }

    /// Visits key and row as often as they count.
    pub(super) fn rows(&self, table: &str, visit: &mut dyn FnMut(Row, Row)) -> Result<(), StateError> {
        self.tables.for_each(table, &mut |key, rows| {
            for (row, count) in rows {
                (0..count).for_each(|_| visit(key.clone(), row.clone()));
            }
        })
    }

    /// The source whose number stands first in a key of the unmatched retractions.
    pub fn source_name(&self, key: &Row) -> &str {
        let id = key.first().and_then(Value::as_u64);
        let source = self.manifest.sources.iter().find(|(_, known)| Some(known.id.into()) == id);
        source.map_or("", |(name, _)| name)
    }

    fn groups(&self, plan: &Plan, profiles: &PlanNode, visit: &mut dyn FnMut(Row)) -> Result<(), StateError> {
        let mut users: BTreeMap<Value, u64> = BTreeMap::new();
        let groups = profiles.inputs.first().and_then(|name| Table::find(plan, name));
        if let Some((at, table)) = groups.and_then(|table| Some((table.schema.column("group")?.0, table))) {
            self.rows(&table.name, &mut |_, row| {
                *users.entry(row.get(at).cloned().unwrap_or_default()).or_default() += 1;
            })?;
        }
        self.rows(&profiles.name, &mut |key, row| {
            let now = key.first().and_then(|group| users.get(group)).copied().unwrap_or(0);
            visit(key.concat(&row).concat(&Row::from([Value::U64(now)])));
        })
    }

    fn source_rows(&self, source: &PlanSource, visit: &mut dyn FnMut(Row)) -> Result<(), StateError> {
        if !source.events {
            return self.rows(&source_table(&source.name), &mut |key, row| visit(source.unkeyed(&key, &row)));
        }
        let Some(known) = self.manifest.sources.get(&source.name) else { return Ok(()) };
        self.history.for_each(known.id, &mut |key, events| {
            for (event, count) in events {
                (0..*count).for_each(|_| visit(source.unkeyed(key, event)));
            }
        })
    }
}
