//! coea-engine: an embedded dataflow engine for exploratory recommendation.

pub mod cli;
pub mod connectors;
pub mod diagnostic;
pub mod fetch;
pub mod lower;
mod memory;
pub mod models;
mod nearest;
pub mod oracle;
pub mod plan;
pub mod price;
pub mod registry;
pub mod remote;
pub mod runtime;
pub mod serve;
pub mod sinks;
pub mod spec;
pub mod state;
#[doc(hidden)]
pub mod testing;
pub mod verify;
pub mod world;
