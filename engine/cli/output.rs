//! What the reading commands share: opening a state, and printing.
//!
//! Documents are written through serde in the order of their fields, because `serde_json::Value`
//! would sort them; and a reader that goes away (`dump | head`) is no failure.

use std::{
    fmt::Display,
    io::{self, Write},
};

use coea_operators::{
    row::{Row, Value},
    schema::{Column, Type},
};
use serde::{Serialize, Serializer, ser::SerializeMap};

use super::{Common, Failure};
use crate::{
    fetch::FetchError,
    models::{Opened, RealModels},
    runtime::driver::changed_spec,
    serve::{LookupError, View},
};

/// Wrong usage: exit code 64.
pub fn usage(message: impl Display) -> Failure {
    Failure::new(64, format!("error: {message}"))
}

/// A failure while running: exit code 1.
pub fn failed(message: impl Display) -> Failure {
    Failure::new(1, format!("error: {message}"))
}

impl From<LookupError> for Failure {
    fn from(error: LookupError) -> Self {
        match error {
            LookupError::State(error) => error.into(),
            LookupError::NoUser { .. } | LookupError::WideKey(_) => usage(error),
            LookupError::NothingServed(_) => failed(error),
        }
    }
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        Failure::new(error.exit_code(), format!("error: {error}"))
    }
}

/// Says which models were loaded, in what time and memory.
pub fn loaded(models: &RealModels) {
    for Opened { base, took, bytes } in models.opened() {
        eprintln!("{base}: loaded in {:.1} s, {} MB", took.as_secs_f64(), bytes / 1_000_000);
    }
}

/// Opens what was committed for a pipeline.
///
/// # Errors
/// If the pipeline is wrong, the state unreadable, or nothing was ever run.
pub fn open(common: &Common) -> Result<View, Failure> {
    let loaded = common.load()?;
    let view = View::open(loaded.plan, &loaded.state_dir)?;
    if view.manifest.epoch == 0 {
        let (dir, pipeline) = (loaded.state_dir.display(), common.pipeline.display());
        return Err(failed(format!("nothing has been run yet in {dir}: coea-engine run {pipeline}")));
    }
    if changed_spec(&view.plan, &view.manifest) && !common.quiet {
        eprintln!(
            "note: the pipeline has changed since epoch {}; what is shown is that epoch's",
            view.manifest.epoch
        );
    }
    Ok(view)
}

/// Standard output as a buffered writer that ends quietly when nobody reads any more.
pub struct Out(io::BufWriter<io::Stdout>);

impl Out {
    /// Standard output.
    pub fn new() -> Self {
        Out(io::BufWriter::with_capacity(1 << 16, io::stdout()))
    }

    /// Writes what is buffered.
    ///
    /// # Errors
    /// If standard output cannot be written.
    pub fn finish(mut self) -> Result<(), Failure> {
        self.flush().map_err(failed)
    }
}

impl Default for Out {
    fn default() -> Self {
        Self::new()
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        gone_is_fine(self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        gone_is_fine(self.0.flush().map(|()| 0)).map(|_| ())
    }
}

/// A closed pipe ends the program as it ends any filter: at once and in silence.
fn gone_is_fine(written: io::Result<usize>) -> io::Result<usize> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other,
    }
}

/// Writes a document as one line.
///
/// # Errors
/// If standard output cannot be written.
pub fn line(out: &mut Out, document: &impl Serialize) -> Result<(), Failure> {
    serde_json::to_writer(&mut *out, document).map_err(failed)?;
    out.write_all(b"\n").map_err(failed)
}

/// Prints one document, indented.
///
/// # Errors
/// If standard output cannot be written.
pub fn document(document: &impl Serialize) -> Result<(), Failure> {
    let mut out = Out::new();
    serde_json::to_writer_pretty(&mut out, document).map_err(failed)?;
    out.write_all(b"\n").map_err(failed)?;
    out.finish()
}

/// Prints text.
///
/// # Errors
/// If standard output cannot be written.
pub fn text(text: &str) -> Result<(), Failure> {
    let mut out = Out::new();
    out.write_all(text.as_bytes()).map_err(failed)?;
    out.finish()
}

/// A cell as its column's type shows it: vectors as numbers, bytes else in hexadecimal.
pub struct Cell<'a>(pub &'a Value, pub &'a Type);

impl Serialize for Cell<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (self.0, self.1) {
            (Value::Bytes(_), _) => match self.0.as_floats() {
                Some(floats) => serializer.collect_seq(floats),
                None => self.0.to_json().serialize(serializer),
            },
            (Value::List(cells), Type::List(ty)) => {
                serializer.collect_seq(cells.iter().map(|cell| Cell(cell, ty)))
            }
            (Value::List(cells), Type::Tuple(types)) => {
                serializer.collect_seq(cells.iter().zip(types).map(|(cell, ty)| Cell(cell, ty)))
            }
            (other, _) => other.to_json().serialize(serializer),
        }
    }
}

/// A row as an object, in the order of its columns.
pub struct Record<'a>(pub &'a [Column], pub &'a Row);

impl Serialize for Record<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (column, cell) in self.0.iter().zip(self.1.iter()) {
            map.serialize_entry(&column.name, &Cell(cell, &column.ty))?;
        }
        map.end()
    }
}

/// Lines of cells with their columns aligned; numbers are for the caller to pad.
pub fn columns(rows: &[Vec<String>]) -> String {
    let width = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..).map_while(width).collect();
    let mut text = String::new();
    for row in rows {
        let padded = row.iter().zip(&widths).map(|(cell, width)| {
            let pad = width - cell.chars().count();
            format!("{cell}{}", " ".repeat(pad))
        });
        text += padded.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_the_order_of_their_columns_and_vectors_are_numbers() {
        let pairs = Type::Tuple(vec![Type::Text, Type::F64]).list();
        let columns = [Column::new("z", Type::U64), Column::new("v", Type::Bytes), Column::new("a", pairs)];
        let pair = Value::list([Value::text("War"), Value::float(0.5)]);
        let row = Row::from([Value::U64(1), Value::floats(&[0.1, -2.0]), Value::list([pair])]);
        let json = serde_json::to_string(&Record(&columns, &row)).unwrap();
        assert_eq!(json, r#"{"z":1,"v":[0.1,-2.0],"a":[["War",0.5]]}"#);
    }

    #[test]
    fn columns_are_aligned_by_characters() {
        let rows = [["é", "b"], ["ccc", "d"]].map(|row| row.map(String::from).to_vec());
        assert_eq!(columns(&rows), "é    b\nccc  d\n");
    }
}
