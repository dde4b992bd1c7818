//! Fitted artifacts in memory, by digest: the one thing all workers share.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use coea_operators::shape::Loaded;

/// Loaded artifacts, and the first failure of a worker.
#[derive(Clone, Default)]
pub struct Artifacts {
    loaded: Arc<RwLock<HashMap<String, Loaded>>>,
    failure: Arc<Mutex<Option<String>>>,
}

impl Artifacts {
    /// Makes an artifact known under its digest.
    pub fn insert(&self, digest: &str, artifact: Loaded) {
        self.loaded.write().unwrap_or_else(PoisonError::into_inner).insert(digest.to_string(), artifact);
    }

    /// The artifact of a digest.
    ///
    /// # Errors
    /// If none was made known.
    pub fn get(&self, digest: &str) -> Result<Loaded, String> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        loaded.get(digest).cloned().ok_or_else(|| format!("artifact {digest} is not loaded"))
    }

    /// Forgets all artifacts but these.
    pub fn keep(&self, digests: &HashSet<&str>) {
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        loaded.retain(|digest, _| digests.contains(digest.as_str()));
    }

    /// Notes that a worker cannot go on.
    pub fn fail(&self, cause: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(cause);
    }

    /// The first failure noted.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
