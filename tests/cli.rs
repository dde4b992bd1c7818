//! The command line as a user meets it: the real binary, exit codes, messages, and a process that
//! is killed.
//!
//! Pipelines are the operators' examples, copied to a folder of the test's own, so that files can
//! be appended to, broken and rewritten.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

const BINARY: &str = env!("CARGO_BIN_EXE_coea-engine");

/// A copy of the examples with a state folder.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("operators/examples");
        copy(&examples, dir.path());
        Place { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name).display().to_string()
    }

    fn append(&self, name: &str, text: &str) {
        let old = fs::read_to_string(self.path(name)).unwrap();
        fs::write(self.path(name), old + text).unwrap();
    }

    /// `coea-engine COMMAND PIPELINE --state STATE MORE…`
    fn command(&self, command: &str, pipeline: &str, more: &[&str]) -> Command {
        let mut process = Command::new(BINARY);
        process.arg(command).arg(self.path(pipeline)).arg("--state").arg(self.path("state")).args(more);
        process.stdin(Stdio::null());
        process
    }

    fn run(&self, command: &str, pipeline: &str, more: &[&str]) -> Output {
        self.command(command, pipeline, more).output().unwrap()
    }

    /// Runs a command that must succeed and gives its stdout.
    fn ok(&self, command: &str, pipeline: &str, more: &[&str]) -> String {
        let output = self.run(command, pipeline, more);
        assert!(output.status.success(), "{command} {more:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, command: &str, pipeline: &str, more: &[&str]) -> serde_json::Value {
        let more = [more, &["--format", "json"]].concat();
        serde_json::from_str(&self.ok(command, pipeline, &more)).unwrap()
    }

    /// Asserts an exit code and that the message holds every one of `words`.
    fn fails(&self, command: &str, pipeline: &str, more: &[&str], code: i32, words: &[&str]) {
        let output = self.run(command, pipeline, more);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{command} {pipeline} {more:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
        for word in words {
            assert!(said.contains(word), "`{word}` is not in: {said}");
        }
    }

    fn dump(&self, pipeline: &str, tables: &[&str]) -> String {
        tables.iter().map(|table| self.ok("dump", pipeline, &["--table", table])).collect()
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => {
                fs::create_dir(&target).unwrap();
                copy(&entry.path(), &target);
            }
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const FILTER: &str = "click_filter.yaml";
const TABLES: [&str; 4] = ["long_term", "store", "dead_letters", "unmatched_retractions"];

#[test]
fn a_second_run_has_nothing_to_do() {
    let place = Place::new();
    let first = place.json("run", FILTER, &[]);
    assert_eq!(first["epoch"], 1);
    let second = place.json("run", FILTER, &[]);
    assert_eq!(second["epoch"], 1);
    assert!(
        second["nodes"].as_array().unwrap().iter().all(|node| node["calls"] == 0 && node["changed"] == 0)
    );
    assert!(place.ok("run", FILTER, &[]).contains("nothing to do"));
    assert!(place.ok("verify", FILTER, &[]).contains("every table"));
}

#[test]
fn a_delta_taken_back_leaves_no_trace_and_is_not_applied_twice() {
    let place = Place::new();
    place.ok("run", FILTER, &[]);
    let before = place.dump(FILTER, &TABLES);
    let header = "user_id,item_id,rating,timestamp,diff\n";
    let insert =
        format!("events={}", place.write("in.csv", &format!("{header}1,2,5,1,1\n1,3,5,9999999,1\n")));
    let retract =
        format!("events={}", place.write("out.csv", &format!("{header}1,2,5,1,-1\n1,3,5,9999999,-1\n")));
    let planned = place.json("plan", FILTER, &["--delta", &insert]);
    let done = place.json("run", FILTER, &["--delta", &insert]);
    assert_eq!(planned["nodes"], done["nodes"]);
    assert_ne!(place.dump(FILTER, &TABLES), before);
    let again = place.json("run", FILTER, &["--delta", &insert]);
    assert_eq!(again["inputs"][0]["already_applied"], 2);
    assert_eq!(again["epoch"], 2);
    place.ok("run", FILTER, &["--delta", &retract, "--workers", "4"]);
    assert_eq!(place.dump(FILTER, &TABLES), before);
}

#[test]
fn what_changed_since_an_epoch_is_what_a_copy_of_then_lacks() {
    let place = Place::new();
    place.ok("run", FILTER, &[]);
    let rows = |more: &[&str]| -> Vec<serde_json::Value> {
        let text = place.ok("dump", FILTER, &[&["--table", "long_term"], more].concat());
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let mut copy = rows(&[]);
    let (gone, busy) = (copy[3]["user_id"].as_u64().unwrap(), copy[1]["user_id"].as_u64().unwrap());
    let clicks = fs::read_to_string(place.path("data/events.csv")).unwrap();
    // The clicks of a user as rows of a delta, of that user or of another one.
    let clicks_of = |user: u64, now: u64, diff: i64| -> String {
        let rest = clicks.lines().filter_map(|line| line.strip_prefix(&format!("{user},")));
        rest.map(|rest| format!("{now},{rest},{diff}\n")).collect()
    };
    let delta = [
        "user_id,item_id,rating,timestamp,diff\n",
        &clicks_of(gone, gone, -1),
        &clicks_of(busy, busy, 1),
        &clicks_of(busy, 99, 1),
    ];
    let delta = place.write("delta.csv", &delta.concat());
    place.ok("run", FILTER, &["--delta", &format!("events={delta}")]);
    let changes = rows(&["--changes-since", "1"]);
    assert_eq!(changes.len(), 3);
    assert!(changes.contains(&serde_json::json!({ "user_id": gone, "deleted": true })), "{changes:?}");
    for change in changes {
        copy.retain(|row| row["user_id"] != change["user_id"]);
        copy.extend((change["deleted"] != true).then_some(change));
    }
    copy.sort_by_key(|row| row["user_id"].as_u64());
    assert_eq!(copy, rows(&[]));
    assert_eq!(rows(&["--changes-since", "0"]), copy);
    assert!(rows(&["--changes-since", "2"]).is_empty());
    place.fails("dump", FILTER, &["--table", "long_term", "--changes-since", "3"], 64, &["no epoch 3"]);
    place.fails("dump", FILTER, &["--table", "memo", "--changes-since", "1"], 64, &["not kept"]);
}

#[test]
fn appended_rows_are_the_delta_and_a_rewritten_file_is_refused() {
    let place = Place::new();
    place.ok("run", FILTER, &[]);
    place.append("data/events.csv", "1,2,5,9999999\n");
    assert_eq!(place.json("run", FILTER, &[])["inputs"][0]["rows"], 1);
    let text = fs::read_to_string(place.path("data/events.csv")).unwrap();
    place.write("data/events.csv", &text.replacen("1,", "7,", 1));
    place.fails("run", FILTER, &[], 66, &["events.csv", "was rewritten"]);
    place.ok("verify", FILTER, &[]);
}

#[test]
fn broken_records_are_dead_letters_and_good_rows_are_kept() {
    let place = Place::new();
    let clean = place.json("run", FILTER, &[])["inputs"][0]["rows"].as_u64().unwrap();
    fs::remove_dir_all(place.path("state")).unwrap();
    place.append("data/events.csv", "x,2,5,1\n1,2\n1,2,5,99999\n");
    let run = place.json("run", FILTER, &[]);
    assert_eq!(run["inputs"][0]["rejected"], 2);
    assert_eq!(run["inputs"][0]["rows"], clean + 1);
    let letters = place.ok("dump", FILTER, &["--table", "dead_letters"]);
    assert_eq!(letters.lines().count(), 2);
    assert!(letters.contains("events.csv"), "{letters}");
}

#[test]
fn mistakes_in_a_pipeline_are_told_with_place_and_remedy() {
    let place = Place::new();
    let text = fs::read_to_string(place.path(FILTER)).unwrap();
    let case = |from: &str, to: &str, words: &[&str]| {
        assert!(text.contains(from), "{from}");
        place.write("bad.yaml", &text.replacen(from, to, 1));
        place.fails("check", "bad.yaml", &[], 78, &[&["bad.yaml:"], words].concat());
    };
    case("op: click_filter", "op: click_filtre", &["unknown operator", "did you mean `click_filter`"]);
    case("min_clicks", "min_click", &["unknown parameter", "did you mean `min_clicks`"]);
    case("min_clicks: 2", "min_clicks: two", &["min_clicks", "whole number"]);
    case("in: [events, genre]", "in: [events, gnere]", &["unknown source or node", "`genre`"]);
    case("in: [events, genre]", "in: [genre, events]", &["is a relation"]);
    case("in: [items, events]", "in: [long_term, events]", &["wait for each other"]);
    case("item_id: u64, title", "item_id: text, title", &["item_id", "declare the same type"]);
    case("exclude_last: 2", "exclude_last: $params.none", &["none"]);
    case("connector: kv", "connector: kvv", &["unknown sink connector"]);
    case("connector: files", "connector: file", &["did you mean `files`"]);
    case(
        "nodes:",
        "models: { m: { kind: csa_encoder, price: { token: 1 } } }\nnodes:",
        &["a csa_encoder has no price", "remove it"],
    );
    let text = text.replacen("nodes:", "models: { m: { kind: csa_encoder } }\nnodes:", 1);
    place.write("bad.yaml", &text.replacen("op: click_filter,", "op: click_filter, model: m,", 1));
    place.fails("check", "bad.yaml", &[], 78, &["has no use for `m`", "remove `model`"]);
    case("mapping: all", "mapping: every", &["mapping"]);
}

#[test]
fn a_name_that_would_lead_out_of_the_folder_of_states_is_refused() {
    let place = Place::new();
    let text = fs::read_to_string(place.path(FILTER)).unwrap();
    let written = "name: example-click-filter";
    assert!(text.contains(written));
    for name in ["../up", "..", "a/b", "'a\\b'", "''", "a b", &"x".repeat(61)] {
        place.write("bad.yaml", &text.replacen(written, &format!("name: {name}"), 1));
        place.fails(
            "run",
            "bad.yaml",
            &[],
            78,
            &["bad.yaml:3:7: error", "is no name for a pipeline", "use letters"],
        );
    }
    assert!(!place.path("state").exists());
}

#[test]
fn a_refit_of_nothing_is_refused_and_a_refit_of_something_is_not() {
    let place = Place::new();
    let text = fs::read_to_string(place.path(FILTER)).unwrap();
    let refit = |op: &str| text.replacen(op, &format!("{op}, refit: {{ when: once }}"), 1);
    place.write("bad.yaml", &refit("op: click_filter"));
    place.fails(
        "check",
        "bad.yaml",
        &[],
        78,
        &["bad.yaml:", "click_filter fits nothing", "remove `refit`", "^^^^"],
    );
    place.write("good.yaml", &refit("op: category_map"));
    place.ok("check", "good.yaml", &[]);
}

#[test]
fn waiting_without_a_model_to_ask_is_refused() {
    let place = Place::new();
    let text = fs::read_to_string(place.path(FILTER)).unwrap();
    let after = text.replacen("op: click_filter", "op: click_filter, after: { time: 10m }", 1);
    place.write("bad.yaml", &after);
    let words = ["bad.yaml:", "click_filter asks no model", "remove `after`", "^"];
    place.fails("check", "bad.yaml", &[], 78, &words);
}

const ENCODER: &str = "csa_encoder.yaml";

#[test]
fn what_waits_is_told_by_every_command_until_it_is_asked() {
    let place = Place::new();
    let text = fs::read_to_string(place.path(ENCODER)).unwrap();
    place.write(
        ENCODER,
        &text.replacen("op: csa_encoder,", "op: csa_encoder, after: { events: 3, time: 10h },", 1),
    );
    let of = |report: &serde_json::Value| {
        let nodes = report["nodes"].as_array().unwrap();
        let node = nodes.iter().find(|node| node["node"] == "embedding").unwrap();
        (node["calls"].as_u64().unwrap(), node["backlog"].as_u64().unwrap())
    };
    let first = of(&place.json("run", ENCODER, &[]));
    assert!(first.0 > 0 && first.1 == 0, "{first:?}");
    // A new user's third click is of long ago by then.
    place.write("users.csv", "user_id,age,gender,occupation\n900,30,F,cook\n");
    let clicks = |name: &str, from: u64| {
        let rows: String = (from..from + 2).map(|at| format!("900,1,5,{at}\n")).collect();
        place.write(name, &format!("user_id,item_id,rating,timestamp\n{rows}"))
    };
    let [one, two, three] =
        [("one.csv", 1), ("two.csv", 3), ("three.csv", 5)].map(|(name, at)| clicks(name, at));
    place.ok("run", ENCODER, &["--delta", &format!("users={}", place.path("users.csv").display())]);
    place.ok("run", ENCODER, &["--delta", &format!("events={one}")]);
    let delta = ["--delta".to_string(), format!("events={two}")];
    let delta = [delta[0].as_str(), delta[1].as_str()];
    let plan = of(&place.json("plan", ENCODER, &delta));
    assert_eq!((plan, of(&place.json("run", ENCODER, &delta))), ((0, 1), (0, 1)));
    assert_eq!(of(&place.json("run", ENCODER, &[])), (0, 1));
    assert!(place.ok("run", ENCODER, &[]).contains("embedding: 1 requests wait"));
    // Any row is one of the three that are waited for.
    place.write("other.csv", "item_id,title,year,genres\n901,Nobody's,1999,Drama\n");
    let delta = ["--delta".to_string(), format!("items={}", place.path("other.csv").display())];
    assert_eq!(of(&place.json("run", ENCODER, &[&delta[0], &delta[1]])), (0, 1));
    let status = place.json("status", ENCODER, &[]);
    let waiting = &status["waiting"][0];
    assert_eq!(
        (&status["backlog"], &waiting["node"], &waiting["requests"]),
        (&1.into(), &"embedding".into(), &1.into())
    );
    assert_eq!(
        (&status["epoch"], &waiting["since_epoch"], &waiting["events"]),
        (&5.into(), &4.into(), &1.into())
    );
    let (at, seconds) = (waiting["at"].as_u64().unwrap(), waiting["seconds"].as_f64().unwrap());
    assert!(at > 1_700_000_000_000 && seconds > 0.0 && seconds < 600.0, "since {at}, for {seconds} s");
    assert_eq!((&waiting["after_events"], &waiting["after_seconds"]), (&3.into(), &36_000.0.into()));
    assert!(place.ok("status", ENCODER, &[]).contains("1 of 3"));
    let drift = place.json("status", ENCODER, &["--drift"])["drift"][0].clone();
    assert_eq!(
        (&drift["artifact"], &drift["measure"]),
        (&"embedding/weights".into(), &"unknown_clicks".into())
    );
    assert!((0.0..=1.0).contains(&drift["drift"].as_f64().unwrap()));
    assert!(place.ok("status", ENCODER, &["--drift"]).contains("drift of"));
    assert!(place.ok("verify", ENCODER, &[]).contains("every table"));
    let flushed = of(&place.json("plan", ENCODER, &["--flush"]));
    assert_eq!(flushed, (1, 0));
    // With two more rows there are three, but the request is another one, and has just begun to wait.
    let delta = ["--delta".to_string(), format!("events={three}")];
    assert_eq!(of(&place.json("run", ENCODER, &[&delta[0], &delta[1]])), (0, 1));
    let file = place.path("plan.json").display().to_string();
    place.ok("plan", ENCODER, &["--flush", "--out", &file]);
    let planned = Command::new(BINARY).args(["run", "--plan", &file, "--format", "json"]).output().unwrap();
    assert_eq!(of(&serde_json::from_slice(&planned.stdout).unwrap()), (1, 0), "{}", stderr(&planned));
    assert_eq!(place.json("status", ENCODER, &[])["backlog"], 0);
    assert!(place.ok("verify", ENCODER, &["--recompute"]).contains("every table"));
}

#[test]
fn a_plan_that_is_run_later_asks_what_had_waited_when_it_was_made() {
    let place = Place::new();
    let text = fs::read_to_string(place.path(ENCODER)).unwrap();
    place.write(ENCODER, &text.replacen("op: csa_encoder,", "op: csa_encoder, after: { time: 2s },", 1));
    place.ok("run", ENCODER, &[]);
    let click = |name: &str, at: u64| {
        place.write(name, &format!("user_id,item_id,rating,timestamp\n1,2,5,99000000{at}\n"))
    };
    let deltas = [("one.csv", 1), ("two.csv", 2)].map(|(name, at)| format!("events={}", click(name, at)));
    let calls = |report: serde_json::Value| report["nodes"][2]["calls"].as_u64().unwrap();
    assert_eq!(calls(place.json("run", ENCODER, &["--delta", &deltas[0]])), 0);
    let file = place.path("plan.json").display().to_string();
    place.ok("plan", ENCODER, &["--delta", &deltas[1], "--out", &file]);
    std::thread::sleep(Duration::from_millis(2_100));
    let planned = Command::new(BINARY).args(["run", "--plan", &file, "--format", "json"]).output().unwrap();
    assert_eq!(calls(serde_json::from_slice(&planned.stdout).unwrap()), 0, "{}", stderr(&planned));
    assert_eq!(calls(place.json("run", ENCODER, &[])), 1);
}

#[test]
fn models_come_from_another_state_that_has_some() {
    let place = Place::new();
    place.ok("run", FILTER, &[]);
    let state = place.path("state").display().to_string();
    let same = place.path("data/../state").display().to_string();
    let none = place.path("data").display().to_string();
    for command in ["run", "plan"] {
        place.fails(command, FILTER, &["--models-from", &state], 64, &["is the state of this run"]);
        place.fails(command, FILTER, &["--models-from", &same], 64, &["is the state of this run"]);
        place.fails(command, FILTER, &["--models-from", &none], 66, &["nothing was ever run in it"]);
        place.fails(command, FILTER, &["--models-from", "nowhere"], 66, &["nothing was ever run in it"]);
    }
    let expected = place.dump(FILTER, &TABLES);
    fs::rename(place.path("state"), place.path("other")).unwrap();
    let other = place.path("other").display().to_string();
    place.ok("run", FILTER, &["--models-from", &other]);
    assert_eq!(place.dump(FILTER, &TABLES), expected);
    place.ok("run", FILTER, &["--models-from", &other]);
    // A state that has fitted for itself takes no other's models.
    fs::remove_dir_all(place.path("state")).unwrap();
    place.append("data/events.csv", "1,1,5,900000000\n");
    place.ok("run", FILTER, &[]);
    place.fails("run", FILTER, &["--models-from", &other], 64, &["begins a fresh state"]);
}

#[test]
fn what_cannot_be_read_or_used_has_its_exit_code() {
    let place = Place::new();
    place.fails("run", "missing.yaml", &[], 66, &["missing.yaml"]);
    place.write("data/none.yaml", "");
    place.fails("check", "data/none.yaml", &[], 78, &["none.yaml"]);
    place.fails("run", FILTER, &["--set", "sources.events.with.path=data/nowhere.csv"], 66, &["nowhere.csv"]);
    place.fails("run", FILTER, &["--delta", "events=nowhere.csv"], 66, &["nowhere.csv"]);
    place.fails("run", FILTER, &["--delta", "nowhere"], 64, &["SRC=FILE"]);
    place.fails("dump", FILTER, &["--table", "store"], 1, &["run"]);
    place.write("data/events.csv", "user_id,item_id,rating,timestamp\n");
    place.ok("run", FILTER, &[]);
    assert_eq!(place.dump(FILTER, &["store"]), "");
    place.fails("dump", FILTER, &["--table", "stor"], 64, &["`store`"]);
    place.fails("verify", FILTER, &["--set", "nodes.long_term.with.min_clicks=3"], 1, &["differences"]);
}

#[test]
fn a_locked_state_is_not_touched_but_can_be_read() {
    let place = Place::new();
    place.ok("run", FILTER, &[]);
    let lock = fs::OpenOptions::new().write(true).open(place.path("state/lock")).unwrap();
    lock.lock().unwrap();
    place.fails("run", FILTER, &[], 75, &["locked"]);
    place.ok("plan", FILTER, &[]);
    place.ok("status", FILTER, &[]);
}

#[test]
fn a_stale_plan_is_refused() {
    let place = Place::new();
    let file = place.path("plan.json").display().to_string();
    place.ok("plan", FILTER, &["--out", &file]);
    let alone = Command::new(BINARY).args(["run", "--plan", &file]).output().unwrap();
    assert!(alone.status.success(), "{}", stderr(&alone));
    place.fails("run", FILTER, &["--plan", &file], 3, &["stale"]);
    let output = place.run("plan", FILTER, &["--detailed-exitcode"]);
    assert_eq!(output.status.code(), Some(0));
    let output =
        place.run("plan", FILTER, &["--detailed-exitcode", "--set", "nodes.long_term.with.min_clicks=3"]);
    assert_eq!(output.status.code(), Some(2));
}

/// Kills runs at spread-out moments; the next run must end where an undisturbed one ends.
#[test]
fn a_killed_run_is_taken_up_where_it_was() {
    const GROUPS: &str = "rq_quantizer.yaml";
    let tables = ["long_term", "embedding", "group", "store", "memo"];
    let undisturbed = Place::new();
    undisturbed.ok("run", GROUPS, &[]);
    let expected = undisturbed.dump(GROUPS, &tables);
    let rows = undisturbed.dump(GROUPS, &["memo"]).lines().count() as u64;
    for moment in [1, 5, 10, 20, 30, 45, 60, 80, 110, 150] {
        let place = Place::new();
        let mut process =
            place.command("run", GROUPS, &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(moment));
        process.kill().unwrap();
        process.wait().unwrap();
        let run = place.json("run", GROUPS, &[]);
        assert_eq!(run["epoch"], 1, "after {moment} ms");
        let embedding = &run["nodes"].as_array().unwrap().iter().find(|n| n["node"] == "embedding").unwrap();
        let asked = embedding["calls"].as_u64().unwrap() + embedding["memo_hits"].as_u64().unwrap();
        assert!(asked == rows || asked == 0, "after {moment} ms: {embedding}");
        assert_eq!(place.dump(GROUPS, &tables), expected, "after {moment} ms");
        place.ok("verify", GROUPS, &["--recompute"]);
    }
}
