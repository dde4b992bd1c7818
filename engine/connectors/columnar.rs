//! Reading Parquet and Arrow IPC files, whole.
//!
//! A columnar file is written once and closed, so there are no appended rows to find: a file is
//! new, or it is the one that was read, or it was rewritten and is refused. DataFusion's readers
//! give the batches in file order, so that a row has a number to be reported by.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::Path,
};

use coea_operators::row::Value;
use datafusion::{
    arrow::{
        array::{ArrayRef, RecordBatch},
        error::ArrowError,
        ipc::reader::{FileReader, StreamReader},
    },
    parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder,
};

use super::{
    BATCH_ROWS, FileOffset, SourceError, TimeUnit,
    arrow::{CellColumn, shown},
    collect::{Collector, Place},
    decode::{Reading, Slot, diff_of},
    offsets, text,
};

/// The columnar formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ColumnarFormat {
    /// Apache Parquet.
    Parquet,
    /// Arrow IPC, as file or as stream.
    Arrow,
}

impl ColumnarFormat {
    fn name(self) -> &'static str {
        match self {
            ColumnarFormat::Parquet => "Parquet",
            ColumnarFormat::Arrow => "Arrow IPC",
        }
    }
}

type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>>>;

/// Reads a file that was not read before; one that was must not have changed.
pub(super) fn read(
    (path, name): (&Path, &str),
    format: ColumnarFormat,
    reading: &Reading,
    unit: TimeUnit,
    from: Option<&FileOffset>,
    out: &mut Collector<'_, '_>,
) -> Result<FileOffset, SourceError> {
    let meta = path.metadata().map_err(SourceError::io(path))?;
    if let Some(from) = from
        && from.is_current(&meta)
    {
        return Ok(from.clone());
    }
    let digest = text::digest(path)?;
    let mut offset = FileOffset {
        bytes: meta.len(),
        lines: 0,
        digest,
        size: meta.len(),
        modified_ns: offsets::modified_ns(&meta),
    };
    if let Some(from) = from {
        if from.digest != offset.digest {
            let what = "a columnar file cannot grow".to_string();
            return Err(SourceError::Rewritten { file: name.to_string(), what, bytes: from.bytes });
        }
        offset.lines = from.lines;
        return Ok(offset);
    }
    out.start_file(name)?;
    let unreadable =
        |error: String| SourceError::Format { file: name.to_string(), format: format.name(), message: error };
    for batch in open(path, format).map_err(unreadable)? {
        let batch = batch.map_err(|error| unreadable(error.to_string()))?;
        take(name, &batch, reading, unit, offset.lines, out)?;
        offset.lines += batch.num_rows() as u64;
    }
    out.flush()?;
    Ok(offset)
}

fn open(path: &Path, format: ColumnarFormat) -> Result<Batches, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    if format == ColumnarFormat::Parquet {
        let reader = ParquetRecordBatchReaderBuilder::try_new(file)
            .and_then(|builder| builder.with_batch_size(BATCH_ROWS).build())
            .map_err(|error| error.to_string())?;
        return Ok(Box::new(reader));
    }
    let mut magic = [0; 6];
    let mut peek = File::open(path).map_err(|error| error.to_string())?;
    let is_file = peek.read_exact(&mut magic).is_ok() && &magic == b"ARROW1";
    Ok(if is_file {
        Box::new(FileReader::try_new(BufReader::new(file), None).map_err(|error| error.to_string())?)
    } else {
        Box::new(StreamReader::try_new(BufReader::new(file), None).map_err(|error| error.to_string())?)
    })
}

/// Hands the rows of one batch over; `before` rows of the file came earlier.
fn take(
    name: &str,
    batch: &RecordBatch,
    reading: &Reading,
    unit: TimeUnit,
    before: u64,
    out: &mut Collector<'_, '_>,
) -> Result<(), SourceError> {
    let columns = |message| SourceError::Columns { file: name.to_string(), message };
    let schema = batch.schema();
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let slots = reading.slots(&names).map_err(columns)?;
    let mut given = Vec::new();
    let mut diffs = None;
    for (slot, array) in slots.iter().zip(batch.columns()) {
        match slot {
            Slot::Column(at) => {
                let column = CellColumn::new(&reading.cells[*at], unit, array).map_err(columns)?;
                given.push((*at, column));
            }
            Slot::Diff => diffs = Some(array),
            Slot::Skip => {}
        }
    }
    for row in 0..batch.num_rows() {
        let place = Place { line: before + row as u64 + 1, byte: 0 };
        match take_row(row, reading, &given, diffs) {
            Ok((cells, diff)) => out.row(cells, diff, place)?,
            Err(cause) => out.dead(raw(batch, row).as_bytes(), cause, place)?,
        }
    }
    Ok(())
}

fn take_row(
    row: usize,
    reading: &Reading,
    given: &[(usize, CellColumn<'_>)],
    diffs: Option<&ArrayRef>,
) -> Result<(coea_operators::row::Row, i64), String> {
    let mut cells = vec![Value::Null; reading.cells.len()];
    for (at, column) in given {
        cells[*at] = column.get(row)?;
    }
    let diff = match diffs {
        Some(array) if array.is_valid(row) => diff_of(&shown(array, row))?,
        _ => 1,
    };
    Ok((reading.row(cells, |at| given.iter().any(|(given, _)| *given == at))?, diff))
}

/// A row for a dead letter: `name: value` by column.
fn raw(batch: &RecordBatch, row: usize) -> String {
    let schema = batch.schema();
    let cells = schema.fields().iter().zip(batch.columns());
    cells
        .map(|(field, array)| format!("{}: {}", field.name(), shown(array, row)))
        .collect::<Vec<_>>()
        .join(", ")
}
