//! What holds for every operator of the registry, and the page that documents them.
//!
//! The page is generated from the parameters' own schemas, so that it cannot disagree with what is
//! accepted. `UPDATE=1` refreshes it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use coea_engine::{
    diagnostic::{Diagnostics, SourceText},
    lower::lower,
    models::RealModels,
    plan::Plan,
    registry::{Entry, Registry},
    spec,
};
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Lowers a pipeline as the command line does; every problem of it fails the test.
fn plan(path: &Path, text: String) -> Plan {
    let name = path.strip_prefix(root()).unwrap_or(path).display().to_string();
    let fail = |problems: Diagnostics| -> ! { panic!("{}", problems.render(false)) };
    let (spec, problems) = spec::parse(Arc::new(SourceText::new(name, text)), &[], &|_| None);
    let Some(spec) = spec.filter(|_| !problems.has_errors()) else { fail(problems) };
    let folder = path.parent().unwrap();
    lower(&spec, folder, &Registry::built_in(), &RealModels::default())
        .unwrap_or_else(|problems| fail(problems))
}

fn pipelines() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("pipelines")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "yaml"));
    paths.sort();
    paths
}

#[test]
fn every_example_lowers_and_uses_its_operator() {
    let folder = root().join("operators/examples");
    for entry in Registry::built_in().entries() {
        let path = folder.join(format!("{}.yaml", entry.name));
        assert_eq!(fs::read_to_string(&path).unwrap(), entry.example, "{} has another example", entry.name);
        let plan = plan(&path, entry.example.to_string());
        assert!(plan.nodes.iter().any(|node| node.op == entry.name), "{} is not in its example", entry.name);
        let last = plan.nodes.last().unwrap();
        assert!(plan.sinks.iter().any(|sink| plan.nodes[sink.node].name == last.name), "{}", entry.name);
    }
}

#[test]
fn every_example_starts_from_a_sentence() {
    for entry in Registry::built_in().entries() {
        let first = entry.example.lines().next().unwrap_or_default();
        assert!(first.starts_with("# ") && first.ends_with('.'), "{}: {first}", entry.name);
    }
}

#[test]
fn every_pipeline_lowers() {
    assert!(pipelines().len() >= 3);
    for path in pipelines() {
        let plan = plan(&path, fs::read_to_string(&path).unwrap());
        let stem = path.file_stem().unwrap().to_string_lossy();
        assert_eq!(plan.name, stem, "a pipeline has the name of its file");
        assert!(!plan.sinks.is_empty(), "{stem} keeps nothing");
    }
}

/// The prior of a label is what the model says to a prompt without content; a blank would be a
/// prompt of another kind.
#[test]
fn prompts_without_content_say_so() {
    let template = root().join("pipelines/movielens-100k.yaml");
    let plan = plan(&template, fs::read_to_string(&template).unwrap());
    let neutral = &plan.node("prompt").unwrap().schema.notes["neutral_prompt"];
    assert_eq!(neutral.matches("unknown").count(), 2, "{neutral}");
    assert!(neutral.starts_with("<|im_start|>system\n"), "{neutral}");
    assert!(neutral.ends_with("<|im_start|>assistant\n"), "{neutral}");
}

/// Keys of a group share all of a prompt up to its recent categories; that tail is what each key
/// costs, so it stays short.
#[test]
fn the_profile_comes_before_the_recent_categories() {
    for folder in ["pipelines", "operators/examples"] {
        for name in ["novelty", "relevance"] {
            let text = fs::read_to_string(root().join(folder).join(format!("prompts/{name}.jinja"))).unwrap();
            let profile = text.find("{{ profile").unwrap();
            let recent = text.find("{{ recent").unwrap();
            assert!(profile < recent, "{folder}: {name}");
            assert!(text.ends_with("<|im_end|>\n<|im_start|>assistant\n"), "{folder}: {name}");
            let (before, after) = (text[..profile].split_whitespace(), text[recent..].split_whitespace());
            assert!(before.count() <= 70 && after.count() <= 20, "{folder}: {name} is too long");
        }
    }
}

#[test]
fn every_operator_and_every_parameter_is_documented() {
    for entry in Registry::built_in().entries() {
        let schema = (entry.schema)().to_value();
        let described = |value: &Value| value["description"].as_str().is_some_and(|text| !text.is_empty());
        assert!(described(&schema), "{} has no description", entry.name);
        for (name, parameter) in properties(&schema) {
            assert!(described(parameter), "{}: `{name}` has no description", entry.name);
        }
    }
}

#[test]
fn the_operators_page_is_fresh() {
    let path = root().join("docs/operators.md");
    let page = page();
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/operators.md is not what the registry says; refresh with UPDATE=1");
}

fn page() -> String {
    let registry = Registry::built_in();
    let mut page = String::from(
        "# Operators\n\n\
         Generated from the operators' own schemas by `tests/operators.rs`; `UPDATE=1` refreshes it.\n\n",
    );
    for Entry { name, schema, .. } in registry.entries() {
        let text = schema().to_value()["description"].as_str().unwrap_or_default().to_string();
        let first = text.split("\n\n").next().unwrap_or_default().replace('\n', " ");
        writeln!(page, "- [`{name}`](#{name}): {first}").unwrap();
    }
    registry.entries().iter().for_each(|entry| section(&mut page, entry));
    page
}

fn section(page: &mut String, entry: &Entry) {
    let schema = (entry.schema)().to_value();
    let text = schema["description"].as_str().unwrap_or_default();
    writeln!(page, "\n## {}\n\n{text}\n", entry.name).unwrap();
    parameters(page, &schema, &schema);
    for (name, definition) in schema["$defs"].as_object().into_iter().flatten() {
        if definition["properties"].is_object() {
            let text = definition["description"].as_str().unwrap_or_default();
            writeln!(page, "\n### {name}\n\n{text}\n").unwrap();
            parameters(page, &schema, definition);
        }
    }
    writeln!(page, "\n```yaml\n{}```", entry.example).unwrap();
}

fn properties(of: &Value) -> impl Iterator<Item = (&String, &Value)> {
    of["properties"].as_object().into_iter().flatten()
}

/// The table of the parameters of one type.
fn parameters(page: &mut String, schema: &Value, of: &Value) {
    if properties(of).next().is_none() {
        page.push_str("It has no parameters.\n");
        return;
    }
    page.push_str("| parameter | type | default | meaning |\n|---|---|---|---|\n");
    let required = |name: &str| of["required"].as_array().is_some_and(|all| all.iter().any(|r| r == name));
    for (name, parameter) in properties(of) {
        let default = match &parameter["default"] {
            _ if required(name) => "required".to_string(),
            Value::Null => "absent".to_string(),
            value => format!("`{}`", plain(value)),
        };
        let meaning = parameter["description"].as_str().unwrap_or_default().replace('\n', " ");
        let choices = choices(schema, parameter);
        writeln!(page, "| `{name}` | {} | {default} | {meaning}{choices} |", type_of(schema, parameter))
            .unwrap();
    }
}

/// A default as YAML shows it: real numbers that came from 32 bits without the noise of 64.
fn plain(value: &Value) -> String {
    match value {
        Value::Number(number) if number.is_f64() => (number.as_f64().unwrap_or_default() as f32).to_string(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

/// What a `$ref` stands for; anything else is itself.
fn target<'a>(schema: &'a Value, part: &'a Value) -> &'a Value {
    let alternatives = part["anyOf"].as_array().into_iter().flatten();
    let part = alternatives.into_iter().find(|p| p["type"] != "null").unwrap_or(part);
    let name = part["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/"));
    name.map_or(part, |name| &schema["$defs"][name])
}

fn type_of(schema: &Value, part: &Value) -> String {
    let found = target(schema, part);
    if found["oneOf"].is_array() || found["enum"].is_array() {
        return "choice".to_string();
    }
    let named = match &found["type"] {
        Value::Array(types) => types.iter().find(|t| *t != "null").and_then(Value::as_str),
        ty => ty.as_str(),
    };
    match named {
        Some("array") => {
            let item = &found["items"];
            match item["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/")) {
                Some(name) if properties(target(schema, item)).next().is_some() => {
                    format!("list of [{name}](#{})", name.to_lowercase())
                }
                _ => format!("list of {}", type_of(schema, item)),
            }
        }
        Some("integer") => "whole number".to_string(),
        Some("string") => "text".to_string(),
        Some(name) => name.to_string(),
        None => "any".to_string(),
    }
}

/// The values a choice has, with what each means.
fn choices(schema: &Value, part: &Value) -> String {
    let of_list = &part["items"];
    let found = target(schema, if of_list.is_object() { of_list } else { part });
    let one_of = found["oneOf"].as_array().into_iter().flatten();
    let told: Vec<String> = one_of
        .filter_map(|choice| {
            let meaning = choice["description"].as_str().unwrap_or_default().replace('\n', " ");
            Some(format!("`{}`: {}", choice["const"].as_str()?, meaning.trim_end_matches('.')))
        })
        .collect();
    if told.is_empty() { String::new() } else { format!(" {}.", told.join("; ")) }
}
