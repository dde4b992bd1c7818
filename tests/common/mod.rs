//! What the tests of crashes share: a pipeline with every kind of work, a delta for it, and
//! everything that a state holds.
//!
//! The whole state is compared and not its tables alone, because what a later run reads (histories,
//! offsets, deltas that were applied) is where half an epoch would hide.

use std::{collections::BTreeMap, fmt::Write};

use coea_engine::{
    runtime::{driver::Options, report::Report},
    state::{
        DATABASES,
        manifest::Manifest,
        memo::{Answer, MemoKey},
    },
    testing::Bench,
};
use coea_operators::row::Row;

const ITEMS: u64 = 90;
/// Clicks of a user, on items that come back: a category clicked once is no interest.
const EVENTS: u64 = 9;
const GENRES: u64 = 29;

/// A folder with the pipeline and `users` users, no two of them alike.
pub fn bench(users: u64) -> Bench {
    let mut items = String::from("item_id,genres\n");
    for item in 1..=ITEMS {
        writeln!(items, "{item},{}", genres(item)).unwrap();
    }
    let (mut people, mut events) =
        (String::from("user_id,age,job\n"), String::from("user_id,item_id,rating,timestamp\n"));
    for user in 1..=users {
        writeln!(people, "{user},{},{}", 20 + user % 50, ["nurse", "cook"][user as usize % 2]).unwrap();
        for n in 0..EVENTS {
            writeln!(events, "{user},{},4,{}", item(user, n % 4), 10 * n + user % 10).unwrap();
        }
    }
    Bench::new(&[
        ("pipeline.yaml", include_str!("pipeline.yaml")),
        ("novelty.jinja", "{{ group }}: {{ profile }}. Lately {{ recent | join(', ') }}. Next?"),
        ("relevance.jinja", "{{ profile }} and {{ recent | join(', ') }}: which?"),
        ("events.csv", &events),
        ("items.csv", &items),
        ("users.csv", &people),
    ])
    .unwrap()
}

/// The item of a user's click, of all items alike.
fn item(user: u64, click: u64) -> u64 {
    1 + ((user * 2_654_435_761 + click * 40_503_007) >> 9) % ITEMS
}

/// The genres of an item, as its row has them.
fn genres(item: u64) -> String {
    format!("Genre {}|Genre {}", item % GENRES, item / 7 % GENRES)
}

/// The sources alone.
pub fn first() -> Options {
    Options { workers: 1, ..Options::default() }
}

/// A delta for every source: new clicks of half of the users, a few taken back, a corrected item
/// and a new user. Applied once, however often it is given.
pub fn delta(bench: &Bench, users: u64) -> Options {
    let mut events = String::from("user_id,item_id,rating,timestamp,diff\n");
    for user in (1..=users).step_by(2) {
        writeln!(events, "{user},{},5,{},1", item(user, 100), 200 + user).unwrap();
        writeln!(events, "{user},{},5,{},1", item(user, 101), 300 + user).unwrap();
        writeln!(events, "{user},{},4,{},-1", item(user, 0), user % 10).unwrap();
        writeln!(events, "{},{},5,{},1", users + 1, item(user, 102), user).unwrap();
    }
    let items = format!("item_id,genres,diff\n14,{},-1\n14,Genre 1,1\n", genres(14));
    let people = format!("user_id,age,job,diff\n{},33,cook,1\n", users + 1);
    let given = bench.deltas(&[("events", &events), ("items", &items), ("users", &people)]).unwrap();
    Options { again: false, ..given }
}

/// Everything a state holds that does not depend on how fast it came about.
#[derive(Debug, Default, PartialEq)]
pub struct Content {
    /// By database, without the manifest.
    pub databases: BTreeMap<&'static str, BTreeMap<Vec<u8>, Vec<u8>>>,
    pub manifest: Manifest,
    /// Remembered answers, the node that asked, and since when nobody asks any more.
    pub memo: BTreeMap<MemoKey, (String, Row, Option<u64>)>,
    /// Remembered fits.
    pub fits: u64,
}

/// What the state of a name holds; one that is not there holds nothing.
pub fn content(bench: &Bench, state: &str) -> Content {
    let state = bench.state(state).unwrap();
    let snapshot = state.snapshot().unwrap();
    let mut content = Content::default();
    for name in DATABASES.into_iter().filter(|name| *name != "meta") {
        let mut entries = BTreeMap::new();
        let scanned = snapshot.layered(name).scan(&[], &mut |key, bytes| {
            entries.insert(key.to_vec(), bytes.to_vec());
            Ok(true)
        });
        scanned.unwrap();
        content.databases.insert(name, entries);
    }
    content.manifest = Manifest::load(&snapshot.layered("meta")).unwrap();
    content.manifest.throughput.clear();
    let remember = &mut |key: &[u8], answer: Answer| {
        content.memo.insert(key.try_into().unwrap(), (answer.node, answer.row, answer.unused_since));
    };
    state.memo.for_each(remember).unwrap();
    content.fits = state.memo.fits().unwrap();
    content
}

impl Content {
    /// Fails, in words, where another state of the same work differs.
    pub fn assert_is(&self, expected: &Content, when: &str) {
        assert_eq!(self.manifest.epoch, expected.manifest.epoch, "{when}");
        assert!(self.manifest == expected.manifest, "the manifest differs, {when}");
        for (name, entries) in &expected.databases {
            assert!(self.databases[name] == *entries, "database {name} differs, {when}");
        }
        assert!(self.memo == expected.memo, "the memo differs, {when}");
        assert_eq!(self.fits, expected.fits, "fits, {when}");
    }
}

/// Model calls that an epoch made, those of small local models too.
pub fn calls(report: &Report) -> u64 {
    report.nodes.iter().map(|node| node.calls.calls).sum()
}
