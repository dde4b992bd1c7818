//! How positions become one vector: one enum for the network and for the YAML that names it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the rows of the last layer become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// The last row (the paper's).
    #[default]
    Last,
    /// The mean of all rows: moves less with each click.
    Mean,
}
