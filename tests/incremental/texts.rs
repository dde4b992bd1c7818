//! `after` on a node that has texts written: what is asked when, and that waiting changes nothing else.
//!
//! Decision: a pipeline of its own, in which every row is a request, so that what must be asked can be
//! counted by hand.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use coea_engine::runtime::backlog::Clock;

use super::*;

const TEXTS: &str = "
version: 1
name: texts
sources:
  items: { connector: files, with: { path: items.csv, format: csv, columns: { item_id: u64, genres: list<text> } } }
models:
  writer: { kind: language_model, base: any }
nodes:
  told: { op: llm_generate, AFTER in: items, model: writer, with: { template: told.jinja, writing: { seed: 5 } } }
sinks:
  store: { connector: kv, in: told }
";

fn texts(after: &str) -> Bench {
    let rows = [item(1, "Drama", 1), item(2, "War", 1)];
    Bench::new(&[
        ("pipeline.yaml", &TEXTS.replace("AFTER", after)),
        ("told.jinja", "A film of {{ genres | join(' and ') }}:"),
        ("items.csv", &csv("items", &rows, false)),
    ])
    .unwrap()
}

/// Calls made and requests left waiting by an epoch, which the plan before it foresaw.
fn epoch(bench: &Bench, clock: &Arc<AtomicU64>, changes: &[Change]) -> (u64, u64) {
    let options = || Options { clock: Clock::Set(clock.clone()), ..delta(bench, changes) };
    let told = |report: Report| {
        let node = report.nodes.into_iter().find(|node| node.node == "told").unwrap();
        (node.calls.calls, node.backlog)
    };
    let planned = told(bench.epoch("state", Options { dry: true, ..options() }).unwrap());
    let ran = told(bench.epoch("state", options()).unwrap());
    assert_eq!(planned, ran);
    check(bench, "state", Calls::Memo);
    ran
}

/// The items that have a text.
fn written(bench: &Bench) -> Vec<String> {
    let ids = |row: &String| row.trim_start_matches('[').split(']').next().unwrap().to_string();
    readable(bench, "state")["told"].iter().map(ids).collect()
}

#[test]
fn texts_wait_for_rows_or_time_and_what_vanished_is_never_written() {
    let bench = texts("after: { events: 4, time: 1s },");
    let clock = Arc::new(AtomicU64::new(1_000_000));
    assert_eq!(epoch(&bench, &clock, &[]), (2, 0), "a first run asks everything");

    // Two rows, one prompt; then a row that has an answer already and does not wait.
    assert_eq!(epoch(&bench, &clock, &[item(3, "Noir", 1), item(4, "Noir", 1)]), (0, 1));
    assert_eq!(epoch(&bench, &clock, &[item(5, "War", 1)]), (0, 1));
    assert_eq!(written(&bench), ["1", "2", "5"]);
    // What an item was while it waited is not asked; its new prompt has waited for no row yet.
    let other = [item(3, "Noir", -1), item(4, "Noir", -1), item(3, "Drama|War", 1)];
    assert_eq!(epoch(&bench, &clock, &other), (0, 1));
    assert_eq!(epoch(&bench, &clock, &[item(2, "War", -1), item(6, "Comedy", 1)]), (0, 2));
    assert_eq!(written(&bench), ["1", "5"]);
    // Four rows after the oldest began to wait, all are asked together.
    assert_eq!(epoch(&bench, &clock, &[item(7, "Comedy", 1)]), (0, 2));
    assert_eq!(epoch(&bench, &clock, &[item(8, "Sci-Fi", 1)]), (3, 0));
    assert_eq!(written(&bench), ["1", "3", "5", "6", "7", "8"]);

    // Or a second after it did, with no row at all.
    assert_eq!(epoch(&bench, &clock, &[item(9, "Drama|Noir", 1)]), (0, 1));
    clock.fetch_add(999, Ordering::Relaxed);
    assert_eq!(epoch(&bench, &clock, &[]), (0, 1));
    clock.fetch_add(1, Ordering::Relaxed);
    assert_eq!(epoch(&bench, &clock, &[]), (1, 0));
    // Drama, War; Drama and War, Comedy, Sci-Fi; Drama and Noir.
    assert_eq!(bench.models.calls(), 6);
    check(&bench, "state", Calls::Again);
    let rows = [
        (1, "Drama"),
        (3, "Drama|War"),
        (5, "War"),
        (6, "Comedy"),
        (7, "Comedy"),
        (8, "Sci-Fi"),
        (9, "Drama|Noir"),
    ];
    let rows = rows.map(|(id, genres)| item(id, genres, 1));
    std::fs::write(bench.path("items.csv"), csv("items", &rows, false)).unwrap();
    begin(&bench, "cold");
    assert_eq!(readable(&bench, "state")["told"], readable(&bench, "cold")["told"]);
}
