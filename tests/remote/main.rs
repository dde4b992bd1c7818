//! Models on servers, against a server that misbehaves: what is answered is kept and paid for once,
//! faults leave no trace in the store, limits are kept, and a key is seen by the server alone.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cli;
mod client;
#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "what these tests need of it")]
mod common;
mod pipeline;
mod server;
