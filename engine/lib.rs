//! coea-engine: an embedded dataflow engine for exploratory recommendation.

pub mod fetch;
