//! Lookups against a state whose tables are written by hand: which rung answers whom, and what the
//! history takes away.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{path::Path, sync::Arc};

use coea_engine::{
    lower::lower,
    models::ModelProvider,
    plan::Plan,
    registry::Registry,
    serve::{Places, Relation, Rung, View, lookup, lookup::LookupError},
    spec,
    state::{
        State,
        history::History,
        manifest::{Manifest, SourceState},
        tables::Tables,
    },
};
use coea_operators::{
    label_model::LabelModel,
    prompt_builder::store_key,
    row::{Keyed, Row, Value},
    shape::{Cost, KernelError},
};

/// A model that is never asked.
struct Silent;

impl LabelModel for Silent {
    fn digest(&self) -> String {
        "0123456789abcdef0123".to_string()
    }

    fn score(
        &self,
        _: &[String],
        _: &[String],
        _: &mut (dyn FnMut(usize) + Send),
    ) -> Result<(Vec<Result<Vec<f32>, KernelError>>, Cost), KernelError> {
        Err("a lookup asks no model".to_string())
    }

    fn price(&self, _: &[String]) -> Result<Cost, KernelError> {
        Ok(Cost::default())
    }
}

struct Provider;

impl ModelProvider for Provider {
    fn language(&self, _: &str) -> Result<Arc<dyn LabelModel>, String> {
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
        format: 1,
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
