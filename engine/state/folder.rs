//! Folders whose names are durable.
//!
//! To sync a file makes its content durable and not its name: that stands in the folder, which has
//! to be synced too. Without it a power cut could take a whole state that was committed.

use std::{fs::File, io::ErrorKind, path::Path};

use super::{StateError, at};

/// Makes a folder, and those above it, so that a power cut does not take its name.
pub(super) fn make(path: &Path) -> Result<(), StateError> {
    if path.is_dir() {
        return Ok(());
    }
    let above = match path.parent() {
        Some(above) if above != Path::new("") => above,
        _ => Path::new("."),
    };
    make(above)?;
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(at(path)(error)),
        _ => {}
    }
    sync(above)
}

/// Makes the names in a folder durable: those of files are not with their contents.
pub(super) fn sync(folder: &Path) -> Result<(), StateError> {
    if cfg!(not(unix)) {
        return Ok(()); // Folders cannot be opened as files there.
    }
    match File::open(folder).and_then(|open| open.sync_all()) {
        // Some network file systems know no such thing.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        synced => synced.map_err(at(folder)),
    }
}
