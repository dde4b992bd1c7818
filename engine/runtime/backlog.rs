//! Requests that are held back: those of nodes with `after`, until enough of them came together.
//!
//! What is asked for and vanishes while it waits was never paid for; that is what waiting is for.
//! Held back, a request counts as settled: the epoch commits without it, and what lies below has no
//! row for it yet. What waits and since when is a table (`backlog`), written by the epoch that
//! makes it wait, so it outlives the process and is there for `status` and `verify` to read.
//! Request by request and not once per node, because the oldest may vanish, and the next one has
//! waited less.
//!
//! Only what data brings is held back. A node that is new or computes something else would have no
//! rows at all, and a fit below would learn from a part of its input; both ask at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use coea_operators::{
    row::{Keyed, Row, Value},
    shape::LeafId,
};

use super::{RunError, address::memo_key_of, driver::Driver, fold::Update};
use crate::{
    plan::Debounce,
    state::{
        StateError,
        memo::MemoKey,
        tables::{Tables, consolidate},
    },
};

/// The table of what waits.
pub(crate) const TABLE: &str = "backlog";

/// The wall clock. The driver looks at it once per epoch; kernels never do.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// That of the machine.
    #[default]
    System,
    /// One that is set: milliseconds since 1970.
    Set(Arc<AtomicU64>),
}

impl Clock {
    /// Milliseconds since 1970.
    pub fn now(&self) -> u64 {
        match self {
            Clock::System => {
                let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                millis(since)
            }
            Clock::Set(at) => at.load(Ordering::Relaxed),
        }
    }

    /// A clock that stands.
    pub fn at(millis: u64) -> Self {
        Clock::Set(Arc::new(AtomicU64::new(millis)))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// When a request began to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Since {
    /// The epoch that was committed without its answer.
    pub epoch: u64,
    /// When that epoch began, in milliseconds since 1970.
    pub at: u64,
    /// Rows that all sources together had brought by its end.
    pub taken: u64,
}

impl Since {
    /// Whether who began to wait then has waited long enough.
    fn over(&self, after: Debounce, now: u64, taken: u64) -> bool {
        after.events.is_some_and(|events| taken.saturating_sub(self.taken) >= events)
            || after.time.is_some_and(|time| now.saturating_sub(self.at) >= millis(time))
    }
}

/// The requests of one inference that wait, as of the last commit.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    since: BTreeMap<MemoKey, Since>,
    /// The same, oldest first.
    order: BTreeSet<(Since, MemoKey)>,
}

impl Waiting {
    fn insert(&mut self, key: MemoKey, since: Since) {
        self.since.insert(key, since);
        self.order.insert((since, key));
    }

    fn remove(&mut self, key: &MemoKey) -> Option<Since> {
        let since = self.since.remove(key)?;
        self.order.remove(&(since, *key));
        Some(since)
    }

    pub(super) fn contains(&self, key: &MemoKey) -> bool {
        self.since.contains_key(key)
    }

    /// Since when the oldest waits of those that are still there.
    fn oldest(&self, there: impl Fn(&MemoKey) -> bool) -> Option<&Since> {
        self.order.iter().find(|(_, key)| there(key)).map(|(since, _)| since)
    }
}

/// Where the table has a request of an inference, by the name of its leaf.
pub(crate) fn waiting_at(leaf: &str, key: &MemoKey) -> Row {
    Row::from([Value::text(leaf), Value::text(blake3::Hash::from_bytes(*key).to_hex().as_str())])
}

fn row(leaf: &str, key: &MemoKey, since: &Since) -> Keyed {
    (waiting_at(leaf, key), Row::from([since.epoch, since.at, since.taken].map(Value::U64)))
}

/// The leaf, the request and since when it waits.
fn unrow((key, row): &Keyed) -> Option<(&str, MemoKey, Since)> {
    let hash = blake3::Hash::from_hex(key.get(1)?.as_text()?).ok()?;
    let number = |at: usize| row.get(at).and_then(Value::as_u64);
    let since = Since { epoch: number(0)?, at: number(1)?, taken: number(2)? };
    Some((key.first()?.as_text()?, *hash.as_bytes(), since))
}

/// What waits at one node.
#[derive(Clone, Copy, Debug)]
pub struct NodeBacklog {
    /// How many requests.
    pub requests: u64,
    /// Since when the oldest does.
    pub since: Since,
}

/// What waits, by node.
///
/// # Errors
/// If the state cannot be read.
pub fn by_node(tables: &Tables) -> Result<BTreeMap<String, NodeBacklog>, StateError> {
    let mut nodes: BTreeMap<String, NodeBacklog> = BTreeMap::new();
    for (keyed, _) in tables.rows(TABLE)? {
        let Some((leaf, _, since)) = unrow(&keyed) else { continue };
        let node = leaf.split('/').next().unwrap_or_default();
        let known = nodes.entry(node.to_string()).or_insert(NodeBacklog { requests: 0, since });
        known.requests += 1;
        known.since = known.since.min(since);
    }
    Ok(nodes)
}

impl Driver<'_> {
    /// Loads what waits; what waited at a node that is gone does so no more.
    pub(super) fn restore_backlog(&mut self) -> Result<(), RunError> {
        let leaves: BTreeMap<String, LeafId> =
            self.plan.infers().map(|leaf| (self.plan.leaf_name(leaf), leaf)).collect();
        for (keyed, count) in self.tables.rows(TABLE)? {
            let known = unrow(&keyed).and_then(|(name, key, since)| Some((*leaves.get(name)?, key, since)));
            match known {
                Some((leaf, key, since)) => self.waiting.entry(leaf).or_default().insert(key, since),
                None => _ = self.tables.apply(TABLE, vec![(keyed, -count)])?,
            }
        }
        Ok(())
    }

    /// Takes note of requests that came or went.
    pub(super) fn note_pending(&mut self, leaf: LeafId, rows: &[Update]) {
        let pending = self.pending.entry(leaf).or_default();
        for ((memo, request), count) in consolidate(rows.to_vec()) {
            let Some(key) = memo_key_of(&memo) else { continue };
            match count {
                1.. => _ = pending.insert(key, request),
                _ => {
                    pending.remove(&key);
                    self.missing.remove(&key);
                }
            };
        }
        let pending = &self.pending[&leaf];
        self.failed.retain(|(at, key), _| *at != leaf || pending.contains_key(key));
    }

    /// Whether an inference holds its requests back in this epoch. What it is asked last counts, so
    /// this is to be believed once everything above is drained.
    pub(super) fn holds(&self, leaf: LeafId) -> bool {
        let there = |key: &MemoKey| self.is_pending(leaf, key);
        self.debounce(leaf).is_some_and(|after| !self.over(leaf, after, there))
    }

    /// Whether it does so whatever comes of what is above.
    pub(super) fn holds_anyway(&self, leaf: LeafId) -> bool {
        self.debounce(leaf).is_some_and(|after| !self.over(leaf, after, |_| true))
    }

    /// Whether requests that earlier epochs left without an answer are asked in this one.
    pub(super) fn catches_up(&self, leaf: LeafId) -> bool {
        let failed =
            || self.failures.iter().any(|(at, _)| at[0].as_text() == Some(&self.plan.leaves[leaf].node));
        !self.holds(leaf) && (self.waiting.get(&leaf).is_some_and(|w| !w.since.is_empty()) || failed())
    }

    /// Whether some request has waited long enough.
    pub(super) fn any_over(&self) -> bool {
        self.plan.infers().any(|leaf| {
            let there = |key: &MemoKey| self.is_pending(leaf, key);
            self.plan.after(leaf).is_some_and(|after| self.over(leaf, after, there))
        })
    }

    /// How long until some request has waited for its time; nothing if none waits for one.
    pub fn due_in(&self) -> Option<Duration> {
        let due = self.plan.infers().filter_map(|leaf| {
            let time = self.plan.after(leaf)?.time?;
            let oldest = self.waiting.get(&leaf)?.oldest(|key| self.is_pending(leaf, key))?;
            Some(oldest.at.saturating_add(millis(time)))
        });
        Some(Duration::from_millis(due.min()?.saturating_sub(self.options.clock.now())))
    }

    /// Requests that an inference leaves without an answer in this epoch, to be asked later.
    pub(super) fn backlog(&self, leaf: LeafId) -> u64 {
        // A plan asks nothing: what is not held back there is what a run asks.
        let left = self.plan.after(leaf).is_some() && (!self.options.dry || self.holds(leaf));
        if left { self.pending.get(&leaf).map_or(0, |pending| pending.len() as u64) } else { 0 }
    }

    /// Writes down what waits from this epoch on. A call that failed waits like any other, but anew.
    pub(super) fn apply_backlog(&mut self, epoch: u64) -> Result<(), RunError> {
        let fresh = Since { epoch, at: self.epoch.now, taken: self.taken() };
        let nothing = BTreeMap::new();
        let mut updates: Vec<Update> = Vec::new();
        for leaf in self.plan.infers().collect::<Vec<_>>() {
            let name = self.plan.leaf_name(leaf);
            let after = self.plan.after(leaf).is_some();
            let pending = self.pending.get(&leaf).filter(|_| after).unwrap_or(&nothing);
            let held = self.holds(leaf);
            let mut waiting = self.waiting.remove(&leaf).unwrap_or_default();
            let over = waiting.since.keys().filter(|key| !held || !pending.contains_key(*key));
            for key in over.copied().collect::<Vec<_>>() {
                updates.extend(waiting.remove(&key).map(|since| (row(&name, &key, &since), -1)));
            }
            for key in pending.keys().filter(|key| !waiting.contains(key)).copied().collect::<Vec<_>>() {
                waiting.insert(key, fresh);
                updates.push((row(&name, &key, &fresh), 1));
            }
            self.waiting.insert(leaf, waiting);
        }
        self.tables.apply(TABLE, updates)?;
        Ok(())
    }

    /// Rows taken in by all epochs, this one included.
    pub(super) fn taken(&self) -> u64 {
        let rows = self.epoch.inputs.iter().map(|input| input.rows + input.retractions);
        self.manifest.taken + rows.sum::<u64>()
    }

    fn is_pending(&self, leaf: LeafId, key: &MemoKey) -> bool {
        self.pending.get(&leaf).is_some_and(|pending| pending.contains_key(key))
    }

    /// Whether the oldest request that waits, of those that are `there`, has waited long enough.
    fn over(&self, leaf: LeafId, after: Debounce, there: impl Fn(&MemoKey) -> bool) -> bool {
        let oldest = self.waiting.get(&leaf).and_then(|waiting| waiting.oldest(there));
        oldest.is_some_and(|since| since.over(after, self.epoch.now, self.taken()))
    }

    /// What requests of an inference wait for, unless they are to be asked at once.
    fn debounce(&self, leaf: LeafId) -> Option<Debounce> {
        let after = self.plan.after(leaf)?;
        let node = self.plan.node(&self.plan.leaves[leaf].node)?;
        let known = self.manifest.nodes.get(&node.name);
        let new = known.is_none_or(|known| known.lineage != self.plan.lineage[node.leaf]);
        let open = |fit: &LeafId| self.is_open(*fit);
        let fits = || self.plan.fits().filter(open).any(|fit| self.plan.upstream(fit).contains(&leaf));
        // A promotion asks everything anew; held back, it would leave nothing to serve.
        (!self.options.flush && !new && !self.epoch.promoted && !fits()).then_some(after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bound_is_enough_and_none_is_reached_early() {
        let since = Since { epoch: 4, at: 1_000, taken: 50 };
        let second = Some(Duration::from_secs(1));
        for (events, time, now, taken, over) in [
            (Some(10), None, 9_999, 59, false),
            (Some(10), None, 1_000, 60, true),
            (None, second, 1_999, 999, false),
            (None, second, 2_000, 50, true),
            (Some(10), second, 1_999, 59, false),
            (Some(10), second, 2_000, 59, true),
            (Some(10), second, 1_999, 60, true),
            // A clock that was set back.
            (None, second, 10, 50, false),
        ] {
            let after = Debounce { events, time };
            assert_eq!(since.over(after, now, taken), over, "{after:?} at {now}, {taken}");
        }
    }

    #[test]
    fn the_oldest_is_the_oldest_of_those_still_there() {
        let at = |epoch: u64| Since { epoch, at: epoch, taken: epoch };
        let mut waiting = Waiting::default();
        for (key, epoch) in [([1; 32], 5), ([2; 32], 3), ([3; 32], 4)] {
            waiting.insert(key, at(epoch));
        }
        assert_eq!(waiting.oldest(|_| true), Some(&at(3)));
        assert_eq!(waiting.oldest(|key| key[0] != 2), Some(&at(4)));
        assert_eq!(waiting.remove(&[2; 32]), Some(at(3)));
        assert_eq!(waiting.oldest(|_| true), Some(&at(4)));
    }

    #[test]
    fn a_row_says_what_waits_since_when() {
        let since = Since { epoch: 7, at: 1 << 40, taken: 3 };
        assert_eq!(unrow(&row("novel/answers", &[9; 32], &since)), Some(("novel/answers", [9; 32], since)));
        assert_eq!(unrow(&(Row::empty(), Row::empty())), None);
    }
}
