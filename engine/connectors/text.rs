//! Reading a text file from where the last run stopped.
//!
//! One pass does everything: the consumed prefix is hashed to see that it stands, then record after
//! record is framed, decoded and hashed into the digest of the new prefix. Memory is one chunk, or
//! one record where that is longer.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use super::{
    FileOffset, SourceError,
    collect::{Collector, MAX_RAW, Place},
    decode::{Decoder, Fault, Reading, TextFormat},
    frame::{Frame, MAX_RECORD},
    offsets,
};

const CHUNK: usize = 1 << 20;
const BOM: &[u8] = b"\xEF\xBB\xBF";

/// A text file of a source.
#[derive(Clone, Copy)]
pub(super) struct TextFile<'a> {
    /// Where it lies.
    pub path: &'a Path,
    /// How offsets and dead letters name it.
    pub name: &'a str,
    /// Its format.
    pub format: TextFormat,
    /// True if an unterminated last record is whole, because the file does not grow.
    pub complete: bool,
}

/// Reads what follows `from` into `out` and says how far it got.
pub(super) fn read(
    file: TextFile<'_>,
    reading: &Reading,
    from: Option<&FileOffset>,
    out: &mut Collector<'_, '_>,
) -> Result<FileOffset, SourceError> {
    let io = |error| SourceError::io(file.path)(error);
    let mut handle = File::open(file.path).map_err(io)?;
    let meta = handle.metadata().map_err(io)?;
    if let Some(from) = from
        && from.is_current(&meta)
    {
        return Ok(from.clone());
    }
    out.start_file(file.name)?;
    let hasher = check_prefix(&mut handle, file, from, meta.len())?;
    let (bytes, lines) = from.map_or((0, 0), |from| (from.bytes, from.lines));
    let mut cursor = Cursor::new(handle, file, hasher, bytes, lines, meta.len());
    let mut decoder = match cursor.header(reading, bytes == 0)? {
        Some(decoder) => decoder,
        None => return Ok(cursor.offset(&meta)),
    };
    cursor.records(&mut decoder, out)?;
    out.flush()?;
    Ok(cursor.offset(&meta))
}

/// Hashes the prefix that was consumed before, and leaves `handle` behind it.
fn check_prefix(
    handle: &mut File,
    file: TextFile<'_>,
    from: Option<&FileOffset>,
    size: u64,
) -> Result<blake3::Hasher, SourceError> {
    let mut hasher = blake3::Hasher::new();
    let Some(from) = from else { return Ok(hasher) };
    let rewritten =
        |what: String| SourceError::Rewritten { file: file.name.to_string(), what, bytes: from.bytes };
    if size < from.bytes {
        return Err(rewritten(format!("it has {size} bytes, and {} were read before", from.bytes)));
    }
    hasher.update_reader(handle.take(from.bytes)).map_err(SourceError::io(file.path))?;
    if hasher.finalize().to_hex().as_str() != from.digest {
        return Err(rewritten("what was read before has changed".to_string()));
    }
    Ok(hasher)
}

/// A place in a file, with the bytes that follow it.
struct Cursor<'a> {
    handle: File,
    file: TextFile<'a>,
    hasher: blake3::Hasher,
    /// Bytes and lines consumed.
    bytes: u64,
    lines: u64,
    /// Bytes of the file not yet in the buffer; what is appended after the start is not read.
    unread: u64,
    buffer: Vec<u8>,
    /// Consumed bytes at the front of the buffer.
    start: usize,
}

impl<'a> Cursor<'a> {
    fn new(
        handle: File,
        file: TextFile<'a>,
        hasher: blake3::Hasher,
        bytes: u64,
        lines: u64,
        size: u64,
    ) -> Self {
        let unread = size - bytes;
        Cursor { handle, file, hasher, bytes, lines, unread, buffer: Vec::new(), start: 0 }
    }

    fn offset(mut self, meta: &std::fs::Metadata) -> FileOffset {
        self.hasher.update(&self.buffer[..self.start]);
        FileOffset {
            bytes: self.bytes,
            lines: self.lines,
            digest: self.hasher.finalize().to_hex().to_string(),
            size: meta.len(),
            modified_ns: offsets::modified_ns(meta),
        }
    }

    /// The decoder for this file; `None` while its header is not written yet.
    fn header<'r>(&mut self, reading: &'r Reading, fresh: bool) -> Result<Option<Decoder<'r>>, SourceError> {
        let columns = |message| SourceError::Columns { file: self.file.name.to_string(), message };
        if !self.file.format.has_header() {
            return Decoder::new(self.file.format, reading, b"").map(Some).map_err(columns);
        }
        let first = if fresh { self.first_record()? } else { self.earlier_header()? };
        let Some(record) = first else { return Ok(None) };
        let decoder = Decoder::new(self.file.format, reading, trim(&record)).map_err(columns)?;
        Ok(Some(decoder))
    }

    /// Consumes the header of a file that is read from its start: its first line that is not empty.
    fn first_record(&mut self) -> Result<Option<Vec<u8>>, SourceError> {
        while let Some(frame) = self.next_frame()? {
            let (len, lines) = match frame {
                Frame::Record { len, lines } => (len, lines),
                Frame::Broken { len, .. } => (len, 1),
                Frame::Open => return Ok(None),
            };
            let record = &self.buffer[self.start..self.start + len];
            let record = record.strip_prefix(BOM).unwrap_or(record).to_vec();
            self.consume(len, lines);
            if !trim(&record).is_empty() {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// The header of a file that is read from behind it.
    fn earlier_header(&mut self) -> Result<Option<Vec<u8>>, SourceError> {
        let io = SourceError::io(self.file.path);
        let handle = File::open(self.file.path).map_err(io)?;
        // The digest is of the main cursor; this one only looks.
        let mut cursor = Cursor::new(handle, self.file, blake3::Hasher::new(), 0, 0, self.bytes);
        cursor.first_record()
    }

    /// Reads all records up to the end of what is written.
    fn records(&mut self, decoder: &mut Decoder<'_>, out: &mut Collector<'_, '_>) -> Result<(), SourceError> {
        while let Some(frame) = self.next_frame()? {
            let place = Place { line: self.lines + 1, byte: self.bytes };
            match frame {
                Frame::Record { len, lines } => {
                    let taken = self.record(len, lines, place, decoder, out)?;
                    self.consume(taken, if taken == len { lines } else { 1 });
                }
                Frame::Broken { len, cause } => {
                    out.dead(trim(&self.buffer[self.start..self.start + len]), cause, place)?;
                    self.consume(len, 1);
                }
                Frame::Open => {
                    if !self.skip_oversized(place, out)? {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Decodes one framed record and says how many of its bytes are done with. A record of several
    /// lines that has a wrong number of fields gives up only its first: the quote that joined the
    /// lines was a stray one.
    fn record(
        &self,
        len: usize,
        lines: u64,
        place: Place,
        decoder: &mut Decoder<'_>,
        out: &mut Collector<'_, '_>,
    ) -> Result<usize, SourceError> {
        let record = &self.buffer[self.start..self.start + len];
        let bare = match place.byte {
            0 => record.strip_prefix(BOM).unwrap_or(record),
            _ => record,
        };
        let raw = trim(bare);
        if raw.is_empty() {
            return Ok(len);
        }
        match decoder.decode(raw) {
            Ok((row, diff)) => out.row(row, diff, place)?,
            Err(Fault::Shape(cause)) if lines > 1 => {
                let line = memchr::memchr(b'\n', record).map_or(len, |at| at + 1);
                out.dead(trim(&record[..line]), cause, place)?;
                return Ok(line);
            }
            Err(Fault::Shape(cause) | Fault::Cell(cause)) => out.dead(raw, cause, place)?,
        }
        Ok(len)
    }

    /// The frame at the cursor, after reading as much as it needs; `None` at the end of the file.
    /// [`Frame::Open`] is returned only if the file ends or the record is too long.
    fn next_frame(&mut self) -> Result<Option<Frame>, SourceError> {
        loop {
            let rest = &self.buffer[self.start..];
            let end = self.unread == 0;
            if rest.is_empty() && end {
                return Ok(None);
            }
            let frame = match rest {
                [] => Frame::Open,
                rest => self.file.format.framing().next(rest, end, self.file.complete),
            };
            if frame != Frame::Open || end || rest.len() > MAX_RECORD {
                return Ok(Some(frame));
            }
            self.fill().map_err(SourceError::io(self.file.path))?;
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        // By the chunk, not by the record: BLAKE3 is fast on long inputs only.
        self.hasher.update(&self.buffer[..self.start]);
        self.buffer.drain(..self.start);
        self.start = 0;
        let read = (&mut self.handle).take(self.unread.min(CHUNK as u64)).read_to_end(&mut self.buffer)?;
        // A file that is cut while it is read ends here; the next run finds it rewritten.
        self.unread = if read == 0 { 0 } else { self.unread - read as u64 };
        Ok(())
    }

    fn consume(&mut self, len: usize, lines: u64) {
        self.start += len;
        self.bytes += len as u64;
        self.lines += lines;
    }

    /// Passes over a line that is longer than any record may be, and reports it. False if the line
    /// has no end yet, in which case nothing was consumed.
    fn skip_oversized(&mut self, place: Place, out: &mut Collector<'_, '_>) -> Result<bool, SourceError> {
        if self.buffer.len() - self.start <= MAX_RECORD {
            return Ok(false);
        }
        let head = self.buffer[self.start..self.start + MAX_RAW].to_vec();
        let before = {
            self.hasher.update(&self.buffer[..self.start]);
            self.buffer.drain(..self.start);
            self.start = 0;
            self.hasher.clone()
        };
        let mut passed = 0;
        loop {
            let newline = memchr::memchr(b'\n', &self.buffer).map(|at| at + 1);
            self.start = newline.unwrap_or(self.buffer.len());
            passed += self.start as u64;
            if newline.is_some() || (self.unread == 0 && self.file.complete) {
                break;
            }
            if self.unread == 0 {
                (self.hasher, self.start) = (before, 0);
                return Ok(false);
            }
            self.fill().map_err(SourceError::io(self.file.path))?;
        }
        self.bytes += passed;
        self.lines += 1;
        out.dead(&head, "longer than 10 MiB", place)?;
        Ok(true)
    }
}

/// A record without its line break.
fn trim(record: &[u8]) -> &[u8] {
    let record = record.strip_suffix(b"\n").unwrap_or(record);
    record.strip_suffix(b"\r").unwrap_or(record)
}

/// BLAKE3 of a whole file, hexadecimal.
pub(super) fn digest(path: &Path) -> Result<String, SourceError> {
    let file = File::open(path).map_err(SourceError::io(path))?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).map_err(SourceError::io(path))?;
    Ok(hasher.finalize().to_hex().to_string())
}
