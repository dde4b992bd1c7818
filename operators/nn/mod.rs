//! The neural parts: a causal self-attention encoder of item sequences and a residual-quantised
//! autoencoder that turns its vectors into groups.
//!
//! Both are small (under a million parameters) and fitted on CPUs as part of a pipeline, so their
//! gradients are written out by hand over flat vectors and checked against finite differences,
//! instead of going through a tape: sequences of different lengths are packed without padding, one
//! shard of a batch runs on one thread, and results do not depend on how many threads there are.

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod csa;
mod csa_fit;
#[cfg(test)]
mod grad_check;
pub mod groups;
pub mod kmeans;
pub mod layers;
pub mod matrix;
pub mod params;
pub mod pool;
pub mod quantiser;
pub mod random;
mod rq_config;
mod rq_fit;
pub mod rq_vae;
pub mod softmax_loss;
pub mod transformer;
pub mod windows;

pub use csa::{CsaConfig, CsaEncoder, FitProgress, FitReport, Sequence, hit_rate_at_10};
pub use pool::Pool;
pub use rq_vae::{Codes, RqConfig, RqProgress, RqReport, RqVae};

/// Why a model could not be fitted, applied or read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NnError {
    /// There is nothing to fit on.
    #[error("nothing to fit on: {0}")]
    Empty(&'static str),
    /// A setting is out of its range.
    #[error("`{name}` is {value}, but must be {must}")]
    Config {
        /// The setting.
        name: &'static str,
        /// What it was.
        value: String,
        /// What it must be.
        must: &'static str,
    },
    /// An input does not fit the model.
    #[error("input {index} does not fit the model: {reason}")]
    Input {
        /// Its position in the data.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// Training left the range of numbers.
    #[error("the loss was not finite in epoch {epoch}; a lower learning rate may help")]
    Diverged {
        /// The epoch, from 1.
        epoch: usize,
    },
    /// Bytes do not hold such a model.
    #[error("not a saved model of this kind: {0}")]
    Format(String),
}

impl NnError {
    /// An out-of-range setting.
    pub(crate) fn config(name: &'static str, value: impl ToString, must: &'static str) -> Self {
        NnError::Config { name, value: value.to_string(), must }
    }

    /// An unfit input.
    pub(crate) fn input(index: usize, reason: impl Into<String>) -> Self {
        NnError::Input { index, reason: reason.into() }
    }
}
