//! The product's sentence as properties: after any sequence of deltas every table is what a
//! computation from scratch gives, byte for byte, and no call is made that was not foreseen.
//!
//! The deltas are rude on purpose: ties in time, late and repeated events, retractions of rows that
//! were never there or come later, corrected items, items nobody has heard of yet.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use coea_engine::{
    oracle::{self, Calls},
    runtime::{
        RunError,
        driver::{Driver, Options},
        report::{Basis, Report},
    },
    serve::{self, Relation, View},
    state::{manifest::Manifest, memo::MemoKey, tables::Tables},
    testing::Bench,
    verify,
};
use coea_operators::row::Row;
use proptest::prelude::*;

#[path = "incremental/backlog.rs"]
mod backlog;
#[path = "incremental/texts.rs"]
mod texts;

const PIPELINE: &str = include_str!("common/pipeline.yaml");

const USERS: u64 = 9;
const KNOWN_ITEMS: u64 = 8;
const ITEMS: u64 = 10;
const GENRES: [&str; 5] = ["Drama", "War", "Sci-Fi", "Comedy", "Noir"];

/// One row of a source with the change of its count.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Change {
    source: &'static str,
    row: String,
    diff: i64,
}

fn event(user: u64, item: u64, rating: u64, time: u64, diff: i64) -> Change {
    Change { source: "events", row: format!("{user},{item},{rating},{time}"), diff }
}

fn item(item: u64, genres: &str, diff: i64) -> Change {
    Change { source: "items", row: format!("{item},{genres}"), diff }
}

fn base_genres(item: u64) -> String {
    let at = item as usize;
    format!("{}|{}", GENRES[at % 5], GENRES[(at * 3 + 1) % 5])
}

/// The rows that the sources hold before any delta.
fn base() -> Vec<Change> {
    let mut rows: Vec<Change> = (1..=KNOWN_ITEMS).map(|at| item(at, &base_genres(at), 1)).collect();
    for user in 1..=USERS {
        let row = format!("{user},{},{}", 20 + 3 * user, ["nurse", "cook"][user as usize % 2]);
        rows.push(Change { source: "users", row, diff: 1 });
        rows.extend((0..7).map(|n| event(user, 1 + (user * n + n) % KNOWN_ITEMS, 4, n * user % 11, 1)));
    }
    rows
}

fn header(source: &str) -> &'static str {
    match source {
        "events" => "user_id,item_id,rating,timestamp",
        "items" => "item_id,genres",
        _ => "user_id,age,job",
    }
}

fn csv(source: &str, rows: &[Change], diff: bool) -> String {
    let mut text = format!("{}{}\n", header(source), if diff { ",diff" } else { "" });
    for change in rows.iter().filter(|change| change.source == source) {
        let end = if diff { format!(",{}", change.diff) } else { String::new() };
        writeln!(text, "{}{end}", change.row).unwrap();
    }
    text
}

fn bench() -> Bench {
    let rows = base();
    let files = ["events", "items", "users"].map(|source| csv(source, &rows, false));
    Bench::new(&[
        ("pipeline.yaml", PIPELINE),
        ("novelty.jinja", "{{ group }}: {{ profile }}. Lately {{ recent | join(', ') }}. Next?"),
        ("relevance.jinja", "{{ profile }} and {{ recent | join(', ') }}: which?"),
        ("events.csv", &files[0]),
        ("items.csv", &files[1]),
        ("users.csv", &files[2]),
    ])
    .unwrap()
}

/// The options that apply some changes in one epoch.
fn delta(bench: &Bench, changes: &[Change]) -> Options {
    let texts: Vec<(&str, String)> = ["events", "items", "users"]
        .into_iter()
        .filter(|source| changes.iter().any(|change| change.source == *source))
        .map(|source| (source, csv(source, changes, true)))
        .collect();
    let texts: Vec<(&str, &str)> = texts.iter().map(|(source, text)| (*source, text.as_str())).collect();
    bench.deltas(&texts).unwrap()
}

fn apply(bench: &Bench, state: &str, changes: &[Change], workers: usize) -> Report {
    bench.epoch(state, Options { workers, ..delta(bench, changes) }).unwrap()
}

fn begin(bench: &Bench, state: &str) -> Report {
    bench.epoch(state, Options { workers: 1, ..Options::default() }).unwrap()
}

/// Nothing differs from a computation from scratch; says which memo keys that asked for.
fn check(bench: &Bench, state: &str, calls: Calls) -> BTreeSet<[u8; 32]> {
    let state = bench.state(state).unwrap();
    let fresh = oracle::recompute(&bench.plan, &state, calls).unwrap();
    let differences = verify::compare(&bench.plan, &state, &fresh).unwrap();
    let told: Vec<String> = differences.iter().map(ToString::to_string).collect();
    assert!(told.is_empty(), "{} differences:\n{}", told.len(), told.join("\n"));
    fresh.asked.into_values().flatten().collect()
}

/// Tables by name: each key with its rows, as a dump shows them.
type Shown = BTreeMap<String, BTreeMap<Row, Vec<Row>>>;

/// A copy of all tables as of an epoch, brought up to date by what changed since.
fn brought_up(bench: &Bench, state: &str, mut copy: Shown, since: u64) -> Shown {
    let view = View::open(bench.plan.clone(), &bench.path(state)).unwrap();
    for (name, relation) in Relation::all(&bench.plan) {
        let width = relation.key_width(&bench.plan);
        let mut changed: BTreeMap<Row, Vec<Row>> = BTreeMap::new();
        let mut note = |change| match change {
            serve::Change::Row(row) => {
                let (key, rest) = row.split_at(width);
                let key = Row::new(key.iter().cloned());
                changed.entry(key).or_default().push(Row::new(rest.iter().cloned()));
            }
            serve::Change::Gone(key) => assert!(changed.insert(key, Vec::new()).is_none()),
        };
        if view.changes_since(relation, since, &mut note).unwrap() {
            let table = copy.entry(name).or_default();
            table.extend(changed);
            table.retain(|_, rows| !rows.is_empty());
        } else {
            let untold = [Relation::Memo, Relation::Cycles, Relation::Training];
            assert!(untold.contains(&relation) || matches!(relation, Relation::Groups(_)), "{name}");
            copy.remove(&name);
        }
    }
    copy
}

fn memo_keys(bench: &Bench, state: &str) -> BTreeSet<[u8; 32]> {
    let mut keys = BTreeSet::new();
    let memo = bench.state(state).unwrap().memo;
    memo.for_each(&mut |key, _| _ = keys.insert(key.try_into().unwrap())).unwrap();
    keys
}

/// A change, or the few that are one correction.
fn change() -> impl Strategy<Value = Vec<Change>> {
    let diff = prop_oneof![4 => Just(1i64), 2 => Just(-1), 1 => Just(2), 1 => Just(-2)];
    let genres = prop::sample::subsequence(GENRES.to_vec(), 0..=3).prop_map(|names| names.join("|"));
    prop_oneof![
        6 => (1..=USERS + 2, 1..=ITEMS, 4u64..=5, 0u64..14, diff.clone())
            .prop_map(|(user, item, rating, time, diff)| vec![event(user, item, rating, time, diff)]),
        // One of the base's own events is taken back.
        3 => (1..=USERS, 0u64..7).prop_map(|(user, n)| {
            vec![event(user, 1 + (user * n + n) % KNOWN_ITEMS, 4, n * user % 11, -1)]
        }),
        2 => (1..=KNOWN_ITEMS, genres.clone())
            .prop_map(|(at, genres)| vec![item(at, &base_genres(at), -1), item(at, &genres, 1)]),
        1 => (1..=ITEMS, genres, diff.clone()).prop_map(|(at, genres, diff)| vec![item(at, &genres, diff)]),
        1 => (1..=USERS + 2, 20u64..60, diff).prop_map(|(user, age, diff)| {
            vec![Change { source: "users", row: format!("{user},{age},cook"), diff }]
        }),
    ]
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    prop::collection::vec(change(), 1..14).prop_map(|all| all.into_iter().flatten().collect())
}

/// Changes cut into epochs; the order within and between them is whatever the draw says.
fn epochs() -> impl Strategy<Value = Vec<Vec<Change>>> {
    changes().prop_flat_map(|all| {
        let places = prop::collection::vec(0usize..3, all.len());
        (Just(all).prop_shuffle(), places).prop_map(|(all, places)| {
            let mut epochs = vec![Vec::new(); 3];
            all.into_iter().zip(places).for_each(|(change, at)| epochs[at].push(change));
            epochs.retain(|epoch| !epoch.is_empty());
            epochs
        })
    })
}

fn cases(n: u32) -> ProptestConfig {
    ProptestConfig { cases: n, max_shrink_iters: 40, failure_persistence: None, ..ProptestConfig::default() }
}

#[test]
fn the_first_epoch_is_what_a_computation_from_scratch_gives() {
    let bench = bench();
    let report = begin(&bench, "state");
    let asked = check(&bench, "state", Calls::Again);
    assert_eq!(memo_keys(&bench, "state"), asked);
    // The two priors of the labels are fitted by a call each.
    let calls = report.language_calls();
    assert_eq!(bench.models.calls(), 2 + 2 * calls);
    assert!(calls > 8, "{calls} calls");
    let rows = readable(&bench, "state");
    assert!(rows["aligned"].len() > 5 && rows["group"].len() == USERS as usize, "{rows:#?}");
}

#[test]
fn failed_calls_are_rows_until_they_are_answered() {
    let bench = bench();
    bench.models.fail_on(Some("Lately Drama"));
    let failed: u64 = begin(&bench, "state").nodes.iter().map(|node| node.calls.errors).sum();
    assert!(failed > 0);
    check(&bench, "state", Calls::Memo);
    assert_eq!(readable(&bench, "state")["errors"].len() as u64, failed);
    bench.models.fail_on(None);
    let dry = bench.epoch("state", Options { dry: true, ..delta(&bench, &[]) }).unwrap();
    assert_eq!(begin(&bench, "state").language_calls(), failed);
    assert_eq!(dry.language_calls(), failed);
    check(&bench, "state", Calls::Again);
    assert!(!readable(&bench, "state").contains_key("errors"));
}

/// Clicks that change what user 1 has lately seen, one epoch after the other.
fn some_epochs(bench: &Bench, times: std::ops::Range<u64>) {
    times.for_each(|time| _ = apply(bench, "state", &[event(1, 1 + time % KNOWN_ITEMS, 4, time, 1)], 1));
}

#[test]
fn an_answer_that_came_later_than_its_request_is_kept_while_it_is_in_use() {
    let bench = bench();
    bench.models.fail_on(Some("Lately Drama"));
    begin(&bench, "state");
    bench.models.fail_on(None);
    begin(&bench, "state");
    some_epochs(&bench, 30..42);
    check(&bench, "state", Calls::Memo);
}

#[test]
fn an_answer_that_is_all_that_is_left_of_an_epoch_is_taken_up_by_the_next() {
    let bench = bench();
    bench.models.fail_on(Some("Lately Drama"));
    begin(&bench, "state");
    bench.models.fail_on(None);
    let stopped = bench.epoch("state", Options { workers: 1, max_calls: Some(1), ..Options::default() });
    assert!(matches!(stopped, Err(RunError::Budget(1))));
    check(&bench, "state", Calls::Memo);
    begin(&bench, "state");
    check(&bench, "state", Calls::Again);
    assert!(!readable(&bench, "state").contains_key("errors"));
}

#[test]
fn a_node_is_asked_no_more_than_its_limits_in_a_run() {
    let text = include_str!("common/pipeline.yaml");
    let limited = |node: &str, calls: u64| {
        let line = format!("  {node}:\n    {{ ");
        let line = if text.contains(&line) { line } else { format!("  {node}: {{ ") };
        text.replace(&line, &format!("{line}limits: {{ calls: {calls} }}, "))
    };
    let free = bench();
    begin(&free, "state");
    let total = free.models.calls();
    for (node, calls) in [("novel", 3), ("scored", 2), ("scored", 0)] {
        let mut bench = bench();
        bench.rewrite(&limited(node, calls)).unwrap();
        let one = || bench.epoch("state", Options { workers: 1, ..Options::default() });
        let mut before = bench.models.calls();
        let stopped = one();
        let same = |error: &RunError| matches!(error, RunError::Limit { node: at, calls: most } if at == node && *most == calls);
        assert!(stopped.as_ref().is_err_and(same), "{node} {calls}");
        assert_eq!(stopped.err().map(|error| error.exit_code()), Some(4));
        // What was answered is kept, so every further run asks so many more.
        while calls > 0 && one().is_err() {
            let now = bench.models.calls();
            assert!(now - before > 0, "no run goes on");
            before = now;
        }
        if calls > 0 {
            assert_eq!(bench.models.calls(), total, "nothing was asked twice");
            check(&bench, "state", Calls::Memo);
        }
    }
}

/// A driver that stays open and takes the same delta file as often as it is given.
fn open(bench: &Bench, workers: usize) -> Driver<'static> {
    bench.driver("state", Options { workers, again: true, ..Options::default() }).unwrap()
}

fn take(bench: &Bench, driver: &mut Driver<'_>, changes: &[Change]) -> Report {
    driver.begin(delta(bench, changes).deltas);
    driver.run_epoch().unwrap()
}

#[test]
fn an_open_driver_asks_again_with_the_next_input() {
    let bench = bench();
    bench.models.fail_on(Some("Lately Drama"));
    let mut driver = open(&bench, 1);
    let failed: u64 = driver.run_epoch().unwrap().nodes.iter().map(|node| node.calls.errors).sum();
    assert!(failed > 0);
    let calls = bench.models.calls();
    assert!(take(&bench, &mut driver, &[]).idle);
    assert_eq!(bench.models.calls(), calls);
    let report = take(&bench, &mut driver, &[event(1, 2, 4, 30, 1)]);
    check(&bench, "state", Calls::Memo);
    let failed: u64 = report.nodes.iter().map(|node| node.calls.errors).sum();
    assert_eq!(readable(&bench, "state")["errors"].len() as u64, failed);
    bench.models.fail_on(None);
    take(&bench, &mut driver, &[event(1, 2, 4, 31, 1)]);
    check(&bench, "state", Calls::Again);
    assert!(!readable(&bench, "state").contains_key("errors"));
}

#[test]
fn an_answer_that_is_asked_for_again_is_not_paid_for_again() {
    let bench = bench();
    let mut driver = open(&bench, 1);
    driver.run_epoch().unwrap();
    let before = readable(&bench, "state");
    let there = [event(1, 2, 4, 30, 1), event(1, 5, 4, 31, 1), event(2, 7, 4, 30, 1)];
    let back = there.clone().map(|change| Change { diff: -1, ..change });
    assert!(take(&bench, &mut driver, &there).language_calls() > 0);
    let after = readable(&bench, "state");
    for _ in 0..2 {
        assert_eq!(take(&bench, &mut driver, &back).language_calls(), 0);
        assert_eq!(readable(&bench, "state"), before);
        assert_eq!(take(&bench, &mut driver, &there).language_calls(), 0);
        assert_eq!(readable(&bench, "state"), after);
    }
    check(&bench, "state", Calls::Again);
}

/// The rows that the state says a source holds.
fn rows_of(bench: &Bench, state: &str, source: &str) -> i64 {
    let snapshot = bench.state(state).unwrap().snapshot().unwrap();
    Manifest::load(&snapshot.layered("meta")).unwrap().sources[source].rows
}

#[test]
fn a_click_that_alters_nothing_read_from_it_costs_no_call() {
    let bench = bench();
    begin(&bench, "state");
    let (before, rows) = (readable(&bench, "state"), rows_of(&bench, "state", "events"));
    let click = |time| [event(1, 4, 4, time, 1)];
    // User 1's first click of what item 4 is labelled, and older than the newest that are recent:
    // one click of a category is fewer than `min_clicks`.
    let plan = bench.epoch("state", Options { dry: true, ..delta(&bench, &click(0)) }).unwrap();
    let calls = bench.models.calls();
    let run = apply(&bench, "state", &click(0), 1);
    assert_eq!(bench.models.calls(), calls);
    for node in plan.nodes.iter().chain(&run.nodes) {
        let asked = (node.calls.calls, node.calls.memo_hits, node.changed);
        assert_eq!((asked, node.calls_basis, node.changed_basis), ((0, 0, 0), Basis::Exact, Basis::Exact));
    }
    // It was taken in all the same: a second click of the category makes both count.
    assert_eq!((run.epoch, rows_of(&bench, "state", "events")), (2, rows + 1));
    assert_eq!(readable(&bench, "state"), before);
    let second = apply(&bench, "state", &click(1), 1);
    let of = |name: &str| second.nodes.iter().find(|node| node.node == name).unwrap();
    assert_eq!((of("long_term").changed, of("embedding").calls.calls), (1, 1));
    let kept = &readable(&bench, "state")["long_term"][0];
    assert!(kept.starts_with("[1] [[1,4,4,1],"), "{kept}");
}

#[test]
fn answers_of_an_abandoned_epoch_are_not_in_use() {
    let bench = bench();
    begin(&bench, "state");
    let there = [event(1, 2, 4, 30, 1), event(1, 5, 4, 31, 1), event(2, 7, 4, 30, 1)];
    let stopped = bench.epoch("state", Options { max_calls: Some(1), ..delta(&bench, &there) });
    assert!(matches!(stopped, Err(RunError::Budget(1))));
    apply(&bench, "state", &[event(3, 2, 4, 30, 1)], 1);
    let mut used = BTreeSet::new();
    let memo = bench.state("state").unwrap().memo;
    memo.for_each(&mut |key, answer| {
        used.extend(answer.unused_since.is_none().then(|| MemoKey::try_from(key).unwrap()));
    })
    .unwrap();
    drop(memo);
    assert_eq!(used, check(&bench, "state", Calls::Memo));
}

#[test]
fn a_prompt_that_two_nodes_ask_is_one_call_and_planned_as_one() {
    let mut bench = bench();
    bench.rewrite(&PIPELINE.replace("relevance.jinja", "novelty.jinja")).unwrap();
    begin(&bench, "state");
    let options = delta(&bench, &[event(1, 2, 4, 30, 1), event(1, 5, 4, 31, 1), event(2, 7, 4, 30, 1)]);
    let plan = bench.epoch("state", Options { dry: true, ..options.clone() }).unwrap();
    let before = bench.models.calls();
    let run = bench.epoch("state", options).unwrap();
    assert_eq!(bench.models.calls() - before, run.language_calls());
    assert!(run.language_calls() > 0);
    assert_eq!(plan.language_calls(), run.language_calls());
}

proptest! {
    #![proptest_config(cases(8))]

    #[test]
    fn every_epoch_is_what_a_computation_from_scratch_gives(
        epochs in epochs(), workers in prop::sample::select(vec![1usize, 2, 4]),
    ) {
        let bench = bench();
        begin(&bench, "state");
        let mut asked = check(&bench, "state", Calls::Memo);
        let mut copies = vec![brought_up(&bench, "state", Shown::new(), 0)];
        for epoch in &epochs {
            apply(&bench, "state", epoch, workers);
            asked.extend(check(&bench, "state", Calls::Again));
            prop_assert!(memo_keys(&bench, "state").is_subset(&asked));
            let mut now = brought_up(&bench, "state", Shown::new(), 0);
            for (copy, since) in copies.iter().zip(1..) {
                let brought = brought_up(&bench, "state", copy.clone(), since);
                now.retain(|name, _| brought.contains_key(name));
                prop_assert_eq!(&brought, &now, "since {}", since);
            }
            copies.push(now);
        }
    }

    #[test]
    fn a_driver_that_stays_open_does_as_one_that_is_opened_anew(
        epochs in epochs(),
        workers in prop::sample::select(vec![1usize, 2, 4]),
        reopen in prop::collection::vec(any::<bool>(), 3),
    ) {
        let bench = bench();
        let mut driver = open(&bench, workers);
        driver.run_epoch().unwrap();
        let mut asked = check(&bench, "state", Calls::Memo);
        begin(&bench, "anew");
        for (epoch, reopen) in epochs.iter().zip(reopen) {
            if reopen {
                drop(driver);
                driver = open(&bench, workers);
            }
            let calls = bench.models.calls();
            let report = take(&bench, &mut driver, epoch);
            prop_assert_eq!(report.language_calls(), bench.models.calls() - calls);
            let anew = apply(&bench, "anew", epoch, 1);
            prop_assert_eq!(anew.calls(), report.calls());
            prop_assert!(bench.dump("state").unwrap() == bench.dump("anew").unwrap());
            asked.extend(check(&bench, "state", Calls::Again));
            prop_assert!(memo_keys(&bench, "state").is_subset(&asked));
            prop_assert!(memo_keys(&bench, "state") == memo_keys(&bench, "anew"));
        }
    }

    #[test]
    fn any_order_and_split_is_one_cold_run(
        epochs in epochs(), workers in prop::collection::vec(prop::sample::select(vec![1usize, 2, 4]), 3),
    ) {
        let bench = bench();
        begin(&bench, "state");
        for (epoch, workers) in epochs.iter().zip(workers) {
            apply(&bench, "state", epoch, workers);
        }
        let models_from = Some(bench.path("state"));
        let options = Options { models_from, ..delta(&bench, &epochs.concat()) };
        bench.epoch("cold", options).unwrap();
        prop_assert_eq!(readable(&bench, "state"), readable(&bench, "cold"));
        prop_assert!(bench.dump("state").unwrap() == bench.dump("cold").unwrap());
    }

    #[test]
    fn a_plan_says_what_the_run_does_and_writes_nothing(epochs in epochs()) {
        let bench = bench();
        begin(&bench, "state");
        for epoch in &epochs {
            let options = delta(&bench, epoch);
            let before = (bench.dump("state").unwrap(), files(&bench), bench.models.calls());
            let plan = bench.epoch("state", Options { dry: true, ..options.clone() }).unwrap();
            prop_assert!(before == (bench.dump("state").unwrap(), files(&bench), bench.models.calls()));
            let run = bench.epoch("state", options).unwrap();
            prop_assert_eq!(run.language_calls(), bench.models.calls() - before.2);
            for (planned, ran) in plan.nodes.iter().zip(&run.nodes) {
                prop_assert_eq!(planned.calls_basis, Basis::Exact, "{}", planned.node);
                prop_assert_eq!(planned.calls.calls, ran.calls.calls, "calls of {}", planned.node);
                prop_assert_eq!(planned.calls.memo_hits, ran.calls.memo_hits, "hits of {}", planned.node);
                prop_assert_eq!(planned.calls.cost, ran.calls.cost, "cost of {}", planned.node);
                match planned.changed_basis {
                    Basis::Exact => prop_assert_eq!(planned.changed, ran.changed, "{}", planned.node),
                    _ => prop_assert!(planned.changed >= ran.changed, "bound of {}", planned.node),
                }
            }
        }
    }

    #[test]
    fn what_is_taken_back_leaves_no_trace_and_costs_no_call(changes in changes()) {
        let bench = bench();
        begin(&bench, "state");
        let before = readable(&bench, "state");
        apply(&bench, "state", &changes, 1);
        let calls = bench.models.calls();
        let back: Vec<Change> = changes.iter().map(|c| Change { diff: -c.diff, ..c.clone() }).collect();
        apply(&bench, "state", &back, 2);
        prop_assert_eq!(bench.models.calls(), calls);
        prop_assert_eq!(readable(&bench, "state"), before);
    }
}

/// The tables of a state as a person would read them, for a failure that can be understood.
fn readable(bench: &Bench, state: &str) -> BTreeMap<String, Vec<String>> {
    let state = bench.state(state).unwrap();
    let tables = Tables::new(state.snapshot().unwrap().layered("tables"));
    let rows = |name: &String| {
        let rows = tables.rows(name).unwrap();
        rows.iter().map(|((key, row), n)| format!("{} {} {n}", key.to_json(), row.to_json())).collect()
    };
    tables.names().unwrap().into_iter().map(|name| (name.clone(), rows(&name))).collect()
}

/// The bytes of the state's two databases.
fn files(bench: &Bench) -> [Vec<u8>; 2] {
    ["state.lmdb", "memo.lmdb"]
        .map(|name| std::fs::read(bench.path("state").join(name).join("data.mdb")).unwrap())
}
