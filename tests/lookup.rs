//! Lookups: which rung answers whom, and what the history takes away. First against a state whose
//! tables are written by hand, also through the real binary; then against one that was run, where a
//! lookup must find the very keys that the prompt builder wrote.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
    sync::Arc,
};

use coea_engine::{
    lower::lower,
    models::ModelProvider,
    plan::Plan,
    registry::Registry,
    runtime::driver::Options,
    serve::{
        Found, Places, Relation, Rung, View, lookup,
        lookup::{LookupError, Served},
    },
    spec,
    state::{
        State,
        history::History,
        manifest::{FORMAT, Manifest, SourceState},
        tables::Tables,
    },
    testing::Bench,
};
use coea_operators::{
    language_model::{Answered, LanguageModel, Writing, Written},
    prompt_builder::store_key,
    row::{Keyed, Row, Value},
    shape::{CallError, Cost},
};

/// A model that is never asked.
struct Silent;

impl LanguageModel for Silent {
    fn digest(&self) -> String {
        "0123456789abcdef0123".to_string()
    }

    fn score(&self, _: &[String], _: &[String], _: &mut Answered<'_, Vec<f32>>) -> Result<Cost, CallError> {
        Err("a lookup asks no model".into())
    }

    fn write(&self, _: &Writing, _: &[String], _: &mut Answered<'_, Written>) -> Result<Cost, CallError> {
        Err("a lookup asks no model".into())
    }

    fn price(&self, _: &[String]) -> Result<Cost, CallError> {
        Ok(Cost::default())
    }
}

struct Provider;

impl ModelProvider for Provider {
    fn language(&self, _: &str) -> Result<Arc<dyn LanguageModel>, String> {
        Ok(Arc::new(Silent))
    }
}

fn plan() -> Arc<Plan> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/movielens-100k.yaml");
    let spec = spec::load(&path, &[], &|_| None).unwrap_or_else(|problems| panic!("{problems}"));
    let folder = path.parent().unwrap();
    Arc::new(lower(&spec, folder, &Registry::built_in(), &Provider).unwrap_or_else(|p| panic!("{p}")))
}

fn texts(names: &[&str]) -> Value {
    Value::list(names.iter().map(Value::text))
}

fn user(id: u64) -> Row {
    Row::from([Value::U64(id)])
}

fn grouped(id: u64, group: &str) -> (Keyed, i64) {
    ((user(id), Row::from([Value::list([Value::U64(id)]), Value::text(group)])), 1)
}

fn entry(group: &str, recent: &[&str], categories: &[&str]) -> (Keyed, i64) {
    let recent = texts(recent);
    let pairs = categories
        .iter()
        .zip(1..)
        .map(|(name, at)| Value::list([Value::text(name), Value::float(1.0 - f64::from(at) / 100.0)]));
    let row = Row::from([recent.clone(), Value::list(pairs)]);
    ((store_key(&Value::text(group), &recent), row), 1)
}

/// User 1 has seen A and B and clicked War and Drama; user 2 has no group; user 3 has seen nothing of
/// what there is.
fn write(dir: &Path) {
    let state = State::open(dir).unwrap();
    let snapshot = state.snapshot().unwrap();
    let mut tables = Tables::new(snapshot.layered("tables"));
    tables.apply("group", vec![grouped(1, "g001"), grouped(3, "g001")]).unwrap();
    let recent = |id, names: &[&str]| ((user(id), Row::from([texts(names)])), 1);
    tables.apply("recent", vec![recent(1, &["Drama", "War"]), recent(3, &["War"])]).unwrap();
    let label = |item, name| ((user(item), Row::from([texts(&[name])])), 1);
    tables.apply("label", vec![label(10, "A"), label(11, "B"), label(12, "Z")]).unwrap();
    let entries = vec![
        entry("g001", &["Drama", "War"], &["A", "B", "C", "D"]),
        entry("g001", &["War"], &["C", "D", "E"]),
        entry("g001", &[], &["A", "C", "D", "E", "F", "G", "H"]),
        entry("default", &[], &["H"]),
    ];
    tables.apply("aligned", entries).unwrap();
    let mut history = History::new(snapshot.layered("history"));
    let click =
        |time, item, count| (Row::from([Value::I64(time), Value::U64(item), Value::float(4.0)]), count);
    history.apply(5, &user(1), &[click(1, 10, 1), click(2, 11, 2), click(3, 12, -1)], &mut |_| {}).unwrap();
    history.apply(5, &user(2), &[click(1, 12, 1)], &mut |_| {}).unwrap();
    let events = SourceState { id: 5, ..SourceState::default() };
    let manifest = Manifest {
        format: FORMAT,
        epoch: 1,
        sources: [("events".to_string(), events)].into(),
        ..Manifest::default()
    };
    let mut meta = snapshot.layered("meta");
    manifest.save(&mut meta);
    let changes = vec![("tables", tables.take()), ("history", history.take()), ("meta", meta.take())];
    state.store.as_ref().unwrap().write(changes).unwrap();
}

#[test]
fn the_ladder_answers_each_user_from_what_is_left_for_them() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let plan = plan();
    let view = View::open(plan.clone(), dir.path()).unwrap();
    let places = Places::find(&plan).unwrap();
    assert_eq!(
        [&places.entries.name, &places.prompt.name, &places.groups.0.name, &places.recents.0.name],
        ["aligned", "prompt", "group", "recent"]
    );
    let of = |id: &str| {
        let found = lookup(&view, &places, id).unwrap();
        let names: String = found.answer.categories.iter().map(|c| c.category.as_str()).collect();
        (found.answer.rung, names, found.known, found.answer.cold_start)
    };
    // Of the own key A and B are seen, which leaves fewer than three; five are served.
    assert_eq!(of("1"), (Rung::Group, "CDEFG".to_string(), true, false));
    assert_eq!(of("2"), (Rung::Default, "H".to_string(), true, true));
    assert_eq!(of("3"), (Rung::Key, "CDE".to_string(), false, false));
    assert_eq!(of("4"), (Rung::Default, "H".to_string(), false, true));
    assert!(matches!(lookup(&view, &places, "x"), Err(LookupError::NoUser { .. })));
    let answer = lookup(&view, &places, "1").unwrap().answer;
    assert_eq!(answer.recent, ["Drama", "War"]);
    assert_eq!(answer.csid, [1]);
    assert_eq!(answer.model_versions["novelty"], "0123456789abcdef");
    assert!(answer.categories.iter().all(|served| !served.seen));
}

#[test]
fn tables_come_by_name_in_order_of_their_keys() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let plan = plan();
    let view = View::open(plan.clone(), dir.path()).unwrap();
    let rows = |name: &str| {
        let mut rows = Vec::new();
        view.for_each(Relation::find(&plan, name).unwrap(), &mut |row| rows.push(row)).unwrap();
        rows
    };
    assert!(Relation::find(&plan, "stroe").is_none());
    let keys: Vec<String> = rows("store").iter().map(|row| row[0].to_string()).collect();
    assert!(keys.len() == 4 && keys.is_sorted() && keys[0].starts_with("default:"), "{keys:?}");
    assert_eq!(rows("users"), rows("group"));
    // An event of count two is two rows; one of count minus one is none.
    assert_eq!(rows("events").len(), 4);
    for (name, relation) in Relation::all(&plan) {
        let width = relation.columns(&plan).len();
        assert!(rows(&name).iter().all(|row| row.len() == width), "{name}");
    }
}

/// Standard output and standard error of a lookup by the binary, which must succeed.
fn by_binary(state: &Path, more: &[&str]) -> (String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coea-engine"));
    let pipeline = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/movielens-100k.yaml");
    let output = command.arg("lookup").arg(pipeline).arg("--state").arg(state).args(more).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let said = text(output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    (text(output.stdout), said)
}

#[test]
fn an_unknown_user_is_answered_by_the_default_and_a_note() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    for (id, note) in [("4", "user 4 is not known; the default answers"), ("2", "user 2 has no group yet")] {
        let (answer, said) = by_binary(dir.path(), &["--user", id, "--format", "json"]);
        assert!(said.contains(note), "{said}");
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((&answer["rung"], &answer["cold_start"]), (&"default".into(), &true.into()));
        assert_eq!(
            (&answer["group"], &answer["categories"][0]["category"]),
            (&"default".into(), &"H".into())
        );
    }
    let (known, said) = by_binary(dir.path(), &["--user", "1", "--format", "json"]);
    assert!(known.contains(r#""cold_start": false"#) && !said.contains("default answers"), "{said}");
    assert_eq!(by_binary(dir.path(), &["--user", "4", "--quiet"]).1, "");
}

const LADDER: &str = "\
version: 1
name: ladder
sources:
  events:
    connector: files
    with:
      path: events.csv
      format: csv
      columns: { user_id: u64, item_id: u64, timestamp: timestamp }
      time: { column: timestamp }
  items:
    connector: files
    with: { path: items.csv, format: csv, columns: { item_id: u64, genres: list<text> } }
  groups:
    connector: files
    with: { path: groups.csv, format: csv, columns: { user_id: u64, group: text } }
  profiles:
    connector: files
    with: { path: profiles.csv, format: csv, columns: { group: text, profile: text } }
models:
  novelty: { kind: language_model, base: small }
nodes:
  label: { op: category_map, in: [items, events], with: { mapping: all } }
  recent: { op: recent_categories, in: [events, label], with: { last: 2, keep: 2 } }
  prompt:
    op: prompt_builder
    in: [groups, profiles, recent]
    with: { template: prompt.jinja, fallbacks: [one_recent, group, default] }
  novel: { op: llm_sampler, in: [prompt, label], model: novelty, with: { candidates: 6, seed: 7 } }
  scored: { op: scorer, in: [novel, prompt], model: novelty, with: { template: prompt.jinja } }
  aligned: { op: align, in: scored, with: { threshold: 0.0 } }
sinks:
  store:
    connector: kv
    in: aligned
    with: { serve: 99, enough: 6, fallbacks: [one_recent, group, default] }
";

/// Users of two groups; of each group, those whose numbers agree in `user / 6` have the same two
/// recent categories and an older click of their own.
const LADDER_USERS: u64 = 30;
const LADDER_ITEMS: u64 = 12;

fn ladder() -> Bench {
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    files.insert("items.csv", "item_id,genres\n".to_string());
    files.insert("events.csv", "user_id,item_id,timestamp\n".to_string());
    files.insert("groups.csv", "user_id,group\n".to_string());
    files.insert("profiles.csv", "group,profile\ng0,calm\ng1,loud\ndefault,anybody\n".to_string());
    files.insert("prompt.jinja", "{{ group }}, {{ profile }}, {{ recent | join(' ') }}: next?".to_string());
    files.insert("pipeline.yaml", LADDER.to_string());
    for item in 0..LADDER_ITEMS {
        *files.get_mut("items.csv").unwrap() += &format!("{item},genre{item}\n");
    }
    for user in 0..LADDER_USERS {
        *files.get_mut("groups.csv").unwrap() += &format!("{user},g{}\n", user % 2);
        let clicks = [(user * 7 % LADDER_ITEMS, 1), (user / 6 * 2, 2), (user / 6 * 2 + 1, 3)];
        for (item, time) in clicks {
            *files.get_mut("events.csv").unwrap() += &format!("{user},{item},{time}\n");
        }
    }
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
    let bench = Bench::new(&files).unwrap();
    bench.epoch("state", Options { workers: 1, ..Options::default() }).unwrap();
    bench
}

fn names_and_scores(served: &[Served]) -> Vec<(&str, f64)> {
    served.iter().map(|served| (served.category.as_str(), served.score)).collect()
}

#[test]
fn every_rung_finds_the_key_that_the_prompt_builder_wrote() {
    let bench = ladder();
    let view = View::open(bench.plan.clone(), &bench.path("state")).unwrap();
    let places = Places::find(&bench.plan).unwrap();
    let mut answered: BTreeSet<&str> = BTreeSet::new();
    for user in 0..=LADDER_USERS {
        let found = lookup(&view, &places, &user.to_string()).unwrap();
        let (answer, attempt) = (&found.answer, &found.attempts[found.chosen]);
        answered.insert(answer.rung.word());
        assert!(found.attempts.iter().all(|attempt| attempt.found), "user {user}: {:?}", found.attempts);
        assert!(found.attempts[..found.chosen].iter().all(|earlier| earlier.left < attempt.left));
        // The row's own words for what the key is made of.
        let row = view.row("aligned", &attempt.key).unwrap().unwrap();
        let recent: Vec<String> = row[0].as_list().unwrap().iter().map(Value::to_string).collect();
        match answer.rung {
            Rung::Key => assert_eq!(recent, answer.recent),
            Rung::OneRecent => assert!(recent.len() == 1 && answer.recent.contains(&recent[0])),
            Rung::Group | Rung::Default => assert!(recent.is_empty()),
        }
        let group = if answer.rung == Rung::Default { "default" } else { answer.group.as_str() };
        assert_eq!(attempt.key[0], Value::text(group));
        let novel: Vec<Served> = attempt.listed.iter().filter(|served| !served.seen).cloned().collect();
        assert_eq!(answer.categories, novel, "user {user}");
    }
    assert_eq!(answered, ["default", "group", "key", "one_recent"].into());
}

#[test]
fn users_of_one_key_share_one_list_before_their_histories_filter_it() {
    let bench = ladder();
    let view = View::open(bench.plan.clone(), &bench.path("state")).unwrap();
    let places = Places::find(&bench.plan).unwrap();
    let found: Vec<Found> =
        (0..LADDER_USERS).map(|user| lookup(&view, &places, &user.to_string()).unwrap()).collect();
    let mut lists: BTreeMap<&Row, Vec<(&str, f64)>> = BTreeMap::new();
    let mut left: BTreeMap<&Row, BTreeSet<usize>> = BTreeMap::new();
    for attempt in found.iter().flat_map(|found| &found.attempts) {
        let listed = names_and_scores(&attempt.listed);
        assert_eq!(lists.entry(&attempt.key).or_insert_with(|| listed.clone()), &listed);
        left.entry(&attempt.key).or_default().insert(attempt.left);
    }
    let own = found.iter().map(|found| &found.attempts[0].key).collect::<BTreeSet<_>>();
    assert_eq!(own.len(), 10, "three users share each of the ten keys");
    assert!(left.values().any(|left| left.len() > 1), "no history filters anything: {left:?}");
}
