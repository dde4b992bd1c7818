//! The `files` connector: the user's own files, found by a pattern.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use coea_operators::schema::{Column, Type};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor, value::SeqAccessDeserializer},
};

use super::{
    Offsets, ParamError, Sink, Source, SourceError, SourceTable, TimeUnit,
    collect::Collector,
    columnar::{self, ColumnarFormat},
    decode::{Reading, TextFormat},
    text::{self, TextFile},
};
use crate::nearest::did_you_mean;

/// Files of the user's own: new files and appended rows are the delta.
///
/// An empty field is null; the key, the time and the event id may not be. Lists are separated by
/// `|` (RecBole: by spaces). Records that do not parse become dead letters, and the run goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilesParams {
    /// A file or a pattern such as `clicks/*.csv`; relative to the pipeline's folder.
    pub path: String,
    /// The format of all of the files.
    pub format: Format,
    /// Every column to read, with its type: `{ user_id: u64, rating: f64, … }`. Other columns of the
    /// files are skipped. For `movielens` files, all fields in order.
    pub columns: Columns,
    /// The column that orders a history, and its unit.
    #[serde(default)]
    pub time: Option<Time>,
    /// A SQL condition on one row, such as `rating >= 4`; rows on which it is not true are not read.
    #[serde(default, rename = "where")]
    pub condition: Option<String>,
    /// Names in the files → names in `columns`.
    #[serde(default)]
    pub rename: BTreeMap<String, String>,
    /// The column that tells two events of the same time apart.
    #[serde(default)]
    pub event_id: Option<String>,
    /// The column or columns the rows are keyed by; the first of `columns` if absent.
    #[serde(default)]
    pub key: Names,
}

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Comma separated, RFC 4180, with a header.
    Csv,
    /// Tab separated, with a header; a quote is a character like any other.
    Tsv,
    /// One JSON object per line; keys that are not among `columns` are skipped.
    Jsonl,
    /// RecBole atomic files: tab separated, typed header such as `user_id:token`.
    Recbole,
    /// MovieLens `.dat` files: `::` separated, Latin-1, no header.
    Movielens,
    /// Apache Parquet.
    Parquet,
    /// Arrow IPC.
    Arrow,
}

/// A format with its reader.
#[derive(Clone, Copy)]
enum Reader {
    Text(TextFormat),
    Columnar(ColumnarFormat),
}

impl Format {
    fn reader(self) -> Reader {
        match self {
            Format::Csv => Reader::Text(TextFormat::Csv),
            Format::Tsv => Reader::Text(TextFormat::Tsv),
            Format::Jsonl => Reader::Text(TextFormat::JsonLines),
            Format::Recbole => Reader::Text(TextFormat::Recbole),
            Format::Movielens => Reader::Text(TextFormat::Movielens),
            Format::Parquet => Reader::Columnar(ColumnarFormat::Parquet),
            Format::Arrow => Reader::Columnar(ColumnarFormat::Arrow),
        }
    }
}

/// The column that orders a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Time {
    /// Its name; declared as `timestamp`, `u64` or `i64`.
    pub column: String,
    /// The unit of its numbers. They are kept in it: whole seconds become a `timestamp`, a finer
    /// unit an `i64`, so that no order is lost.
    #[serde(default)]
    pub unit: TimeUnit,
}

/// Columns in the order they were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns(pub Vec<(String, Type)>);

impl Serialize for Columns {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, ty)| (name, ty.to_string())))
    }
}

impl<'de> Deserialize<'de> for Columns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Columns;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of column names to types")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Columns, M::Error> {
                let mut columns: Vec<(String, Type)> = Vec::new();
                while let Some((name, ty)) = map.next_entry::<String, String>()? {
                    if columns.iter().any(|(other, _)| *other == name) {
                        return Err(M::Error::custom(format!("column `{name}` is there twice")));
                    }
                    columns.push((name, ty.parse().map_err(M::Error::custom)?));
                }
                Ok(Columns(columns))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

impl JsonSchema for Columns {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Columns".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {
                "type": "string",
                "pattern": "^(list<)*(bool|u64|i64|f64|text|timestamp)>*$",
                "examples": ["bool", "u64", "i64", "f64", "text", "timestamp", "list<text>"]
            }
        })
    }
}

/// One name, or several in a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Names(pub Vec<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore;
        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Names;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a column name or a list of them")
            }

            fn visit_str<E>(self, name: &str) -> Result<Names, E> {
                Ok(Names(vec![name.to_string()]))
            }

            fn visit_seq<S: SeqAccess<'de>>(self, names: S) -> Result<Names, S::Error> {
                Deserialize::deserialize(SeqAccessDeserializer::new(names)).map(Names)
            }
        }
        deserializer.deserialize_any(OneOrMore)
    }
}

impl JsonSchema for Names {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Names".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "type": "string" },
            { "type": "array", "items": { "type": "string" }, "minItems": 1 }
        ]})
    }
}

impl FilesParams {
    /// What the rows will be.
    pub(super) fn table(&self) -> Result<SourceTable, Vec<ParamError>> {
        let mut wrong = Vec::new();
        if self.columns.0.is_empty() {
            wrong.push(ParamError::new("columns", "at least one column is needed"));
        }
        self.check_names(&mut wrong);
        self.check_time(&mut wrong);
        if let Err(error) = glob::Pattern::new(&self.path) {
            wrong.push(ParamError::new("path", error.to_string()));
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let schema = self.columns.0.iter().map(|(name, ty)| match &self.time {
            Some(time) if time.column == *name => Column::new(name, time.unit.column_type()),
            _ => Column::new(name, ty.clone()),
        });
        let first = self.columns.0.iter().take(1).map(|(name, _)| name.clone());
        Ok(SourceTable {
            schema: schema.collect(),
            key: if self.key.0.is_empty() { first.collect() } else { self.key.0.clone() },
            time: self.time.as_ref().map(|time| time.column.clone()),
            unit: self.time.as_ref().map_or(TimeUnit::Seconds, |time| time.unit),
            event_id: self.event_id.clone(),
            filter: None,
            rename: self.rename.clone(),
        })
    }

    /// Every name that points at a column must find one.
    fn check_names(&self, wrong: &mut Vec<ParamError>) {
        let names = || self.columns.0.iter().map(|(name, _)| name.as_str());
        let mut check = |at: String, name: &str| {
            if !names().any(|known| known == name) {
                let hint = did_you_mean(name, names());
                wrong.push(ParamError::new(at, format!("`{name}` is not among `columns`{hint}")));
            }
        };
        if let Some(time) = &self.time {
            check("time.column".to_string(), &time.column);
        }
        if let Some(event_id) = &self.event_id {
            check("event_id".to_string(), event_id);
        }
        self.key.0.iter().for_each(|name| check("key".to_string(), name));
        for (theirs, ours) in &self.rename {
            check(format!("rename.{theirs}"), ours);
        }
        for (theirs, ours) in &self.rename {
            if self.rename.iter().any(|(other, name)| name == ours && other < theirs) {
                wrong
                    .push(ParamError::new(format!("rename.{theirs}"), format!("a second name for `{ours}`")));
            }
        }
        if names().any(|name| name == "diff") {
            let message = "`diff` is what a delta file calls the multiplicity; use `rename`";
            wrong.push(ParamError::new("columns.diff", message));
        }
    }

    fn check_time(&self, wrong: &mut Vec<ParamError>) {
        let Some(time) = &self.time else { return };
        let declared = self.columns.0.iter().find(|(name, _)| *name == time.column);
        if let Some((name, ty)) = declared
            && !matches!(ty, Type::Timestamp | Type::U64 | Type::I64)
        {
            let message = format!("a time is declared as timestamp, u64 or i64, not {ty}");
            wrong.push(ParamError::new(format!("columns.{name}"), message));
        }
    }

    pub(super) fn open(&self, name: &str, folder: &Path, table: SourceTable) -> FilesSource {
        FilesSource {
            name: name.to_string(),
            folder: folder.to_path_buf(),
            pattern: self.path.clone(),
            reader: self.format.reader(),
            reading: Reading::source(&table),
            table,
        }
    }
}

/// An open `files` source.
pub struct FilesSource {
    name: String,
    folder: PathBuf,
    pattern: String,
    reader: Reader,
    reading: Reading,
    table: SourceTable,
}

impl FilesSource {
    /// The files the pattern finds now, by the name offsets give them.
    fn find(&self) -> Result<BTreeMap<String, PathBuf>, SourceError> {
        let literal = self.folder.join(&self.pattern);
        let is_literal = literal.is_file();
        // Only the user's part is a pattern; a folder with a bracket in its name is not.
        let base = glob::Pattern::escape(&self.folder.to_string_lossy());
        let pattern = Path::new(&base).join(&self.pattern).to_string_lossy().into_owned();
        let found: Vec<PathBuf> = if is_literal {
            vec![literal]
        } else {
            let options = glob::MatchOptions { require_literal_separator: true, ..Default::default() };
            let paths = glob::glob_with(&pattern, options)
                .map_err(|error| SourceError::NoFile { pattern: format!("{pattern} ({error})") })?;
            paths.filter_map(Result::ok).filter(|path| path.is_file()).collect()
        };
        if found.is_empty() {
            return Err(SourceError::NoFile {
                pattern: self.folder.join(&self.pattern).display().to_string(),
            });
        }
        let name = |path: &Path| {
            let inside = path.strip_prefix(&self.folder).unwrap_or(path);
            inside.to_string_lossy().replace(std::path::MAIN_SEPARATOR, "/")
        };
        Ok(found.into_iter().map(|path| (name(&path), path)).collect())
    }
}

impl Source for FilesSource {
    fn table(&self) -> &SourceTable {
        &self.table
    }

    fn read_new(&mut self, from: &Offsets, sink: &mut Sink<'_>) -> Result<Offsets, SourceError> {
        let files = self.find()?;
        if let Some(gone) = from.files.keys().find(|file| !files.contains_key(*file)) {
            return Err(SourceError::Vanished { file: gone.clone() });
        }
        let mut out = Collector::new(&self.name, self.table.filter.as_deref(), sink);
        let mut offsets = Offsets::default();
        for (name, path) in &files {
            let before = from.files.get(name);
            let offset = match self.reader {
                Reader::Text(format) => {
                    let file = TextFile { path, name, format, complete: false };
                    text::read(file, &self.reading, before, &mut out)?
                }
                Reader::Columnar(format) => {
                    let file = (path.as_path(), name.as_str());
                    columnar::read(file, format, &self.reading, self.table.unit, before, &mut out)?
                }
            };
            offsets.files.insert(name.clone(), offset);
        }
        Ok(offsets)
    }
}
