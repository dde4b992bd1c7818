//! One epoch: what it takes in, what the dataflow says of it, what models were asked.
//!
//! All of this ends with the commit, so a driver that goes on begins with an empty one; what
//! outlives an epoch is the driver's own.

use std::{collections::BTreeMap, time::Instant};

use coea_operators::shape::{Cost, LeafId};

use super::{fold::Update, render::Channel};
use crate::{connectors::DeadLetter, state::memo::MemoKey};

/// What one input of an epoch brought.
#[derive(Clone, Debug, Default)]
pub struct InputReport {
    /// The source.
    pub source: String,
    /// Rows inserted.
    pub rows: u64,
    /// Rows retracted.
    pub retractions: u64,
    /// Records that did not parse.
    pub rejected: u64,
    /// The epoch that applied this delta file before.
    pub already_applied: Option<u64>,
}

impl InputReport {
    /// Whether it brought anything.
    pub fn brought(&self) -> bool {
        self.rows + self.retractions + self.rejected > 0
    }
}

/// What a node's model calls came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallReport {
    /// Calls made, or to be made.
    pub calls: u64,
    /// Answers found in the memo.
    pub memo_hits: u64,
    /// Calls that failed.
    pub errors: u64,
    /// Tokens.
    pub cost: Cost,
    /// Seconds spent.
    pub seconds: f64,
}

/// An epoch under way.
pub(super) struct Epoch {
    /// When it began.
    pub began: Instant,
    /// The same by the wall clock, in milliseconds since 1970.
    pub now: u64,
    /// Whether what the workers say belongs to it, or only restores what was committed.
    pub recording: bool,
    /// Whether another version of a model was put in use.
    pub promoted: bool,
    /// What came in.
    pub inputs: Vec<InputReport>,
    /// Records that did not parse.
    pub dead: Vec<DeadLetter>,
    /// Source → offsets, for those that were read.
    pub offsets: BTreeMap<String, serde_json::Value>,
    /// Digests of the delta files applied: source, digest.
    pub applied: Vec<(String, String)>,
    /// Updates by channel.
    pub updates: BTreeMap<Channel, Vec<Update>>,
    /// Changes of the unmatched retractions.
    pub unmatched: Vec<Update>,
    /// Net rows by the source's number.
    pub net: BTreeMap<u16, i64>,
    /// Requests that were answered.
    pub fed: Vec<MemoKey>,
    /// Model calls by inference.
    pub calls: BTreeMap<LeafId, CallReport>,
    /// Language-model calls made.
    pub spent: u64,
}

impl Epoch {
    /// An epoch that nothing came into yet.
    pub fn new(recording: bool, now: u64) -> Self {
        Epoch {
            began: Instant::now(),
            now,
            recording,
            promoted: false,
            inputs: Vec::new(),
            dead: Vec::new(),
            offsets: BTreeMap::new(),
            applied: Vec::new(),
            updates: BTreeMap::new(),
            unmatched: Vec::new(),
            net: BTreeMap::new(),
            fed: Vec::new(),
            calls: BTreeMap::new(),
            spent: 0,
        }
    }
}
