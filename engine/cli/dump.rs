//! `dump`: a table as JSON lines in the order of its key, the same bytes from the same state.

use std::collections::BTreeMap;

use coea_operators::{
    row::{Row, Value},
    schema::Column,
};
use serde::{Serialize, ser::SerializeMap};
use serde_json::Value as Json;

use super::{Common, Failure, output};
use crate::{
    diagnostic::did_you_mean,
    plan::{Plan, PlanNode},
    serve::{Change, Relation, View, lookup::key_text, lookup::texts},
    state::{StateError, changes::KEPT},
};

/// A table as JSON lines, sorted by key.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
    /// A sink, a node, `groups`, `memo`, `dead_letters`, `unmatched_retractions` or `errors`.
    #[arg(long, value_name = "T")]
    pub table: String,
    /// Only keys whose rows differ from what they were at an epoch: their rows as they are now, and
    /// for a key that is gone its columns and `"deleted":true`.
    #[arg(long, value_name = "EPOCH")]
    pub changes_since: Option<u64>,
}

/// An entry of the store.
#[derive(Serialize)]
pub struct Entry {
    key: String,
    group: Json,
    recent: Vec<String>,
    stale: bool,
    model_versions: BTreeMap<String, String>,
    categories: Vec<Scored>,
}

#[derive(Serialize)]
struct Scored {
    category: String,
    score: Json,
}

/// Runs the command.
///
/// # Errors
/// If there is no such table, its changes are not known, or nothing was run yet.
pub fn run(args: &Args) -> Result<(), Failure> {
    let view = output::open(&args.common)?;
    let plan = view.plan.clone();
    let relation = find(&plan, &args.table)?;
    let (since, epoch) = (args.changes_since.unwrap_or(0), view.manifest.epoch);
    let mut out = output::Out::new();
    let mut broken = Ok(());
    let known = since <= epoch
        && each_line(&view, relation, since, &mut |document| {
            if broken.is_ok() {
                broken = output::line(&mut out, document);
            }
        })?;
    if !known {
        return Err(unknown_changes(&args.table, since, epoch));
    }
    broken?;
    out.finish()
}

/// Why the changes of a table since an epoch cannot be told.
fn unknown_changes(table: &str, since: u64, epoch: u64) -> Failure {
    if since > epoch {
        return output::usage(format!("there is no epoch {since} yet; the state is at epoch {epoch}"));
    }
    output::usage(format!(
        "changes of `{table}` since epoch {since} are not kept; the state is at epoch {epoch} and keeps \
         those of {KEPT} epochs, of nodes, sinks and errors: dump the whole table without --changes-since"
    ))
}

/// The table of a name, a source's not among them.
fn find(plan: &Plan, name: &str) -> Result<Relation, Failure> {
    let all = Relation::all(plan);
    if let Some((_, relation)) = all.iter().find(|(known, _)| known == name) {
        return Ok(*relation);
    }
    let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    let help = match did_you_mean(name, names.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if plan.source(name).is_some() => "it is a source: use `query`".to_string(),
        None => format!("there are {}", names.join(", ")),
    };
    Err(output::usage(format!("there is no table `{name}`; {help}")))
}

/// A document of any kind.
enum Document<'a> {
    Entry(Box<Entry>),
    Record(&'a [Column], &'a Row),
    Deleted(&'a [Column], &'a Row),
}

impl Serialize for Document<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Document::Entry(entry) => entry.serialize(serializer),
            Document::Record(columns, row) => output::Record(columns, row).serialize(serializer),
            Document::Deleted(columns, key) => {
                let mut map = serializer.serialize_map(None)?;
                for (column, cell) in columns.iter().zip(key.iter()) {
                    map.serialize_entry(&column.name, &output::Cell(cell, &column.ty))?;
                }
                map.serialize_entry("deleted", &true)?;
                map.end()
            }
        }
    }
}

/// Visits what differs from epoch `since`, in the order of the keys; since epoch 0 that is the whole
/// table. Says whether it is known.
fn each_line(
    view: &View,
    relation: Relation,
    since: u64,
    visit: &mut dyn FnMut(&Document<'_>),
) -> Result<bool, StateError> {
    let columns = relation.columns(&view.plan);
    let versions = match relation {
        Relation::Store(at) => Some(view.model_versions(&view.plan.nodes[at])),
        _ => None,
    };
    view.changes_since(relation, since, &mut |change| match (&change, &versions) {
        (Change::Gone(key), _) => visit(&Document::Deleted(&columns, key)),
        (Change::Row(row), None) => visit(&Document::Record(&columns, row)),
        (Change::Row(row), Some(versions)) => visit(&Document::Entry(Box::new(Entry {
            key: row[0].to_string(),
            group: row[1].to_json(),
            recent: texts(row.get(2)),
            stale: row.get(3) == Some(&Value::Bool(true)),
            model_versions: versions.clone(),
            categories: scored(row.get(4)),
        }))),
    })
}

fn scored(cell: Option<&Value>) -> Vec<Scored> {
    let pair = |cell: &Value| {
        let [category, score] = cell.as_list()? else { return None };
        Some(Scored { category: category.to_string(), score: score.to_json() })
    };
    cell.and_then(Value::as_list).unwrap_or_default().iter().filter_map(pair).collect()
}

/// One entry of the store, as its line in the dump.
pub fn entry(view: &View, node: &PlanNode, key: &Row, row: &Row) -> Entry {
    let cell = |name: &str| node.schema.column(name).and_then(|(at, _)| row.get(at));
    Entry {
        key: key_text(key),
        group: key.first().map_or(Json::Null, Value::to_json),
        recent: texts(cell("recent")),
        stale: false,
        model_versions: view.model_versions(node),
        categories: scored(cell("categories")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_print_in_the_order_of_the_contract() {
        let pair = Value::list([Value::text("War"), Value::float(0.75)]);
        let entry = Entry {
            key: "g001:ab".into(),
            group: Json::from("g001"),
            recent: vec!["Drama".into()],
            stale: false,
            model_versions: [("novelty".to_string(), "b1".to_string())].into(),
            categories: scored(Some(&Value::list([pair]))),
        };
        assert_eq!(
            serde_json::to_string(&Document::Entry(Box::new(entry))).unwrap(),
            concat!(
                r#"{"key":"g001:ab","group":"g001","recent":["Drama"],"stale":false,"#,
                r#""model_versions":{"novelty":"b1"},"categories":[{"category":"War","score":0.75}]}"#
            )
        );
    }
}
