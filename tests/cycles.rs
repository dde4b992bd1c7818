//! Cycles: models are made anew out of what they brought about, and a gate decides.
//!
//! The model is a small random one in the form models are published in, so that pairs, training and
//! answers are the real ones.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/tuned.rs"]
mod tuned;

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
    time::Duration,
};

use coea_engine::{
    models::RealModels,
    runtime::{
        cycles::{Cycle, Made, Outcome},
        driver::{Driver, Options},
        report::Basis,
    },
    state::{manifest::Manifest, tables::Tables},
    testing::{Bench, Silence},
};

const BINARY: &str = env!("CARGO_BIN_EXE_coea-engine");
const TRAINING: &str = "{ rank: 2, batch: 2, epochs: 3, learning_rate: 0.02 }";

/// A node that tunes the novelty model in cycles.
fn taught(more: &str) -> String {
    format!(
        "  taught: {{ op: dpo_updater, in: [scored, events], updates: novelty, refit: {{ when: cycle }}, with: {{ {more} training: {TRAINING} }} }}\n"
    )
}

fn pipeline(nodes: &str) -> String {
    // A network of random numbers is sure of itself.
    tuned::pipeline(nodes).replace("candidates: 3", "candidates: 3, temperature: 8")
}

fn bench(nodes: &str) -> Result<Bench, String> {
    tuned::bench(&pipeline(nodes))
}

fn cycling() -> Options {
    Options { workers: 1, resolve: true, cycles: true, ..Options::default() }
}

/// Takes an epoch and so many cycles.
fn cycles(bench: &Bench, state: &str, count: usize) -> Vec<Cycle> {
    let mut driver = bench.driver(state, cycling()).unwrap();
    driver.run_epoch().unwrap();
    (0..count).map(|_| driver.cycle().unwrap()).collect()
}

/// The versions that a cycle made.
fn versions(cycle: &Cycle) -> Vec<&Made> {
    cycle.made.iter().filter(|made| made.model.is_some()).collect()
}

fn figures(cycle: &Cycle) -> BTreeMap<String, f64> {
    cycle.made.last().unwrap().figures.iter().cloned().collect()
}

fn rows(bench: &Bench, table: &str) -> Vec<String> {
    tuned::rows(bench, "s", table)
}

/// The mean loss of the steps of a cycle.
fn mean_loss(bench: &Bench, cycle: u64) -> f64 {
    let snapshot = bench.state("s").unwrap().snapshot().unwrap();
    let rows = Tables::new(snapshot.layered("tables")).rows("training").unwrap();
    let own = rows
        .iter()
        .filter(|((key, _), _)| key[0].as_u64() == Some(cycle) && key[3].as_text() == Some("loss"));
    let losses: Vec<f64> = own.filter_map(|((_, row), _)| row[0].as_f64()).collect();
    losses.iter().sum::<f64>() / losses.len() as f64
}

fn manifest(bench: &Bench) -> Manifest {
    tuned::manifest(bench, "s")
}

fn version(bench: &Bench) -> String {
    manifest(bench).artifacts["taught/version"].digest.clone()
}

fn check(bench: &Bench) {
    tuned::check(bench, "s");
}

#[test]
fn a_cycle_teaches_what_was_judged_better_and_asks_anew() {
    let bench = bench(&taught("held_out: 0,")).unwrap();
    bench.epoch("s", Options { workers: 2, ..Options::default() }).unwrap();
    let (untaught, before) = (version(&bench), rows(&bench, "novel"));
    assert!(rows(&bench, "cycles").is_empty(), "an epoch teaches nothing");
    let keys = rows(&bench, "prompt").len() as u64;
    let done = cycles(&bench, "s", 2);
    check(&bench);
    let (first, second) = (&done[0], &done[1]);
    assert_eq!((first.number, second.number), (1, 2));
    let made: Vec<_> = first.made.iter().map(|made| (made.model.as_deref(), &made.outcome)).collect();
    assert_eq!(made, [(None, &Outcome::Used), (Some("novelty"), &Outcome::Used)], "pairs, and a version");
    assert_eq!(first.epochs.len(), 1, "pairs and version come into use together");
    assert_eq!(first.epochs[0].language_calls(), keys, "every prompt of the novelty model, and no other");
    assert_ne!(version(&bench), untaught);
    assert_ne!(rows(&bench, "novel"), before);
    let (one, two) = (figures(first), figures(second));
    assert!(one["gain"] > 0.0 && two["gain"] > 0.0, "{} {}", one["gain"], two["gain"]);
    assert!(one["accuracy"] >= 0.9, "{}", one["accuracy"]);
    assert!(two["relevance"] > one["relevance"]);
    assert!((two["relevance"] - two["gain"] - one["relevance"]).abs() < 0.05, "it goes on where it was");
    assert!(two["anchor_kl"] > two["kl"], "the way from the beginning is longer");
    // Every figure of every step, of both.
    let (told, training) = (rows(&bench, "cycles"), rows(&bench, "training"));
    assert!(told.len() == 2 && told[1].contains(&version(&bench)), "{told:?}");
    for figure in
        ["loss", "reward_chosen", "reward_margin", "log_chosen", "step_kl", "step_entropy", "top_share"]
    {
        assert!(training.iter().any(|row| row.contains(&format!("\"{figure}\""))), "{figure}");
    }
}

#[test]
fn a_cycle_is_what_was_planned() {
    let bench = bench(&taught("")).unwrap();
    bench.epoch("s", cycling()).unwrap();
    let (state, options) = (bench.state("s").unwrap(), Options { dry: true, ..cycling() });
    let mut dry = Driver::open(bench.plan.clone(), state, options, &Silence).unwrap();
    dry.settle().unwrap();
    let changes = dry.changes().unwrap();
    let foreseen = dry.foresee(1, &changes).unwrap().models;
    assert_eq!(foreseen.len(), 1);
    let (cost, _) = foreseen[0].training.unwrap();
    assert_eq!((foreseen[0].basis, foreseen[0].model.as_deref()), (Basis::Exact, Some("novelty")));
    let untouched = bench.dump("s").unwrap();
    drop(dry);
    let done = cycles(&bench, "s", 1);
    assert_eq!(versions(&done[0])[0].training.unwrap().0, cost);
    assert_eq!(Some(done[0].epochs[0].language_calls()), foreseen[0].most());
    assert_ne!(bench.dump("s").unwrap(), untouched);
}

#[test]
fn a_cycle_that_a_budget_cuts_off_is_ended_by_the_next_run() {
    let [whole, cut] = [(); 2].map(|()| bench(&taught("")).unwrap());
    for bench in [&whole, &cut] {
        bench.epoch("s", cycling()).unwrap();
    }
    let before = cut.dump("s").unwrap();
    cycles(&whole, "s", 1);
    let mut driver = cut.driver("s", Options { max_calls: Some(2), ..cycling() }).unwrap();
    assert!(driver.run_epoch().unwrap().idle);
    assert_eq!(driver.cycle().err().unwrap().exit_code(), 4);
    drop(driver);
    let served = |dump: &BTreeMap<Vec<u8>, Vec<u8>>| {
        let own = |key: &[u8]| key.starts_with(b"cycles") || key.starts_with(b"training");
        dump.iter().filter(|(key, _)| !own(key)).map(|(k, v)| (k.clone(), v.clone())).collect::<Vec<_>>()
    };
    assert_eq!(served(&cut.dump("s").unwrap()), served(&before), "nothing half done");
    let fits = cut.fits();
    let rest = cut.epoch("s", Options { workers: 2, ..Options::default() }).unwrap();
    assert_eq!(rest.language_calls() + 2, rows(&cut, "prompt").len() as u64);
    assert_eq!((version(&cut), cut.fits()), (version(&whole), fits), "trained once");
    assert_eq!(rows(&cut, "aligned"), rows(&whole, "aligned"));
    check(&cut);
}

#[test]
fn a_cycle_that_was_cut_off_between_two_models_is_ended_by_the_next() {
    let judged = format!(
        "  judged: {{ op: reward_trainer, in: [events, label, prompt], updates: relevance, refit: {{ when: cycle }}, with: {{ template: relevance.jinja, last: 2, continues: true, training: {TRAINING} }} }}\n"
    );
    let pairs = "  pairs: { op: preference_pairs, in: [scored, events], refit: { when: cycle } }\n";
    let nodes = format!("{judged}{pairs}{}", taught("").replace("[scored, events]", "pairs"));
    let [whole, cut] = [(); 2].map(|()| bench(&nodes).unwrap());
    for bench in [&whole, &cut] {
        bench.epoch("s", cycling()).unwrap();
    }
    cycles(&whole, "s", 1);
    let keys = rows(&cut, "prompt").len() as u64;
    // Once while the relevance model is asked anew, and once while the novelty model is.
    for budget in [2, keys - 2 + 3] {
        let mut driver = cut.driver("s", Options { max_calls: Some(budget), ..cycling() }).unwrap();
        let error = driver.run_epoch().and_then(|_| driver.cycle()).err().unwrap();
        assert_eq!(error.exit_code(), 4);
        assert!(manifest(&cut).open_cycle.is_some());
    }
    // A run alone brings about what is wanted; the cycle has nothing left but its end.
    cut.epoch("s", Options { workers: 1, ..Options::default() }).unwrap();
    let rest = cycles(&cut, "s", 1);
    assert_eq!((rest[0].number, rest[0].made.len()), (1, 0));
    assert_eq!((manifest(&cut).cycles, manifest(&cut).open_cycle), (1, None));
    for table in ["pairs", "taught", "judged", "aligned", "training"] {
        assert_eq!(rows(&cut, table), rows(&whole, table), "{table}");
    }
    check(&cut);
}

#[test]
fn a_trainer_that_has_nothing_to_learn_holds_up_no_other() {
    let bench = bench(&taught("min_margin: 1,")).unwrap();
    bench.epoch("s", cycling()).unwrap();
    let before = version(&bench);
    let done = cycles(&bench, "s", 2);
    for cycle in &done {
        let Outcome::Nothing(why) = &versions(cycle)[0].outcome else { panic!("{:?}", cycle.made) };
        assert!(why.contains("smaller `min_margin`"), "{why}");
    }
    assert_eq!((version(&bench), manifest(&bench).cycles), (before, 2));
    assert!(rows(&bench, "cycles")[0].contains("no key has a pair"));
}

#[test]
fn a_version_in_use_is_asked_at_once_also_by_nodes_that_wait() {
    let nodes = taught("");
    let bench = bench(&nodes).unwrap();
    let waits = pipeline(&nodes).replace("model: novelty,", "model: novelty, after: { time: 9h },");
    let waits = waits.replace("model: relevance,", "model: relevance, after: { time: 9h },");
    std::fs::write(bench.path("pipeline.yaml"), waits).unwrap();
    let bench = bench.with_models(&RealModels::default()).unwrap();
    bench.epoch("s", cycling()).unwrap();
    let keys = rows(&bench, "aligned").len();
    cycles(&bench, "s", 1);
    assert_eq!(rows(&bench, "aligned").len(), keys);
    check(&bench);
}

#[test]
fn training_that_is_killed_goes_on_where_it_was() {
    let long = taught("").replace("epochs: 3", "epochs: 9999, max_steps: 300");
    let [whole, killed] = [(); 2].map(|()| bench(&long).unwrap());
    let run = |bench: &Bench| {
        let mut run = Command::new(BINARY);
        run.args(["run", "pipeline.yaml", "--state", "s", "--cycles", "1", "--format", "json"]);
        run.current_dir(bench.path("")).stdout(Stdio::null()).stderr(Stdio::null());
        run.spawn().unwrap()
    };
    assert!(run(&whole).wait().unwrap().success());
    let mut child = run(&killed);
    let kept = || killed.state("s").and_then(|state| state.memo.checkpoints()).unwrap_or_default();
    while kept() == 0 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    assert_eq!(kept(), 1, "it was killed in the middle");
    assert!(rows(&killed, "cycles").is_empty());
    assert!(run(&killed).wait().unwrap().success());
    assert_eq!((kept(), version(&killed)), (0, version(&whole)));
    for table in ["training", "aligned"] {
        assert_eq!(rows(&killed, table), rows(&whole, table));
    }
}

#[test]
fn what_a_gate_refuses_changes_nothing() {
    let bench = bench(&taught("gate: { kl: { most: 0.000001 }, entropy: { least: 0.1 } },")).unwrap();
    bench.epoch("s", cycling()).unwrap();
    let before = (version(&bench), manifest(&bench).epoch, rows(&bench, "novel"), rows(&bench, "aligned"));
    let done = cycles(&bench, "s", 2);
    for cycle in &done {
        let Outcome::Refused(why) = &versions(cycle)[0].outcome else { panic!("{:?}", cycle.made) };
        assert!(
            why.len() == 1 && why[0].starts_with("kl is ") && why[0].ends_with("above 0.000001"),
            "{why:?}"
        );
    }
    assert_eq!(versions(&done[0])[0].version, versions(&done[1])[0].version, "from the same, the same");
    let after = (version(&bench), manifest(&bench).epoch, rows(&bench, "novel"), rows(&bench, "aligned"));
    assert_eq!((&before.0, &before.2, &before.3), (&after.0, &after.2, &after.3));
    assert!(rows(&bench, "cycles")[0].contains("kl is "));
    assert!(rows(&bench, "training").iter().any(|row| row.contains("reward_margin")));
    check(&bench);
}

#[test]
fn a_trainer_is_held_to_what_users_kept_out_say() {
    let with = |op: &str, more: &str| {
        let (model, own) = match op {
            "sft_trainer" => ("novelty", "targets: all,"),
            _ => ("relevance", "template: relevance.jinja,"),
        };
        format!(
            "  judged: {{ op: {op}, in: [events, label, prompt], updates: {model}, refit: {{ when: cycle }}, with: {{ {own} last: 2, held_out: 0.6, {more} training: {TRAINING} }} }}\n"
        )
    };
    for op in ["sft_trainer", "reward_trainer"] {
        let of = |bound: &str| format!("gate: {{ held_out_over_untuned: {{ {bound} }} }},");
        let outcome = |bound: &str| {
            let bench = bench(&with(op, &of(bound))).unwrap();
            bench.epoch("s", cycling()).unwrap();
            let before = rows(&bench, "aligned");
            let made = versions(&cycles(&bench, "s", 1)[0])[0].clone();
            (made.outcome, made.figures, rows(&bench, "aligned") == before)
        };
        let (refused, figures, same) = outcome("least: 9");
        let Outcome::Refused(why) = refused else { panic!("{op}: {refused:?}") };
        assert!(why[0].starts_with("held_out_over_untuned is ") && same, "{op}: {why:?}");
        let figures: BTreeMap<String, f64> = figures.into_iter().collect();
        let over = figures["held_out"] - figures["held_out_untuned"];
        assert!((figures["held_out_over_untuned"] - over).abs() < 1e-6, "{op}: {over} {figures:?}");
        assert!(matches!(outcome("least: -9").0, Outcome::Used), "{op}");

        let refused = |nodes: &str| bench(nodes).err().unwrap();
        let unknown = refused(&with(op, "gate: { held: { most: 1 } },"));
        assert!(unknown.contains("there is no figure `held`"), "{unknown}");
        let nobody = refused(&with(op, &of("least: 0")).replace("held_out: 0.6", "held_out: 0"));
        assert!(nobody.contains("give a `held_out` above 0"), "{nobody}");
        let once = refused(&with(op, &of("least: 0")).replace("refit: { when: cycle }, ", ""));
        assert!(once.contains("goes with `refit: { when: cycle }` only"), "{once}");
    }
}

#[test]
fn a_cycle_ends_training_where_some_of_the_pairs_find_it_best() {
    let mut tried = 0;
    for seed in 0..6 {
        let chosen =
            taught("held_out: 0.6,").replace("rank: 2", &format!("choose_every: 1, seed: {seed}, rank: 2"));
        let bench = bench(&chosen).unwrap();
        bench.epoch("s", cycling()).unwrap();
        let done = cycles(&bench, "s", 1);
        match &versions(&done[0])[0].outcome {
            Outcome::Nothing(why) => assert!(why.contains("a larger `held_out` gives some"), "{why}"),
            Outcome::Used => {
                let told = figures(&done[0]);
                assert!(told["chosen_step"] >= 1.0 && told.contains_key("choosing_loss"), "{told:?}");
                check(&bench);
                tried += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(tried > 0);
}

#[test]
fn divergence_costs_what_its_weight_says_and_every_method_learns() {
    let end = |with: &str| {
        let bench = bench(&taught(&format!("held_out: 0, {with}"))).unwrap();
        figures(&cycles(&bench, "s", 1)[0])
    };
    let (free, held) = (end("kl: 0,"), end("kl: 20,"));
    assert!(held["kl"] < 0.5 * free["kl"], "{} {}", held["kl"], free["kl"]);
    let anchored = end("kl: 0, anchor_kl: 20,");
    assert!(anchored["anchor_kl"] < 0.5 * free["anchor_kl"]);
    for method in ["dpo", "ipo", "kto", "simpo"] {
        let learnt = end(&format!("loss: {method}, kl: 0,"));
        assert!(learnt["accuracy"] >= 0.9, "{method}: {}", learnt["accuracy"]);
    }
    let (near, far) = (end("loss: exact, kl: 0, beta: 1,"), end("loss: dpo, kl: 0, beta: 1,"));
    assert!(near["optimum"] < far["optimum"], "{} {}", near["optimum"], far["optimum"]);
}

#[test]
fn a_relevance_model_is_made_anew_before_its_verdicts_are_learnt_from() {
    let judged = format!(
        "  judged: {{ op: reward_trainer, in: [events, label, prompt], updates: relevance, refit: {{ when: cycle }}, with: {{ template: relevance.jinja, last: 2, training: {TRAINING} }} }}\n"
    );
    let bench = bench(&format!("{judged}{}", taught(""))).unwrap();
    bench.epoch("s", cycling()).unwrap();
    let untrained = manifest(&bench).artifacts["judged/version"].digest.clone();
    assert_eq!(untrained, blake3::hash(b"").to_hex().to_string(), "an epoch trains nothing");
    let first = cycles(&bench, "s", 1);
    assert!(first[0].made.iter().all(|made| made.outcome == Outcome::Used));
    let relevance = manifest(&bench).artifacts["judged/version"].digest.clone();
    // Nothing was clicked since, so the relevance model comes out as it was.
    let same = cycles(&bench, "s", 1);
    assert_eq!(
        versions(&same[0]).iter().map(|made| &made.outcome).collect::<Vec<_>>(),
        [&Outcome::Same, &Outcome::Used]
    );
    let clicks = "user_id,item_id,rating,timestamp,diff\n1,2,4,90,1\n3,4,4,91,1\n2,6,4,92,1\n";
    let given = bench.deltas(&[("events", clicks)]).unwrap();
    let mut driver = bench.driver("s", Options { deltas: given.deltas, ..cycling() }).unwrap();
    driver.run_epoch().unwrap();
    let moved = driver.cycle().unwrap();
    drop(driver);
    assert_eq!(versions(&moved).len(), 2);
    assert!(versions(&moved).iter().all(|made| made.outcome == Outcome::Used));
    assert_eq!(moved.epochs.len(), 2, "the relevance model is asked before pairs are made");
    assert_ne!(manifest(&bench).artifacts["judged/version"].digest, relevance);
    check(&bench);
}

#[test]
fn a_trainer_in_cycles_begins_anew_or_goes_on() {
    let judged = |more: &str| {
        format!(
            "  judged: {{ op: reward_trainer, in: [events, label, prompt], updates: relevance, refit: {{ when: cycle }}, with: {{ template: relevance.jinja, last: 2, {more} training: {TRAINING} }} }}\n"
        )
    };
    let losses = |more: &str| {
        let bench = bench(&judged(more)).unwrap();
        let done = cycles(&bench, "s", 2);
        check(&bench);
        [0, 1].map(|at| (done[at].made[0].outcome.clone(), mean_loss(&bench, at as u64 + 1)))
    };
    let [first, again] = losses("");
    assert_eq!(
        (first.0, again.0, first.1),
        (Outcome::Used, Outcome::Same, again.1),
        "from the same, the same"
    );
    let [first, on] = losses("continues: true,");
    assert_eq!((first.0, on.0), (Outcome::Used, Outcome::Used));
    assert!(on.1 < first.1, "{} {}", on.1, first.1);
    let wrong = bench(&judged("continues: true,").replace("refit: { when: cycle },", "")).err().unwrap();
    assert!(wrong.contains("goes with `refit: { when: cycle }` only"), "{wrong}");
}

#[test]
fn cycles_begin_where_supervised_tuning_ended() {
    let tuned = format!(
        "  tuned: {{ op: sft_trainer, in: [events, label, prompt], updates: novelty, with: {{ targets: all, last: 2, training: {TRAINING} }} }}\n"
    );
    let chained = bench(&format!("{tuned}{}", taught(""))).unwrap();
    chained.epoch("s", cycling()).unwrap();
    let supervised = manifest(&chained).artifacts["tuned/version"].digest.clone();
    assert_eq!(version(&chained), supervised);
    cycles(&chained, "s", 1);
    check(&chained);
    assert_eq!(manifest(&chained).artifacts["tuned/version"].digest, supervised);
    assert_ne!(version(&chained), supervised);
    let wrong = bench(&format!("{}{}", tuned.replace("rank: 2", "rank: 3"), taught(""))).err().unwrap();
    assert!(wrong.contains("has another size") && wrong.contains("write `rank: 3`"), "{wrong}");
}

#[test]
fn a_version_that_hardly_differs_leaves_the_lists_as_they_were() {
    let slow = taught("").replace("learning_rate: 0.02", "learning_rate: 0.0000001");
    let bench = bench(&slow).unwrap();
    bench.epoch("s", cycling()).unwrap();
    let before = (version(&bench), rows(&bench, "aligned"));
    cycles(&bench, "s", 1);
    assert_ne!(version(&bench), before.0);
    let names = |rows: &[String]| -> Vec<String> { rows.to_vec() };
    let (old, new) = (names(&before.1), names(&rows(&bench, "aligned")));
    let kept = old.iter().filter(|row| new.contains(row)).count();
    assert!(kept * 100 >= old.len() * 95, "{kept} of {}", old.len());
}

#[test]
fn pairs_are_the_most_and_the_least_relevant_of_what_was_proposed_or_clicked() {
    let pairs = "  pairs: { op: preference_pairs, in: [scored, events], refit: { when: cycle }, with: { weigh: even } }\n";
    let own = format!("{pairs}{}", taught("").replace("[scored, events]", "pairs"));
    let bench = bench(&own).unwrap();
    cycles(&bench, "s", 1);
    check(&bench);
    let pairs = rows(&bench, "pairs");
    assert!(!pairs.is_empty() && pairs.len() <= rows(&bench, "prompt").len());
    let together = format!("{pairs:?}");
    assert!(
        !together.contains("-0.") && !together.contains("Float(0.0)"),
        "a margin is positive: {together}"
    );
}

#[test]
fn cycles_from_the_command_line() {
    let bench = bench(&taught("")).unwrap();
    let run = |args: &[&str]| bench.command(BINARY, &[args, &["--state", "s"]].concat()).unwrap();
    let (code, said, _) = run(&["plan", "pipeline.yaml", "--cycles", "2"]);
    assert!(code == 0 && said.contains("trains on what is not known yet"), "{said}");
    assert_eq!(run(&["run", "pipeline.yaml"]).0, 0);
    let planned = run(&["plan", "pipeline.yaml", "--cycles", "2", "--out", "p.json", "--format", "json"]).1;
    let planned: serde_json::Value = serde_json::from_str(&planned).unwrap();
    let each = &planned["cycles"]["each"][0];
    assert_eq!(
        (planned["cycles"]["count"].as_u64(), each["basis"]["training"].as_str()),
        (Some(2), Some("exact"))
    );
    assert_eq!(run(&["plan", "pipeline.yaml", "--cycles", "2", "--max-calls", "1"]).0, 4);
    let bounded = pipeline(&taught("")).replace("op: llm_sampler,", "op: llm_sampler, limits: { calls: 1 },");
    std::fs::write(bench.path("bounded.yaml"), bounded).unwrap();
    assert_eq!(run(&["plan", "bounded.yaml"]).0, 0, "nothing is asked");
    let (code, _, said) = run(&["plan", "bounded.yaml", "--cycles", "1"]);
    assert!(code == 4 && said.contains("calls of novel are more than its limits, 1"), "{code}: {said}");
    assert_eq!(run(&["plan", "pipeline.yaml", "--cycles", "1", "--detailed-exitcode"]).0, 2);
    assert_eq!(run(&["run", "--plan", "p.json", "--cycles", "3"]).0, 64);
    let (code, done, said) = run(&["run", "--plan", "p.json", "--format", "json"]);
    assert_eq!(code, 0, "{said}");
    let done: serde_json::Value = serde_json::from_str(&done).unwrap();
    let done = done["cycles"].as_array().unwrap();
    assert_eq!(done.len(), 2);
    assert_eq!(done[0]["made"][1]["training"]["steps"], each["training"]["steps"]);
    assert_eq!(done[0]["epochs"][0]["inference"]["calls"], each["calls"]);
    let told = run(&["dump", "pipeline.yaml", "--table", "cycles"]).1;
    assert_eq!(told.lines().count(), 2, "{told}");
    let query = "SELECT count(*) AS n FROM training WHERE figure = 'loss'";
    assert!(run(&["query", "pipeline.yaml", query, "--format", "json"]).1.contains("\"n\":"));
    let (code, said, _) = run(&["run", "pipeline.yaml", "--cycles", "1"]);
    assert!(code == 0 && said.contains("cycle 3: taught made ") && said.contains("in use"), "{said}");
    let listed = run(&["models", "versions", "pipeline.yaml"]).1;
    assert_eq!(listed.lines().count(), 4, "{listed}");
    assert_eq!(run(&["models", "rollback", "pipeline.yaml", "novelty"]).0, 0);
    assert_eq!(run(&["run", "pipeline.yaml"]).0, 0);
    assert_eq!(run(&["verify", "pipeline.yaml"]).0, 0);
}

#[test]
fn what_cannot_be_cycled_is_told_where_it_stands() {
    let refused = |nodes: &str| bench(nodes).err().unwrap();
    let (cycle, once) = ("refit: { when: cycle },", "refit: { when: once },");
    assert!(refused(&taught("").replace(cycle, "")).contains("dpo_updater works in cycles"));
    assert!(refused(&taught("").replace(cycle, once)).contains("works in cycles, not once"));
    assert!(refused(&taught("gamma: 1,")).contains("goes with `loss: simpo` only"));
    assert!(refused(&taught("loss: ipo, label_smoothing: 0.1,")).contains("goes with `loss: dpo` only"));
    assert!(refused(&taught("gate: { kll: { most: 1 } },")).contains("there is no figure `kll`"));
    assert!(refused(&taught("beta: 0,")).contains("must be a positive number"));
    assert!(refused(&taught("").replace("rank: 2", "device: cuda")).contains("computes on the processor"));
    let other = taught("").replace("updates: novelty", "updates: relevance");
    assert!(refused(&other).contains("makes no versions of `relevance`, a reward_model"));
    assert!(refused(&taught("").replace("[scored, events]", "[novel, events]")).contains("scored"));
    let twice = format!("{}{}", taught(""), taught("").replace("taught:", "more:"));
    assert!(refused(&twice).contains("`novelty` is already updated by `taught`"));
    let pairs = "  pairs: { op: preference_pairs, in: [scored, events], refit: { when: cycle } }\n";
    let again = format!("{pairs}{}", taught("sample: { fraction: 1 },").replace("[scored, events]", "pairs"));
    assert!(refused(&again).contains("`pairs` has made the pairs already"));
    let label = "label: { op: category_map, in: [items, events], with: { mapping: set, min_clicks: 2 }";
    let bench = bench("").unwrap();
    let text = pipeline("").replace(label, &format!("{label}, refit: {{ when: cycle }}"));
    std::fs::write(bench.path("pipeline.yaml"), text).unwrap();
    let wrong = bench.with_models(&RealModels::default()).err().unwrap();
    assert!(wrong.contains("category_map cannot be fitted anew in cycles"), "{wrong}");
}
