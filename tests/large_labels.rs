//! Pipelines whose models do not look at all labels: the candidates are those of a full pass, and
//! everything stays what a computation from scratch gives.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use coea_engine::{
    oracle::{self, Calls},
    runtime::driver::Options,
    state::tables::Tables,
    testing::Bench,
    verify,
};

const PIPELINE: &str = include_str!("common/pipeline.yaml");
const ITEMS: &str = "item_id,genres\n1,Drama|War\n2,Comedy\n3,Sci-Fi|Drama\n4,War\n5,Noir|Comedy\n6,Drama\n";
const USERS: &str = "user_id,age,job\n1,20,nurse\n2,30,cook\n3,40,nurse\n4,50,cook\n";

fn events() -> String {
    let rows = (0..36).map(|n| format!("{},{},4,{}\n", 1 + n % 4, 1 + (n * 5 + n / 7) % 6, n));
    format!("user_id,item_id,rating,timestamp\n{}", rows.collect::<String>())
}

fn bench(sampler: &str, scorer: &str) -> Bench {
    let pipeline = PIPELINE.replace("seed: 7", &format!("seed: 7{sampler}"));
    let pipeline = pipeline.replace("relevance.jinja", &format!("relevance.jinja{scorer}"));
    assert_eq!(
        pipeline.len(),
        PIPELINE.len() + sampler.len() + scorer.len(),
        "both are in the pipeline once"
    );
    let events = events();
    Bench::new(&[
        ("pipeline.yaml", &pipeline),
        ("novelty.jinja", "{{ group }}: {{ profile }}. Lately {{ recent | join(', ') }}. Next?"),
        ("relevance.jinja", "{{ profile }} and {{ recent | join(', ') }}: which?"),
        ("events.csv", &events),
        ("items.csv", ITEMS),
        ("users.csv", USERS),
    ])
    .unwrap()
}

/// Runs, applies a delta, and gives the rows of a table.
fn table(bench: &Bench, node: &str) -> Vec<String> {
    bench.epoch("s", Options { workers: 2, ..Options::default() }).unwrap();
    let delta = "user_id,item_id,rating,timestamp,diff\n1,2,4,90,1\n3,4,4,91,1\n2,6,4,1,-1\n";
    bench.epoch("s", Options { workers: 1, ..bench.deltas(&[("events", delta)]).unwrap() }).unwrap();
    let state = bench.state("s").unwrap();
    let fresh = oracle::recompute(&bench.plan, &state, Calls::Again).unwrap();
    let differences = verify::compare(&bench.plan, &state, &fresh).unwrap();
    assert!(differences.is_empty(), "{} differences", differences.len());
    let rows = Tables::new(state.snapshot().unwrap().layered("tables")).rows(node).unwrap();
    rows.into_iter().map(|row| format!("{row:?}")).collect()
}

#[test]
fn candidates_are_those_of_a_full_pass() {
    let (full, lazy) = (bench("", ""), bench(", decoding: lazy", ""));
    let novel = table(&full, "novel");
    assert!(novel.len() > 4, "{novel:?}");
    assert_eq!(novel, table(&lazy, "novel"));
}

#[test]
fn candidates_compared_among_themselves() {
    let bench = bench(", decoding: lazy", ", against: candidates");
    let scored = table(&bench, "scored");
    assert!(scored.len() > 4, "{scored:?}");
    // Another table than against all labels.
    assert_ne!(scored, table(&self::bench("", ""), "scored"));
}
