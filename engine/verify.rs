//! Compares what is stored with what a computation from scratch gives.
//!
//! The answer is a list of differences and nothing is mended: a state that differs is either
//! damaged or shows a bug, and both want to be looked at.

use std::{collections::BTreeSet, fmt};

use coea_operators::row::Row;

use crate::{
    oracle::{self, BadAnswer, Calls, Recomputed, Table},
    plan::Plan,
    runtime::{
        RunError, cycles,
        driver::{source_table, table_leaves},
    },
    state::{State, history::History, manifest::Manifest, tables::Tables},
};

/// Characters of one side of a difference that are shown.
const SHOWN: usize = 160;
/// Tables that belong to no node.
const OWN_TABLES: [&str; 5] =
    ["errors", "unmatched_retractions", "dead_letters", cycles::CYCLES, cycles::TRAINING];

/// A place where the state is not what its input makes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The table, or what is compared in its place: `manifest`, `memo`.
    pub table: String,
    /// The key, as JSON.
    pub key: String,
    /// What is stored; nothing if there should be something.
    pub stored: Option<String>,
    /// What it should be; nothing if it should not be there.
    pub recomputed: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = |side: &Option<String>| match side {
            None => "nothing".to_string(),
            Some(text) if text.chars().count() > SHOWN => {
                format!("{}…", text.chars().take(SHOWN).collect::<String>())
            }
            Some(text) => text.clone(),
        };
        let Difference { table, key, stored, recomputed } = self;
        write!(f, "{table} {key}: stored {}, recomputed {}", side(stored), side(recomputed))
    }
}

/// Recomputes every table from the accumulated input and compares it with the stored one; with
/// `recompute`, every remembered answer is asked for again too.
///
/// # Errors
/// If the state cannot be read, an artifact is missing, or a model cannot be asked at all.
pub fn verify(plan: &Plan, state: &State, recompute: bool) -> Result<Vec<Difference>, RunError> {
    let calls = if recompute { Calls::Again } else { Calls::Memo };
    compare(plan, state, &oracle::recompute(plan, state, calls)?)
}

/// Compares what is stored with what was recomputed.
///
/// # Errors
/// If the state cannot be read.
pub fn compare(plan: &Plan, state: &State, fresh: &Recomputed) -> Result<Vec<Difference>, RunError> {
    let snapshot = state.snapshot()?;
    let manifest = Manifest::load(&snapshot.layered("meta"))?;
    let tables = Tables::new(snapshot.layered("tables"));
    let mut found = spec_drift(plan, &manifest);
    for (name, rows) in &fresh.tables {
        let stored: Table = tables.rows(name)?.into_iter().collect();
        compare_table(name, &stored, rows, &mut found);
        let keys = rows.keys().map(|(key, _)| key).collect::<BTreeSet<_>>().len() as u64;
        if let Some(known) = manifest.nodes.get(name).filter(|known| known.keys != keys) {
            found.push(of_manifest(&format!("keys of {name}"), Some(known.keys), Some(keys)));
        }
    }
    let sources: BTreeSet<String> = manifest.sources.keys().map(|source| source_table(source)).collect();
    for name in tables.names()? {
        let known = sources.contains(&name) || OWN_TABLES.contains(&name.as_str());
        if !known && !fresh.tables.contains_key(&name) {
            compare_table(&name, &tables.rows(&name)?.into_iter().collect(), &Table::new(), &mut found);
        }
    }
    let history = History::new(snapshot.layered("history"));
    for (name, source) in &manifest.sources {
        let mut held: i64 = tables.rows(&source_table(name))?.iter().map(|(_, count)| count).sum();
        history.for_each(source.id, &mut |_, events| {
            held += events.iter().map(|(_, count)| count).sum::<i64>();
        })?;
        if held != source.rows {
            found.push(of_manifest(&format!("rows of {name}"), Some(source.rows), Some(held)));
        }
    }
    found.extend(fresh.bad_answers.iter().map(of_answer));
    Ok(found)
}

/// Nodes whose logic, or whose being there, is not that of the last commit.
fn spec_drift(plan: &Plan, manifest: &Manifest) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut names = BTreeSet::new();
    for leaf in table_leaves(plan) {
        let name = plan.leaf_name(leaf);
        let stored = manifest.nodes.get(&name).map(|node| &node.lineage);
        if stored != Some(&plan.lineage[leaf]) {
            found.push(of_manifest(&format!("logic of {name}"), stored, Some(&plan.lineage[leaf])));
        }
        names.insert(name);
    }
    let vanished = manifest.nodes.iter().filter(|(name, _)| !names.contains(*name));
    found.extend(
        vanished.map(|(name, node)| of_manifest(&format!("logic of {name}"), Some(&node.lineage), None)),
    );
    found
}

/// The keys whose rows differ.
fn compare_table(name: &str, stored: &Table, fresh: &Table, found: &mut Vec<Difference>) {
    let differ = |a: &Table, b: &Table| -> BTreeSet<Row> {
        a.iter().filter(|(row, count)| b.get(*row) != Some(*count)).map(|((key, _), _)| key.clone()).collect()
    };
    for key in &differ(stored, fresh) | &differ(fresh, stored) {
        found.push(Difference {
            table: name.to_string(),
            key: key.to_json().to_string(),
            stored: rows_of(stored, &key),
            recomputed: rows_of(fresh, &key),
        });
    }
}

/// The rows of a key as text; a count other than 1 stands before its row.
fn rows_of(table: &Table, key: &Row) -> Option<String> {
    let rows = table.range((key.clone(), Row::empty())..).take_while(|((k, _), _)| k == key);
    let texts: Vec<String> = rows
        .map(|((_, row), count)| match count {
            1 => row.to_json().to_string(),
            count => format!("{count} × {}", row.to_json()),
        })
        .collect();
    (!texts.is_empty()).then(|| texts.join(" "))
}

fn of_manifest<T: fmt::Display>(key: &str, stored: Option<T>, recomputed: Option<T>) -> Difference {
    Difference {
        table: "manifest".to_string(),
        key: key.to_string(),
        stored: stored.map(|side| side.to_string()),
        recomputed: recomputed.map(|side| side.to_string()),
    }
}

fn of_answer(bad: &BadAnswer) -> Difference {
    let recomputed = match &bad.again {
        None => "an answer, or the record of a failed call".to_string(),
        Some(Ok(row)) => row.to_json().to_string(),
        Some(Err(cause)) => format!("a failure: {cause}"),
    };
    Difference {
        table: "memo".to_string(),
        key: format!("{} {}", bad.leaf, &blake3::Hash::from_bytes(bad.key).to_hex()[..16]),
        stored: bad.remembered.as_ref().map(|row| row.to_json().to_string()),
        recomputed: Some(recomputed),
    }
}
