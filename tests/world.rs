//! Planted worlds as a user meets them: the command that makes one, and `pipelines/world.yaml` on it
//! with a stand-in for the language model.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use coea_engine::{
    runtime::driver::Options,
    testing::Bench,
    world::{Parameters, Truth, generate},
};

const BINARY: &str = env!("CARGO_BIN_EXE_coea-engine");

fn small() -> Truth {
    let parameters = Parameters {
        seed: 3,
        users: 100,
        items: 120,
        categories: 20,
        groups: 4,
        interactions: 20_000,
        days: 6,
        ..Parameters::default()
    };
    Truth::new(parameters).unwrap()
}

#[test]
fn the_pipeline_runs_on_a_world_and_takes_a_day_as_a_delta() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let pipelines = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
    fs::create_dir(place("prompts")).unwrap();
    fs::copy(pipelines.join("world.yaml"), place("pipeline.yaml")).unwrap();
    for name in ["prompts/shop_novelty.jinja", "prompts/shop_relevance.jinja"] {
        fs::copy(pipelines.join(name), place(name)).unwrap();
    }
    let written = generate(&small(), &place("world"), &|_, _| {}).unwrap();
    fs::rename(place("world/events/day-00005.parquet"), place("tomorrow")).unwrap();

    let bench = Bench::at(folder.path()).unwrap();
    let once = || Options { workers: 1, ..Options::default() };
    let rows = |report: &coea_engine::runtime::report::Report| {
        let of = |name: &str| {
            report.inputs.iter().filter(|input| input.source == name).map(|i| i.rows).sum::<u64>()
        };
        assert!(report.inputs.iter().all(|input| input.rejected == 0));
        [of("events"), of("items"), of("users")]
    };
    let first = bench.epoch("state", once()).unwrap();
    let [events, items, users] = rows(&first);
    assert_eq!((first.epoch, items, users), (1, 120, 100));
    let keys = |node: &str| first.nodes.iter().find(|n| n.node == node).unwrap().keys;
    assert!(keys("group") > 60 && keys("aligned") > 40, "{} {}", keys("group"), keys("aligned"));

    fs::rename(place("tomorrow"), place("world/events/day-00005.parquet")).unwrap();
    let second = bench.epoch("state", once()).unwrap();
    assert_eq!(second.epoch, 2);
    let [more, none, nobody] = rows(&second);
    assert!(more > 100, "{more}");
    assert_eq!((events + more, none, nobody), (written.clicks, 0, 0));

    // The loop closes: what users do with a recommendation is the next delta.
    let line = |user: u64| {
        format!("{{\"user\":{user},\"day\":6,\"categories\":[\"Garden Tools\",\"Office Books\"]}}\n")
    };
    fs::write(place("lists.jsonl"), (1..=100).map(line).collect::<String>()).unwrap();
    let [lists, answers] = ["lists.jsonl", "answers.csv"].map(|name| place(name).display().to_string());
    let output = judge(&place("world"), &["--input", &lists, "--events", &answers]);
    assert!(output.status.success(), "{}", stderr(&output));
    let answered = String::from_utf8(output.stdout).unwrap();
    let clicks = answered.matches("\"clicked\":true").count() as u64;
    let delta = Options { deltas: vec![("events".to_string(), place("answers.csv"))], ..once() };
    let third = bench.epoch("state", delta).unwrap();
    assert_eq!(rows(&third), [clicks, 0, 0]);
    assert!(clicks > 10 && third.nodes.iter().find(|n| n.node == "recent").unwrap().changed > 0, "{clicks}");
}

fn run(arguments: &[&str], folder: &Path) -> Output {
    Command::new(BINARY).args(["data", "generate"]).arg(folder).args(arguments).output().unwrap()
}

fn judge(world: &Path, arguments: &[&str]) -> Output {
    Command::new(BINARY).args(["data", "judge"]).arg(world).args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const SMALL: [&str; 6] = ["--users", "100", "--interactions", "5000", "--days", "4"];

#[test]
fn a_world_is_described_by_what_the_command_prints() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("world");
    let more = ["--items", "50", "--categories", "12", "--groups", "3", "--seed", "9", "--set", "drift=0"];
    let output = run(&[&SMALL[..], &more, &["--format", "json", "--threads", "1"]].concat(), &place);
    let said = stderr(&output);
    assert!(output.status.success() && said.is_empty(), "{said}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["interactions"], &report["files"]), (&5_000.into(), &7.into()));
    let truth = Truth::restore(&place.join("world.json")).unwrap();
    assert_eq!(report["parameters"], serde_json::to_value(truth.parameters()).unwrap());
    let parameters = truth.parameters();
    assert_eq!((parameters.users, parameters.items, parameters.categories), (100, 50, 12));
    assert_eq!((parameters.groups, parameters.days, parameters.seed), (3, 4, 9));
    assert_eq!((parameters.drift, parameters.burst), (0.0, Parameters::default().burst));

    // The same in text, from an empty folder that is there.
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    let output = run(&[&SMALL[..], &more].concat(), &other);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("100 users, 50 items, 5000 interactions"), "{text}");
    for name in ["world.json", "users.parquet", "items.parquet", "events/day-00003.parquet"] {
        assert!(fs::read(place.join(name)).unwrap() == fs::read(other.join(name)).unwrap(), "{name}");
    }
}

#[test]
fn wrong_numbers_are_told_with_a_remedy_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("world");
    let case = |arguments: &[&str], code: i32, words: &[&str]| {
        let output = run(arguments, &place);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty());
        for word in words {
            assert!(said.contains(word), "{arguments:?}: `{word}` is not in: {said}");
        }
    };
    case(&["--users", "0", "--days", "0"], 64, &["error: `users` is 0", "error: `days` is 0", "at least 1"]);
    case(&["--interactions", "77777"], 64, &["`interactions` is 77777", "a multiple of 10", "77770"]);
    case(&["--interactions", "10"], 64, &["at least 10000: a slate of 10 for each user"]);
    case(&["--categories", "700"], 64, &["`items` is 600", "at least 700"]);
    case(&["--shape", "large"], 64, &["[possible values: small, movielens, mtrec]"]);
    case(&["--items", "many"], 64, &["'many'", "--items"]);
    case(&["--set", "drfit=0"], 64, &["no parameter `drfit`", "did you mean `drift`?"]);
    case(&["--set", "drift"], 64, &["not of the form NAME=VALUE"]);
    case(&["--set", "drift=a lot"], 64, &["`drift` is `a lot`, but must be a number"]);
    case(&["--set", "exploration=0"], 64, &["`exploration` is 0, but must be at least 0.001"]);
    assert!(!place.exists());

    fs::create_dir(&place).unwrap();
    fs::write(place.join("mine"), "").unwrap();
    case(&SMALL, 64, &["world is not empty", "remove it, or name another folder"]);
    assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "something is left aside");
    let output = run(&SMALL, &place.join("mine/below"));
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
}

#[test]
fn recommendations_are_judged_line_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let truth = small();
    let place = |name: &str| folder.path().join(name);
    truth.parameters().write(&place("world.json")).unwrap();
    let ask = |lines: &str, more: &[&str]| {
        fs::write(place("lists.jsonl"), lines).unwrap();
        let lists = place("lists.jsonl").display().to_string();
        judge(folder.path(), &[&["--input", &lists], more].concat())
    };
    let events = place("events.csv").display().to_string();
    let best = truth.best(truth.user(7).unwrap(), 9, 3, |_| true);
    let names: Vec<&str> = best.iter().map(|(category, _)| truth.name(*category)).collect();
    let lines = format!(
        "{}\n\n{}\n",
        serde_json::json!({ "user": 7, "day": 9, "categories": names }),
        serde_json::json!({ "user": 7, "day": 9, "categories": [names[2]], "not": [names[0]] }),
    );
    let output = ask(&lines, &["--events", &events]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let said: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((said.len(), said[0]["user"].as_u64(), said[0]["day"].as_u64()), (2, Some(7), Some(9)));
    let number = |line: usize, name: &str| said[line][name].as_f64().unwrap();
    assert!(number(0, "regret").abs() < 1e-12 && number(0, "expected") > 0.0);
    assert!((number(1, "regret") - (best[1].1 - best[2].1)).abs() < 1e-12, "{}", said[1]);
    for (answer, (category, chance)) in said[0]["answers"].as_array().unwrap().iter().zip(&best) {
        assert_eq!(answer["category"], truth.name(*category));
        assert_eq!(answer["probability"].as_f64(), Some(*chance));
        assert_eq!(answer["clicked"], truth.would_click(truth.user(7).unwrap(), *category, 9));
    }
    let csv = fs::read_to_string(place("events.csv")).unwrap();
    let rows: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(rows[0], ["user_id", "item_id", "timestamp", "slate", "propensity", "clicked"]);
    let slates: Vec<&str> = rows[1..].iter().map(|row| row[3]).collect();
    assert_eq!(slates, ["2000", "2000", "2000", "2001"]);
    assert_eq!(
        rows[4][1..],
        rows[3][1..].iter().map(|cell| cell.replace("2000", "2001")).collect::<Vec<_>>()
    );
    assert_eq!(truth.day(rows[1][2].parse().unwrap()), Some(9));

    let fails = |lines: &str, more: &[&str], code: i32, words: &[&str]| {
        let output = ask(lines, more);
        assert_eq!(output.status.code(), Some(code), "{lines}: {}", stderr(&output));
        words.iter().for_each(|word| assert!(stderr(&output).contains(word), "{}", stderr(&output)));
    };
    fails(&lines, &["--events", &events], 1, &["events.csv", "exists"]);
    let line = |user: u64, category: &str| {
        format!("{{\"user\":{user},\"day\":0,\"categories\":[\"{category}\"]}}\n")
    };
    fails(&line(101, names[0]), &[], 64, &["lists.jsonl", "there is no user 101; they are 1 to 100"]);
    fails(&line(1, "Garden Tols"), &[], 64, &["no category `Garden Tols`", "did you mean `Garden Tools`?"]);
    fails("{\"user\":1}\n", &[], 66, &["lists.jsonl:1", "missing field"]);
    fails(&lines.replacen("\"not\"", "\"nto\"", 1), &[], 66, &["lists.jsonl:3", "unknown field `nto`"]);
    fs::remove_file(place("world.json")).unwrap();
    fails(&lines, &[], 66, &["world.json"]);
}
