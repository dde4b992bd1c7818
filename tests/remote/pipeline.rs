//! A whole pipeline whose models are on a server: faults, budgets, outages, wrong answers.

use std::collections::BTreeMap;

use coea_engine::{
    runtime::{RunError, driver::Options},
    state::tables::Tables,
    testing::Bench,
};

use super::{common, server::Server};

const USERS: u64 = 6;

/// What makes tests quick: short waits, and more of them.
const QUICK: &str = "timeout: 2s, backoff: 4ms, max_wait: 40ms, retries: 12, \
                     breaker: { after: 30, pause: 20ms, patience: 400ms }";

/// The pipeline of the crash tests with both models on a server.
pub fn remote(base: &str, with: &str) -> String {
    let text = include_str!("../common/pipeline.yaml");
    let model = |name: &str| format!("base: \"{base}\", with: {{ model: {name}, {with}, {QUICK} }}");
    let text = text.replacen("base: small", &model("novelty"), 1);
    text.replacen("base: small", &model("relevance"), 1)
}

fn twice(paid: &BTreeMap<String, u64>) -> Vec<&String> {
    paid.iter().filter(|(_, n)| **n > 1).map(|(question, _)| question).collect()
}

/// What a run without faults leaves, and what it pays for.
fn faultless(bench: &Bench, server: &Server) -> BTreeMap<Vec<u8>, Vec<u8>> {
    bench.epoch("faultless", common::first()).unwrap();
    assert!(twice(&server.paid()).is_empty());
    server.set(|state| state.answered.clear());
    bench.dump("faultless").unwrap()
}

#[test]
fn faults_leave_no_trace_and_no_answer_is_paid_for_twice() {
    let (server, base) = Server::start();
    let mut bench = common::bench(USERS);
    bench.rewrite(&remote(&base, "scoring: forced")).unwrap();
    let expected = faultless(&bench, &server);
    server.set(|state| state.faults = 20);
    let report = bench.epoch("faulty", common::first()).unwrap();
    assert!(bench.dump("faulty").unwrap() == expected, "the store differs");
    assert!(report.nodes.iter().all(|node| node.calls.errors == 0));
    let paid = server.paid();
    assert_eq!(twice(&paid), Vec::<&String>::new());
    let state = server.state.lock().unwrap();
    assert_eq!(state.met.len(), 9, "every fault was met: {:?}", state.met);
    assert!(paid.len() > 500, "{}", paid.len());
}

#[test]
fn a_spent_budget_ends_a_run_and_the_next_goes_on() {
    let (server, base) = Server::start();
    let mut bench = common::bench(USERS);
    bench.rewrite(&remote(&base, "scoring: forced")).unwrap();
    let expected = faultless(&bench, &server);
    server.set(|state| state.faults = 20);
    bench.rewrite(&remote(&base, "scoring: forced, budget: { calls: 4 }")).unwrap();
    let mut runs = 0;
    loop {
        runs += 1;
        match bench.epoch("bounded", common::first()) {
            Ok(_) => break,
            Err(error) => {
                assert_eq!(error.exit_code(), 4, "{error}");
                assert!(error.to_string().contains("the budget of 4 calls is spent"), "{error}");
            }
        }
        // Another process, as it were.
        bench.rewrite(&remote(&base, "scoring: forced, budget: { calls: 4 }")).unwrap();
    }
    assert!(runs > 3, "{runs}");
    assert!(bench.dump("bounded").unwrap() == expected, "the store differs");
    assert_eq!(twice(&server.paid()), Vec::<&String>::new());
}

#[test]
fn a_budget_of_tokens_is_never_exceeded() {
    let (server, base) = Server::start();
    let mut bench = common::bench(USERS);
    // The server counts twelve tokens for a request.
    drawing(&server, &mut bench, &base);
    bench.rewrite(&remote(&base, "api: chat, draws: 1, budget: { tokens: 120 }")).unwrap();
    let error = bench.epoch("bounded", common::first()).err().unwrap();
    assert_eq!(error.exit_code(), 4, "{error}");
    let paid: u64 = server.paid().values().sum();
    assert!(12 * paid <= 120 && paid > 3, "{paid}");
}

/// Draws of labels the pipeline knows, so that some of many are.
fn drawing(server: &Server, bench: &mut Bench, base: &str) {
    // The labels are what the prior's draws are matched with; take them from a run that knows them.
    bench.rewrite(&remote(base, "scoring: forced")).unwrap();
    bench.epoch("labels", common::first()).unwrap();
    let state = server.state.lock().unwrap();
    let mut known: Vec<String> = Vec::new();
    for (path, body) in state.answered.keys() {
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        if path == "/tokenize" && body["add_special"] == false {
            known.push(body["content"].as_str().unwrap().to_string());
        }
    }
    drop(state);
    known.retain(|label| label.starts_with("Genre"));
    assert!(known.len() > 3, "{known:?}");
    server.set(|state| {
        state.labels = known;
        state.answered.clear();
    });
    bench.rewrite(&remote(base, "api: chat, draws: 1")).unwrap();
}

#[test]
fn an_outage_ends_a_run_as_unavailable_and_the_next_goes_on() {
    let (server, base) = Server::start();
    let mut bench = common::bench(USERS);
    drawing(&server, &mut bench, &base);
    let expected = faultless(&bench, &server);
    server.set(|state| state.down_after = Some(9));
    let error = bench.epoch("cut", common::first()).err().unwrap();
    assert!(matches!(error, RunError::Unavailable { .. }), "{error}");
    assert_eq!(error.exit_code(), 66);
    assert!(error.to_string().contains("times in a row"), "{error}");
    assert!(server.paid().len() >= 9, "what was under way may still be answered");
    server.set(|state| (state.down, state.down_after) = (false, None));
    bench.epoch("cut", common::first()).unwrap();
    assert!(bench.dump("cut").unwrap() == expected, "the store differs");
    assert_eq!(twice(&server.paid()), Vec::<&String>::new());
}

#[test]
fn a_short_outage_is_waited_for() {
    let (server, base) = Server::start();
    let mut bench = common::bench(USERS);
    drawing(&server, &mut bench, &base);
    let expected = faultless(&bench, &server);
    // Too few repetitions to outlast it: it is the breaker that waits.
    let few = remote(&base, "api: chat, draws: 1").replace("retries: 12", "retries: 6");
    bench.rewrite(&few.replace("after: 30", "after: 3")).unwrap();
    server.set(|state| state.down_after = Some(9));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !server.state.lock().unwrap().down {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            std::thread::sleep(std::time::Duration::from_millis(300));
            server.set(|state| (state.down, state.down_after) = (false, None));
        });
        bench.epoch("waited", common::first()).unwrap();
    });
    assert!(bench.dump("waited").unwrap() == expected, "the store differs");
}

#[test]
fn what_is_no_label_is_an_error_row_and_is_asked_for_again() {
    let (server, base) = Server::start();
    let mut bench = common::bench(USERS);
    drawing(&server, &mut bench, &base);
    let expected = faultless(&bench, &server);
    server.set(|state| state.nonsense_on = Some("Genre 1".to_string()));
    let report = bench.epoch("wrong", common::first()).unwrap();
    let errors: u64 = report.nodes.iter().map(|node| node.calls.errors).sum();
    assert!(errors > 0, "some prompts have the marker");
    let good = server.paid().len() as u64 - errors;
    assert!(good > 0, "some have not");
    let kept = common::content(&bench, "wrong");
    let state = bench.state("wrong").unwrap();
    let rows = Tables::new(state.snapshot().unwrap().layered("tables")).rows("errors").unwrap();
    assert_eq!(rows.len() as u64, errors, "each is an error row");
    assert!(rows.iter().all(|((_, row), _)| format!("{row:?}").contains("is a label")), "{rows:?}");
    assert!(kept.memo.len() as u64 >= good);
    server.set(|state| (state.nonsense_on, _) = (None, state.answered.clear()));
    let again = bench.epoch("wrong", Options { again: false, ..common::first() }).unwrap();
    let asked: u64 = again.nodes.iter().filter(|node| node.language).map(|node| node.calls.calls).sum();
    assert!(asked >= errors, "those that failed, and what hangs on them");
    assert!(bench.dump("wrong").unwrap() == expected, "the store differs");
}
