//! From the bytes of one record to a row: delimited fields and JSON objects.
//!
//! One decoder per file, because the header says which field is which column. It keeps its buffers
//! between records; the row it returns is the only thing allocated for one.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use coea_operators::row::{Row, Value};
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::{SourceTable, cell::Cell, frame::Framing};
use crate::nearest::did_you_mean;

/// The text formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TextFormat {
    /// Comma separated with a header, RFC 4180.
    Csv,
    /// Tab separated with a header, without quoting.
    Tsv,
    /// Tab separated with a typed header, `user_id:token`; lists separated by spaces.
    Recbole,
    /// `::` separated without a header, Latin-1; fields are the columns in order.
    Movielens,
    /// One JSON object per line.
    JsonLines,
}

impl TextFormat {
    /// How its records are told apart.
    pub fn framing(self) -> Framing {
        if self == TextFormat::Csv { Framing::Quoted } else { Framing::Lines }
    }

    /// True if the first record names the columns.
    pub fn has_header(self) -> bool {
        matches!(self, TextFormat::Csv | TextFormat::Tsv | TextFormat::Recbole)
    }

    fn list_separator(self) -> char {
        if self == TextFormat::Recbole { ' ' } else { '|' }
    }

    /// The record as text: MovieLens files are Latin-1, everything else UTF-8.
    fn text(self, raw: &[u8]) -> Result<Cow<'_, str>, Fault> {
        if self == TextFormat::Movielens && !raw.is_ascii() {
            return Ok(raw.iter().map(|&byte| char::from(byte)).collect::<String>().into());
        }
        let text = std::str::from_utf8(raw);
        text.map(Cow::Borrowed)
            .map_err(|error| Fault::Cell(format!("byte {} of it is not UTF-8", error.valid_up_to())))
    }
}

/// Turns a row as the file has it into a row of the table.
pub(super) type Finish = fn(Row) -> Result<Row, String>;

/// What to read out of the files of a source.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    /// The columns, in the order of the row.
    pub cells: Vec<Cell>,
    /// Names in the files → names of the columns.
    pub rename: BTreeMap<String, String>,
    /// A delta: a column `diff` is its multiplicity, and no column is skipped, so that a mistyped
    /// `diff` cannot turn retractions into inserts.
    pub delta: bool,
    /// Applied to every row.
    pub finish: Option<Finish>,
}

impl Reading {
    /// The files of a source whose rows are as the table has them.
    pub fn source(table: &SourceTable) -> Self {
        Reading { cells: Cell::of_table(table), rename: table.rename.clone(), delta: false, finish: None }
    }

    /// A delta file of that source.
    pub fn delta(table: &SourceTable) -> Self {
        Reading { delta: true, ..Reading::source(table) }
    }

    /// What a column of a file is.
    pub fn slot(&self, name: &str) -> Result<Slot, String> {
        let ours = self.rename.get(name).map_or(name, String::as_str);
        if let Some(at) = self.cells.iter().position(|cell| cell.name == ours) {
            return Ok(Slot::Column(at));
        }
        match (self.delta, name) {
            (true, "diff") => Ok(Slot::Diff),
            (true, _) => {
                let known = self.cells.iter().map(|cell| cell.name.as_str()).chain(["diff"]);
                Err(format!("column `{name}` is no column of the source{}", did_you_mean(name, known)))
            }
            (false, _) => Ok(Slot::Skip),
        }
    }

    /// What each column of a file with named columns is.
    ///
    /// # Errors
    /// Which columns are missing, twice there or unknown, all in one text.
    pub fn slots(&self, names: &[&str]) -> Result<Vec<Slot>, String> {
        let (mut slots, mut wrong) = (Vec::new(), Vec::new());
        for name in names {
            match self.slot(name) {
                Ok(slot) if slot != Slot::Skip && slots.contains(&slot) => {
                    wrong.push(format!("column `{name}` is there twice"));
                }
                Ok(slot) => slots.push(slot),
                Err(cause) => wrong.push(cause),
            }
        }
        for (at, cell) in self.cells.iter().enumerate() {
            if !slots.contains(&Slot::Column(at)) && wrong.is_empty() {
                let theirs = self.rename.iter().find(|(_, ours)| **ours == cell.name);
                let name = theirs.map_or(&cell.name, |(theirs, _)| theirs);
                let free = names.iter().zip(&slots).filter(|(_, slot)| **slot == Slot::Skip);
                let hint = did_you_mean(name, free.map(|(name, _)| *name));
                wrong.push(format!("column `{name}` is missing; there are {}{hint}", names.join(", ")));
            }
        }
        if wrong.is_empty() { Ok(slots) } else { Err(wrong.join("; ")) }
    }

    /// Checks what a file left out, and finishes the row.
    pub fn row(&self, mut cells: Vec<Value>, given: impl Fn(usize) -> bool) -> Result<Row, String> {
        for (at, cell) in self.cells.iter().enumerate() {
            if !given(at) {
                cells[at] = cell.check(Value::Null)?;
            }
        }
        let row = Row::new(cells);
        match self.finish {
            Some(finish) => finish(row),
            None => Ok(row),
        }
    }
}

/// What a field of a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// The column at this position.
    Column(usize),
    /// The multiplicity.
    Diff,
    /// Nothing that was asked for.
    Skip,
}

/// Why a record is no row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It has another number of fields than it should.
    Shape(String),
    /// A cell is wrong.
    Cell(String),
}

impl From<String> for Fault {
    fn from(cause: String) -> Self {
        Fault::Cell(cause)
    }
}

/// Reads the records of one file.
pub(super) struct Decoder<'a> {
    format: TextFormat,
    reading: &'a Reading,
    slots: Vec<Slot>,
    fields: Fields,
}

impl<'a> Decoder<'a> {
    /// A decoder for a file with this header record; no header for formats without one.
    ///
    /// # Errors
    /// What is wrong with the header.
    pub fn new(format: TextFormat, reading: &'a Reading, header: &[u8]) -> Result<Self, String> {
        let mut fields = Fields::new();
        let slots = if format.has_header() {
            let text = format.text(header).map_err(|_| "the header is not UTF-8".to_string())?;
            fields.split(format, &text);
            let name = |field: &'_ str| -> String {
                let typed = (format == TextFormat::Recbole).then(|| field.rsplit_once(':')).flatten();
                typed.map_or(field, |(name, _)| name).trim().to_string()
            };
            let names: Vec<String> = fields.iter().map(|field| name(&field)).collect();
            reading.slots(&names.iter().map(String::as_str).collect::<Vec<_>>())?
        } else {
            (0..reading.cells.len()).map(Slot::Column).collect()
        };
        Ok(Decoder { format, reading, slots, fields })
    }

    /// The row of one record, given without its line break, and its multiplicity.
    pub fn decode(&mut self, raw: &[u8]) -> Result<(Row, i64), Fault> {
        let text = self.format.text(raw)?;
        match self.format {
            TextFormat::JsonLines => Ok(decode_json(self.reading, &text)?),
            _ => self.delimited(&text),
        }
    }

    fn delimited(&mut self, text: &str) -> Result<(Row, i64), Fault> {
        self.fields.split(self.format, text);
        if self.fields.len() != self.slots.len() {
            let (found, expected) = (self.fields.len(), self.slots.len());
            return Err(Fault::Shape(format!("{found} fields, expected {expected}")));
        }
        let mut cells = vec![Value::Null; self.reading.cells.len()];
        let mut diff = 1;
        for (slot, field) in self.slots.iter().zip(self.fields.iter()) {
            match *slot {
                Slot::Column(at) => {
                    cells[at] = self.reading.cells[at].read_text(&field, self.format.list_separator())?;
                }
                Slot::Diff => diff = diff_of(&field)?,
                Slot::Skip => {}
            }
        }
        Ok((self.reading.row(cells, |at| self.slots.contains(&Slot::Column(at)))?, diff))
    }
}

/// A multiplicity written in a delta; an empty one is +1.
pub(super) fn diff_of(text: &str) -> Result<i64, String> {
    match text.trim() {
        "" => Ok(1),
        text => text
            .parse()
            .ok()
            .filter(|diff| *diff != 0)
            .ok_or_else(|| format!("column `diff`: `{text}` is not a whole number other than 0")),
    }
}

/// The fields of the record at hand, unquoted.
struct Fields {
    reader: csv_core::Reader,
    text: Vec<u8>,
    ends: Vec<usize>,
}

impl Fields {
    fn new() -> Self {
        // Not `Reader::default()`, which lacks the tables that `new` builds.
        Fields { reader: csv_core::Reader::new(), text: Vec::new(), ends: Vec::new() }
    }

    fn split(&mut self, format: TextFormat, record: &str) {
        self.ends.clear();
        self.text.clear();
        let separator = match format {
            TextFormat::Csv if record.contains('"') => return self.unquote(record),
            TextFormat::Csv => ",",
            TextFormat::Movielens => "::",
            TextFormat::Tsv | TextFormat::Recbole | TextFormat::JsonLines => "\t",
        };
        for field in record.split(separator) {
            self.text.extend(field.as_bytes());
            self.ends.push(self.text.len());
        }
    }

    /// Lets the csv crate's own state machine take off the quotes.
    fn unquote(&mut self, record: &str) {
        self.reader.reset();
        // Unquoting never lengthens a record, and a field needs a byte, the first excepted.
        self.text.resize(record.len() + 1, 0);
        self.ends.resize(record.len() + 2, 0);
        let (_, read, written, fields) =
            self.reader.read_record(record.as_bytes(), &mut self.text, &mut self.ends);
        debug_assert_eq!(read, record.len(), "a framed record holds no line break outside quotes");
        // The end of the record is told by an empty input.
        let (_, _, more, last) =
            self.reader.read_record(&[], &mut self.text[written..], &mut self.ends[fields..]);
        self.text.truncate(written + more);
        self.ends.truncate(fields + last);
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn iter(&self) -> impl Iterator<Item = Cow<'_, str>> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        // Fields are cut out of valid UTF-8 at ASCII characters, so nothing is ever replaced.
        starts.zip(&self.ends).map(|(start, &end)| String::from_utf8_lossy(&self.text[start..end]))
    }
}

fn decode_json(reading: &Reading, text: &str) -> Result<(Row, i64), String> {
    let mut json = serde_json::Deserializer::from_str(text);
    let object = Object(reading);
    let (cells, given, diff) = object.deserialize(&mut json).map_err(plain)?;
    json.end().map_err(plain)?;
    Ok((reading.row(cells, |at| given[at])?, diff))
}

/// The message without a line number: a record is one line, and its number is reported beside.
fn plain(error: serde_json::Error) -> String {
    let text = error.to_string();
    text.replacen(" at line 1 column ", " at character ", 1)
}

/// Reads an object cell by cell, so that a column given twice is seen.
#[derive(Clone, Copy)]
struct Object<'a>(&'a Reading);

type Cells = (Vec<Value>, Vec<bool>, i64);

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = Cells;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Cells, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Cells;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Cells, M::Error> {
        let reading = self.0;
        let mut cells = vec![Value::Null; reading.cells.len()];
        let mut given = vec![false; reading.cells.len()];
        let mut diff = None;
        while let Some(name) = map.next_key::<String>()? {
            match reading.slot(&name).map_err(M::Error::custom)? {
                Slot::Column(at) if given[at] => {
                    return Err(M::Error::custom(format!("column `{name}` is there twice")));
                }
                Slot::Column(at) => {
                    let json: serde_json::Value = map.next_value()?;
                    cells[at] = reading.cells[at].read_json(json).map_err(M::Error::custom)?;
                    given[at] = true;
                }
                Slot::Diff if diff.is_some() => {
                    return Err(M::Error::custom("column `diff` is there twice"));
                }
                Slot::Diff => {
                    let json: serde_json::Value = map.next_value()?;
                    let text = json.as_str().map_or_else(|| json.to_string(), str::to_string);
                    diff = Some(diff_of(&text).map_err(M::Error::custom)?);
                }
                Slot::Skip => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok((cells, given, diff.unwrap_or(1)))
    }
}
