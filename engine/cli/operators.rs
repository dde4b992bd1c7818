//! `operators`: what a node's `op` can say, out of the operators' own documentation.

use serde_json::Value as Json;

use super::{Failure, Format, output};
use crate::{
    diagnostic::did_you_mean,
    registry::{Entry, Registry},
};

/// The operators, or one of them in full.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The operator to explain.
    pub name: Option<String>,
    /// How results are printed.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Runs the command.
///
/// # Errors
/// If there is no such operator.
pub fn run(args: &Args) -> Result<(), Failure> {
    let registry = Registry::built_in();
    let Some(name) = &args.name else { return list(registry.entries(), args.format) };
    let entry = registry.get(name).ok_or_else(|| {
        let names: Vec<&str> = registry.entries().iter().map(|entry| entry.name).collect();
        let help = match did_you_mean(name, names.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("there are {}", names.join(", ")),
        };
        output::usage(format!("there is no operator `{name}`; {help}"))
    })?;
    match args.format {
        Format::Json => output::document(&Full {
            name: entry.name,
            schema: (entry.schema)().to_value(),
            example: entry.example,
        }),
        Format::Text => output::text(&full(entry)),
    }
}

#[derive(serde::Serialize)]
struct Line {
    name: &'static str,
    about: String,
}

#[derive(serde::Serialize)]
struct Full {
    name: &'static str,
    schema: Json,
    example: &'static str,
}

/// The first line of an operator's documentation.
pub fn about(entry: &Entry) -> String {
    let schema = (entry.schema)().to_value();
    paragraphs(&schema).lines().next().unwrap_or_default().to_string()
}

fn list(entries: &[Entry], format: Format) -> Result<(), Failure> {
    let lines: Vec<Line> = entries.iter().map(|e| Line { name: e.name, about: about(e) }).collect();
    match format {
        Format::Json => output::document(&lines),
        Format::Text => {
            let rows = lines.into_iter().map(|line| vec![line.name.to_string(), line.about]);
            output::text(&output::columns(&rows.collect::<Vec<_>>()))
        }
    }
}

/// A description with the line breaks of its source taken out; paragraphs stay apart.
fn paragraphs(schema: &Json) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect::<Vec<_>>().join("\n\n")
}

fn full(entry: &Entry) -> String {
    let schema = (entry.schema)().to_value();
    let mut text = format!("{}\n\n{}\n", entry.name, paragraphs(&schema));
    let parameters = parameters(&schema);
    if !parameters.is_empty() {
        text += "\nParameters\n";
    }
    for parameter in parameters {
        let about = parameter.about.replace("\n\n", "\n      ");
        text += &format!("  {}: {}\n      {about}\n", parameter.name, parameter.kind);
    }
    text + "\nExample\n\n" + entry.example.trim_end() + "\n"
}

#[derive(Debug, PartialEq)]
struct Parameter {
    name: String,
    /// Type and default.
    kind: String,
    about: String,
}

/// The parameters of a schema, those that must be given first.
fn parameters(schema: &Json) -> Vec<Parameter> {
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str).collect();
    let parameter = |(name, field): (&String, &Json)| {
        let must = required.contains(&name.as_str());
        let kind = match field.get("default") {
            _ if must => format!("{}, required", kind(field, schema)),
            None | Some(Json::Null) => format!("{}, optional", kind(field, schema)),
            Some(default) => format!("{}, default {}", kind(field, schema), plain(default)),
        };
        let about = match paragraphs(field) {
            about if about.is_empty() => paragraphs(resolve(field, schema)),
            about => about,
        };
        (!must, Parameter { name: name.clone(), kind, about })
    };
    let mut all: Vec<(bool, Parameter)> =
        schema["properties"].as_object().into_iter().flatten().map(parameter).collect();
    all.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
    all.into_iter().map(|(_, parameter)| parameter).collect()
}

fn plain(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

/// What a reference inside `root` leads to.
fn resolve<'a>(schema: &'a Json, root: &'a Json) -> &'a Json {
    let target = schema["$ref"].as_str().and_then(|target| root.pointer(target.strip_prefix('#')?));
    target.unwrap_or(schema)
}

/// A type in words: `whole number`, `list of text`, `all | first | set`.
fn kind(field: &Json, root: &Json) -> String {
    let field = resolve(field, root);
    let names = |options: &[Json]| {
        let shown = options.iter().filter(|option| option["type"] != "null");
        let mut names: Vec<String> = shown.map(|option| kind(option, root)).collect();
        names.dedup();
        names.join(" | ")
    };
    for key in ["oneOf", "anyOf", "allOf"] {
        if let Some(options) = field[key].as_array() {
            return names(options);
        }
    }
    if let Some(word) = field.get("const") {
        return plain(word);
    }
    if let Some(words) = field["enum"].as_array() {
        return words.iter().map(plain).collect::<Vec<_>>().join(" | ");
    }
    let types: Vec<&str> = match &field["type"] {
        Json::String(one) => vec![one],
        Json::Array(several) => several.iter().filter_map(Json::as_str).filter(|t| *t != "null").collect(),
        _ => vec![],
    };
    let word = |ty: &&str| match *ty {
        "integer" => "whole number".to_string(),
        "string" => "text".to_string(),
        "boolean" => "true or false".to_string(),
        "array" => format!("list of {}", kind(&field["items"], root)),
        "object" => "map".to_string(),
        other => other.to_string(),
    };
    match types.as_slice() {
        [] => "any".to_string(),
        types => types.iter().map(word).collect::<Vec<_>>().join(" or "),
    }
}

#[cfg(test)]
mod tests {
    use schemars::JsonSchema;
    use serde::Deserialize;

    use super::*;

    #[expect(dead_code, reason = "only its schema is used")]
    #[derive(Deserialize, JsonSchema)]
    struct Sample {
        /// How many
        /// at least.
        least: u64,
        by: Option<By>,
        #[serde(default)]
        names: Vec<String>,
    }

    /// What is counted.
    #[derive(Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    enum By {
        /// Items.
        Item,
        /// Categories.
        Category,
    }

    #[test]
    fn parameters_are_told_with_type_default_and_documentation() {
        let parameters = parameters(&schemars::schema_for!(Sample).to_value());
        let shown: Vec<String> =
            parameters.iter().map(|p| format!("{}: {}: {}", p.name, p.kind, p.about)).collect();
        assert_eq!(
            shown,
            [
                "least: whole number, required: How many at least.",
                "by: item | category, optional: ",
                "names: list of text, default []: ",
            ]
        );
    }

    #[test]
    fn every_operator_has_a_line_and_documents_its_parameters() {
        for entry in Registry::built_in().entries() {
            assert!(about(entry).ends_with('.'), "{}", entry.name);
            for parameter in parameters(&(entry.schema)().to_value()) {
                assert!(!parameter.about.is_empty(), "{}.{}", entry.name, parameter.name);
                assert!(!parameter.kind.starts_with("any"), "{}.{parameter:?}", entry.name);
            }
            assert!(full(entry).contains("\nExample\n"));
        }
    }
}
