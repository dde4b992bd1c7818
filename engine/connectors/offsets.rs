//! How far each file of a source has been read: the whole memory of a source between two runs.
//!
//! A file is its consumed prefix. The digest of that prefix tells appended rows from a rewritten
//! file; size and modification time only spare the hashing of files that did not move, and decide
//! nothing once the size differs.

use std::{collections::BTreeMap, fs::Metadata, time::UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// How far one file has been read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileOffset {
    /// Bytes consumed: whole records, header included.
    pub bytes: u64,
    /// Lines consumed (rows, for Parquet and Arrow).
    pub lines: u64,
    /// BLAKE3 of the consumed bytes, hexadecimal.
    pub digest: String,
    /// Length of the file when it was read; more than `bytes` if an unterminated record waits.
    pub size: u64,
    /// Modification time when it was read, nanoseconds since 1970.
    pub modified_ns: u64,
}

impl FileOffset {
    /// True if the file has neither grown nor been touched since, going by its metadata.
    pub(super) fn is_current(&self, meta: &Metadata) -> bool {
        self.size == meta.len() && self.modified_ns == modified_ns(meta)
    }
}

/// How far all files of a source have been read; empty on a fresh state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offsets {
    /// By file, named relative to the pipeline's folder, with `/` between its parts.
    pub files: BTreeMap<String, FileOffset>,
}

impl Offsets {
    /// Bytes at the ends of files that wait for the end of their record.
    pub fn waiting(&self) -> u64 {
        self.files.values().map(|file| file.size - file.bytes).sum()
    }
}

/// Modification time in nanoseconds since 1970; 0 where the file system keeps none.
pub(super) fn modified_ns(meta: &Metadata) -> u64 {
    let modified = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    modified.map_or(0, |since| since.as_nanos() as u64)
}
