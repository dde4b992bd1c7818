//! Renewals: encoder, codebook and portraits are fitted anew in cycles, together, and what that moves is
//! known before.
//!
//! The model is a small random one in the form models are published in.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/tuned.rs"]
mod tuned;

use std::collections::BTreeMap;

use coea_engine::{
    models::RealModels,
    runtime::{
        cycles::{Cycle, Made, Outcome},
        driver::{Driver, Options, changed_spec},
        foreseen::Foresight,
        report::Report,
    },
    testing::{Bench, Silence},
};

/// The nodes that are renewed.
const RENEWED: [&str; 3] = ["embedding", "group", "profile"];

/// The pipeline with a policy for each of the three.
fn pipeline(policies: [&str; 3]) -> String {
    let mut text = tuned::pipeline("").replace("epochs: 2,", "epochs: 40,");
    let places = [
        "max_length: 8 }\n".to_string(),
        "min_group: 1 }\n".to_string(),
        "writer: template } }\n".to_string(),
    ];
    for (place, policy) in places.iter().zip(policies) {
        assert!(text.contains(place.as_str()));
        let end = if place.ends_with("} }\n") { " }\n" } else { "\n" };
        let kept = place.strip_suffix(end).unwrap();
        let comma = if end == "\n" { "\n    " } else { ", " };
        text = text.replace(place.as_str(), &format!("{kept}{comma}refit: {{ {policy} }}{end}"));
    }
    text
}

fn bench(policies: [&str; 3]) -> Bench {
    tuned::bench(&pipeline(policies)).unwrap()
}

fn cycling() -> Options {
    Options { workers: 1, resolve: true, cycles: true, ..Options::default() }
}

/// Eight new users with a taste of their own.
fn newcomers(bench: &Bench) -> Options {
    let rows = (0..64).map(|n| format!("{},{},5,{}\n", 11 + n % 8, [5, 2][(n / 8) % 2], 100 + n));
    let events = format!("user_id,item_id,rating,timestamp\n{}", rows.collect::<String>());
    bench.deltas(&[("events", &events)]).unwrap()
}

/// A first epoch, and one with newcomers.
fn grown(policies: [&str; 3]) -> Bench {
    let bench = bench(policies);
    bench.epoch("s", cycling()).unwrap();
    let delta = newcomers(&bench);
    bench.epoch("s", delta).unwrap();
    bench
}

fn cycle(bench: &Bench, options: Options) -> Cycle {
    let mut driver = bench.driver("s", options).unwrap();
    driver.run_epoch().unwrap();
    driver.cycle().unwrap()
}

fn foresee(bench: &Bench) -> Foresight {
    foresee_with(bench, cycling())
}

fn foresee_with(bench: &Bench, options: Options) -> Foresight {
    let options = Options { dry: true, cycles: true, ..options };
    let mut dry = Driver::open(bench.plan.clone(), bench.state("s").unwrap(), options, &Silence).unwrap();
    dry.ingest().unwrap();
    dry.settle().unwrap();
    let changes = dry.changes().unwrap();
    dry.foresee(1, &changes).unwrap()
}

fn rows(bench: &Bench, table: &str) -> Vec<String> {
    tuned::rows(bench, "s", table)
}

fn outcomes(made: &[Made]) -> Vec<(&str, &Outcome)> {
    made.iter().map(|made| (made.node.as_str(), &made.outcome)).collect()
}

fn digests(bench: &Bench) -> BTreeMap<String, String> {
    let artifacts = tuned::manifest(bench, "s").artifacts;
    artifacts.into_iter().map(|(name, artifact)| (name, artifact.digest)).collect()
}

/// Keys of a node's output that change.
fn changed(report: &Report, node: &str) -> u64 {
    report.nodes.iter().find(|found| found.node == node).unwrap().changed
}

const CYCLE: [&str; 3] = ["when: cycle"; 3];

#[test]
fn what_stands_on_one_another_is_renewed_together() {
    let bench = grown(CYCLE);
    let (before, epoch) = (digests(&bench), tuned::manifest(&bench, "s").epoch);
    let stood = rows(&bench, "prompt");
    let foreseen = foresee(&bench).renewal.unwrap();
    assert_eq!(digests(&bench), before, "a plan writes nothing");
    let done = cycle(&bench, cycling());
    assert_eq!(outcomes(&done.made), RENEWED.map(|node| (node, &Outcome::Used)));
    assert_eq!(done.epochs.len(), 1, "no state in between is committed");
    assert_eq!(tuned::manifest(&bench, "s").epoch, epoch + 1);
    tuned::check(&bench, "s");
    // No state in between is asked for either: every call is for a prompt that stands, and did not before.
    let new = rows(&bench, "prompt").iter().filter(|row| !stood.contains(row)).count() as u64;
    let asked = done.epochs[0].calls()["novel"];
    assert!(asked > 0 && asked <= new, "{asked} of {new}");
    // And all of it was foreseen.
    let (planned, report) = (foreseen.made.unwrap(), foreseen.report.unwrap());
    let told = |made: &[Made]| -> Vec<_> {
        made.iter().map(|made| (made.version.clone(), made.figures.clone())).collect()
    };
    assert_eq!(told(&planned), told(&done.made));
    assert_eq!(report.calls()["novel"], asked);
    for node in ["group", "profile", "prompt"] {
        assert_eq!(changed(&report, node), changed(&done.epochs[0], node), "{node}");
    }
    let figures: BTreeMap<_, _> = done.made[1].figures.iter().cloned().collect();
    assert!((0.0..=1.0).contains(&figures["moved"]) && figures["rand_index"] <= 1.0, "{figures:?}");
    assert!(rows(&bench, "training").iter().any(|row| row.contains("\"rand_index\"")));
    assert_eq!(rows(&bench, "cycles").len(), 3);
}

#[test]
fn what_did_not_change_stays_as_it_is() {
    let bench = bench(CYCLE);
    bench.epoch("s", cycling()).unwrap();
    let before = (digests(&bench), tuned::manifest(&bench, "s").epoch);
    let done = cycle(&bench, cycling());
    assert_eq!(outcomes(&done.made), RENEWED.map(|node| (node, &Outcome::Same)));
    assert!(done.epochs.is_empty());
    assert!(rows(&bench, "training").is_empty(), "nothing moved");
    assert_eq!((digests(&bench), tuned::manifest(&bench, "s").epoch), before);
}

#[test]
fn a_renewal_that_a_budget_cuts_off_comes_about_as_a_whole() {
    let [whole, cut] = [(); 2].map(|()| grown(CYCLE));
    cycle(&whole, cycling());
    let before = rows(&cut, "group");
    let mut driver = cut.driver("s", Options { max_calls: Some(1), ..cycling() }).unwrap();
    assert!(driver.run_epoch().unwrap().idle);
    assert_eq!(driver.cycle().err().unwrap().exit_code(), 4);
    drop(driver);
    assert_eq!(rows(&cut, "group"), before, "nothing half done");
    let fits = cut.fits();
    cut.epoch("s", Options { workers: 2, ..Options::default() }).unwrap();
    assert_eq!(cut.fits(), fits, "fitted once");
    assert_eq!(digests(&cut), digests(&whole));
    for table in ["group", "profile", "prompt", "novel", "aligned", "cycles", "training"] {
        assert_eq!(rows(&cut, table), rows(&whole, table), "{table}");
    }
    tuned::check(&cut, "s");
    let rest = cycle(&cut, cycling());
    assert_eq!((rest.number, rest.made.len()), (1, 0), "the cycle has nothing left but its end");
}

#[test]
fn drift_decides_whose_turn_it_is() {
    let policies = ["when: drift, above: 0.05", "when: drift, above: 0.05", "when: cycle"];
    let bench = bench(policies);
    bench.epoch("s", cycling()).unwrap();
    let first = cycle(&bench, cycling());
    let kept = |made: &Made| match &made.outcome {
        Outcome::Kept(why) => why.clone(),
        other => panic!("{}: {other:?}", made.node),
    };
    let why: Vec<String> = first.made[..2].iter().map(kept).collect();
    assert_eq!(why[0], "unknown_clicks is 0.0000, not above 0.05");
    assert!(why[1].starts_with("error_grown is ") && why[1].ends_with(", not above 0.05"), "{why:?}");
    // Items that nobody clicked before are unknown to the encoder, and what stands on it follows.
    let items = bench.deltas(&[
        ("items", "item_id,genres\n7,Drama|War\n8,Comedy\n"),
        (
            "events",
            "user_id,item_id,rating,timestamp\n1,7,5,200\n1,8,5,201\n1,7,5,202\n1,8,5,203\n2,7,5,200\n2,8,5,201\n2,7,5,202\n2,8,5,203\n",
        ),
    ]);
    bench.epoch("s", items.unwrap()).unwrap();
    let second = cycle(&bench, cycling());
    assert_eq!(outcomes(&second.made), RENEWED.map(|node| (node, &Outcome::Used)));
    tuned::check(&bench, "s");
    // What decided is what `status` says.
    let mut driver = bench.driver("s", cycling()).unwrap();
    driver.settle().unwrap();
    let drift: Vec<_> =
        driver.drifting().iter().map(|leaf| driver.drift(*leaf).unwrap()[0].clone()).collect();
    assert_eq!(drift[0], ("unknown_clicks".to_string(), 0.0));
    assert!(drift[1].0 == "error_grown" && drift[1].1.abs() < 0.05, "{drift:?}");
    drop(driver);
    let third = cycle(&bench, cycling());
    assert!(matches!(third.made[0].outcome, Outcome::Kept(_)), "{:?}", third.made[0].outcome);
}

#[test]
fn a_policy_by_epochs_waits_for_them() {
    let bench = bench(["when: every, epochs: 2"; 3]);
    bench.epoch("s", cycling()).unwrap();
    let early = cycle(&bench, cycling());
    let kept = Outcome::Kept("0 of 2 epochs have passed since it came into use".to_string());
    assert_eq!(outcomes(&early.made), RENEWED.map(|node| (node, &kept)));
    bench.epoch("s", newcomers(&bench)).unwrap();
    let more = bench.deltas(&[("events", "user_id,item_id,rating,timestamp\n1,2,5,300\n")]).unwrap();
    bench.epoch("s", more).unwrap();
    let due = cycle(&bench, cycling());
    assert!(due.made.iter().all(|made| made.outcome == Outcome::Used), "{:?}", outcomes(&due.made));
}

#[test]
fn a_plan_counts_the_epoch_before_the_cycle() {
    let bench = bench(["when: every, epochs: 1"; 3]);
    bench.epoch("s", cycling()).unwrap();
    let idle = foresee(&bench).renewal.unwrap();
    assert!(idle.report.is_none() && matches!(idle.made.unwrap()[0].outcome, Outcome::Kept(_)));
    // The delta asks for answers, so what follows it is not known; after it, it is.
    let delta = newcomers(&bench);
    assert!(foresee_with(&bench, delta.clone()).renewal.unwrap().made.is_none());
    bench.epoch("s", delta).unwrap();
    let due = foresee(&bench).renewal.unwrap();
    assert!(due.made.unwrap().iter().all(|made| made.outcome == Outcome::Used));
}

#[test]
fn a_plan_without_local_models_does_not_know_what_a_renewal_moves() {
    let bench = grown(CYCLE);
    let foreseen = foresee_with(&bench, Options { resolve: false, ..cycling() });
    let renewal = foreseen.renewal.unwrap();
    assert!(renewal.made.is_none() && renewal.report.is_none());
}

#[test]
fn what_is_renewed_beside_an_edit_is_told_apart_from_it() {
    let bench = grown(CYCLE);
    let kept = "  kept: { op: category_map, in: [items, events], with: { mapping: first } }\nsinks:\n";
    std::fs::write(bench.path("pipeline.yaml"), pipeline(CYCLE).replace("sinks:\n", kept)).unwrap();
    let bench = bench.with_models(&RealModels::default()).unwrap();
    let report = foresee(&bench).renewal.unwrap().report.unwrap();
    assert_eq!(changed(&report, "kept"), 0, "the epoch before the cycle made it");
    assert_eq!(changed(&report, "interest"), 0);
    assert!(changed(&report, "group") > 0);
    let groups = report.nodes.iter().find(|found| found.node == "kept").unwrap();
    assert_eq!(groups.keys, 6);
    let done = cycle(&bench, cycling());
    assert_eq!(changed(&report, "group"), changed(&done.epochs[0], "group"));
}

#[test]
fn an_artifact_of_other_code_changes_the_spec() {
    let bench = bench(CYCLE);
    bench.epoch("s", cycling()).unwrap();
    let mut manifest = tuned::manifest(&bench, "s");
    assert!(!changed_spec(&bench.plan, &manifest));
    manifest.artifacts.get_mut("group/codebook").unwrap().logic = "of old".to_string();
    assert!(changed_spec(&bench.plan, &manifest));
}

#[test]
fn what_stands_on_something_renewed_is_renewed_or_refused() {
    let refused = |policies| tuned::bench(&pipeline(policies)).err().unwrap();
    let once = refused(["when: cycle", "when: cycle", "when: once"]);
    assert!(once.contains("`profile` is fitted once, on what `") && once.contains("in cycles"), "{once}");
    let drift = refused(["when: cycle", "when: cycle", "when: drift, above: 0.1"]);
    assert!(drift.contains("group_profile does not tell how far its data have drifted"), "{drift}");
    let changed = refused(["when: changed", "when: cycle", "when: cycle"]);
    assert!(changed.contains("not built yet"), "{changed}");
}
