//! What can go wrong with a source as a whole. A record that does not parse is not among it: that
//! is a [`DeadLetter`](super::DeadLetter), and the run goes on.

use std::{io, path::PathBuf};

use super::sql::SqlError;
use crate::fetch::FetchError;

/// A mistake in the `with` block of a source, found without reading any file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{at}`: {message}")]
pub struct ParamError {
    /// The key below `with`, parts joined by dots: `where`, `columns.rating`.
    pub at: String,
    /// What is wrong and how to mend it.
    pub message: String,
}

impl ParamError {
    pub(super) fn new(at: impl Into<String>, message: impl Into<String>) -> Self {
        ParamError { at: at.into(), message: message.into() }
    }
}

/// Why a source or a delta file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The path or pattern finds nothing.
    #[error("no file is at `{pattern}`; a relative path starts at the pipeline's folder")]
    NoFile {
        /// What was looked for, as an absolute path or pattern.
        pattern: String,
    },
    /// A file the state has read from is gone.
    #[error(
        "{file} has been read before and is gone; put it back, or start a fresh state. \
         To take rows back, give a delta with diff -1"
    )]
    Vanished {
        /// The file, as the offsets name it.
        file: String,
    },
    /// A file the state has read from holds other bytes than it did.
    #[error(
        "{file} was rewritten: {what}. Only new files and appended rows are a delta; put its first \
         {bytes} bytes back as they were, or start a fresh state. To correct a row, give a delta with \
         the old row at diff -1 and the new one at +1"
    )]
    Rewritten {
        /// The file, as the offsets name it.
        file: String,
        /// How that shows.
        what: String,
        /// Length of what was consumed.
        bytes: u64,
    },
    /// The columns of a file are not those that were declared.
    #[error("{file}: {message}")]
    Columns {
        /// The file.
        file: String,
        /// Which column, and what is near it.
        message: String,
    },
    /// The file is not of its format at all.
    #[error("{file} is no readable {format} file: {message}")]
    Format {
        /// The file.
        file: String,
        /// `Parquet` or `Arrow IPC`.
        format: &'static str,
        /// What the reader said.
        message: String,
    },
    /// The file system refused.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The data set is not at hand.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The condition cannot be evaluated.
    #[error("where: {0}")]
    Sql(#[from] SqlError),
    /// The receiver of the rows gave up.
    #[error("rows could not be taken: {0}")]
    Sink(#[source] SinkError),
}

/// Whatever the receiver of rows fails with.
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

impl SourceError {
    /// The exit code of a command that meets it: 66 for an input that cannot be read, 78 for a spec
    /// that is wrong, 1 if the receiver failed.
    pub fn exit_code(&self) -> u8 {
        match self {
            SourceError::Sql(_) => 78,
            SourceError::Sink(_) => 1,
            SourceError::Fetch(error) => error.exit_code(),
            SourceError::NoFile { .. }
            | SourceError::Vanished { .. }
            | SourceError::Rewritten { .. }
            | SourceError::Columns { .. }
            | SourceError::Format { .. }
            | SourceError::Io { .. } => 66,
        }
    }

    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> SourceError {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::NotFound => SourceError::NoFile { pattern: path.display().to_string() },
            _ => SourceError::Io { path, source },
        }
    }
}
