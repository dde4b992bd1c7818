//! What tests of tuned models share: a small random network in the form models are published in, so that
//! training, adapters and answers are the real ones, and a pipeline with data for it.

use std::path::Path;

use coea_engine::{
    models::RealModels,
    oracle::{self, Calls},
    state::{manifest::Manifest, tables::Tables},
    testing::Bench,
    verify,
};

const PIPELINE: &str = include_str!("pipeline.yaml");
const ITEMS: &str = "item_id,genres\n1,Drama|War\n2,Comedy\n3,Sci-Fi|Drama\n4,War\n5,Noir|Comedy\n6,Drama\n";
const USERS: &str = "user_id,age,job\n1,20,nurse\n2,30,cook\n3,40,nurse\n4,50,cook\n";
const CHAT: &str = "<|im_start|>user\n{{ profile }}. Lately {{ recent | join(', ') }}. Next?<|im_end|>\n<|im_start|>assistant\n";

fn events() -> String {
    let rows = (0..48).map(|n| format!("{},{},4,{}\n", 1 + n % 4, 1 + (n * 5 + n / 7) % 6, n));
    format!("user_id,item_id,rating,timestamp\n{}", rows.collect::<String>())
}

/// The pipeline with more nodes, on the small model.
pub fn pipeline(nodes: &str) -> String {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("operators/lm/fixtures/llama");
    let text = PIPELINE.replace("base: small", &format!("base: {}", base.display()));
    text.replace("sinks:\n", &format!("{nodes}sinks:\n"))
}

/// A bench with a pipeline on the small model.
pub fn bench(pipeline: &str) -> Result<Bench, String> {
    let events = events();
    let files = [
        ("pipeline.yaml", PIPELINE),
        ("novelty.jinja", CHAT),
        ("relevance.jinja", CHAT),
        ("events.csv", &events),
        ("items.csv", ITEMS),
        ("users.csv", USERS),
    ];
    let bench = Bench::new(&files)?;
    std::fs::write(bench.path("pipeline.yaml"), pipeline).map_err(|e| e.to_string())?;
    bench.with_models(&RealModels::default())
}

/// The rows of a table, one text each.
pub fn rows(bench: &Bench, state: &str, table: &str) -> Vec<String> {
    let snapshot = bench.state(state).unwrap().snapshot().unwrap();
    let rows = Tables::new(snapshot.layered("tables")).rows(table).unwrap();
    rows.into_iter().map(|row| format!("{row:?}")).collect()
}

/// The manifest of a state.
pub fn manifest(bench: &Bench, state: &str) -> Manifest {
    Manifest::load(&bench.state(state).unwrap().snapshot().unwrap().layered("meta")).unwrap()
}

/// Holds a state against a computation from scratch that asks the models again.
pub fn check(bench: &Bench, state: &str) {
    let state = bench.state(state).unwrap();
    let fresh = oracle::recompute(&bench.plan, &state, Calls::Again).unwrap();
    let differences = verify::compare(&bench.plan, &state, &fresh).unwrap();
    assert!(differences.is_empty(), "{} differences", differences.len());
}
