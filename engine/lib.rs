//! coea-engine: an embedded dataflow engine for exploratory recommendation.

pub mod connectors;
pub mod fetch;
mod nearest;
