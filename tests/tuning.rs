//! Pipelines that tune their models: what is trained is what is asked, once, and nothing else moves.
//!
//! The model is a small random one with a tokenizer of its own, in the form models are published in,
//! so that training, adapters and answers are the real ones.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/tuned.rs"]
mod tuned;

use std::collections::{BTreeMap, BTreeSet};

use coea_engine::{
    models::RealModels,
    runtime::{driver::Options, report::Report, versions::want},
    state::tables::Tables,
    testing::Bench,
};
use coea_operators::row::{Row, Value};
use tuned::{check, manifest, pipeline, rows};

const BINARY: &str = env!("CARGO_BIN_EXE_coea-engine");
const TUNED: &str = "  tuned:
    { op: sft_trainer, in: [events, label, prompt], updates: novelty, with: { targets: all, last: 2, held_out: 0.6, training: { rank: 2, batch: 2, epochs: 2, learning_rate: 0.02 } } }
";

fn bench(nodes: &str) -> Result<Bench, String> {
    tuned::bench(&pipeline(nodes))
}

fn version(bench: &Bench, state: &str) -> String {
    manifest(bench, state).artifacts["tuned/version"].digest.clone()
}

#[test]
fn what_is_trained_is_what_is_asked() {
    let (plain, tuned) = (bench("").unwrap(), bench(TUNED).unwrap());
    for bench in [&plain, &tuned] {
        bench.epoch("s", Options { workers: 2, ..Options::default() }).unwrap();
        check(bench, "s");
    }
    // The tuned model proposes otherwise; the relevance model is another name, and was not tuned.
    assert_eq!(rows(&plain, "s", "prompt"), rows(&tuned, "s", "prompt"));
    assert_ne!(rows(&plain, "s", "novel"), rows(&tuned, "s", "novel"));
    let figures = rows(&tuned, "s", "tuned");
    for figure in ["loss", "accuracy", "gradient", "learning_rate", "held_out", "held_out_untuned"] {
        assert!(figures.iter().any(|row| row.contains(&format!("\"{figure}\""))), "{figure}: {figures:?}");
    }
    // Again from the same: the same version, and the same store.
    tuned.epoch("again", Options { workers: 1, ..Options::default() }).unwrap();
    assert_eq!(version(&tuned, "again"), version(&tuned, "s"));
    assert_eq!(tuned.dump("again").unwrap(), tuned.dump("s").unwrap());
}

#[test]
fn a_version_stays_while_data_move() {
    let bench = bench(TUNED).unwrap();
    bench.epoch("s", Options { workers: 1, ..Options::default() }).unwrap();
    let (before, fits) = (version(&bench, "s"), bench.fits());
    let delta = "user_id,item_id,rating,timestamp,diff\n1,2,4,90,1\n3,4,4,91,1\n2,6,4,1,-1\n";
    let given = || bench.deltas(&[("events", delta)]).unwrap();
    let planned = bench.epoch("s", Options { dry: true, ..given() }).unwrap();
    let run = bench.epoch("s", Options { workers: 2, ..given() }).unwrap();
    assert!(run.language_calls() > 0, "the delta asks something");
    assert_eq!(planned.language_calls(), run.language_calls());
    assert_eq!((version(&bench, "s"), bench.fits()), (before, fits));
    check(&bench, "s");
}

#[test]
fn a_first_plan_neither_trains_nor_writes() {
    let bench = bench(TUNED).unwrap();
    let plan = bench.epoch("s", Options { dry: true, resolve: true, workers: 1, ..Options::default() });
    let plan = plan.unwrap();
    let node = plan.nodes.iter().find(|node| node.node == "tuned").unwrap();
    assert!(node.trains && node.training.is_none(), "what it would be trained on is not known yet");
    assert!(!bench.path("s").exists());
    let fits = bench.fits();
    bench.epoch("s", Options { workers: 1, ..Options::default() }).unwrap();
    assert!(bench.fits() > fits);
}

#[test]
fn another_way_of_training_is_another_version_and_has_its_price() {
    let one = bench(TUNED).unwrap();
    let training = |report: &Report| report.nodes.iter().find_map(|node| node.training).unwrap();
    let first = one.epoch("s", Options { workers: 1, ..Options::default() }).unwrap();
    let (cost, seconds) = training(&first);
    assert!(cost.prompts > 2 && cost.steps == 2 * cost.prompts.div_ceil(2) && seconds > 0.0, "{cost:?}");
    let changed = pipeline(&TUNED.replace("rank: 2", "rank: 3"));
    std::fs::write(one.path("pipeline.yaml"), changed).unwrap();
    let before = version(&one, "s");
    let two = one.with_models(&RealModels::default()).unwrap();
    let plan =
        two.epoch("s", Options { dry: true, resolve: true, workers: 1, ..Options::default() }).unwrap();
    assert_eq!(training(&plan).0, cost, "as many examples, and twice each");
    assert!((training(&plan).1 - seconds).abs() < 1e-9, "at the pace of the first time");
    let run = two.epoch("s", Options { workers: 1, ..Options::default() }).unwrap();
    assert_eq!(training(&run).0, cost);
    assert_ne!(version(&two, "s"), before);
    check(&two, "s");
}

#[test]
fn a_relevance_model_that_was_trained_judges_otherwise() {
    let judged = "  judged:
    { op: reward_trainer, in: [events, label, prompt], updates: relevance, with: { template: relevance.jinja, last: 2, held_out: 0.6, training: { rank: 2, batch: 2, epochs: 2, learning_rate: 0.02 } } }
";
    let (plain, trained) = (bench("").unwrap(), bench(judged).unwrap());
    for bench in [&plain, &trained] {
        bench.epoch("s", Options { workers: 1, ..Options::default() }).unwrap();
    }
    check(&trained, "s");
    assert_eq!(rows(&plain, "s", "novel"), rows(&trained, "s", "novel"));
    assert_ne!(rows(&plain, "s", "scored"), rows(&trained, "s", "scored"));
    let figures = rows(&trained, "s", "judged");
    for figure in ["ranked", "held_out", "held_out_untuned", "held_out_popularity", "held_out_markov"] {
        assert!(figures.iter().any(|row| row.contains(&format!("\"{figure}\""))), "{figure}: {figures:?}");
    }
    let wrong = bench(&judged.replace("updates: relevance", "updates: novelty")).err().unwrap();
    assert!(wrong.contains("makes no versions of `novelty`, a language_model"), "{wrong}");
    // Another template is another model.
    let other = bench(&judged.replace("relevance.jinja", "novelty2.jinja"));
    assert!(other.err().unwrap().contains("cannot read"));
}

#[test]
fn some_of_those_kept_out_choose_where_training_ends_and_the_others_judge() {
    let with = |more: &str, seed: u64| {
        let nodes = TUNED.replace("held_out: 0.6", "held_out: 0.75");
        bench(&nodes.replace("rank: 2,", &format!("rank: 2, seed: {seed}, {more}"))).unwrap()
    };
    let figures = |bench: &Bench| -> BTreeMap<(u64, String), f64> {
        let snapshot = bench.state("s").unwrap().snapshot().unwrap();
        let rows = Tables::new(snapshot.layered("tables")).rows("tuned").unwrap();
        let figure = |key: &Row, row: &Row| {
            Some(((key[0].as_u64()?, key[1].as_text()?.to_string()), row[0].as_f64()?))
        };
        rows.into_iter().filter_map(|((key, row), _)| figure(&key, &row)).collect()
    };
    let once = || Options { workers: 1, ..Options::default() };
    let (mut tried, mut refused) = (0, 0);
    for seed in 0..8 {
        let chosen = with("choose_every: 99,", seed);
        match chosen.epoch("s", once()) {
            Err(error) => {
                // Of four users nobody may be left to train on, to choose or to judge.
                let (error, nobody) = (error.to_string(), "a larger `held_out` gives some");
                assert!(error.contains(nobody) || error.contains("no click could be learnt"), "{error}");
                refused += u32::from(error.contains(nobody));
                continue;
            }
            Ok(_) => tried += 1,
        }
        check(&chosen, "s");
        let plain = with("", seed);
        plain.epoch("s", once()).unwrap();
        // Tried once, at the end: the same numbers are judged by all of them, and by each half.
        let (ours, theirs) = (figures(&chosen), figures(&plain));
        let last = theirs.keys().map(|(step, _)| *step).max().unwrap();
        let of = |figures: &BTreeMap<(u64, String), f64>, name: &str| figures[&(last, name.to_string())];
        let (chose, judged) = (-of(&ours, "choosing_loss"), of(&ours, "held_out"));
        let all = of(&theirs, "held_out");
        assert_eq!(of(&ours, "chosen_step") as u64, last);
        assert!(chose.min(judged) < all && all < chose.max(judged), "{chose} {judged} {all}");
        assert!(theirs.keys().all(|(_, name)| name != "choosing_loss" && name != "chosen_step"));
        // Of several trials the best one is what is in use.
        let often = with("choose_every: 1,", seed);
        often.epoch("s", once()).unwrap();
        let figures = figures(&often);
        let losses = (1..=last).map(|step| (figures[&(step, "choosing_loss".to_string())], step));
        let best = losses.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap().1;
        assert_eq!(of(&figures, "chosen_step") as u64, best);
    }
    assert!(tried > 0 && refused > 0, "{tried} {refused}");
}

#[test]
fn rewards_are_divided_by_the_temperature_of_the_model() {
    let judged = "  judged:
    { op: reward_trainer, in: [events, label, prompt], updates: relevance, with: { template: relevance.jinja, last: 2, held_out: 0.6, training: { rank: 2, batch: 2, epochs: 2, learning_rate: 0.02 } } }
";
    let with = |model: &str, nodes: &str, parameters: &str| {
        let text = pipeline(nodes);
        let line = text.lines().find(|line| line.trim_start().starts_with(&format!("{model}: {{"))).unwrap();
        tuned::bench(&text.replace(line, &line.replace(" }", &format!(", with: {parameters} }}"))))
    };
    let scores = |bench: &Bench| -> Vec<f64> {
        bench.epoch("s", Options { workers: 1, ..Options::default() }).unwrap();
        let rows = rows(bench, "s", "scored").join(" ");
        let cells = rows.split(|c: char| !(c.is_ascii_digit() || c == '.'));
        cells.filter(|cell| cell.contains('.')).filter_map(|cell| cell.parse().ok()).collect()
    };
    let plain = bench("").unwrap();
    let hot = with("relevance", "", "{ temperature: 1000 }").unwrap();
    let (sure, unsure) = (scores(&plain), scores(&hot));
    assert!(sure.len() == unsure.len() && sure.iter().any(|rate| (rate - 0.5).abs() > 0.05), "{sure:?}");
    assert!(unsure.iter().all(|rate| (rate - 0.5).abs() < 0.01), "{unsure:?}");
    // What was trained at another temperature is another version.
    let versions = ["{ temperature: 1 }", "{ temperature: 4 }"].map(|parameters| {
        let bench = with("relevance", judged, parameters).unwrap();
        scores(&bench);
        check(&bench, "s");
        rows(&bench, "s", "judged")
    });
    assert_ne!(versions[0], versions[1]);
    let wrong = with("relevance", "", "{ temperature: 0 }").err().unwrap();
    assert!(wrong.contains("`temperature` of a reward_model must be a positive number"), "{wrong}");
    let wrong = with("relevance", "", "{ temprature: 2 }").err().unwrap();
    assert!(wrong.contains("did you mean `temperature`?"), "{wrong}");
    let wrong = with("novelty", "", "{ temperature: 2 }").err().unwrap();
    assert!(wrong.contains("only a model on a server and a reward_model take parameters"), "{wrong}");
}

/// The digest of the model without an adapter.
fn base(bench: &Bench) -> String {
    bench.state("s").unwrap().memo.keep_artifact(b"").unwrap();
    blake3::hash(b"").to_hex().to_string()
}

#[test]
fn a_promotion_is_a_delta_that_a_plan_prices() {
    let (plain, bench) = (bench("").unwrap(), bench(TUNED).unwrap());
    plain.epoch("s", Options { workers: 1, ..Options::default() }).unwrap();
    bench.epoch("s", Options { workers: 1, ..Options::default() }).unwrap();
    let (tuned, store) = (version(&bench, "s"), bench.dump("s").unwrap());
    want(&bench.state("s").unwrap(), "tuned/version", &base(&bench)).unwrap();

    let plan =
        bench.epoch("s", Options { dry: true, resolve: true, workers: 1, ..Options::default() }).unwrap();
    assert_eq!(plan.spec_changes, [("tuned".to_string(), "version")]);
    let keys = rows(&bench, "s", "prompt").len() as u64;
    assert_eq!(plan.language_calls(), keys, "every prompt of the novelty model, and none of the other");
    // A budget cuts it off with nothing half done; what was answered is kept.
    let short = Options { workers: 1, max_calls: Some(2), ..Options::default() };
    assert_eq!(bench.epoch("s", short).err().unwrap().exit_code(), 4);
    assert_eq!((version(&bench, "s"), bench.dump("s").unwrap()), (tuned.clone(), store.clone()));
    let run = bench.epoch("s", Options { workers: 1, ..Options::default() }).unwrap();
    assert_eq!(run.language_calls(), keys - 2);
    assert_eq!(rows(&bench, "s", "novel"), rows(&plain, "s", "novel"));
    assert_eq!(rows(&bench, "s", "tuned"), Vec::<String>::new());
    check(&bench, "s");

    // Going back costs nothing while the memo remembers.
    want(&bench.state("s").unwrap(), "tuned/version", &tuned).unwrap();
    let back = bench.epoch("s", Options { workers: 2, ..Options::default() }).unwrap();
    assert_eq!((back.language_calls(), version(&bench, "s")), (0, tuned));
    check(&bench, "s");
    let again = bench.epoch("s", Options { workers: 1, ..Options::default() }).unwrap();
    assert_eq!(again.epoch, back.epoch, "there is nothing more to do");
}

#[test]
fn a_version_is_exported_promoted_and_rolled_back_by_hand() {
    let bench = bench(TUNED).unwrap();
    let run = |args: &[&str]| bench.command(BINARY, &[args, &["--state", "s"]].concat()).unwrap();
    let models =
        |what: &str, rest: &[&str]| run(&[&["models", what, "pipeline.yaml", "novelty"], rest].concat());
    assert_eq!(models("rollback", &[]).0, 1, "nothing was run yet");
    assert_eq!(run(&["run", "pipeline.yaml"]).0, 0);
    let (code, listed, _) = run(&["models", "versions", "pipeline.yaml"]);
    assert_eq!((code, listed.lines().count()), (0, 1));
    assert!(
        listed.contains("sft_trainer") && listed.contains("epoch 1") && listed.contains("in use"),
        "{listed}"
    );

    assert_eq!(models("export", &["adapter"]).0, 0);
    let config = std::fs::read_to_string(bench.path("adapter/adapter_config.json")).unwrap();
    assert!(config.contains("\"r\": 2"), "{config}");
    assert_eq!(models("export", &["adapter"]).0, 64, "it is there already");
    let store = run(&["dump", "pipeline.yaml", "--table", "store"]).1;

    let (code, _, said) = models("promote", &["base"]);
    assert!(code == 0 && said.contains("coea-engine plan pipeline.yaml"), "{said}");
    assert!(run(&["models", "versions", "pipeline.yaml"]).1.contains("wanted by the next run"));
    assert_eq!(run(&["plan", "pipeline.yaml", "--detailed-exitcode"]).0, 2);
    assert_eq!(run(&["run", "pipeline.yaml"]).0, 0);
    assert_ne!(run(&["dump", "pipeline.yaml", "--table", "store"]).1, store);
    assert_eq!(models("export", &["nothing"]).0, 1, "the model as it is has no adapter");

    // What was exported is what was trained: it serves the same.
    assert_eq!(models("promote", &["adapter"]).0, 0);
    assert_eq!(run(&["run", "pipeline.yaml"]).0, 0);
    let versions = |dump: &str| -> Vec<String> {
        dump.lines().map(|line| line.split("\"categories\"").nth(1).unwrap().to_string()).collect()
    };
    assert_eq!(versions(&run(&["dump", "pipeline.yaml", "--table", "store"]).1), versions(&store));
    assert_eq!(models("rollback", &[]).0, 0);
    assert_eq!(run(&["run", "pipeline.yaml"]).0, 0);
    let (_, listed, _) = run(&["models", "versions", "pipeline.yaml"]);
    let used: Vec<&str> = listed.lines().filter(|line| line.ends_with("in use")).collect();
    assert!(used.len() == 1 && used[0].contains("base"), "{listed}");
    assert_eq!(run(&["models", "versions", "pipeline.yaml", "--format", "json"]).1.lines().count(), 3);
    assert_eq!(models("promote", &["zz"]).0, 1);
    assert_eq!(run(&["models", "promote", "pipeline.yaml", "relevance", "base"]).0, 64);
}

#[test]
fn a_label_prior_goes_with_its_labels() {
    let few = pipeline("").replace("mapping: set, min_clicks: 2", "mapping: set, min_clicks: 9");
    let one = bench("").unwrap();
    std::fs::write(one.path("pipeline.yaml"), few).unwrap();
    let one = one.with_models(&RealModels::default()).unwrap();
    one.epoch("s", Options { workers: 1, ..Options::default() }).unwrap();
    std::fs::write(one.path("pipeline.yaml"), pipeline("")).unwrap();
    let two = one.with_models(&RealModels::default()).unwrap();
    two.epoch("s", Options { workers: 1, ..Options::default() }).unwrap();
    let snapshot = two.state("s").unwrap().snapshot().unwrap();
    let tables = Tables::new(snapshot.layered("tables"));
    // Of each row the texts in the lists of a column.
    let names = |table: &str, column: usize| -> BTreeSet<String> {
        let rows = tables.rows(table).unwrap();
        let cells = rows.iter().flat_map(|((_, row), _)| row[column].as_list().unwrap().to_vec());
        let name = |cell: Value| cell.as_list().map_or(cell.clone(), |pair| pair[0].clone());
        cells.map(|cell| name(cell).as_text().unwrap().to_string()).collect()
    };
    let (labels, proposed) = (names("label", 0), names("novel", 1));
    assert!(proposed.len() > 1 && proposed.is_subset(&labels), "{proposed:?} of {labels:?}");
}

#[test]
fn what_cannot_be_trained_is_told_where_it_stands() {
    let refused = |nodes: &str| bench(nodes).err().unwrap();
    let twice = format!("{TUNED}{}", TUNED.replace("tuned:", "more:"));
    assert!(refused(&twice).contains("`novelty` is already updated by `tuned`"));
    let wrong = refused(&TUNED.replace("updates: novelty, ", ""));
    assert!(wrong.contains("add `updates: NAME` to the node"), "{wrong}");
    let wrong = refused(&TUNED.replace("updates: novelty", "updates: relevance"));
    assert!(wrong.contains("makes no versions of `relevance`, a reward_model"), "{wrong}");
    let wrong = refused(&TUNED.replace("updates: novelty", "updates: novelty, model: novelty"));
    assert!(wrong.contains("wait for each other"), "{wrong}");
    let wrong = refused(&TUNED.replace("last: 2", "last: 0").replace("rank: 2", "rank: 0"));
    assert!(wrong.contains("`rank` must be at least 1") && wrong.contains("last"), "{wrong}");
    let wrong = refused(&TUNED.replace("last: 2", "last: 3"));
    assert!(wrong.contains("have seen all but the newest 2 of each user's events"), "{wrong}");
    assert!(wrong.contains("at most 2, or `exclude_last: 3` in the click_filter"), "{wrong}");
    let wrong = refused(&TUNED.replace("label, prompt]", "interest, group]"));
    assert!(wrong.contains("name a prompt_builder"), "{wrong}");
    // Asking the model that one trains oneself would be a circle.
    let writes =
        "  words: { op: llm_generate, in: profile, model: novelty, with: { template: relevance.jinja } }\n";
    let circle = TUNED.replace("label, prompt]", "label, prompt, words]");
    assert!(refused(&format!("{writes}{circle}")).contains("wait for each other"));
}
