//! Reading what a run committed: the store behind lookups, and every other table.
//!
//! Nothing here writes, locks or knows the command line, so a server and a program that embeds the
//! engine answer from the same code as `lookup` does.

mod changed;
pub mod lookup;
pub mod places;
pub mod relations;
pub mod view;

pub use changed::Change;
pub use lookup::{Answer, Found, LookupError, Rung, Served, lookup};
pub use places::Places;
pub use relations::Relation;
pub use view::View;
