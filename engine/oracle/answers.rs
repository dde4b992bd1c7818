//! Inferences from scratch: answers out of the memo, and asked for again where that is wanted.
//!
//! Asked again in another order and other batches than a run's, because a model whose answers depend
//! on their company would make every other comparison a lie.

use std::collections::BTreeMap;

use coea_operators::{
    language_model::gather,
    row::{Keyed, Row},
    shape::{CallError, InferKernel, LeafId, Loaded},
};

use super::{NO_ROWS, Oracle, Table, add};
use crate::{
    runtime::{
        RunError,
        address::{joined, memo_key},
        backlog::{TABLE as BACKLOG, waiting_at},
        commit::failed_at,
    },
    state::memo::{Answer, MemoKey},
};

/// Requests asked again at once: another composition of batches than a run's.
const BATCH: usize = 17;

/// Where the answers of inferences come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// The memo.
    Memo,
    /// The memo, and every answer is asked for again and compared.
    Again,
}

/// An answer that is not as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct BadAnswer {
    /// The name of the inference's leaf.
    pub leaf: String,
    /// Its memo key.
    pub key: MemoKey,
    /// What the memo has; nothing if it knows no answer and no failure of the call is on record.
    pub remembered: Option<Row>,
    /// What the model says now, or why it says nothing; nothing if it was not asked.
    pub again: Option<Result<Row, String>>,
}

impl Oracle<'_> {
    /// The rows of a leaf with the artifacts they are computed with; without one of them, none.
    pub(super) fn with_versions(
        &self,
        input: LeafId,
        artifacts: &[LeafId],
    ) -> Result<Versioned<'_>, RunError> {
        let (mut digests, mut loaded) = (None, Vec::new());
        for fit in artifacts {
            let Some((digest, artifact)) = self.artifact(*fit)? else {
                return Ok((&NO_ROWS, None, Vec::new()));
            };
            digests = Some(joined(digests.as_deref(), &digest));
            loaded.push(artifact);
        }
        Ok((&self.relations[input], digests, loaded))
    }

    /// Requests with their answers; those that have none are noted.
    pub(super) fn infer(
        &mut self,
        leaf: LeafId,
        requests: LeafId,
        artifacts: &[LeafId],
        kernel: &dyn InferKernel,
    ) -> Result<Table, RunError> {
        let name = self.plan.leaf_name(leaf);
        let logic = kernel.logic();
        let (rows, digests, loaded) = self.with_versions(requests, artifacts)?;
        let digest = digests.as_deref();
        let asked: Vec<(MemoKey, &Keyed, i64)> =
            rows.iter().map(|(row, count)| (memo_key(&logic, digest, &row.1), row, *count)).collect();
        let distinct: BTreeMap<MemoKey, Row> =
            asked.iter().map(|(memo, (_, request), _)| (*memo, request.clone())).collect();
        let keys: Vec<MemoKey> = distinct.keys().copied().collect();
        let known = self.state.memo.answers(&keys)?;
        let excused = self.excused(leaf, &keys)?;
        let answers: BTreeMap<MemoKey, Row> = keys
            .iter()
            .zip(known)
            .filter(|(key, _)| !excused.contains_key(*key))
            .filter_map(|(key, known)| known.map(|Answer { row, .. }| (*key, row)))
            .collect();
        let mut answered = Table::new();
        for (memo, (key, _), count) in &asked {
            if let Some(answer) = answers.get(memo) {
                add(&mut answered, (key.clone(), answer.clone()), *count);
            }
        }
        let mut bad = Vec::new();
        if self.calls == Calls::Again {
            bad = ask_again(&name, kernel, &loaded, &distinct, &answers)
                .map_err(|error| RunError::call(&self.plan.leaves[leaf].node, error))?;
        }
        self.out.bad_answers.extend(bad);
        for key in keys.iter().filter(|key| !answers.contains_key(*key) && !excused.contains_key(*key)) {
            let leaf = name.clone();
            self.out.bad_answers.push(BadAnswer { leaf, key: *key, remembered: None, again: None });
        }
        let backlog = self.out.tables.entry(BACKLOG.to_string()).or_default();
        for [failed, waiting] in excused.into_values() {
            self.errors.extend(failed);
            backlog.extend(waiting);
        }
        self.out.asked.insert(name, keys.into_iter().collect());
        Ok(answered)
    }

    /// Requests that were committed without an answer, with the rows of errors and of the backlog
    /// that say so; those stay as they are, also if the memo learned of an answer since.
    fn excused(&self, leaf: LeafId, keys: &[MemoKey]) -> Result<BTreeMap<MemoKey, [Updates; 2]>, RunError> {
        let rows = |table: &str, at: Row| -> Result<Updates, RunError> {
            let rows = self.tables.get(table, &at)?.into_iter();
            Ok(rows.map(|(row, count)| ((at.clone(), row), count)).collect())
        };
        let (node, name) = (&self.plan.leaves[leaf].node, self.plan.leaf_name(leaf));
        let mut excused = BTreeMap::new();
        for key in keys {
            let records = [rows("errors", failed_at(node, key))?, rows(BACKLOG, waiting_at(&name, key))?];
            if records.iter().any(|rows| !rows.is_empty()) {
                excused.insert(*key, records);
            }
        }
        Ok(excused)
    }
}

/// Rows of a leaf with digest and artifact.
pub(super) type Versioned<'a> = (&'a Table, Option<String>, Vec<Loaded>);

/// Keyed rows with their counts.
type Updates = Vec<(Keyed, i64)>;

/// Asks for remembered answers again, last first and in other batches, and tells those that differ.
fn ask_again(
    leaf: &str,
    kernel: &dyn InferKernel,
    artifacts: &[Loaded],
    requests: &BTreeMap<MemoKey, Row>,
    answers: &BTreeMap<MemoKey, Row>,
) -> Result<Vec<BadAnswer>, CallError> {
    let mut bad = Vec::new();
    let known: Vec<(&MemoKey, &Row)> = answers.iter().rev().collect();
    for batch in known.chunks(BATCH) {
        let rows: Vec<Row> = batch.iter().map(|(key, _)| requests[*key].clone()).collect();
        let (again, _) = gather(rows.len(), |answered| kernel.run(artifacts, &rows, answered))?;
        for ((key, remembered), again) in batch.iter().zip(again) {
            if again.as_ref() != Ok(*remembered) {
                bad.push(BadAnswer {
                    leaf: leaf.to_string(),
                    key: **key,
                    remembered: Some((*remembered).clone()),
                    again: Some(again),
                });
            }
        }
    }
    Ok(bad)
}
