//! Sinks: tables that serving reads, written in the transaction of the epoch.

use coea_operators::prompt_builder::Fallback;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What counts as known to the user who asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NovelTo {
    /// Every category of the user's whole history.
    #[default]
    History,
    /// Only what the key's own recent categories say; nothing is filtered at the lookup.
    ShortTerm,
}

/// The embedded key-value store: one entry per key of the node it reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KvSink {
    /// The table's name; the sink's own if absent.
    #[serde(default)]
    pub table: Option<String>,
    /// Categories a lookup answers with, at most.
    #[serde(default = "serve")]
    pub serve: u64,
    /// Which of them a user is spared.
    #[serde(default)]
    pub novel_to: NovelTo,
    /// Categories a rung must have to be served before the next one is tried; when none has as
    /// many, the fullest is served.
    #[serde(default = "enough")]
    pub enough: u64,
    /// The rungs tried after the user's own key.
    #[serde(default = "fallbacks")]
    pub fallbacks: Vec<Fallback>,
}

fn serve() -> u64 {
    5
}

fn enough() -> u64 {
    3
}

fn fallbacks() -> Vec<Fallback> {
    vec![Fallback::Group, Fallback::Default]
}
