//! Running a plan: workers, ticks, model calls, epochs.

pub mod address;
pub mod artifacts;
mod ask;
pub mod backlog;
pub mod commit;
pub mod cycles;
pub mod driver;
pub mod epoch;
mod fit;
pub mod fold;
pub mod foreseen;
pub mod ingest;
pub mod reads;
mod render;
mod renewal;
pub mod report;
mod restore;
pub mod retention;
pub mod settle;
pub mod versions;
pub mod worker;

use coea_operators::shape::CallError;

use crate::{connectors::SourceError, state::StateError};

/// Why an epoch did not come about. Nothing of it is committed; answers paid for are kept.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The state.
    #[error(transparent)]
    State(#[from] StateError),
    /// A source or a delta.
    #[error("source `{name}`: {error}")]
    Source {
        /// Its name.
        name: String,
        /// What is wrong.
        error: SourceError,
    },
    /// A worker.
    #[error(transparent)]
    Worker(#[from] worker::WorkerError),
    /// A model or a fit.
    #[error("{node}: {cause}")]
    Node {
        /// The node.
        node: String,
        /// What it could not do.
        cause: String,
    },
    /// A fit that has nothing to learn from.
    #[error("{node}: {cause}")]
    Nothing {
        /// The node.
        node: String,
        /// What is missing, and what gives some.
        cause: String,
    },
    /// A model's file, or its server.
    #[error("{node}: {cause}")]
    Unavailable {
        /// The node that needs the model.
        node: String,
        /// Why it cannot be had, and what to do.
        cause: String,
    },
    /// A model's budget.
    #[error("stopped at {node}: {cause}; answers so far are kept: run again to go on")]
    Spent {
        /// The node that asked.
        node: String,
        /// Which budget.
        cause: String,
    },
    /// The limits of a node.
    #[error("stopped at the limits of {node}, {calls} calls; answers so far are kept: run again to go on")]
    Limit {
        /// The node that asks.
        node: String,
        /// Its limit.
        calls: u64,
    },
    /// The budget.
    #[error("stopped at --max-calls {0}; answers so far are kept: run again to go on")]
    Budget(u64),
    /// A source was declared differently before.
    #[error("source `{0}` was declared differently when this state began; start a fresh --state for it")]
    SourceChanged(String),
    /// The plan file does not fit any more.
    #[error("the plan file is stale: {0}; plan again")]
    StalePlan(String),
}

impl RunError {
    /// What kept a node from fitting or asking.
    pub fn call(node: &str, error: impl Into<CallError>) -> Self {
        let node = node.to_string();
        match error.into() {
            CallError::Failed(cause) => RunError::Node { node, cause },
            CallError::Nothing(cause) => RunError::Nothing { node, cause },
            CallError::Unavailable(cause) => RunError::Unavailable { node, cause },
            CallError::Spent(cause) => RunError::Spent { node, cause },
        }
    }

    /// The exit code of a command that meets it.
    pub fn exit_code(&self) -> u8 {
        match self {
            RunError::State(StateError::Locked(_)) => 75,
            RunError::State(_) | RunError::Worker(_) | RunError::Node { .. } | RunError::Nothing { .. } => 1,
            RunError::Source { error, .. } => error.exit_code(),
            RunError::Unavailable { .. } => 66,
            RunError::Budget(_) | RunError::Limit { .. } | RunError::Spent { .. } => 4,
            RunError::SourceChanged(_) => 78,
            RunError::StalePlan(_) => 3,
        }
    }
}
