//! `query`: SQL over the tables that `dump` names and the sources.
//!
//! Only tables whose name stands in the text are read: a query over the groups of a large state does
//! not load its histories.

use coea_operators::row::Row;
use datafusion::arrow::{array::RecordBatch, util::pretty::pretty_format_batches};

use super::{Common, Failure, Format, output};
use crate::{
    connectors::sql::{SqlError, query_blocking, rows_to_batch, write_json_lines},
    diagnostic::did_you_mean,
    serve::{Relation, View},
};

/// SQL over tables and sources.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
    /// One `SELECT`; a name with `-` stands in double quotes.
    pub sql: String,
}

/// Runs the command.
///
/// # Errors
/// If the SQL is wrong (64), fails on the data (1), or nothing was run yet.
pub fn run(args: &Args) -> Result<(), Failure> {
    let view = output::open(&args.common)?;
    let mut tables = Relation::all(&view.plan);
    tables.extend(Relation::sources(&view.plan));
    let mut batches = Vec::new();
    for (name, relation) in tables.iter().filter(|(name, _)| mentions(&args.sql, name)) {
        batches.push((name.clone(), batch(&view, *relation)?));
    }
    let names: Vec<&str> = tables.iter().map(|(name, _)| name.as_str()).collect();
    let found = query_blocking(batches, &args.sql).map_err(|error| explained(&error, &names))?;
    match args.common.format {
        Format::Json => {
            let mut out = output::Out::new();
            write_json_lines(&found, &mut out).map_err(output::failed)?;
            out.finish()
        }
        Format::Text => {
            let table = pretty_format_batches(&found).map_err(output::failed)?;
            output::text(&format!("{table}\n"))
        }
    }
}

/// Whether a name stands in the SQL as a word of its own.
fn mentions(sql: &str, name: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    sql.match_indices(name).any(|(at, _)| {
        let before = sql[..at].chars().next_back();
        let after = sql[at + name.len()..].chars().next();
        !before.is_some_and(part) && !after.is_some_and(part)
    })
}

fn batch(view: &View, relation: Relation) -> Result<RecordBatch, Failure> {
    let mut rows: Vec<Row> = Vec::new();
    view.for_each(relation, &mut |row| rows.push(row))?;
    rows_to_batch(&relation.columns(&view.plan), &rows).map_err(output::failed)
}

fn explained(error: &SqlError, names: &[&str]) -> Failure {
    let message = error.to_string();
    if matches!(error, SqlError::Run(_)) {
        return output::failed(message);
    }
    let unknown = message.contains("table '").then(|| message.split('\'').nth(1)).flatten();
    let help = unknown.map(|table| {
        let table = table.rsplit('.').next().unwrap_or(table);
        match did_you_mean(table, names.iter().copied()) {
            Some(near) => format!("; did you mean `{near}`?"),
            None => format!("; there are {}", names.join(", ")),
        }
    });
    output::usage(message + &help.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_mentioned_as_a_word() {
        assert!(mentions("SELECT * FROM store", "store"));
        assert!(mentions("SELECT * FROM \"long-term\" l", "long-term"));
        assert!(mentions("SELECT store.key FROM x, store", "store"));
        assert!(!mentions("SELECT restored FROM stores", "store"));
    }

    #[test]
    fn an_unknown_table_is_answered_with_a_near_one() {
        let error = query_blocking(vec![], "SELECT * FROM stroe").unwrap_err();
        let failure = explained(&error, &["store", "users"]);
        assert_eq!(failure.code, 64);
        assert!(failure.message.ends_with("; did you mean `store`?"), "{}", failure.message);
    }
}
