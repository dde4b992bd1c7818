//! The operators of coea-engine.
//!
//! An operator says *what* it computes, as a composition of a few shapes with pure kernels; how
//! that runs (incrementally, memoised, sharded) is the engine's affair. So nothing here knows
//! timely, differential or a database.

pub mod lm;
pub mod row;
pub mod schema;
