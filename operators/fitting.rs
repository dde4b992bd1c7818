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
}

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
/// Reads an artifact's durable form.
pub type LoadKernel = Arc<dyn Fn(&[u8]) -> Result<Loaded, KernelError> + Send + Sync>;
