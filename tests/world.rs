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
}

fn run(arguments: &[&str], folder: &Path) -> Output {
    Command::new(BINARY).args(["data", "generate"]).arg(folder).args(arguments).output().unwrap()
}

const SMALL: [&str; 6] = ["--users", "100", "--interactions", "5000", "--days", "4"];

#[test]
fn a_world_is_described_by_what_the_command_prints() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("world");
    let more = ["--items", "50", "--categories", "12", "--groups", "3", "--seed", "9", "--set", "drift=0"];
    let output = run(&[&SMALL[..], &more, &["--format", "json", "--threads", "1"]].concat(), &place);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
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
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
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
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
}
