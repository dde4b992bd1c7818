//! Collective feedback: what is counted, what is learnt from it, and `pipelines/google-v1.yaml` from a
//! planted world to what is served.
//!
//! The model is a small random one in the form models are published in, so training and scores are real.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, fs, path::Path};

use coea_engine::{
    models::RealModels,
    oracle::{self, Calls},
    runtime::driver::Options,
    state::tables::Tables,
    testing::Bench,
    verify,
    world::{Parameters, Truth, generate},
};
use coea_operators::row::{Row, Value};

const PIPELINE: &str = include_str!("common/pipeline.yaml");
const GENRES: [&str; 6] = ["Drama|War", "Comedy", "Sci-Fi|Drama", "War", "Noir|Comedy", "Drama"];
const USERS: &str = "user_id,age,job\n1,20,nurse\n2,30,cook\n3,40,nurse\n4,50,cook\n";
const CHAT: &str = "<|im_start|>user\n{{ profile }}. Lately {{ recent | join(', ') }}. Next?<|im_end|>\n<|im_start|>assistant\n";
const SHOWN: &str = "  shown:
    connector: files
    with: { path: shown.csv, format: csv, columns: { user_id: u64, item_id: u64, timestamp: timestamp, clicked: bool }, time: { column: timestamp } }
";
const FEEDBACK: &str = "  feedback: { op: feedback_aggregator, in: [shown, label, recent], with: { clicked: clicked, min_exposures: 4 } }\n";
const RATES: &str = "  judged: { op: reward_trainer, in: [events, label, prompt, feedback], updates: relevance, with: { template: relevance.jinja, objective: pointwise, serve: 1, held_out: 0.4, training: { rank: 2, batch: 2, epochs: 8, learning_rate: 0.02 } } }\n";
const PAIRS: &str = "  judged: { op: reward_trainer, in: [events, label, prompt, feedback], updates: relevance, with: { template: relevance.jinja, last: 2, negatives: exposures, held_out: 0.6, training: { rank: 2, batch: 2, epochs: 2, learning_rate: 0.02 } } }\n";

/// User, item, time and whether it was clicked: two items every second, for three minutes.
fn shown() -> Vec<(u64, u64, u64, bool)> {
    let of = |n: u64| {
        let (user, item) = (1 + n % 4, 1 + (n * 5 + n / 7) % 6);
        (user, item, n / 2, (n * 7 + n / 3).is_multiple_of(2 + (user + item) % 3))
    };
    (0..360).map(of).collect()
}

fn base() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("operators/lm/fixtures/llama").display().to_string()
}

fn bench(nodes: &str) -> Result<Bench, String> {
    let items: String = (1..).zip(GENRES).map(|(item, genres)| format!("{item},{genres}\n")).collect();
    let (mut clicks, mut all) = (String::new(), String::new());
    for (user, item, time, clicked) in shown() {
        all += &format!("{user},{item},{time},{clicked}\n");
        if clicked {
            clicks += &format!("{user},{item},5,{time}\n");
        }
    }
    let files = [
        ("pipeline.yaml", PIPELINE),
        ("novelty.jinja", CHAT),
        ("relevance.jinja", CHAT),
        ("events.csv", &format!("user_id,item_id,rating,timestamp\n{clicks}")),
        ("shown.csv", &format!("user_id,item_id,timestamp,clicked\n{all}")),
        ("items.csv", &format!("item_id,genres\n{items}")),
        ("users.csv", USERS),
    ];
    let bench = Bench::new(&files)?;
    let text = PIPELINE.replace("base: small", &format!("base: {}", base()));
    let text = text.replace("models:\n", &format!("{SHOWN}models:\n"));
    let text = text.replace("sinks:\n", &format!("{nodes}sinks:\n"));
    fs::write(bench.path("pipeline.yaml"), text).map_err(|e| e.to_string())?;
    bench.with_models(&RealModels::default())
}

fn table(bench: &Bench, name: &str) -> Vec<(Row, Row)> {
    let snapshot = bench.state("s").unwrap().snapshot().unwrap();
    let rows = Tables::new(snapshot.layered("tables")).rows(name).unwrap();
    rows.into_iter().map(|((key, row), _)| (key, row)).collect()
}

fn figures(bench: &Bench, name: &str) -> BTreeMap<String, f64> {
    let rows = table(bench, name).into_iter();
    rows.map(|(key, row)| (key[1].to_string(), row[0].as_f64().unwrap())).collect()
}

/// Runs it, and holds it against the oracle.
fn run(bench: &Bench, options: Options) {
    bench.epoch("s", options).unwrap();
    let state = bench.state("s").unwrap();
    let fresh = oracle::recompute(&bench.plan, &state, Calls::Again).unwrap();
    let differences = verify::compare(&bench.plan, &state, &fresh).unwrap();
    assert!(differences.is_empty(), "{} differences", differences.len());
}

fn once() -> Options {
    Options { workers: 1, ..Options::default() }
}

/// What a person would count: by the genres of the last three clicks before, two of them, newest first.
fn by_hand(
    labels: &BTreeMap<u64, Vec<String>>,
    rarest: &dyn Fn(u64) -> Vec<String>,
) -> BTreeMap<(Vec<String>, String), (u64, u64)> {
    let mut counted: BTreeMap<_, (u64, u64)> = BTreeMap::new();
    for (user, item, time, clicked) in shown() {
        let before = shown().into_iter().filter(|(u, _, t, c)| *u == user && *t < time && *c);
        let mut before: Vec<(u64, u64)> = before.map(|(_, item, t, _)| (t, item)).collect();
        before.sort_unstable();
        let mut recent: Vec<String> = Vec::new();
        for genre in before.iter().rev().take(3).flat_map(|(_, item)| rarest(*item)) {
            if recent.len() < 2 && !recent.contains(&genre) {
                recent.push(genre);
            }
        }
        recent.sort();
        for label in labels[&item].iter().filter(|_| !recent.is_empty()) {
            let (exposures, clicks) = counted.entry((recent.clone(), label.clone())).or_default();
            *exposures += 1;
            *clicks += u64::from(clicked);
        }
    }
    counted
}

fn lists(bench: &Bench, node: &str) -> BTreeMap<u64, Vec<String>> {
    let texts = |cell: &Value| cell.as_list().unwrap().iter().map(ToString::to_string).collect();
    let item = |key: &Row| key[0].to_string().parse().unwrap();
    table(bench, node).into_iter().map(|(key, row)| (item(&key), texts(&row[0]))).collect()
}

#[test]
fn rates_are_what_a_person_would_count_and_stand_still() {
    let bench = bench(FEEDBACK).unwrap();
    run(&bench, once());
    let (labels, genres) = (lists(&bench, "label"), lists(&bench, "interest"));
    let by_hand = by_hand(&labels, &|item| genres[&item].clone());
    let number = |cell: &Value| cell.to_string().parse::<u64>().unwrap();
    let texts =
        |cell: &Value| cell.as_list().unwrap().iter().map(ToString::to_string).collect::<Vec<String>>();
    let rows = table(&bench, "feedback");
    let found: BTreeMap<_, _> = rows
        .iter()
        .map(|(key, row)| ((texts(&key[0]), key[1].to_string()), (number(&row[0]), number(&row[1]))))
        .collect();
    let enough = by_hand.iter().filter(|(_, (exposures, _))| *exposures >= 4);
    assert_eq!(found, enough.map(|(pair, counts)| (pair.clone(), *counts)).collect());
    assert!(found.len() > 10 && found.len() < by_hand.len(), "{} of {}", found.len(), by_hand.len());
    for (key, row) in &rows {
        let of = by_hand.iter().filter(|((_, candidate), _)| *candidate == key[1].to_string());
        let (exposures, clicks) =
            of.fold((0, 0), |(e, c), (_, (exposures, clicks))| (e + exposures, c + clicks));
        let [rate, prior, normalised] = [2, 3, 4].map(|at| row[at].as_f64().unwrap());
        assert!((prior - clicks as f64 / exposures as f64).abs() < 1e-12);
        assert!((normalised - rate / (rate + prior)).abs() < 1e-12);
    }
    // More that is shown is for the next fit: what was counted is a version.
    let more = "user_id,item_id,timestamp,clicked\n1,2,400,true\n1,2,401,true\n2,3,400,false\n";
    run(&bench, bench.deltas(&[("shown", more)]).unwrap());
    assert_eq!(table(&bench, "feedback"), rows);
}

#[test]
fn a_model_of_rates_says_rates() {
    let nodes = format!("{FEEDBACK}{RATES}");
    let plain = bench(FEEDBACK).unwrap();
    let trained = bench(&nodes).unwrap();
    for bench in [&plain, &trained] {
        run(bench, once());
    }
    assert_eq!(table(&plain, "novel"), table(&trained, "novel"));
    assert_ne!(table(&plain, "scored"), table(&trained, "scored"));
    let figures = figures(&trained, "judged");
    for figure in ["", "_calibration", "_f1", "_ndcg"] {
        for of in ["", "_untuned", "_counted"] {
            let value = figures.get(&format!("held_out{figure}{of}"));
            assert!(value.is_some_and(|value| value.is_finite()), "held_out{figure}{of}: {figures:?}");
        }
    }
    let most = figures["held_out_most"];
    assert!(
        ["", "_untuned", "_counted"].iter().all(|of| figures[&format!("held_out{of}")] <= most),
        "{figures:?}"
    );
    // What it was trained on it says better than before, and steps have a figure for it.
    let steps: Vec<f64> = table(&trained, "judged")
        .into_iter()
        .filter(|(key, _)| key[1].to_string() == "apart")
        .map(|(_, row)| row[0].as_f64().unwrap())
        .collect();
    let (first, last) = (&steps[..4], &steps[steps.len() - 4..]);
    assert!(last.iter().sum::<f64>() < first.iter().sum::<f64>(), "{steps:?}");
}

#[test]
fn pairs_may_be_made_with_what_was_passed_over() {
    let exposed = bench(&format!("{FEEDBACK}{PAIRS}")).unwrap();
    let clicked = bench(&format!(
        "{FEEDBACK}{}",
        PAIRS.replace(", feedback]", "]").replace("negatives: exposures, ", "")
    ))
    .unwrap();
    for bench in [&exposed, &clicked] {
        run(bench, once());
    }
    assert_eq!(table(&exposed, "novel"), table(&clicked, "novel"));
    assert_ne!(table(&exposed, "scored"), table(&clicked, "scored"));
    let [exposed, clicked] = [&exposed, &clicked].map(|bench| figures(bench, "judged"));
    for name in ["held_out", "held_out_untuned", "held_out_popularity", "held_out_markov"] {
        assert!((0.0..=1.0).contains(&exposed[name]), "{exposed:?}");
    }
    assert_ne!(exposed["held_out_popularity"], clicked["held_out_popularity"], "other pairs are ranked");
}

#[test]
fn scores_are_rates_shifts_or_win_rates_as_is_asked() {
    let scores = |normalise: &str| {
        let bench = bench("").unwrap();
        let text = fs::read_to_string(bench.path("pipeline.yaml")).unwrap();
        let with = format!("template: relevance.jinja{normalise} }} }}\n  aligned");
        fs::write(
            bench.path("pipeline.yaml"),
            text.replace("template: relevance.jinja } }\n  aligned", &with),
        )
        .unwrap();
        let bench = bench.with_models(&RealModels::default())?;
        run(&bench, once());
        let pairs = |row: &Row| -> Vec<f64> {
            row[1]
                .as_list()
                .unwrap()
                .iter()
                .map(|pair| pair.as_list().unwrap()[1].as_f64().unwrap())
                .collect()
        };
        Ok::<_, String>(table(&bench, "scored").iter().map(|(_, row)| pairs(row)).collect::<Vec<_>>())
    };
    let given = scores("").unwrap();
    assert_eq!(given, scores(", normalise: win_rate").unwrap());
    let [centred, sigmoid] =
        ["centred", "sigmoid"].map(|how| scores(&format!(", normalise: {how}")).unwrap());
    // The same order of candidates, and other numbers.
    for other in [&centred, &sigmoid] {
        assert_ne!(&given, other);
        for (a, b) in given.iter().zip(other) {
            for (i, j) in (0..a.len()).flat_map(|i| (0..i).map(move |j| (i, j))) {
                assert_eq!(a[i] > a[j], b[i] > b[j], "{a:?} {b:?}");
            }
        }
    }
    // Log odds of the two differ by a number of the key's own.
    let odds = |p: &f64| (p / (1.0 - p)).ln();
    for (a, b) in centred.iter().zip(&sigmoid) {
        let shifts: Vec<f64> = a.iter().zip(b).map(|(a, b)| odds(a) - odds(b)).collect();
        assert!(shifts.iter().all(|shift| (shift - shifts[0]).abs() < 1e-6), "{shifts:?}");
    }
    let wrong = scores(", normalise: sigmoid, against: clicked").err().unwrap();
    assert!(wrong.contains("compared with nobody"), "{wrong}");
}

#[test]
fn what_makes_no_sense_is_told_where_it_stands() {
    let refused = |nodes: &str| bench(nodes).err().unwrap_or_default();
    let case = |nodes: String, words: &str| {
        let said = refused(&nodes);
        assert!(said.contains(words), "`{words}` is not in: {said}");
    };
    let feedback = |from: &str, to: &str| FEEDBACK.replace(from, to);
    case(feedback("clicked: clicked", "clicked: item_id"), "`item_id` of `shown` is u64, not bool");
    case(feedback("clicked: clicked", "clicked: liked"), "`shown` has no column `liked`");
    case(feedback("min_exposures: 4", "min_exposures: 0"), "must be at least 1");
    case(feedback("min_exposures: 4", "round: 0.7"), "must be above 0 and at most 0.5");
    case(feedback("recent]", "label]"), "folds no clicks");
    case(feedback("recent]", "prompt]"), "`prompt` has no column `categories`");
    case(feedback("label, recent]", "recent, recent]"), "does not define labels");
    let own = "  lately: { op: recent_categories, in: [shown, interest], with: { last: 3, keep: 2 } }\n";
    case(format!("{own}{}", feedback("recent]", "lately]")), "`lately` folds everything that `shown` showed");

    let with = |from: &str, to: &str| format!("{FEEDBACK}{}", RATES.replace(from, to));
    case(with(", feedback]", "]"), "input 4 is missing: the feedback_aggregator");
    case(with(", feedback]", ", recent]"), "`recent` aggregates no feedback");
    case(with("serve: 1", "serve: 0"), "must be at least 1");
    case(with("serve: 1", "last: 3"), "only `objective: pairwise` reads this");
    case(with("serve: 1", "negatives: exposures"), "only `objective: pairwise` reads this");
    case(with("objective: pointwise, ", ""), "only `objective: pointwise` reads this");
    let other = "  lately: { op: recent_categories, in: [events, interest], with: { last: 3, keep: 1 } }\n";
    let theirs = format!("{other}{}{RATES}", feedback("recent]", "lately]"));
    case(theirs, "`feedback` counts by other interests than the prompts of `prompt` say");
    case(
        format!("{}{RATES}", feedback("label, recent]", "interest, recent]")),
        "judges other labels than those of `label`",
    );

    let with = |from: &str, to: &str| format!("{FEEDBACK}{}", PAIRS.replace(from, to));
    case(with("negatives: exposures, ", ""), "nothing is learnt from `feedback`");
    case(with("last: 2, ", ""), "how many of each user's newest events");
    case(with("last: 2, ", "last: 2, targets: novel, "), "exposures are of labels a user has met");
}

#[test]
fn best_of_n_runs_from_a_planted_world_to_what_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let pipelines = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
    let text = fs::read_to_string(pipelines.join("google-v1.yaml")).unwrap();
    let text = text.replace("smollm2-135m-instruct", &base()).replace("layers: 4", "layers: 1");
    let text = text.replace("max_steps: 200", "max_steps: 4").replace("epochs: 2", "max_steps: 4");
    fs::write(place("pipeline.yaml"), text.replace("min_exposures: 10", "min_exposures: 3")).unwrap();
    for name in ["prompts", "google-v1"] {
        fs::create_dir(place(name)).unwrap();
    }
    for name in ["prompts/pair_novelty.jinja", "prompts/pair_relevance.jinja", "google-v1/profiles.csv"] {
        fs::copy(pipelines.join(name), place(name)).unwrap();
    }
    let parameters = Parameters {
        seed: 3,
        users: 100,
        items: 120,
        categories: 40,
        groups: 4,
        interactions: 20_000,
        days: 6,
        ..Parameters::default()
    };
    generate(&Truth::new(parameters).unwrap(), &place("world"), &|_, _| {}).unwrap();

    let bench = Bench::at(folder.path()).unwrap().with_models(&RealModels::default()).unwrap();
    let planned = bench.epoch("s", Options { dry: true, resolve: true, ..once() }).unwrap();
    assert_eq!(planned.nodes.iter().filter(|node| node.trains).count(), 2);
    assert!(!place("s").exists());
    let report = bench.epoch("s", once()).unwrap();
    let keys = |node: &str| report.nodes.iter().find(|n| n.node == node).unwrap().keys;
    // Every pair of categories that a user has, and what is asked for users without any.
    let pairs: std::collections::BTreeSet<String> =
        table(&bench, "recent").iter().map(|(_, row)| row[0].to_string()).collect();
    assert_eq!(keys("prompt"), pairs.len() as u64 + 2);
    assert!(pairs.len() > 40 && keys("feedback") > 100, "{} {}", pairs.len(), keys("feedback"));
    let cells = |table: &[(Row, Row)]| -> Vec<usize> {
        table.iter().map(|(_, row)| row[1].as_list().unwrap().len()).collect()
    };
    assert!(cells(&table(&bench, "novel")).iter().all(|n| *n == 25));
    assert!(cells(&table(&bench, "best")).iter().all(|n| *n == 5));
    let figures = figures(&bench, "judged");
    assert!(figures.contains_key("held_out_f1") && figures.contains_key("held_out_ndcg"), "{figures:?}");
    run(&bench, once());
}
