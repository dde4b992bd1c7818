//! The cache folder: where fetched files lie, and the memory of which bytes were already checked.
//!
//! A model file is hashed once, not once per run: its digest is remembered beside its size and
//! modification time, and computed again only when one of them moved. A file enters the cache by a
//! rename inside one file system, after its digest was checked, so a reader sees a whole file or
//! none, whatever runs beside it or is killed.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The environment variable that names the cache folder.
pub const CACHE_VARIABLE: &str = "COEA_CACHE";

/// A cache folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    root: PathBuf,
}

/// A digest and the state of the file it was computed from.
#[derive(Serialize, Deserialize)]
struct Remembered {
    path: PathBuf,
    bytes: u64,
    modified_ns: u128,
    sha256: String,
}

impl Cache {
    /// The folder `COEA_CACHE` names, else `coea` in the platform's cache folder, else in the
    /// folder for temporary files.
    pub fn from_env() -> Self {
        let named = std::env::var_os(CACHE_VARIABLE).filter(|folder| !folder.is_empty());
        let root = match named {
            Some(folder) => PathBuf::from(folder),
            None => dirs::cache_dir().unwrap_or_else(std::env::temp_dir).join("coea"),
        };
        Cache::at(root)
    }

    /// A cache in `root`, which need not exist yet.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Cache { root: root.into() }
    }

    /// A folder of the cache, named with `/` between its parts.
    pub fn folder(&self, parts: &str) -> PathBuf {
        parts.split('/').fold(self.root.clone(), |path, part| path.join(part))
    }

    /// SHA-256 of a file, lowercase hexadecimal; hashed only if it changed since the last call.
    ///
    /// # Errors
    /// If the file cannot be read. A cache that cannot be written costs a hash per run, no error.
    pub fn sha256(&self, path: &Path) -> io::Result<String> {
        let path = fs::canonicalize(path)?;
        let (bytes, modified_ns) = state_of(&path)?;
        let name = blake3::hash(path.as_os_str().as_encoded_bytes()).to_hex();
        let note = self.folder("digests").join(format!("{name}.json"));
        let known = fs::read(&note).ok().and_then(|text| serde_json::from_slice::<Remembered>(&text).ok());
        if let Some(known) = known
            && (known.bytes, known.modified_ns, &known.path) == (bytes, modified_ns, &path)
        {
            return Ok(known.sha256);
        }
        let sha256 = hash(&path)?;
        // Only a file that stood still while it was hashed is remembered.
        if state_of(&path)? == (bytes, modified_ns) {
            let remembered = Remembered { path, bytes, modified_ns, sha256: sha256.clone() };
            if let Ok(text) = serde_json::to_vec(&remembered) {
                let _ = write_whole(&note, &text);
            }
        }
        Ok(sha256)
    }

    /// Holds the lock of `folder`, so that of two processes one fetches and the other finds.
    /// Where the file system has no locks both fetch, and the last rename wins: same bytes.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn lock(&self, folder: &Path) -> io::Result<File> {
        fs::create_dir_all(folder)?;
        let lock = File::create(folder.join(".lock"))?;
        let _ = lock.lock();
        Ok(lock)
    }
}

fn state_of(path: &Path) -> io::Result<(u64, u128)> {
    let meta = fs::metadata(path)?;
    let modified = meta.modified()?.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    Ok((meta.len(), modified))
}

/// SHA-256 of a file's bytes, lowercase hexadecimal.
pub(super) fn hash(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
    }
}

/// Bytes as lowercase hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a file that readers see whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path).map_err(|failed| failed.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_remembered_until_the_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("cache"));
        let file = folder.path().join("f");
        fs::write(&file, "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(cache.sha256(&file).unwrap(), abc);
        let note = fs::read_dir(cache.folder("digests")).unwrap().next().unwrap().unwrap().path();
        let forged = fs::read_to_string(&note).unwrap().replace(abc, "remembered");
        fs::write(&note, forged).unwrap();
        assert_eq!(cache.sha256(&file).unwrap(), "remembered");
        fs::write(&file, "abcd").unwrap();
        assert_eq!(
            cache.sha256(&file).unwrap(),
            "88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589"
        );
    }
}
