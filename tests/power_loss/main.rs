//! The power goes at any call to the file system: the state opens, at a whole epoch, with all that
//! was acknowledged, and the work goes on from there.
//!
//! `kill -9` cannot show this, since the kernel keeps what a killed process wrote. So one run is
//! written down call by call, and for each call the storage is put together as a power cut during
//! it could have left it.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../common/mod.rs"]
mod common;
mod disk;
mod journal;

use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use coea_engine::{state::State, testing::Bench};

use common::{Content, calls, content, delta, first};
use disk::{Disk, Luck};
use journal::Call;

const USERS: u64 = 110;
/// Draws of each call.
const DRAWS: u64 = 4;
/// Prompts that may have been paid for and are not in the memo yet.
const CHUNK: u64 = 64;
/// Prompts of fits, which are not in the memo.
const PRIORS: u64 = 2;

/// A first run and a delta, undisturbed.
struct Run {
    bench: Arc<Bench>,
    /// What was asked of storage.
    journal: Vec<Call>,
    /// What the state held after each epoch, the none before the first included.
    epochs: Vec<Content>,
}

impl Run {
    fn new() -> Self {
        let bench = Arc::new(common::bench(USERS));
        let (watched, returned) = (bench.clone(), Arc::new(AtomicU64::new(0)));
        let epochs = returned.clone();
        // A fit or a call begins, or an epoch returns, only when what was before is durable.
        journal::watch(&bench.path(""), move || {
            [watched.models.calls(), watched.fits() + epochs.load(Ordering::Relaxed)]
        });
        let mut epochs = vec![content(&bench, "state")];
        for options in [first(), delta(&bench, USERS)] {
            bench.epoch("state", options).unwrap();
            returned.fetch_add(1, Ordering::Relaxed);
            epochs.push(content(&bench, "state"));
        }
        Run { bench, journal: journal::taken(), epochs }
    }

    /// Fails if the journal misses something LMDB does, for then the rest would show nothing.
    fn assert_complete(&self) {
        let mut disk = Disk::default();
        for call in &self.journal {
            disk.begin(&call.act);
            disk.end(&call.act);
        }
        let left = disk.left(Luck::All);
        assert_eq!(left.len(), 2, "{:?}", left.keys());
        for (name, bytes) in left {
            assert!(fs::read(self.bench.path("").join(&name)).unwrap() == bytes, "{name:?}");
        }
    }

    /// Opens what a power cut has left, as a run would, and says what it holds.
    fn recover(&self, disk: &Disk, luck: Luck, when: &str) -> Content {
        let folder = self.bench.path("cut");
        disk::lay(&disk.left(luck), &folder);
        let opened = State::open(&folder.join("state")).map(drop);
        assert!(opened.is_ok(), "{when}: {}", opened.unwrap_err());
        content(&self.bench, "cut/state")
    }

    /// The state is at a whole epoch and holds what had been acknowledged.
    fn check(&self, left: &Content, acknowledged: &Content, when: &str) {
        let epoch = left.manifest.epoch;
        assert!(epoch >= acknowledged.manifest.epoch, "{when}: an epoch that had returned is lost");
        let whole = &self.epochs[epoch as usize];
        assert!(left.manifest == whole.manifest, "{when}: the manifest of epoch {epoch} is not whole");
        assert!(left.databases == whole.databases, "{when}: epoch {epoch} is not whole");
        let last = &self.epochs.last().unwrap().memo;
        let right = |(key, (_, row, _)): (&_, &(_, _, _))| last.get(key).is_some_and(|(_, of, _)| of == row);
        assert!(left.memo.iter().all(right), "{when}: a wrong answer");
        for known in [acknowledged, whole] {
            let lost = known.memo.keys().filter(|key| !left.memo.contains_key(*key)).count();
            assert_eq!(lost, 0, "{when}: answers that were paid for are lost");
            assert!(left.fits >= known.fits, "{when}: a finished fit is lost");
        }
    }

    /// The work goes on in what was left, pays for what is missing and ends as if nothing had been.
    fn go_on(&self, left: &Content, when: &str) {
        let begun = self.bench.fits();
        let mut paid = left.memo.len() as u64;
        if left.manifest.epoch == 0 {
            paid += calls(&self.bench.epoch("cut/state", first()).unwrap());
        }
        paid += calls(&self.bench.epoch("cut/state", delta(&self.bench, USERS)).unwrap());
        let expected = self.epochs.last().unwrap();
        content(&self.bench, "cut/state").assert_is(expected, when);
        assert_eq!(paid, expected.memo.len() as u64, "calls, {when}");
        assert_eq!(left.fits + self.bench.fits() - begun, expected.fits, "fits, {when}");
    }
}

#[test]
fn a_power_cut_at_any_call_loses_nothing_acknowledged() {
    let run = Run::new();
    run.assert_complete();
    let (mut disk, mut progress) = (Disk::default(), [0; 2]);
    let (mut seen, mut acknowledged) = (content(&run.bench, "none"), content(&run.bench, "none"));
    let mut gone_on = BTreeSet::new();
    assert!(run.epochs[2].databases != run.epochs[1].databases && run.epochs[2].memo != run.epochs[1].memo);
    for (at, call) in run.journal.iter().enumerate() {
        if call.progress != progress {
            (progress, acknowledged) = (call.progress, std::mem::take(&mut seen));
        }
        disk.begin(&call.act);
        let draws = (0..DRAWS).map(|draw| Luck::Drawn(at as u64 * DRAWS + draw));
        for luck in [Luck::All, Luck::None].into_iter().chain(draws) {
            let when = format!("call {at} of {}, {luck:?} of what was open", run.journal.len());
            let left = run.recover(&disk, luck, &when);
            run.check(&left, &acknowledged, &when);
            let unused = left.memo.values().filter(|(_, _, since)| since.is_some()).count();
            if gone_on.insert((left.manifest.epoch, left.memo.len(), left.fits, unused)) {
                run.go_on(&left, &when);
            }
            if matches!(luck, Luck::All) {
                let language = |(node, _, _): &&(String, _, _)| ["novel", "scored"].contains(&node.as_str());
                let kept = left.memo.values().filter(language).count() as u64;
                assert!(call.progress[0] <= kept + CHUNK + PRIORS, "{when}: more than a chunk is not kept");
                seen = left;
            }
        }
        disk.end(&call.act);
    }
    let left = run.recover(&disk, Luck::None, "after the last call");
    run.check(&left, run.epochs.last().unwrap(), "after the last call");
    println!("{} calls, {} states to go on from", run.journal.len(), gone_on.len());
    assert!(gone_on.len() > 10, "{gone_on:?}");
}
