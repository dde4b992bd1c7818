//! The part of JSON Schema that texts can be held to, as a small arena of shapes.
//!
//! Decision: what is not understood is refused by name instead of passed over, since a text that
//! breaks its schema would be believed. Words that constrain nothing (titles, descriptions) are
//! allowed. Everything that is one of several fixed texts (`enum`, booleans, null) is one shape.

use serde_json::Value;

use crate::lm::error::LmError;

/// The place of a shape in its [`Schema`].
pub(crate) type ShapeId = usize;

/// What a value may be.
#[derive(Debug)]
pub(crate) enum Shape {
    /// Properties in order; others are never written.
    Object {
        /// `"name":` of each property, as it is written.
        names: Vec<Vec<u8>>,
        /// Whether each is required.
        required: Vec<bool>,
        /// The value of each.
        values: Vec<ShapeId>,
    },
    /// A list.
    Array {
        /// The shape of each item.
        items: ShapeId,
        /// Items, at least.
        least: u32,
        /// Items, at most.
        most: u32,
    },
    /// A string of at most so many characters.
    Text(u32),
    /// A number, with a fraction or without.
    Number {
        /// Whether it may have a fraction.
        fraction: bool,
    },
    /// One of some texts as they are written; none is the beginning of another.
    Choice(Vec<Vec<u8>>),
}

/// A schema; its last shape is that of the document.
#[derive(Debug)]
pub(crate) struct Schema {
    pub(crate) shapes: Vec<Shape>,
}

/// Words that say something to people only.
const REMARKS: [&str; 6] = ["$schema", "$id", "title", "description", "default", "examples"];

const SUPPORTED: &str = "supported are object (properties, required, additionalProperties: false), array (items, \
                         minItems, maxItems), string (maxLength or enum), integer, number, boolean and null";

impl Schema {
    /// Reads a schema.
    ///
    /// # Errors
    /// If something in it is not supported, with its place.
    pub(crate) fn read(schema: &Value) -> Result<Self, LmError> {
        let mut shapes = Self { shapes: Vec::new() };
        shapes.add(schema, "schema")?;
        Ok(shapes)
    }

    /// The shape of the document.
    pub(crate) fn root(&self) -> ShapeId {
        self.shapes.len() - 1
    }

    /// Adds a shape behind those it is made of.
    fn add(&mut self, schema: &Value, at: &str) -> Result<ShapeId, LmError> {
        let object = schema.as_object().ok_or_else(|| refused(at, "is not an object"))?;
        let known: &[&str] = match object.get("type").and_then(Value::as_str) {
            Some("object") => &["properties", "required", "additionalProperties"],
            Some("array") => &["items", "minItems", "maxItems"],
            Some("string") => &["enum", "maxLength"],
            Some("integer" | "number" | "boolean" | "null") => &[],
            None if object.contains_key("enum") => &["enum"],
            _ => return Err(refused(&format!("{at}.type"), "is not one of the types known")),
        };
        let known = |word: &&String| known.contains(&word.as_str()) || REMARKS.contains(&word.as_str());
        if let Some(word) = object.keys().find(|word| *word != "type" && !known(word)) {
            return Err(refused(&format!("{at}.{word}"), "is not supported"));
        }
        let shape = match object.get("type").and_then(Value::as_str) {
            Some("object") => self.object(schema, at)?,
            Some("array") => self.array(schema, at)?,
            Some("integer") => Shape::Number { fraction: false },
            Some("number") => Shape::Number { fraction: true },
            Some("boolean") => Shape::Choice(vec![b"false".to_vec(), b"true".to_vec()]),
            Some("null") => Shape::Choice(vec![b"null".to_vec()]),
            _ => string(schema, at)?,
        };
        self.shapes.push(shape);
        Ok(self.root())
    }

    fn object(&mut self, schema: &Value, at: &str) -> Result<Shape, LmError> {
        if !matches!(schema["additionalProperties"], Value::Null | Value::Bool(false)) {
            return Err(refused(&format!("{at}.additionalProperties"), "can only be false"));
        }
        let listed = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
        let Some(properties) = schema["properties"].as_object() else {
            return Err(refused(&format!("{at}.properties"), "is missing"));
        };
        if let Some(name) =
            listed.iter().find(|name| !name.as_str().is_some_and(|n| properties.contains_key(n)))
        {
            return Err(refused(&format!("{at}.required"), &format!("names {name}, which is no property")));
        }
        let (mut names, mut required, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for (name, value) in properties {
            names.push(format!("{}:", Value::from(name.as_str())).into_bytes());
            required.push(listed.iter().any(|listed| listed == name));
            values.push(self.add(value, &format!("{at}.properties.{name}"))?);
        }
        Ok(Shape::Object { names, required, values })
    }

    fn array(&mut self, schema: &Value, at: &str) -> Result<Shape, LmError> {
        let least = number(schema, "minItems", at)?.unwrap_or(0);
        let most = number(schema, "maxItems", at)?.unwrap_or(u32::MAX);
        if least > most {
            return Err(refused(&format!("{at}.minItems"), "is more than maxItems"));
        }
        Ok(Shape::Array { items: self.add(&schema["items"], &format!("{at}.items"))?, least, most })
    }
}

/// A string of bounded length, or one of some strings.
fn string(schema: &Value, at: &str) -> Result<Shape, LmError> {
    let most = number(schema, "maxLength", at)?.unwrap_or(u32::MAX);
    let Some(choices) = schema.get("enum") else { return Ok(Shape::Text(most)) };
    let place = format!("{at}.enum");
    let choices = choices.as_array().filter(|choices| !choices.is_empty());
    let mut texts = Vec::new();
    for choice in choices.ok_or_else(|| refused(&place, "is not a list of strings"))? {
        let text = choice.as_str().ok_or_else(|| refused(&place, "holds something other than strings"))?;
        if text.chars().count() <= most as usize {
            texts.push(choice.to_string().into_bytes());
        }
    }
    if texts.is_empty() {
        return Err(refused(&place, "holds only strings that are longer than maxLength"));
    }
    Ok(Shape::Choice(texts))
}

fn number(schema: &Value, word: &str, at: &str) -> Result<Option<u32>, LmError> {
    let read = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
    let wrong = || refused(&format!("{at}.{word}"), "is not a whole number from 0");
    schema.get(word).map(|value| read(value).ok_or_else(wrong)).transpose()
}

fn refused(at: &str, why: &str) -> LmError {
    LmError::Writing { parameter: at.to_owned(), reason: format!("{why}; {SUPPORTED}") }
}

/// Whether a document satisfies a schema of the kind that is supported.
///
/// Read from the standard's words and not from the shapes above: what is written here is checked
/// against it, and what a server wrote.
pub fn satisfies(document: &Value, schema: &Value) -> bool {
    let length = |word: &str| schema[word].as_u64();
    let chosen = || schema["enum"].as_array().is_none_or(|all| all.contains(document));
    match schema["type"].as_str() {
        Some("object") => document.as_object().is_some_and(|object| {
            let required = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
            let property = |(name, value): (&String, &Value)| {
                schema["properties"].get(name).is_some_and(|schema| satisfies(value, schema))
            };
            required.iter().all(|name| name.as_str().is_some_and(|name| object.contains_key(name)))
                && object.iter().all(property)
        }),
        Some("array") => document.as_array().is_some_and(|items| {
            let count = items.len() as u64;
            length("minItems").is_none_or(|least| count >= least)
                && length("maxItems").is_none_or(|most| count <= most)
                && items.iter().all(|item| satisfies(item, &schema["items"]))
        }),
        Some("integer") => document.is_i64() || document.is_u64(),
        Some("number") => document.is_number(),
        Some("boolean") => document.is_boolean(),
        Some("null") => document.is_null(),
        Some("string") => document.as_str().is_some_and(|text| {
            chosen() && length("maxLength").is_none_or(|most| text.chars().count() as u64 <= most)
        }),
        _ => schema.get("enum").is_some() && chosen(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_not_supported_is_refused_with_its_place() {
        let cases = [
            (json!({"type": "string", "pattern": "a+"}), "schema.pattern: is not supported; supported are"),
            (json!({"type": "array", "items": {"anyOf": []}}), "schema.items.type: is not one of the types"),
            (json!({"type": ["string", "null"]}), "schema.type: is not one"),
            (json!({"type": "object"}), "schema.properties: is missing"),
            (
                json!({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["b"]}),
                "schema.required: names \"b\", which is no property",
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": 2}}}),
                "schema.properties.a.minimum: is not supported",
            ),
            (json!({"type": "object", "properties": {}, "additionalProperties": true}), "can only be false"),
            (json!({"type": "array", "items": {"type": "null"}, "minItems": 3, "maxItems": 2}), "more than"),
            (json!({"type": "string", "maxLength": -1}), "schema.maxLength: is not a whole number"),
            (json!({"enum": ["a", 1]}), "schema.enum: holds something other than strings"),
            (json!({"enum": ["abc"], "maxLength": 2, "type": "string"}), "longer than maxLength"),
            (json!(true), "schema: is not an object"),
        ];
        for (schema, expected) in cases {
            let error = Schema::read(&schema).unwrap_err().to_string();
            assert!(error.contains(expected), "{schema}: {error}");
        }
    }

    #[test]
    fn documents_are_held_to_their_schema() {
        let schema = json!({
            "type": "object",
            "properties": {
                "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "minItems": 1, "maxItems": 2},
                "kind": {"enum": ["a", "b"]},
                "age": {"type": "integer"},
            },
            "required": ["tags"],
        });
        let good = [json!({"tags": ["äöü"]}), json!({"tags": ["x", ""], "kind": "b", "age": -3})];
        assert!(good.iter().all(|document| satisfies(document, &schema)));
        let bad = [
            json!([]),
            json!({}),
            json!({"tags": []}),
            json!({"tags": ["a", "b", "c"]}),
            json!({"tags": ["long"]}),
            json!({"tags": [1]}),
            json!({"tags": "x"}),
            json!({"tags": ["x"], "kind": "c"}),
            json!({"tags": ["x"], "age": 1.5}),
            json!({"tags": ["x"], "more": null}),
        ];
        for document in bad {
            assert!(!satisfies(&document, &schema), "{document}");
        }
    }
}
