//! Bad pipelines and what the user is told, as files: `tests/diagnostics/*.yaml` and `*.stderr`.
//!
//! A good pipeline's file holds what was read instead. Lines `# set: PATH=VALUE` and
//! `# env: NAME=VALUE` at the top are the command line and the environment. `UPDATE=1` refreshes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fmt::Write, fs, path::Path, sync::Arc};

use coea_engine::{
    diagnostic::{Diagnostics, SourceText},
    spec::{self, Block, Secret, Spec},
};
use proptest::prelude::*;
use serde::Deserialize;

/// Stands for the operators, which are not this layer's.
#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "read for its mistakes")]
struct Filter {
    min_clicks: u32,
    #[serde(default)]
    exclude_last: u32,
    count_by: Option<CountBy>,
    r#where: Option<String>,
    tags: Option<Vec<String>>,
    sample: Option<Sample>,
    keep: Option<Keep>,
    flag: Option<bool>,
    token: Option<Secret>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum CountBy {
    Item,
    Category,
}

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "read for its mistakes")]
struct Sample {
    fraction: f64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "read for its mistakes")]
enum Keep {
    Live,
    Epochs(u64),
}

/// Loads a file as its first lines say, then reads the parameters of each click_filter.
fn load(path: &Path) -> Result<Spec, Diagnostics> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let said = |word: &str| -> Vec<String> {
        text.lines().filter_map(|line| line.strip_prefix(word)).map(str::to_owned).collect()
    };
    let variables = said("# env: ");
    let env = |name: &str| {
        variables.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
    };
    let (spec, mut problems) = spec::read(path, &said("# set: "), &env);
    let filters = spec.iter().flat_map(|spec| &spec.nodes).filter(|node| *node.spec.op == "click_filter");
    for node in filters {
        problems.extend(node.spec.with.parse::<Filter>("click_filter").err().into_iter().flatten());
    }
    problems.sort();
    match spec {
        Some(spec) if problems.is_empty() => Ok(spec),
        _ => Err(problems),
    }
}

/// A spec in lines, for comparison.
fn outline(spec: &Spec) -> String {
    let mut out = format!("version {} name {}\n", spec.version.value, spec.name.value);
    let with = |block: &Block| block.canonical_json().to_string();
    for param in &spec.params {
        out += &format!("param {} {}\n", param.name.value, param.spec);
    }
    for source in &spec.sources {
        let spec = &source.spec;
        out += &format!("source {} {} {}\n", source.name.value, spec.connector.value, with(&spec.with));
    }
    for model in &spec.models {
        let base = model.spec.base.as_ref().map(|base| base.as_str());
        out += &format!("model {} {} {base:?}\n", model.name.value, model.spec.kind.value);
    }
    for node in &spec.nodes {
        let spec = &node.spec;
        let inputs: Vec<&str> = spec.inputs.iter().map(|input| input.as_str()).collect();
        let names = [("model", &spec.model), ("updates", &spec.updates)];
        let names = names.map(|(key, name)| {
            name.as_ref().map(|name| format!(" {key} {}", name.value)).unwrap_or_default()
        });
        let refit = spec.refit.as_ref().map(|refit| format!(" refit {:?}", refit.when)).unwrap_or_default();
        let after = spec.after.as_ref().map(|after| format!(" after {:?} {:?}", after.events, after.time));
        let (name, op) = (&node.name.value, &spec.op.value);
        let after = after.unwrap_or_default();
        out += &format!("node {name} {op} {inputs:?}{}{refit}{after} {}\n", names.concat(), with(&spec.with));
    }
    for sink in &spec.sinks {
        let spec = &sink.spec;
        let (connector, input) = (&spec.connector.value, &spec.input.value);
        out += &format!("sink {} {connector} {input} {}\n", sink.name.value, with(&spec.with));
    }
    out
}

#[test]
fn every_pipeline_gets_its_diagnostics() {
    let folder = Path::new("tests/diagnostics");
    let mut cases: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    cases.sort();
    assert!(cases.len() > 30, "the cases are gone");
    let mut wrong = String::new();
    for case in cases {
        let shown = load(&case).map_or_else(|problems| problems.to_string(), |spec| outline(&spec));
        assert!(!shown.contains("hunter2"), "a secret shows:\n{shown}");
        let golden = case.with_extension("stderr");
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&golden, &shown).unwrap();
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        if shown != expected {
            writeln!(wrong, "{}\n--- expected\n{expected}--- shown\n{shown}", case.display()).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}(UPDATE=1 refreshes)");
}

fn parse(text: &str) -> (Option<Spec>, Diagnostics) {
    spec::parse(Arc::new(SourceText::new("test.yaml", text)), &[], &|_| None)
}

#[test]
fn five_thousand_levels_are_refused_at_once() {
    let levels = 5_000;
    let block: String = (0..levels).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    for text in ["[".repeat(levels), "{a: ".repeat(levels), "- ".repeat(levels), "? ".repeat(levels), block] {
        let (spec, problems) = parse(&text);
        assert!(spec.is_none());
        assert_eq!(problems.len(), 1);
        assert!(problems[0].message.contains("nested deeper than 64"), "{problems}");
    }
}

#[test]
fn sixty_four_levels_are_read_also_through_aliases() {
    let nested = |levels: usize| format!("{}x{}", "[".repeat(levels), "]".repeat(levels));
    // The root, `params` and the lists.
    let document =
        |levels| format!("version: 1\nname: demo\nnodes: {{}}\nparams: {{ deep: {} }}\n", nested(levels));
    assert!(parse(&document(62)).1.is_empty());
    assert!(parse(&document(63)).1.has_errors());
    let aliased = |levels| {
        format!("params: {{ a: &a {}, b: [*a] }}\n{}", nested(levels), "version: 1\nname: d\nnodes: {}\n")
    };
    assert!(parse(&aliased(61)).1.is_empty());
    assert!(parse(&aliased(62)).1.has_errors());
}

#[test]
fn files_that_are_no_text_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.yaml");
    let told = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        spec::load(&path, &[], &|_| None).unwrap_err()[0].clone()
    };
    let binary = told(b"version: 1\nname: d\xe9mo\n").to_string();
    assert!(binary.contains("p.yaml:2:8: error: the file is not UTF-8"), "{binary}");
    let large = told(&vec![b'#'; (1 << 20) + 1]).to_string();
    assert!(large.contains("p.yaml: error: larger than 1024 KiB"), "{large}");
    fs::remove_file(&path).unwrap();
    assert_eq!(spec::load(&path, &[], &|_| None).unwrap_err()[0].code, Some("unreadable"));
}

#[test]
fn a_mark_and_windows_line_ends_shift_no_position() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.yaml");
    fs::write(&path, "\u{feff}version: 1\r\nname: demo\r\nnodes: { a: { opp: x } }\r\n").unwrap();
    let told = spec::load(&path, &[], &|_| None).unwrap_err().to_string();
    assert!(told.contains("p.yaml:3:15: error: unknown key `opp`"), "{told}");
}

#[test]
fn large_documents_are_answered_within_seconds() {
    let documents = [
        format!("{{{}}}", (0..100_000).map(|n| format!("k{n}: ,")).collect::<String>()),
        "k: 1\n".repeat(200_000),
        format!("x: [{}]", "[],".repeat(300_000)),
        format!("a: {}", "b".repeat(1_000_000)),
        format!("a: &a [{}]\nb: *a\n", "1,".repeat(200_000)),
    ];
    for document in documents {
        let started = std::time::Instant::now();
        assert!(!parse(&document).1.to_string().is_empty());
        assert!(started.elapsed().as_secs() < 10, "{}… took {:?}", &document[..20], started.elapsed());
    }
}

const GOOD: &str = include_str!("diagnostics/contract_example.yaml");

/// Must come back with a spec or a reason, whose text can be shown.
fn survives(text: &str) {
    let (spec, problems) = parse(text);
    assert!(spec.is_some() || !problems.is_empty(), "neither spec nor problem");
    for node in spec.iter().flat_map(|spec| &spec.nodes) {
        let _ = node.spec.with.parse::<Filter>("click_filter").map_err(|problems| problems.to_string());
        node.spec.with.canonical_json();
    }
    problems.to_string();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        survives(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_yaml_like_text_is_survived(text in "[\\[\\]{}:,&*!|>'\"%@`#?\\-a-c0-2 \n\t\r$.~<\u{e9}\u{3042}]{0,80}") {
        survives(&text);
    }

    #[test]
    fn a_mutated_pipeline_is_survived(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0..12usize, "[\\[\\]{}:,&*!|>'\"#?\\-a \n\t]{0,3}"), 1..6),
    ) {
        let mut text: Vec<char> = GOOD.chars().collect();
        for (at, length, put) in cuts {
            let start = at.index(text.len());
            let end = (start + length).min(text.len());
            text.splice(start..end, put.chars());
        }
        survives(&text.into_iter().collect::<String>());
    }

    #[test]
    fn any_override_is_survived(set in "[a-c.=\\[{\"': ]{0,20}", path in "(nodes|params)(\\.[a-z]{1,8}){0,3}=[a-z\\[{\"]{0,5}") {
        let file = Arc::new(SourceText::new("test.yaml", GOOD));
        let (_, problems) = spec::parse(file, &[set, path], &|_| None);
        problems.to_string();
    }

    /// The types of unquoted scalars are those of serde_yaml.
    #[test]
    fn scalars_are_typed_as_by_serde_yaml(text in "[-+.0-9a-fA-FxobeE_~nultrsIN]{1,8}") {
        let document = format!("version: 1\nname: d\nnodes: {{}}\nparams: {{ x: {text} }}\n");
        let Ok(value) = serde_yaml::from_str::<serde_yaml::Value>(&document) else { return Ok(()) };
        let (Some(spec), _) = parse(&document) else { return Ok(()) };
        let theirs = &value["params"]["x"];
        let ours = &spec.params[0].spec;
        prop_assert_eq!(theirs.is_string(), ours.is_string(), "{} {}", text, ours);
        prop_assert_eq!(theirs.is_null(), ours.is_null(), "{} {}", text, ours);
        prop_assert_eq!(theirs.as_bool(), ours.as_bool());
        if let (Some(theirs), Some(ours)) = (theirs.as_f64(), ours.as_f64()) {
            prop_assert_eq!(theirs, ours);
        }
    }
}
