//! Results that were paid for: model answers by content, and finished fits.
//!
//! An answer is durable before the epoch that asked for it, so a crash never pays twice. It is out
//! of use until that epoch is committed, stays while some key asks for it, and for some epochs
//! after; then it is forgotten. So the answers of an epoch that never came about go too. Which answers came
//! into use and which went out of it is part of the epoch's transaction ([`Marks`]) and applied
//! here after it; a process that finds marks unapplied, because the one before was killed in
//! between, applies them first.

use std::{path::Path, sync::Arc};

use coea_operators::row::Row;
use serde::{Deserialize, Serialize};

use super::{
    StateError, Store,
    layered::{Changes, Layered},
};

/// A memo key: the content address of a request.
pub type MemoKey = [u8; 32];

const ANSWERS: &str = "answers";
const UNUSED: &str = "unused";
pub(super) const FITS: &str = "fits";
pub(super) const ARTIFACTS: &str = "artifacts";
pub(super) const CHECKPOINTS: &str = "checkpoints";

/// One remembered answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The node that asked.
    pub node: String,
    /// The answer.
    pub row: Row,
    /// The epoch in which it was last given up; absent while it is asked for.
    pub unused_since: Option<u64>,
}

/// What an epoch changed in the use of answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// The epoch.
    pub epoch: u64,
    /// Answers that are in use again.
    pub used: Vec<MemoKey>,
    /// Answers that nobody asks for any more.
    pub unused: Vec<MemoKey>,
}

const MARKS: &[u8] = b"memo";

impl Marks {
    /// The marks of the last commit.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn load(meta: &Layered) -> Result<Self, StateError> {
        let bytes = meta.get(MARKS)?;
        Ok(bytes.map(|bytes| postcard::from_bytes(&bytes).map_err(corrupt)).transpose()?.unwrap_or_default())
    }

    /// Puts the marks among the changes of `meta`.
    pub fn save(&self, meta: &mut Layered) {
        meta.put(MARKS.to_vec(), postcard::to_allocvec(self).unwrap_or_default());
    }
}

/// Remembered results; without a store, they are remembered nowhere.
#[derive(Clone)]
pub struct Memo(pub(super) Option<Arc<Store>>);

fn corrupt(error: postcard::Error) -> StateError {
    StateError::Corrupt(format!("memo: {error}"))
}

/// The entry of an answer among those out of use, in order of the epoch.
fn mark(epoch: u64, key: &[u8]) -> Vec<u8> {
    [&epoch.to_be_bytes()[..], key].concat()
}

fn encode(answer: &Answer) -> Vec<u8> {
    postcard::to_allocvec(answer).unwrap_or_default()
}

impl Memo {
    pub(super) fn open(dir: &Path) -> Result<Self, StateError> {
        Ok(Memo(Some(Store::open_at(
            &dir.join("memo.lmdb"),
            &[ANSWERS, UNUSED, FITS, ARTIFACTS, CHECKPOINTS],
        )?)))
    }

    pub(super) fn scratch() -> Self {
        Memo(None)
    }

    pub(super) fn get(&self, database: &'static str, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        let Some(store) = &self.0 else { return Ok(None) };
        store.snapshot()?.layered(database).get(key)
    }

    pub(super) fn write(&self, changes: Vec<(&'static str, Changes)>) -> Result<(), StateError> {
        self.0.as_ref().map_or(Ok(()), |store| store.write(changes))
    }

    /// The answers that are remembered among those asked for, in the same order.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn answers(&self, keys: &[MemoKey]) -> Result<Vec<Option<Answer>>, StateError> {
        let Some(store) = &self.0 else { return Ok(vec![None; keys.len()]) };
        let answers = store.snapshot()?.layered(ANSWERS);
        keys.iter()
            .map(|key| answers.get(key)?.map(|b| postcard::from_bytes(&b).map_err(corrupt)).transpose())
            .collect()
    }

    /// Makes answers durable that were asked for after `epoch`; they are in use once the next one is
    /// committed.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn remember(&self, node: &str, answers: &[(MemoKey, Row)], epoch: u64) -> Result<(), StateError> {
        let entry = |(key, row): &(MemoKey, Row)| {
            let answer = Answer { node: node.to_string(), row: row.clone(), unused_since: Some(epoch) };
            (key.to_vec(), Some(encode(&answer)))
        };
        let marks = answers.iter().map(|(key, _)| (mark(epoch, key), Some(Vec::new())));
        self.write(vec![(ANSWERS, answers.iter().map(entry).collect()), (UNUSED, marks.collect())])
    }

    /// What an epoch changes in the use of `keys`, of which some are in use after it.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn marks(
        &self,
        epoch: u64,
        keys: impl IntoIterator<Item = MemoKey>,
        in_use: impl Fn(&MemoKey) -> bool,
    ) -> Result<Marks, StateError> {
        let mut marks = Marks { epoch, ..Marks::default() };
        let Some(store) = &self.0 else { return Ok(marks) };
        let answers = store.snapshot()?.layered(ANSWERS);
        for key in keys {
            let Some(bytes) = answers.get(&key)? else { continue };
            let answer: Answer = postcard::from_bytes(&bytes).map_err(corrupt)?;
            match (in_use(&key), answer.unused_since.is_some()) {
                (true, true) => marks.used.push(key),
                (false, false) => marks.unused.push(key),
                _ => {}
            }
        }
        Ok(marks)
    }

    /// Applies the marks of a commit, and forgets answers that have been out of use for `keep`
    /// epochs. Doing it again changes nothing.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn retain(&self, marked: &Marks, keep: Option<u64>) -> Result<(), StateError> {
        let Some(store) = &self.0 else { return Ok(()) };
        let snapshot = store.snapshot()?;
        let epoch = marked.epoch;
        let (mut answers, mut marks) = (snapshot.layered(ANSWERS), snapshot.layered(UNUSED));
        let unused = marked.unused.iter().map(|key| (key, Some(epoch)));
        let changed = marked.used.iter().map(|key| (key, None)).chain(unused);
        for (key, since) in changed {
            let Some(bytes) = answers.get(key)? else { continue };
            let mut answer: Answer = postcard::from_bytes(&bytes).map_err(corrupt)?;
            if answer.unused_since == since {
                continue;
            }
            if let Some(old) = std::mem::replace(&mut answer.unused_since, since) {
                marks.delete(mark(old, key));
            }
            if let Some(since) = since {
                marks.put(mark(since, key), vec![]);
            }
            answers.put(key.to_vec(), encode(&answer));
        }
        let expired = keep.and_then(|keep| epoch.checked_sub(keep));
        let mut forgotten = Vec::new();
        if let Some(expired) = expired {
            marks.scan(&[], &mut |entry, _| {
                let (since, key) = entry.split_at(8);
                let due = since <= expired.to_be_bytes().as_slice();
                if due {
                    forgotten.push((entry.to_vec(), key.to_vec()));
                }
                Ok(due)
            })?;
        }
        for (entry, key) in forgotten {
            marks.delete(entry);
            answers.delete(key);
        }
        let (answers, marks) = (answers.take(), marks.take());
        if answers.is_empty() && marks.is_empty() {
            return Ok(());
        }
        self.write(vec![(ANSWERS, answers), (UNUSED, marks)])
    }

    /// Visits every remembered answer in order of its key.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn for_each(&self, visit: &mut dyn FnMut(&[u8], Answer)) -> Result<(), StateError> {
        let Some(store) = &self.0 else { return Ok(()) };
        store.snapshot()?.layered(ANSWERS).scan(&[], &mut |key, bytes| {
            visit(key, postcard::from_bytes(bytes).map_err(corrupt)?);
            Ok(true)
        })
    }
}

#[cfg(test)]
mod tests {
    use coea_operators::row::Value;

    use super::*;

    #[test]
    fn answers_are_forgotten_some_epochs_after_their_last_use() {
        let dir = tempfile::tempdir().unwrap();
        let memo = Memo::open(dir.path()).unwrap();
        let (a, b) = ([1; 32], [2; 32]);
        let answers = [(a, Row::from([Value::U64(1)])), (b, Row::empty()), ([3; 32], Row::empty())];
        memo.remember("novel", &answers, 0).unwrap();
        let epoch = |epoch: u64, used: &[MemoKey], unused: &[MemoKey]| {
            let keys = used.iter().chain(unused).copied();
            let marks = memo.marks(epoch, keys, |key| used.contains(key)).unwrap();
            memo.retain(&marks, Some(2)).unwrap();
            memo.retain(&marks, Some(2)).unwrap();
            (marks.used.len(), marks.unused.len())
        };
        assert_eq!(epoch(1, &[a, b], &[]), (2, 0));
        assert_eq!(epoch(1, &[b], &[a]), (0, 1));
        // Nobody committed what asked for the third.
        assert!(memo.answers(&[[3; 32]]).unwrap()[0].is_some());
        assert_eq!(epoch(2, &[], &[]), (0, 0));
        assert!(memo.answers(&[[3; 32]]).unwrap()[0].is_none());
        assert!(memo.answers(&[a]).unwrap()[0].is_some());
        assert_eq!(epoch(2, &[a], &[]), (1, 0));
        assert_eq!(epoch(9, &[], &[b]), (0, 1));
        assert!(memo.answers(&[a, b]).unwrap().iter().all(Option::is_some));
        epoch(11, &[], &[]);
        assert_eq!(memo.answers(&[a, b]).unwrap().map_present(), [true, false]);
    }

    trait Present {
        fn map_present(&self) -> Vec<bool>;
    }

    impl Present for Vec<Option<Answer>> {
        fn map_present(&self) -> Vec<bool> {
            self.iter().map(Option::is_some).collect()
        }
    }
}
