//! The real binary against a server: keys that nobody else sees, a kill at its calls, what a
//! pipeline may not say, and what tokens cost.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use coea_engine::testing::Bench;
use serde_json::Value as Json;

use super::{common, pipeline::remote, server::Server};

const BINARY: &str = env!("CARGO_BIN_EXE_coea-engine");
const KEY: &str = "sk-hunter2-and-more";

fn command(bench: &Bench, args: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.arg(args[0]).arg(bench.path("pipeline.yaml")).args(&args[1..]).env("REMOTE_KEY", KEY);
    command.arg("--state").arg(bench.path("state"));
    command
}

fn run(bench: &Bench, args: &[&str]) -> Output {
    command(bench, args).output().unwrap()
}

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Every file below a folder.
fn files(folder: &Path, into: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, into),
            false => drop(into.insert(path.display().to_string(), fs::read(&path).unwrap())),
        }
    }
}

/// Writes a pipeline without lowering it: keys are in the environment of the command alone.
fn written(bench: &Bench, base: &str, with: &str) {
    fs::write(bench.path("pipeline.yaml"), remote(base, with)).unwrap();
}

#[test]
fn a_key_is_seen_by_the_server_alone() {
    let (server, base) = Server::start();
    let bench = common::bench(3);
    written(&bench, &base, "scoring: forced, key: { secret: REMOTE_KEY }");
    let mut said = String::new();
    server.set(|state| state.refuse = Some((401, format!("wrong key {KEY}"))));
    let refused = run(&bench, &["run", "-v"]);
    assert_eq!(refused.status.code(), Some(66), "{}", words(&refused));
    assert!(words(&refused).contains("the server answered 401: wrong key ***"), "{}", words(&refused));
    server.set(|state| (state.refuse, state.faults) = (None, 20));
    let plan = bench.path("plan.json").display().to_string();
    for args in [
        vec!["plan", "--out", &plan, "--format", "json"],
        vec!["run", "-v", "--format", "json"],
        vec!["dump", "--table", "memo"],
        vec!["dump", "--table", "errors"],
        vec!["status"],
        vec!["verify"],
    ] {
        let output = run(&bench, &args);
        assert!(output.status.success(), "{args:?}: {}", words(&output));
        said += &words(&output);
    }
    let state = server.state.lock().unwrap();
    assert!(state.keys.len() > 50 && state.keys.iter().all(|key| *key == format!("Bearer {KEY}")));
    let mut held = BTreeMap::new();
    files(&bench.path(""), &mut held);
    assert!(held.len() > 5, "{held:?}");
    held.insert("what was said".to_string(), [said, words(&refused)].concat().into_bytes());
    for (name, bytes) in held {
        assert!(!bytes.windows(KEY.len()).any(|window| window == KEY.as_bytes()), "{name} holds the key");
    }
}

#[test]
fn a_killed_run_goes_on_where_it_was() {
    let (server, base) = Server::start();
    let bench = common::bench(40);
    written(&bench, &base, "scoring: forced, concurrency: 2");
    assert!(run(&bench, &["run"]).status.success());
    let store = run(&bench, &["dump", "--table", "store"]).stdout;
    assert!(!store.is_empty());
    fs::remove_dir_all(bench.path("state")).unwrap();
    let whole = server.paid().len();
    server.set(|state| (state.pace, _) = (Duration::from_millis(2), state.answered.clear()));
    let mut child = command(&bench, &["run"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while server.paid().len() < whole * 2 / 3 {
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(child.try_wait().unwrap(), None, "it ended before it was killed");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    server.set(|state| state.pace = Duration::ZERO);
    let before: u64 = server.paid().values().sum();
    assert!(run(&bench, &["run"]).status.success());
    assert_eq!(run(&bench, &["dump", "--table", "store"]).stdout, store);
    let paid = server.paid();
    assert_eq!(paid.len(), whole, "the same questions");
    // An answer is durable within a second, and two questions were under way.
    let twice = paid.values().filter(|n| **n > 1).count() as u64;
    assert!(twice * 3 < before, "{twice} of {before} requests were answered again");
}

#[test]
fn tokens_have_a_price() {
    let (_server, base) = Server::start();
    let bench = common::bench(3);
    written(&bench, &base, "scoring: forced");
    let text = fs::read_to_string(bench.path("pipeline.yaml")).unwrap();
    let priced = "price: { prompt: 2.0, completion: 10, currency: EUR }, base: \"http";
    fs::write(bench.path("pipeline.yaml"), text.replace("base: \"http", priced)).unwrap();
    let json = |args: &[&str]| -> Json {
        let output = run(&bench, args);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", words(&output)))
    };
    let plan = json(&["plan", "--format", "json"]);
    assert_eq!(plan["inference"]["currency"], "EUR");
    // Nothing was asked yet, so nobody knows how long an answer takes.
    let said = words(&run(&bench, &["plan"]));
    assert!(said.contains("in a time that no run has measured yet"), "{said}");
    let ran = json(&["run", "--format", "json"]);
    let inference = &ran["inference"];
    let number = |name: &str| inference[name].as_f64().unwrap();
    let money = (2.0 * number("prompt_tokens") + 10.0 * number("completion_tokens")) / 1e6;
    assert!(money > 0.0 && (number("money") - money).abs() < 1e-12, "{inference}");
    // Ten tokens read and two written for a request, but those for token ids.
    assert!(number("requests") * 2.0 > number("completion_tokens") && number("requests") > 50.0);
    let nodes = ran["nodes"].as_array().unwrap();
    let sum: f64 = nodes.iter().filter_map(|node| node["money"].as_f64()).sum();
    assert!((sum - money).abs() < 1e-12);
}

#[test]
fn a_node_stops_at_its_limits_and_goes_on() {
    let (server, base) = Server::start();
    let bench = common::bench(6);
    written(&bench, &base, "scoring: forced");
    let text = fs::read_to_string(bench.path("pipeline.yaml")).unwrap();
    let limited = text.replace("op: llm_sampler,", "op: llm_sampler, limits: { calls: 2 },");
    fs::write(bench.path("pipeline.yaml"), limited).unwrap();
    let plan = run(&bench, &["plan"]);
    assert_eq!(plan.status.code(), Some(4), "{}", words(&plan));
    assert!(words(&plan).contains("calls of novel are more than its limits, 2"), "{}", words(&plan));
    assert!(server.paid().is_empty(), "a plan asks nothing");
    let mut stopped = 0;
    let last = loop {
        let ran = run(&bench, &["run"]);
        match ran.status.code() {
            Some(4) => {
                assert!(words(&ran).contains("stopped at the limits of novel, 2 calls"), "{}", words(&ran))
            }
            _ => break ran,
        }
        stopped += 1;
        assert!(stopped < 100, "no run goes on");
    };
    assert!(last.status.success() && stopped > 0, "{stopped} {}", words(&last));
    let ways: Vec<u64> = server.paid().into_values().collect();
    assert!(ways.iter().all(|times| *times == 1), "nothing is asked twice: {ways:?}");
}

/// The message of each problem, with the text it points at.
fn problems(model: &str) -> Vec<(String, String)> {
    let bench = common::bench(1);
    let text =
        include_str!("../common/pipeline.yaml").replacen("{ kind: language_model, base: small }", model, 1);
    let text = text.replace("reward_model, base: small", "reward_model, base: smollm2-135m-instruct");
    fs::write(bench.path("pipeline.yaml"), &text).unwrap();
    let output = run(&bench, &["check"]);
    assert_eq!(output.status.code(), Some(if model.contains("ok:") { 0 } else { 78 }), "{}", words(&output));
    let said = String::from_utf8(output.stderr).unwrap();
    let found = said.lines().filter_map(|line| line.split_once(": error: "));
    found
        .map(|(place, message)| {
            let mut numbers = place.rsplit(':').map(|n| n.parse::<usize>().unwrap());
            let (column, line) = (numbers.next().unwrap(), numbers.next().unwrap());
            let at = text.lines().nth(line - 1).unwrap();
            (message.to_string(), at.chars().skip(column - 1).take(9).collect())
        })
        .collect()
}

/// A model on a server with these parameters.
fn on_server(with: &str) -> String {
    format!("{{ kind: language_model, base: \"http://127.0.0.1:9/v1\", with: {{ {with} }} }}")
}

/// Models that cannot be, with the message and the text that it points at.
fn mistakes() -> Vec<(String, &'static str, &'static str)> {
    let server = on_server;
    vec![
        (server("model: m, timeuot: 3s"), "unknown parameter `timeuot` of a model on a server", "timeuot: "),
        (
            server("model: m, timeout: 3d"),
            "`timeout` of a model on a server: unknown unit `d`; there are ms, s, m and h",
            "3d } }",
        ),
        (server("model: m, timeout: 60"), "`timeout` of a model on a server wants text, found 60", "60 } }"),
        (server("concurrency: 2"), "a model on a server needs the parameter `model`", "{ concurr"),
        (
            server("model: m, concurrency: 0"),
            "`concurrency` of a model on a server wants a number from 1 to 256",
            "0 } }",
        ),
        (
            server("model: m, key: sk-1"),
            "`key` of a model on a server wants a secret, written `{ secret: NAME }`",
            "sk-1 } }",
        ),
        (
            server("model: m, api: chat, scoring: steps"),
            "`scoring` of a model on a server needs `api: completions`; with chat there is `draws`",
            "steps } }",
        ),
        (
            server("model: m, draws: 3"),
            "`draws` of a model on a server goes with `scoring: draws` only",
            "3 } }",
        ),
        (
            server("model: m, budget: { money: 3 }"),
            "`budget.money` of a model on a server needs a `price` of the model",
            "3 } } }",
        ),
        (
            server("model: m, extra: { stream: true }"),
            "`extra` of a model on a server cannot hold `stream`, which the engine sets",
            "{ stream:",
        ),
        (
            server("model: m, breaker: { after: 0 }"),
            "`breaker.after` of a model on a server wants 1 or more",
            "0 } } }",
        ),
    ]
}

/// Models that are on no server, or on none that can be.
fn more_mistakes() -> Vec<(String, &'static str, &'static str)> {
    vec![
        (
            "{ kind: language_model, base: smollm2-135m-instruct, with: { model: m } }".to_string(),
            "only a model on a server and a reward_model take parameters",
            "{ model: ",
        ),
        (
            "{ kind: language_model, base: smollm2-135m-instruct, price: { prompt: -1, currency: USD } }"
                .to_string(),
            "`prompt` wants money for a million tokens, 0 or more",
            "-1, curre",
        ),
        (
            "{ kind: language_model, base: smollm2-135m-instruct, price: { promt: 1, currency: USD } }"
                .to_string(),
            "unknown parameter `promt` of the price of a model",
            "promt: 1,",
        ),
        (
            format!(
                "{{ kind: language_model, base: \"http://{}@127.0.0.1/v1\", with: {{ model: m }} }}",
                "me:pw"
            ),
            "a URL holds no credentials; write `key: { secret: NAME }`",
            "\"http://",
        ),
    ]
}

#[test]
fn what_a_model_may_not_say_is_told_with_its_place() {
    for (model, message, at) in mistakes().into_iter().chain(more_mistakes()) {
        let found = problems(&model);
        let hit = found.iter().any(|(said, place)| said == message && place.starts_with(at.trim_end()));
        assert!(hit, "{model}\nwanted {message:?} at {at:?}\nfound {found:?}");
    }
    assert!(problems(&on_server("model: m, revision: \"ok:\", requests_per_minute: 6")).is_empty());
    assert!(problems("{ kind: language_model, base: smollm2-135m-instruct, price: { prompt: 0.1, currency: \"EUR\" } } # ok:").is_empty());
}
