//! Tuning language models: what they are to be moved towards.
//!
//! Decision: models here answer with one label of a closed set, so whatever a method asks of them is
//! a function of label log-probabilities; losses know those alone.

pub mod baselines;
pub mod gate;
pub(crate) mod held_out;
pub mod loss;
pub mod placebo;
mod told;
pub mod trainer;
#[cfg(test)]
mod trainer_tests;
pub mod training;
pub(crate) mod version;
