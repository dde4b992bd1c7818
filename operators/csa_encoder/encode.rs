//! Encoding batches of users with a fitted encoder.
//!
//! A file of its own, because it is the one part of the operator that runs with every delta.

use super::{FittedEncoder, sequence};
use crate::{
    language_model::Answered,
    nn::Sequence,
    row::{Row, Value},
    shape::{CallError, Cost, InferKernel, Loaded, present},
};

/// Users encoded at once.
const BATCH: usize = 64;

/// Encodes batches of users.
pub(super) struct Encode {
    pub(super) max_length: usize,
}

impl InferKernel for Encode {
    fn logic(&self) -> String {
        format!("csa_encoder/1 {}", self.max_length)
    }

    fn cheap(&self) -> bool {
        true
    }

    fn run(
        &self,
        artifacts: &[Loaded],
        requests: &[Row],
        answered: &mut Answered<'_, Row>,
    ) -> Result<Cost, CallError> {
        let encoder = present::<FittedEncoder>(artifacts.first())?;
        for (chunk, first) in requests.chunks(BATCH).zip((0..).step_by(BATCH)) {
            let sequence = |row| sequence(&encoder.items, &encoder.features, row, self.max_length);
            let batch: Vec<Sequence> = chunk.iter().map(sequence).collect();
            let vectors = encoder.network.encode(&batch).map_err(|e| e.to_string())?;
            for (vector, at) in vectors.iter().zip(first..) {
                if answered(at, Ok(Row::from([Value::floats(vector)]))).is_break() {
                    return Ok(Cost::default());
                }
            }
        }
        Ok(Cost::default())
    }
}
