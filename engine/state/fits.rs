//! What was fitted, and where fits stood that were stopped: paid for, like answers, and in their
//! database.

use super::{
    StateError,
    layered::Changes,
    memo::{ARTIFACTS, CHECKPOINTS, FITS, Memo},
};

impl Memo {
    /// The artifact that a fit of this identity produced, if it ever finished.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn fitted(&self, identity: &[u8; 32]) -> Result<Option<Vec<u8>>, StateError> {
        match self.get(FITS, identity)? {
            Some(digest) => self.get(ARTIFACTS, &digest),
            None => Ok(None),
        }
    }

    /// How many finished fits are remembered.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn fits(&self) -> Result<u64, StateError> {
        self.count(FITS)
    }

    fn count(&self, table: &'static str) -> Result<u64, StateError> {
        let Some(store) = &self.0 else { return Ok(0) };
        let mut entries = 0;
        store.snapshot()?.layered(table).scan(&[], &mut |_, _| {
            entries += 1;
            Ok(true)
        })?;
        Ok(entries)
    }

    /// Makes a finished fit durable and gives the artifact's digest.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn finish_fit(&self, identity: &[u8; 32], artifact: &[u8]) -> Result<[u8; 32], StateError> {
        let digest = *blake3::hash(artifact).as_bytes();
        let artifacts = Changes::from([(digest.to_vec(), Some(artifact.to_vec()))]);
        let fits = Changes::from([(identity.to_vec(), Some(digest.to_vec()))]);
        let done = Changes::from([(identity.to_vec(), None)]);
        self.write(vec![(ARTIFACTS, artifacts), (FITS, fits), (CHECKPOINTS, done)])?;
        Ok(digest)
    }

    /// Where a fit stood when it was stopped.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn checkpoint(&self, identity: &[u8; 32]) -> Result<Option<Vec<u8>>, StateError> {
        self.get(CHECKPOINTS, identity)
    }

    /// How many fits stand where they were stopped.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn checkpoints(&self) -> Result<u64, StateError> {
        self.count(CHECKPOINTS)
    }

    /// Keeps where a fit stands until it is finished, in place of where it stood before.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn keep_checkpoint(&self, identity: &[u8; 32], state: &[u8]) -> Result<(), StateError> {
        self.write(vec![(CHECKPOINTS, Changes::from([(identity.to_vec(), Some(state.to_vec()))]))])
    }

    /// An artifact by its digest.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn artifact(&self, digest: &[u8; 32]) -> Result<Option<Vec<u8>>, StateError> {
        self.get(ARTIFACTS, digest)
    }

    /// An artifact by its digest in hexadecimal.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn artifact_hex(&self, digest: &str) -> Result<Option<Vec<u8>>, StateError> {
        match blake3::Hash::from_hex(digest) {
            Ok(digest) => self.artifact(digest.as_bytes()),
            Err(_) => Ok(None),
        }
    }

    /// Keeps an artifact that was fitted elsewhere.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn keep_artifact(&self, artifact: &[u8]) -> Result<(), StateError> {
        let digest = blake3::hash(artifact).as_bytes().to_vec();
        self.write(vec![(ARTIFACTS, Changes::from([(digest, Some(artifact.to_vec()))]))])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fits_are_found_by_identity_and_digest() {
        let dir = tempfile::tempdir().unwrap();
        let memo = Memo::open(dir.path()).unwrap();
        let digest = memo.finish_fit(&[7; 32], b"weights").unwrap();
        assert_eq!(memo.fitted(&[7; 32]).unwrap().as_deref(), Some(&b"weights"[..]));
        assert_eq!(memo.artifact(&digest).unwrap().as_deref(), Some(&b"weights"[..]));
        assert!(memo.fitted(&[8; 32]).unwrap().is_none());
    }

    #[test]
    fn a_fit_that_stopped_stands_where_it_was_kept_until_it_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let memo = Memo::open(dir.path()).unwrap();
        assert_eq!((memo.checkpoint(&[7; 32]).unwrap(), memo.checkpoints().unwrap()), (None, 0));
        memo.keep_checkpoint(&[7; 32], b"half").unwrap();
        memo.keep_checkpoint(&[7; 32], b"most").unwrap();
        assert_eq!(memo.checkpoint(&[7; 32]).unwrap().as_deref(), Some(&b"most"[..]));
        assert_eq!(memo.checkpoint(&[8; 32]).unwrap(), None);
        memo.finish_fit(&[7; 32], b"weights").unwrap();
        assert_eq!(memo.checkpoint(&[7; 32]).unwrap(), None);
    }
}
