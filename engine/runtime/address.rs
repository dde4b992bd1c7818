//! Content addresses: what names a request to a model, and how the dataflow writes it.

use std::sync::Arc;

use coea_operators::{
    ordered::encode_row,
    row::{Row, Value},
};

use crate::state::memo::MemoKey;

/// The memo key of a request: the content address of what decides its answer. `artifacts` are the
/// digests of those that the answer is made with, as [`joined`].
pub fn memo_key(logic: &str, artifacts: Option<&str>, request: &Row) -> MemoKey {
    let mut hasher = blake3::Hasher::new();
    for part in [logic.as_bytes(), artifacts.unwrap_or_default().as_bytes()] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.update(&encode_row(request));
    *hasher.finalize().as_bytes()
}

/// The digests of several artifacts as one text.
pub fn joined(before: Option<&str>, digest: &str) -> String {
    before.map_or_else(|| digest.to_string(), |before| format!("{before} {digest}"))
}

/// A memo key as a row of the dataflow.
pub fn memo_row(key: &MemoKey) -> Row {
    Row::from([Value::Bytes(Arc::from(key.as_slice()))])
}

/// The memo key that a row of the dataflow holds.
pub(super) fn memo_key_of(memo: &Row) -> Option<MemoKey> {
    match memo.first() {
        Some(Value::Bytes(bytes)) => MemoKey::try_from(bytes.as_ref()).ok(),
        _ => None,
    }
}
