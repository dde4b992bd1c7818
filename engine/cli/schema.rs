//! `schema`: the JSON Schema of a pipeline, for editors; `pipelines/schema.json` is its output.

use schemars::schema_for;
use serde_json::{Value as Json, json};

use super::{Failure, operators::about, output};
use crate::{
    connectors::SourceConnector,
    registry::Registry,
    remote::settings::Settings,
    sinks::KvSink,
    spec::{Catalogue, TypeDoc, json_schema},
};

/// What a model can be, with a line for the user; those with a `base` take parameters where it is
/// the URL of a server.
const MODEL_KINDS: [(&str, &str); 4] = [
    ("language_model", "A language model that proposes; it has a `base`."),
    ("reward_model", "A language model that judges; it has a `base`."),
    ("csa_encoder", "An encoder of behaviour, fitted by the node that names it."),
    ("rq_quantizer", "Codebooks, fitted by the node that names them."),
];

/// Runs the command.
///
/// # Errors
/// If standard output cannot be written.
pub fn run() -> Result<(), Failure> {
    output::document(&pipeline_schema(&Registry::built_in()))
}

/// The first line of a schema's description.
fn first_line(schema: &Json) -> String {
    schema["description"].as_str().unwrap_or_default().lines().next().unwrap_or_default().to_string()
}

/// The JSON Schema of pipelines whose operators are those of `registry`.
pub fn pipeline_schema(registry: &Registry) -> Json {
    let docs: Vec<String> = registry.entries().iter().map(about).collect();
    let operators: Vec<TypeDoc<'_>> = registry
        .entries()
        .iter()
        .zip(&docs)
        .map(|(entry, doc)| TypeDoc { name: entry.name, doc, schema: (entry.schema)().to_value() })
        .collect();
    let none = json!({ "type": "object", "additionalProperties": false });
    // What an embedded model must not have, one on a server must: neither can be required here.
    let mut server = schema_for!(Settings).to_value();
    server.as_object_mut().map(|schema| schema.remove("required"));
    let models = MODEL_KINDS.map(|(name, doc)| {
        let schema = if name.ends_with("_model") { server.clone() } else { none.clone() };
        TypeDoc { name, doc, schema }
    });
    let connectors = SourceConnector::json_schemas().map(|(name, schema)| (name, schema.to_value()));
    let lines: Vec<String> = connectors.iter().map(|(_, schema)| first_line(schema)).collect();
    let sources: Vec<TypeDoc<'_>> = connectors
        .iter()
        .zip(&lines)
        .map(|((name, schema), doc)| TypeDoc { name, doc, schema: schema.clone() })
        .collect();
    let kv = schema_for!(KvSink).to_value();
    let line = first_line(&kv);
    let sinks = [TypeDoc { name: "kv", doc: &line, schema: kv }];
    json_schema(&Catalogue { operators: &operators, models: &models, sources: &sources, sinks: &sinks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operator_connector_and_kind_is_offered() {
        let text = pipeline_schema(&Registry::built_in()).to_string();
        for entry in Registry::built_in().entries() {
            assert!(text.contains(&format!("#/$defs/node.{}", entry.name)), "{}", entry.name);
        }
        for name in ["source.files", "source.dataset", "sink.kv", "model.csa_encoder"] {
            assert!(text.contains(&format!("\"{name}\"")), "{name}");
        }
    }
}
