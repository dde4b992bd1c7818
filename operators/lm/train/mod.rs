//! Tuning the language model: its forward pass with low-rank adapters, and their gradients.
//!
//! Decision: gradients are written by hand, as those of the small networks are (`nn`), over the
//! packed, narrow weights that answers are made with. Frozen weights then cost no memory and no
//! gradient, products with them are the kernel's both ways, and what is trained is what is served:
//! at the start of tuning the numbers are those of inference.

mod attention;
mod batch;
#[cfg(test)]
mod fixtures_tests;
mod forest;
mod frozen;
mod head;
mod linear;
mod math;
mod network;
#[cfg(test)]
mod tests;

pub use batch::{Batch, Tuner};
pub(crate) use frozen::Frozen;
