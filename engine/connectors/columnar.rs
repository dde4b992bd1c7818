//! Reading Parquet and Arrow IPC files, whole.
//!
//! A columnar file is written once and closed, so there are no appended rows to find: a file is
//! new, or it is the one that was read, or it was rewritten and is refused. DataFusion's readers
//! give the batches in file order, so that a row has a number to be reported by.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use coea_operators::row::Value;
use datafusion::{
    arrow::{
        array::{ArrayRef, RecordBatch},
        buffer::Buffer,
        error::ArrowError,
        ipc::reader::StreamDecoder,
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
    let mut batches = guarded(|| open(path, format)).map_err(unreadable)?;
    let mut next = || guarded(|| batches.next().transpose().map_err(|error| error.to_string()));
    while let Some(batch) = next().map_err(unreadable)? {
        take(name, &batch, reading, unit, offset.lines, out)?;
        offset.lines += batch.num_rows() as u64;
    }
    out.flush()?;
    Ok(offset)
}

fn open(path: &Path, format: ColumnarFormat) -> Result<Batches, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    Ok(match format {
        ColumnarFormat::Parquet => {
            let reader = ParquetRecordBatchReaderBuilder::try_new(file)
                .and_then(|builder| builder.with_batch_size(BATCH_ROWS).build())
                .map_err(|error| error.to_string())?;
            Box::new(reader)
        }
        ColumnarFormat::Arrow => Box::new(ArrowBatches {
            stream: arrow_stream(file).map_err(|error| error.to_string())?,
            decoder: StreamDecoder::new(),
            chunk: Buffer::from(Vec::<u8>::new()),
        }),
    })
}

/// The stream of messages inside an Arrow IPC file, or all of an Arrow IPC stream.
fn arrow_stream(mut file: File) -> io::Result<io::Take<File>> {
    const MAGIC: &[u8; 6] = b"ARROW1";
    /// Footer length and closing magic.
    const TAIL: u64 = 10;
    let size = file.metadata()?.len();
    let mut head = [0; 8];
    let is_file = size >= 8 + TAIL && file.read_exact(&mut head).is_ok() && head.starts_with(MAGIC);
    if !is_file {
        file.rewind()?;
        return Ok(file.take(size));
    }
    let mut tail = [0; TAIL as usize];
    file.seek(SeekFrom::Start(size - TAIL))?;
    file.read_exact(&mut tail)?;
    let footer = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    let cut = || io::Error::new(io::ErrorKind::InvalidData, "its end is cut off");
    let end = (size - TAIL).checked_sub(footer).filter(|end| *end >= 8 && tail.ends_with(MAGIC));
    let end = end.ok_or_else(cut)?;
    // Writers pad the magic to 8 bytes or more; messages start at a multiple of 8.
    let mut start = 8;
    file.seek(SeekFrom::Start(start))?;
    while start + 8 <= end && file.read_exact(&mut head).is_ok() && head == [0; 8] {
        start += 8;
    }
    file.seek(SeekFrom::Start(start))?;
    Ok(file.take(end - start))
}

/// Batches of an Arrow stream. Decoded by pieces, because the reader over a file believes the
/// lengths it finds, and a damaged one would claim gigabytes before the first byte is missed.
struct ArrowBatches {
    stream: io::Take<File>,
    decoder: StreamDecoder,
    chunk: Buffer,
}

impl ArrowBatches {
    fn advance(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        loop {
            if let Some(batch) = self.decoder.decode(&mut self.chunk)? {
                return Ok(Some(batch));
            }
            let mut bytes = Vec::new();
            (&mut self.stream).take(1 << 20).read_to_end(&mut bytes)?;
            if bytes.is_empty() {
                self.decoder.finish()?;
                return Ok(None);
            }
            self.chunk = Buffer::from(bytes);
        }
    }
}

impl Iterator for ArrowBatches {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

/// Runs a reader of foreign bytes. The readers of Arrow and Parquet are not hardened against every
/// damaged file (flip any byte of a Parquet file and see); one they panic on is unreadable, and no
/// reason for the engine to fall.
fn guarded<T>(read: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err("it is damaged".to_string()))
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
