//! The JSON Schema of a pipeline, which lets an editor complete and check `with` as it is typed.
//!
//! The document's shape comes from types of this file, the parameters from whoever owns them:
//! operators and connectors hand their own schemas in, so neither is known here. Each is put under
//! `$defs` and chosen by `if`/`then` on the name, and each value inside may also be a reference
//! (`$params.…`, `{ env: … }`), which the owner's types never see.

mod reference;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::{Map, Value, json};

use self::reference::{accept_references, reference};
use crate::price::Price;

/// An operator, connector or model kind, as the schema shows it.
#[derive(Clone, Debug)]
pub struct TypeDoc<'a> {
    /// What `op:`, `connector:` or `kind:` says.
    pub name: &'a str,
    /// One line for the user.
    pub doc: &'a str,
    /// The schema of its `with`, as schemars makes it.
    pub schema: Value,
}

/// A pipeline of coea-engine.
#[expect(dead_code, reason = "only its schema is used")]
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, title = "coea-engine pipeline")]
struct Document {
    /// The format's version: 1.
    version: Version,
    /// The pipeline's name; its state is kept under it.
    name: String,
    /// Values to be used as `$params.name`.
    params: Option<BTreeMap<String, Value>>,
    /// Where rows come from.
    sources: Option<BTreeMap<String, Source>>,
    /// Models that nodes call or update.
    models: Option<BTreeMap<String, Model>>,
    /// What is computed.
    nodes: BTreeMap<String, Node>,
    /// Where rows go.
    sinks: Option<BTreeMap<String, Sink>>,
}

struct Version;

impl JsonSchema for Version {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Version".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "const": 1 })
    }
}

/// Where rows come from.
#[expect(dead_code, reason = "only its schema is used")]
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Source {
    /// The connector.
    connector: String,
    /// The connector's parameters.
    with: Option<Map<String, Value>>,
}

/// A model that nodes call or update.
#[expect(dead_code, reason = "only its schema is used")]
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Model {
    /// What kind of model it is.
    kind: String,
    /// The model it starts from.
    base: Option<String>,
    /// What calls cost.
    price: Option<Price>,
    /// The kind's parameters.
    with: Option<Map<String, Value>>,
}

/// Something computed.
#[expect(dead_code, reason = "only its schema is used")]
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Node {
    /// The operator.
    op: String,
    /// The sources and nodes it reads, in the operator's order.
    r#in: Option<Inputs>,
    /// The model it calls.
    model: Option<String>,
    /// The model it promotes versions of.
    updates: Option<String>,
    /// The operator's parameters.
    with: Option<Map<String, Value>>,
    /// When what it fits is fitted again.
    refit: Option<Refit>,
    /// How long its new requests to the model wait, to be asked together; no part of its logic.
    after: Option<After>,
    /// What a run may spend on it; no part of its logic.
    limits: Option<Limits>,
}

/// One name or several.
#[expect(dead_code, reason = "only its schema is used")]
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Inputs {
    One(String),
    Several(Vec<String>),
}

/// When what it fits is fitted again.
#[expect(dead_code, reason = "only its schema is used")]
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Refit {
    /// `once` in the first epoch, by `cycle`, when an input `changed`, on `drift`, or `every` so many epochs.
    when: When,
    /// With `when: drift`, the drift tolerated.
    above: Option<f64>,
    /// With `when: every`, the epochs between fits.
    epochs: Option<u64>,
}

#[expect(dead_code, reason = "only its schema is used")]
#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase", inline)]
enum When {
    Once,
    Cycle,
    Changed,
    Drift,
    Every,
}

/// What one run may spend on a node; a run that would need more stops there, keeps its answers and
/// can be resumed.
#[expect(dead_code, reason = "only its schema is used")]
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Limits {
    /// Calls of its model.
    calls: u64,
}

/// Until one of these is reached, new requests wait; what vanishes meanwhile is never asked.
#[expect(dead_code, reason = "only its schema is used")]
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, extend("minProperties" = 1))]
struct After {
    /// Rows taken in, of all sources, since the oldest of them began to wait.
    #[schemars(range(min = 1))]
    events: Option<u64>,
    /// Time passed since then, such as 500ms, 30s, 10m or 1h; a number alone counts seconds.
    time: Option<Time>,
}

#[expect(dead_code, reason = "only its schema is used")]
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Time {
    Text(#[schemars(regex(pattern = "^0*[1-9][0-9]*(ms|s|m|h)?$"))] String),
    Seconds(#[schemars(range(min = 1))] u64),
}

/// Where rows go.
#[expect(dead_code, reason = "only its schema is used")]
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Sink {
    /// The connector.
    connector: String,
    /// The node it writes.
    r#in: String,
    /// The connector's parameters.
    with: Option<Map<String, Value>>,
}

/// All that a pipeline can name. A sort without any leaves its names and `with` open in the schema.
#[derive(Clone, Copy, Debug, Default)]
pub struct Catalogue<'a> {
    /// What `op:` can say.
    pub operators: &'a [TypeDoc<'a>],
    /// What `kind:` can say of a model.
    pub models: &'a [TypeDoc<'a>],
    /// What `connector:` can say of a source.
    pub sources: &'a [TypeDoc<'a>],
    /// What `connector:` can say of a sink.
    pub sinks: &'a [TypeDoc<'a>],
}

/// The JSON Schema of a pipeline, with `with` chosen by name.
pub fn json_schema(catalogue: &Catalogue<'_>) -> Value {
    let mut schema = schemars::schema_for!(Document).to_value();
    let mut defs = match schema["$defs"].take() {
        Value::Object(defs) => defs,
        _ => Map::new(),
    };
    defs.values_mut().for_each(accept_references);
    choose(&mut defs, "Node", "op", catalogue.operators);
    choose(&mut defs, "Model", "kind", catalogue.models);
    choose(&mut defs, "Source", "connector", catalogue.sources);
    choose(&mut defs, "Sink", "connector", catalogue.sinks);
    defs.insert("reference".to_owned(), reference());
    schema["$defs"] = Value::Object(defs);
    schema
}

/// Lets `key` of a definition choose the schema of its `with`.
fn choose(defs: &mut Map<String, Value>, def: &str, key: &str, types: &[TypeDoc<'_>]) {
    if types.is_empty() {
        return;
    }
    let mut rules = Vec::new();
    for kind in types {
        let slot = format!("{}.{}", def.to_lowercase(), kind.name);
        let mut schema = kind.schema.clone();
        if let Value::Object(object) = &mut schema {
            object.remove("$schema");
        }
        rebase(&mut schema, &slot);
        let needs = schema["required"].as_array().is_some_and(|required| !required.is_empty());
        accept_references(&mut schema);
        let mut then = json!({ "properties": { "with": { "$ref": format!("#/$defs/{slot}") } } });
        if needs {
            then["required"] = json!(["with"]);
        }
        rules.push(json!({ "if": { "properties": { key: { "const": kind.name } }, "required": [key] }, "then": then }));
        defs.insert(slot, schema);
    }
    // One branch a name, not one `enum`, because editors show a branch's description.
    let names: Vec<Value> =
        types.iter().map(|kind| json!({ "const": kind.name, "description": kind.doc })).collect();
    let Some(target) = defs.get_mut(def) else { return };
    target["properties"][key]["anyOf"][0] = json!({ "oneOf": names });
    target["allOf"] = Value::Array(rules);
}

/// Makes references that were local to a schema lead to its new place.
fn rebase(schema: &mut Value, slot: &str) {
    match schema {
        Value::Object(object) => {
            if let Some(Value::String(target)) = object.get_mut("$ref")
                && let Some(local) = target.strip_prefix('#')
            {
                *target = format!("#/$defs/{slot}{local}");
            }
            object.values_mut().for_each(|inner| rebase(inner, slot));
        }
        Value::Array(items) => items.iter_mut().for_each(|inner| rebase(inner, slot)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::read;

    #[expect(dead_code, reason = "only its schema is used")]
    #[derive(JsonSchema)]
    struct Filter {
        /// How many.
        min_clicks: u32,
        by: Option<By>,
    }

    #[derive(JsonSchema)]
    enum By {
        #[expect(dead_code, reason = "only its schema is used")]
        Item,
    }

    fn sample() -> Value {
        let schema = schemars::schema_for!(Filter).to_value();
        let operators = [TypeDoc { name: "filter", doc: "Filters.", schema }];
        json_schema(&Catalogue { operators: &operators, ..Catalogue::default() })
    }

    /// The pointer of every `$ref`.
    fn references(schema: &Value, found: &mut Vec<String>) {
        match schema {
            Value::Object(object) => {
                found.extend(object.get("$ref").and_then(Value::as_str).map(str::to_owned));
                object.values().for_each(|inner| references(inner, found));
            }
            Value::Array(items) => items.iter().for_each(|inner| references(inner, found)),
            _ => {}
        }
    }

    #[test]
    fn the_schema_and_the_reader_know_the_same_keys() {
        let schema = sample();
        let keys = |object: &Value| {
            let mut keys: Vec<String> = object["properties"].as_object().unwrap().keys().cloned().collect();
            keys.sort();
            keys
        };
        let sorted = |known: &[&str]| {
            let mut known: Vec<String> = known.iter().map(ToString::to_string).collect();
            known.sort();
            known
        };
        assert_eq!(keys(&schema), sorted(read::SPEC_KEYS));
        for (def, known) in [
            ("Source", read::SOURCE_KEYS),
            ("Model", read::MODEL_KEYS),
            ("Node", read::NODE_KEYS),
            ("Sink", read::SINK_KEYS),
        ] {
            assert_eq!(keys(&schema["$defs"][def]), sorted(known), "{def}");
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let schema = sample();
        let mut found = Vec::new();
        references(&schema, &mut found);
        assert!(found.iter().any(|target| target == "#/$defs/node.filter/$defs/By"), "{found:?}");
        for target in found {
            assert!(schema.pointer(&target[1..]).is_some(), "{target}");
        }
    }

    #[test]
    fn an_operator_chooses_its_parameters_which_may_be_references() {
        let schema = sample();
        let rule = &schema["$defs"]["Node"]["allOf"][0];
        assert_eq!(rule["if"]["properties"]["op"]["const"], "filter");
        assert_eq!(rule["then"]["properties"]["with"]["$ref"], "#/$defs/node.filter");
        assert_eq!(rule["then"]["required"], json!(["with"]));
        let field = &schema["$defs"]["node.filter"]["properties"]["min_clicks"];
        assert_eq!(field["description"], "How many.");
        assert_eq!(field["anyOf"][0]["type"], "integer");
        assert_eq!(field["anyOf"][1]["$ref"], "#/$defs/reference");
    }
}
