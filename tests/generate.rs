//! Texts that models write, in pipelines: what is asked, what it is said to cost, and what stays.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, fs, path::Path};

use coea_engine::{
    runtime::driver::Options,
    serve::{Relation, View},
    testing::Bench,
    verify::verify,
};

const TAGS: &str = "
version: 1
name: tags
sources:
  items: { connector: files, with: { path: items.csv, format: csv, columns: { id: u64, title: text, seen: u64 } } }
models:
  writer: { kind: language_model, base: any }
nodes:
  tags: { op: llm_generate, in: items, model: writer, with: { template: tags.jinja, writing: { max_tokens: 9 } } }
sinks:
  store: { connector: kv, in: tags }
";

fn bench() -> Bench {
    Bench::new(&[
        ("pipeline.yaml", TAGS),
        ("tags.jinja", "The film {{ title }}:"),
        ("items.csv", "id,title,seen\n1,Alien,5\n2,Fargo,6\n3,Alien,7\n"),
    ])
    .unwrap()
}

fn options(dry: bool) -> Options {
    Options { workers: 1, resolve: true, dry, ..Options::default() }
}

/// The rows of a node's table, cells as text.
fn rows(bench: &Bench, node: &str) -> BTreeMap<String, Vec<String>> {
    let view = View::open(bench.plan.clone(), &bench.path("state")).unwrap();
    let mut rows = BTreeMap::new();
    view.for_each(Relation::find(&bench.plan, node).unwrap(), &mut |row| {
        rows.insert(row[0].to_string(), row[1..].iter().map(ToString::to_string).collect());
    })
    .unwrap();
    rows
}

#[test]
fn a_text_is_written_once_for_each_distinct_prompt() {
    let bench = bench();
    let plan = bench.epoch("state", options(true)).unwrap().to_json();
    assert_eq!(
        (&plan["inference"]["calls"], &plan["inference"]["completion_tokens"]),
        (&2.into(), &18.into())
    );
    let run = bench.epoch("state", options(false)).unwrap().to_json();
    assert_eq!(run["inference"]["calls"], 2);
    let texts = rows(&bench, "tags");
    assert_eq!(texts.len(), 3);
    assert_eq!(texts["1"], texts["3"]);
    assert_ne!(texts["1"], texts["2"]);

    // What the template does not show costs nothing; what it shows is asked anew.
    let delta = "id,title,seen,diff\n1,Alien,5,-1\n1,Alien,50,1\n2,Fargo,6,-1\n2,Psycho,6,1\n";
    let run = bench.epoch("state", bench.deltas(&[("items", delta)]).unwrap()).unwrap().to_json();
    assert_eq!(run["inference"]["calls"], 1);
    assert_ne!(rows(&bench, "tags")["2"], texts["2"]);
    assert!(verify(&bench.plan, &bench.state("state").unwrap(), true).unwrap().is_empty());
}

#[test]
fn a_text_that_fails_is_an_error_of_its_row() {
    let bench = bench();
    bench.models.fail_on(Some("Fargo"));
    let run = bench.epoch("state", options(false)).unwrap().to_json();
    assert_eq!(run["nodes"][0]["errors"], 1);
    assert_eq!(rows(&bench, "tags").keys().collect::<Vec<_>>(), ["1", "3"]);
    bench.models.fail_on(None);
    bench.epoch("state", options(false)).unwrap();
    assert_eq!(rows(&bench, "tags").len(), 3);
}

#[test]
fn what_is_wrong_with_a_text_s_parameters_is_told() {
    let wrong = |from: &str, to: &str| {
        let pipeline = TAGS.replace(from, to);
        assert_ne!(pipeline, TAGS);
        Bench::new(&[("pipeline.yaml", &pipeline), ("tags.jinja", "{{ title }}"), ("items.csv", "")])
            .err()
            .unwrap()
    };
    assert!(wrong("max_tokens: 9", "max_tokens: 0").contains("max_tokens: must be at least 1"));
    assert!(wrong("max_tokens: 9", "max_token: 9").contains("max_tokens"));
    let schema = wrong("writing: { max_tokens: 9 }", "json: { type: string, pattern: a }");
    assert!(schema.contains("schema.pattern: is not supported; supported are"), "{schema}");
    let unknown = wrong("title: text", "name: text");
    assert!(unknown.contains("a template sees the columns of `items`"), "{unknown}");
    assert!(wrong(", model: writer", "").contains("needs a language model"));
    assert!(
        wrong("in: items", "in: [items, items]").contains("one input"),
        "{}",
        wrong("in: items", "in: [items, items]")
    );
    let both = wrong("writing: { max_tokens: 9 }", "writing: { stop: [x] }, json: { type: string }");
    assert!(both.contains("stop: would cut a JSON document short"), "{both}");
}

/// The example of `group_profile` with a model that writes, and with one part replaced by another.
fn example(from: &str, to: &str) -> Result<Bench, String> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("operators/examples");
    let read = |name: &str| fs::read_to_string(examples.join(name)).unwrap();
    let pipeline = read("group_profile.yaml")
        .replace("op: group_profile,", "model: portraits, op: group_profile,")
        .replace("writer: template", "writer: llm, writing: { seed: 5 }")
        .replace("models:\n", "models:\n  portraits: { kind: language_model, base: any }\n");
    assert!(pipeline.contains(from));
    let pipeline = if from.is_empty() { pipeline } else { pipeline.replace(from, to) };
    let names = ["data/events.csv", "data/items.csv", "data/users.csv", "prompts/profile.jinja"];
    let texts = names.map(read);
    let mut files: Vec<(&str, &str)> = names.into_iter().zip(texts.iter().map(String::as_str)).collect();
    files.extend([("pipeline.yaml", pipeline.as_str()), ("wrong.jinja", "{{ title }}")]);
    Bench::new(&files)
}

#[test]
fn what_is_wrong_with_a_portrait_s_parameters_is_told() {
    let wrong = |from: &str, to: &str| example(from, to).err().unwrap();
    let cases = [
        ("seed: 5", "max_tokens: 0", "max_tokens: must be at least 1"),
        ("seed: 5", "temperature: -1", "temperature: must be a finite number from 0"),
        ("seed: 5", "sed: 5", "seed"),
        ("writing: { seed: 5 }", "format: list", "tags"),
        ("writing: { seed: 5 }", "template: nowhere.jinja", "nowhere.jinja"),
        (
            "writing: { seed: 5 }",
            "template: wrong.jinja",
            "a template sees `group`, `members` and `favourites`",
        ),
        (
            "writing: { seed: 5 }",
            "format: tags, writing: { stop: [x] }",
            "stop: would cut a JSON document short",
        ),
        ("model: portraits, ", "", "needs a language model"),
        ("representatives: 4", "representatives: 0", "must be at least 1"),
        // Nothing would read these.
        ("writer: llm", "writer: template", "only `writer: llm` reads"),
        ("writer: llm, writing: { seed: 5 }", "writer: template, format: tags", "only `writer: llm` reads"),
        (
            "writer: llm, writing: { seed: 5 }",
            "writer: template, template: wrong.jinja",
            "only `writer: llm` reads",
        ),
        ("writer: llm, writing: { seed: 5 }", "writer: template", "only `writer: llm` asks a model"),
    ];
    for (from, to, expected) in cases {
        let told = wrong(from, to);
        assert!(told.contains(expected), "{to}: {told}");
    }
}

/// Portraits are fitted: written once, durable, and the same for every key of their group.
#[test]
fn a_model_writes_portraits_when_groups_are_fitted() {
    let bench = example("", "").unwrap();
    bench.epoch("state", options(false)).unwrap();
    let portraits = rows(&bench, "profile");
    assert!(portraits.len() >= 3);
    for (group, row) in &portraits {
        assert!(row[0].contains("text -") && row[0].contains("under seed 5"), "{group}: {}", row[0]);
    }
    assert_eq!(bench.models.calls(), portraits.len() as u64);
    let click = "user_id,item_id,rating,timestamp\n1,2,5,2000000000\n";
    bench.epoch("state", bench.deltas(&[("events", click)]).unwrap()).unwrap();
    assert_eq!(rows(&bench, "profile"), portraits);
    assert_eq!(bench.models.calls(), portraits.len() as u64);

    // A list of tags that is none leaves the fixed wording.
    let bench = example("writer: llm,", "writer: llm, format: tags,").unwrap();
    bench.epoch("state", options(false)).unwrap();
    assert!(rows(&bench, "profile").values().all(|row| row[0].contains("long-term favourites")));
}
