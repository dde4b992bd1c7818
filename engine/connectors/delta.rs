//! A delta file: rows of one source to insert or take back, given on the command line.
//!
//! It is named by the digest of its bytes, so that a delta which was committed is recognised
//! however the file is called; the digest is taken when it is opened and again while it is read, so
//! that a file changed in between is refused instead of committed under the wrong name.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Sink, SourceError, SourceTable, TimeUnit,
    collect::Collector,
    columnar::{self, ColumnarFormat},
    decode::{Reading, TextFormat},
    sql::Filter,
    text::{self, TextFile},
};

/// A file of changes to one source: its columns, and optionally `diff`.
///
/// CSV with a header, tab separated values, JSON lines, Parquet or Arrow IPC, told apart by content
/// and name. `diff` is +1 to insert, −1 to take back, any other whole number for several at once,
/// and +1 where it is absent. The condition of the source applies. A file with a header and no
/// rows, or without a byte, is a delta of no rows.
pub struct DeltaFile {
    path: PathBuf,
    name: String,
    source: String,
    digest: String,
    format: Format,
    reading: Reading,
    unit: TimeUnit,
    filter: Option<Arc<Filter>>,
}

#[derive(Clone, Copy)]
enum Format {
    Text(TextFormat),
    Columnar(ColumnarFormat),
}

impl DeltaFile {
    /// Opens the delta `path` of the source called `source`, whose rows are as `table` says.
    ///
    /// # Errors
    /// [`SourceError::NoFile`] if it is not there, [`SourceError::Io`] if it cannot be read.
    pub fn open(path: &Path, source: &str, table: &SourceTable) -> Result<Self, SourceError> {
        let meta = path.metadata().map_err(SourceError::io(path))?;
        if !meta.is_file() {
            let error = std::io::Error::other("is not a regular file; a delta is read twice");
            return Err(SourceError::Io { path: path.to_path_buf(), source: error });
        }
        Ok(DeltaFile {
            path: path.to_path_buf(),
            name: path.display().to_string(),
            source: source.to_string(),
            digest: text::digest(path)?,
            format: format_of(path)?,
            reading: Reading::delta(table),
            unit: table.unit,
            filter: table.filter.clone(),
        })
    }

    /// BLAKE3 of its bytes, hexadecimal.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hands its rows to `sink`.
    ///
    /// # Errors
    /// If it cannot be read, its columns are not those of the source, it changed since it was
    /// opened, or the sink fails.
    pub fn read(&self, sink: &mut Sink<'_>) -> Result<(), SourceError> {
        let mut out = Collector::new(&self.source, self.filter.as_deref(), sink);
        let offset = match self.format {
            Format::Text(format) => {
                let file = TextFile { path: &self.path, name: &self.name, format, complete: true };
                text::read(file, &self.reading, None, &mut out)?
            }
            Format::Columnar(format) => {
                let file = (self.path.as_path(), self.name.as_str());
                columnar::read(file, format, &self.reading, self.unit, None, &mut out)?
            }
        };
        if offset.digest == self.digest {
            return Ok(());
        }
        let what = "it changed while it was read".to_string();
        Err(SourceError::Rewritten { file: self.name.clone(), what, bytes: offset.size })
    }
}

/// Content first, because it cannot be misspelled; then the name; then a guess by the first byte.
fn format_of(path: &Path) -> Result<Format, SourceError> {
    let mut head = Vec::new();
    let file = File::open(path).map_err(SourceError::io(path))?;
    file.take(64).read_to_end(&mut head).map_err(SourceError::io(path))?;
    if head.starts_with(b"PAR1") {
        return Ok(Format::Columnar(ColumnarFormat::Parquet));
    }
    if head.starts_with(b"ARROW1") {
        return Ok(Format::Columnar(ColumnarFormat::Arrow));
    }
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    Ok(match extension.as_deref() {
        Some("csv") => Format::Text(TextFormat::Csv),
        Some("tsv") => Format::Text(TextFormat::Tsv),
        Some("jsonl" | "ndjson" | "json") => Format::Text(TextFormat::JsonLines),
        Some("parquet") => Format::Columnar(ColumnarFormat::Parquet),
        Some("arrow" | "arrows" | "feather" | "ipc") => Format::Columnar(ColumnarFormat::Arrow),
        _ => {
            let text = head.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&head).trim_ascii_start();
            let json = text.first() == Some(&b'{');
            Format::Text(if json { TextFormat::JsonLines } else { TextFormat::Csv })
        }
    })
}
