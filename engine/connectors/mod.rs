//! Sources: where rows come from, one connector per file.
//!
//! A source is asked for what is new since some [`Offsets`] and hands it over in batches; it keeps
//! no state of its own, so what was read is committed together with what was made of it, and a
//! crash in between reads it again. A record that does not parse becomes a [`DeadLetter`] with
//! file, line and cause; only a file that cannot be read as a whole stops the run.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use coea_operators::{
    row::Row,
    schema::{Column, Type},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod arrow;
mod cell;
mod collect;
mod columnar;
pub mod dataset;
mod decode;
pub mod delta;
mod error;
pub mod files;
mod frame;
mod offsets;
pub mod sql;
mod text;

pub use delta::DeltaFile;
pub use error::{ParamError, SinkError, SourceError};
pub use offsets::{FileOffset, Offsets};

/// Most records, or dead letters, in one [`Batch`].
pub const BATCH_ROWS: usize = 8192;

/// The unit of a time column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TimeUnit {
    /// Seconds since 1970.
    #[default]
    #[serde(rename = "s")]
    Seconds,
    /// Milliseconds since 1970.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Microseconds since 1970.
    #[serde(rename = "us")]
    Microseconds,
    /// Nanoseconds since 1970.
    #[serde(rename = "ns")]
    Nanoseconds,
}

impl TimeUnit {
    /// The type of a time column in this unit. Cells are [`Value::I64`](coea_operators::row::Value)
    /// either way: whole seconds are a `timestamp`; a finer unit stays a plain number, so that
    /// nothing is lost and nothing claims to be seconds. Order is all a history needs.
    pub fn column_type(self) -> Type {
        match self {
            TimeUnit::Seconds => Type::Timestamp,
            TimeUnit::Milliseconds | TimeUnit::Microseconds | TimeUnit::Nanoseconds => Type::I64,
        }
    }

    /// How many of it are a second.
    pub fn per_second(self) -> i64 {
        match self {
            TimeUnit::Seconds => 1,
            TimeUnit::Milliseconds => 1_000,
            TimeUnit::Microseconds => 1_000_000,
            TimeUnit::Nanoseconds => 1_000_000_000,
        }
    }
}

/// What the rows of a source are.
#[derive(Clone, Debug)]
pub struct SourceTable {
    /// All columns in order, those of the key included.
    pub schema: Vec<Column>,
    /// Names of the columns the rows are keyed by; never null.
    pub key: Vec<String>,
    /// The column that orders a history; never null, never negative, always `Value::I64`.
    pub time: Option<String>,
    /// Unit of `time`.
    pub unit: TimeUnit,
    /// The column that tells two events of one time apart; never null.
    pub event_id: Option<String>,
    /// The condition a row must meet, in deltas too.
    pub filter: Option<Arc<sql::Filter>>,
    /// Column names in the user's files → names here.
    pub rename: BTreeMap<String, String>,
}

impl SourceTable {
    /// Position of a column.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.schema.iter().position(|column| column.name == name)
    }

    /// True if a cell of the column may not be null.
    pub fn required(&self, name: &str) -> bool {
        let is = |other: &Option<String>| other.as_deref() == Some(name);
        self.key.iter().any(|key| key == name) || is(&self.time) || is(&self.event_id)
    }
}

/// A row with its multiplicity: +1 inserts it, −1 takes it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The cells, in the order of [`SourceTable::schema`].
    pub row: Row,
    /// Never 0.
    pub diff: i64,
}

/// A record that could not be taken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The source, as the pipeline names it.
    pub source: String,
    /// The file.
    pub file: String,
    /// Its first line, from 1, the header counted (Parquet and Arrow: its row, from 1).
    pub line: u64,
    /// Where it starts in the file (Parquet and Arrow: 0).
    pub byte: u64,
    /// What is wrong with it.
    pub cause: String,
    /// The record as it was found, at most 1 KiB of it.
    pub raw: String,
}

/// Some of what is new in a source, in file order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Rows that parsed and met the condition; at most [`BATCH_ROWS`].
    pub records: Vec<Record>,
    /// Records that did not parse, and rows the condition failed on; at most twice [`BATCH_ROWS`].
    pub dead: Vec<DeadLetter>,
    /// How many rows the condition dropped.
    pub filtered: u64,
}

/// The receiver of batches.
pub type Sink<'a> = dyn FnMut(Batch) -> Result<(), SinkError> + 'a;

/// A place rows come from.
pub trait Source: Send {
    /// What its rows are.
    fn table(&self) -> &SourceTable;

    /// Hands everything that is new since `from` to `sink` and says how far it then has read.
    /// Equal offsets mean that nothing is new.
    ///
    /// # Errors
    /// [`SourceError`] if a file cannot be read, was rewritten or is gone, or if the sink fails.
    /// Batches that were already handed over are then to be thrown away.
    fn read_new(&mut self, from: &Offsets, sink: &mut Sink<'_>) -> Result<Offsets, SourceError>;
}

/// The source connectors with their parameters: the `connector` and `with` of a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum SourceConnector {
    /// A data set with a name.
    Dataset(dataset::DatasetParams),
    /// The user's own files.
    Files(files::FilesParams),
}

impl SourceConnector {
    /// The names a pipeline may write after `connector:`.
    pub const NAMES: [&'static str; 2] = ["dataset", "files"];

    /// Reads the `with` block of connector `name`; `None` if there is no such connector. The
    /// deserializer must keep the order of maps: the order of `columns` is that of the table.
    ///
    /// # Errors
    /// What the deserializer says about unknown keys and wrong types.
    pub fn parse<'de, D: serde::Deserializer<'de>>(name: &str, with: D) -> Option<Result<Self, D::Error>> {
        match name {
            "dataset" => Some(Deserialize::deserialize(with).map(SourceConnector::Dataset)),
            "files" => Some(Deserialize::deserialize(with).map(SourceConnector::Files)),
            _ => None,
        }
    }

    /// The JSON schema of each connector's `with` block.
    pub fn json_schemas() -> [(&'static str, schemars::Schema); 2] {
        [
            ("dataset", schemars::schema_for!(dataset::DatasetParams)),
            ("files", schemars::schema_for!(files::FilesParams)),
        ]
    }

    /// What the rows will be, worked out without touching a file.
    ///
    /// # Errors
    /// All mistakes in the parameters, a condition that does not fit the columns among them.
    pub fn table(&self) -> Result<SourceTable, Vec<ParamError>> {
        let (mut table, condition) = match self {
            SourceConnector::Dataset(params) => (params.table(), &params.condition),
            SourceConnector::Files(params) => (params.table()?, &params.condition),
        };
        if let Some(condition) = condition {
            let filter = sql::Filter::parse(condition, &table.schema)
                .map_err(|error| vec![ParamError::new("where", error.to_string())])?;
            table.filter = Some(Arc::new(filter));
        }
        Ok(table)
    }

    /// Opens the source the pipeline calls `name`, whose rows are as [`SourceConnector::table`] says;
    /// relative paths start at `folder`. A data set is fetched here if it is not at hand.
    ///
    /// # Errors
    /// What keeps it from being fetched.
    pub fn open(
        &self,
        name: &str,
        folder: &Path,
        table: &SourceTable,
    ) -> Result<Box<dyn Source>, SourceError> {
        Ok(match self {
            SourceConnector::Dataset(params) => Box::new(params.open(name, folder, table.clone())?),
            SourceConnector::Files(params) => Box::new(params.open(name, folder, table.clone())),
        })
    }
}

#[cfg(test)]
mod tests;
