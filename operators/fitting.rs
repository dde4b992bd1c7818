//! What a fit sees, what it leaves, and who watches it.
//!
//! An artifact is bytes to the engine, and the same bytes from the same input; a fit that takes long
//! keeps where it stands, so that a kill costs seconds of it.

use std::{any::Any, sync::Arc};

use crate::{
    row::Row,
    shape::{CallError, KernelError, Loaded},
};

/// Something fitted from data: durable as bytes, the same bytes from the same input.
pub trait Artifact: Any + Send + Sync + Sized {
    /// The durable form.
    fn to_bytes(&self) -> Vec<u8>;

    /// Reads the durable form.
    ///
    /// # Errors
    /// If the bytes were not written by [`Artifact::to_bytes`].
    fn from_bytes(bytes: &[u8]) -> Result<Self, KernelError>;

    /// What it tells of how it was fitted.
    fn figures(&self) -> Figures {
        Vec::new()
    }
}

/// Figures by name.
pub type Figures = Vec<(String, f64)>;

/// The figures of an artifact.
pub type FiguresKernel = Arc<dyn Fn(&Loaded) -> Figures + Send + Sync>;

/// `(what the fit reads, as it is now, the artifact in use) → how far the two have come apart`; the first
/// figure is the one that a policy looks at, 0 being none.
pub type DriftKernel = Arc<dyn Fn(&[&dyn Snapshot], &Loaded) -> Result<Figures, KernelError> + Send + Sync>;

/// A relation at rest, in canonical order.
pub trait Snapshot {
    /// Calls `visit` with key, row and count (at least 1) in the order of (key, row).
    fn for_each(&self, visit: &mut dyn FnMut(&Row, &Row, i64));
}

/// How far a fit is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Steps done.
    pub done: u64,
    /// Steps in all, as far as is known.
    pub total: u64,
    /// What a person wants to see beside the bar.
    pub note: &'a str,
}

/// Who watches a fit, and keeps what it has so far.
pub trait Watch {
    /// Hears how far it is.
    fn progress(&mut self, progress: Progress<'_>);

    /// What was kept last, if a fit of the same from the same was stopped.
    ///
    /// # Errors
    /// If it cannot be read.
    fn kept(&mut self) -> Result<Option<Vec<u8>>, CallError> {
        Ok(None)
    }

    /// Keeps where the fit stands, in place of what was kept before, if enough was done since.
    ///
    /// # Errors
    /// If it cannot be written.
    fn keep(&mut self, _state: &dyn Fn() -> Vec<u8>) -> Result<(), CallError> {
        Ok(())
    }
}

/// Fits an artifact from snapshots of its inputs and from artifacts fitted before.
pub type FitKernel =
    Arc<dyn Fn(&[&dyn Snapshot], &[Loaded], &mut dyn Watch) -> Result<Vec<u8>, CallError> + Send + Sync>;
/// What a fit that takes long will take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FitCost {
    /// Steps.
    pub steps: u64,
    /// Distinct prompts.
    pub prompts: u64,
    /// Tokens of prompts that go through the network, all steps together.
    pub prompt_tokens: u64,
}

/// Tells what a fit will take, from what it would be given.
pub type PriceKernel = Arc<dyn Fn(&[&dyn Snapshot], &[Loaded]) -> Result<FitCost, CallError> + Send + Sync>;

/// Reads an artifact's durable form.
pub type LoadKernel = Arc<dyn Fn(&[u8]) -> Result<Loaded, KernelError> + Send + Sync>;
