//! What the state knows of itself: the epoch, what was consumed, which logic and models made it.
//!
//! One JSON document, written in the transaction of the epoch it describes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{StateError, layered::Layered};

/// The format this engine writes.
pub const FORMAT: u32 = 2;

const KEY: &[u8] = b"manifest";

/// What is known of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// The operator.
    pub op: String,
    /// Hash of what it computes: parameters, templates, models; not its inputs.
    pub logic: String,
    /// Hash of its logic and that of everything upstream.
    pub lineage: String,
    /// Keys that have rows.
    pub keys: u64,
}

/// What is known of one source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceState {
    /// The number its histories are stored under.
    pub id: u16,
    /// Hash of its connector and parameters.
    pub logic: String,
    /// How far it was read, as the connector wrote it.
    pub offsets: serde_json::Value,
    /// Rows it holds.
    pub rows: i64,
}

/// How fast a model answered, for the plan's estimate of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    /// Calls measured.
    pub calls: u64,
    /// Seconds they took.
    pub seconds: f64,
}

/// The state's description of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format of everything in the state.
    pub format: u32,
    /// The pipeline's name.
    pub pipeline: String,
    /// Epochs committed.
    pub epoch: u64,
    /// Worker count at the last commit; it may differ the next time.
    pub workers: usize,
    /// Nodes by name.
    pub nodes: BTreeMap<String, NodeState>,
    /// Sources by name.
    pub sources: BTreeMap<String, SourceState>,
    /// Sinks by name, with the lineage they were written by.
    pub sinks: BTreeMap<String, NodeState>,
    /// Fitted artifacts: leaf → digest and the logic it was fitted by.
    pub artifacts: BTreeMap<String, ArtifactState>,
    /// Versions of models that were in use, by leaf, newest last.
    #[serde(default)]
    pub versions: BTreeMap<String, Vec<VersionState>>,
    /// Versions that the next run is to put in use, by leaf.
    #[serde(default)]
    pub wanted: BTreeMap<String, String>,
    /// Cycles that were begun.
    #[serde(default)]
    pub cycles: u64,
    /// Of a cycle that is not ended, the fits that are done.
    #[serde(default)]
    pub open_cycle: Option<Vec<String>>,
    /// Model answers per second, by node.
    pub throughput: BTreeMap<String, Throughput>,
    /// Steps of training per second, by node.
    #[serde(default)]
    pub training: BTreeMap<String, Throughput>,
    /// Records that did not parse, over all epochs.
    pub dead_letters: u64,
    /// Rows inserted and retracted by all sources, over all epochs; the clock of `after: { events }`,
    /// which may begin at any number, so a state from before it was counted needs no other format.
    #[serde(default)]
    pub taken: u64,
}

/// Which artifact a fit produced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactState {
    /// Digest of its bytes, hexadecimal.
    pub digest: String,
    /// What decides it beside its inputs.
    pub logic: String,
    /// The epoch that fitted it.
    pub epoch: u64,
}

/// A version of a model that came into use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionState {
    /// Digest of its bytes, hexadecimal.
    pub digest: String,
    /// The epoch from which on it was used.
    pub epoch: u64,
}

impl Manifest {
    /// The manifest of a snapshot; that of a fresh state has epoch 0.
    ///
    /// # Errors
    /// If it cannot be read, or has another format.
    pub fn load(meta: &Layered) -> Result<Self, StateError> {
        let Some(bytes) = meta.get(KEY)? else {
            return Ok(Manifest { format: FORMAT, ..Manifest::default() });
        };
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|e| StateError::Corrupt(format!("manifest: {e}")))?;
        if manifest.format != FORMAT {
            return Err(StateError::Format { found: manifest.format, expected: FORMAT });
        }
        Ok(manifest)
    }

    /// Puts the manifest among the changes of `meta`.
    pub fn save(&self, meta: &mut Layered) {
        meta.put(KEY.to_vec(), serde_json::to_vec_pretty(self).unwrap_or_default());
    }
}
