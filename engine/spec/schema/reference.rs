//! References (`$params.…`, `{ env: … }`) in the JSON Schema: allowed wherever a value is.
//!
//! They are resolved before anybody's types see a value, so no type can say that it may be one; it is
//! added to the finished schemas here.

use serde_json::{Map, Value, json};

/// Lets every value below a schema be a reference too.
pub(super) fn accept_references(schema: &mut Value) {
    let Value::Object(object) = schema else { return };
    for (key, inner) in object.iter_mut() {
        match (key.as_str(), inner) {
            ("properties", Value::Object(fields)) => fields.values_mut().for_each(or_reference),
            ("prefixItems", Value::Array(items)) => items.iter_mut().for_each(or_reference),
            ("items" | "additionalProperties", inner @ Value::Object(_)) => or_reference(inner),
            ("anyOf" | "oneOf" | "allOf", Value::Array(items)) => {
                items.iter_mut().for_each(accept_references)
            }
            ("$defs", Value::Object(defs)) => defs.values_mut().for_each(accept_references),
            _ => {}
        }
    }
}

/// A schema, or a reference; what describes the schema describes the whole.
fn or_reference(schema: &mut Value) {
    accept_references(schema);
    let mut outer = Map::new();
    if let Value::Object(object) = schema {
        for key in ["title", "description", "default"] {
            outer.extend(object.remove(key).map(|value| (key.to_owned(), value)));
        }
    }
    outer.insert("anyOf".to_owned(), json!([schema.take(), { "$ref": "#/$defs/reference" }]));
    *schema = Value::Object(outer);
}

/// The schema of a reference.
pub(super) fn reference() -> Value {
    let named = |key: &str| {
        json!({
            "type": "object",
            "properties": { key: { "type": "string" } },
            "required": [key],
            "additionalProperties": false
        })
    };
    json!({
        "description": "A parameter, or a variable of the environment, shown or secret.",
        "anyOf": [
            { "type": "string", "pattern": "^\\$params\\.[A-Za-z0-9_-]+$" },
            named("env"),
            named("secret")
        ]
    })
}
