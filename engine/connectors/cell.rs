//! From what a file says to a typed cell, with a cause for people where that fails.
//!
//! Strict where a guess could be wrong (a number that does not fit, a time before 1970, NaN),
//! lenient where it cannot (`5.0` is a whole number, spaces around numbers, `42` as text): a dead
//! letter should mean that the data is wrong, not that its writer had another taste.

use coea_operators::{row::Value, schema::Type};
use serde_json::Value as Json;

use super::SourceTable;

/// How cells of one column are read.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    pub name: String,
    pub ty: Type,
    /// May not be null.
    pub required: bool,
    /// The column that orders a history: a whole number, never negative.
    pub time: bool,
}

impl Cell {
    /// The cells of a table, in its order.
    pub fn of_table(table: &SourceTable) -> Vec<Cell> {
        let cell = |column: &coea_operators::schema::Column| Cell {
            name: column.name.clone(),
            ty: column.ty.clone(),
            required: table.required(&column.name),
            time: table.time.as_ref() == Some(&column.name),
        };
        table.schema.iter().map(cell).collect()
    }

    /// Reads a field of a delimited file; lists are split at `separator`. An empty field is null,
    /// of a list column the empty list.
    pub fn read_text(&self, field: &str, separator: char) -> Result<Value, String> {
        let value = text_value(&self.ty, field, separator).map_err(|cause| self.named(cause))?;
        self.check(value)
    }

    /// Reads a JSON value. Text is taken for a number where it spells one.
    pub fn read_json(&self, json: Json) -> Result<Value, String> {
        let value = json_value(&self.ty, json).map_err(|cause| self.named(cause))?;
        self.check(value)
    }

    /// What holds of a cell wherever it came from.
    pub fn check(&self, value: Value) -> Result<Value, String> {
        match &value {
            Value::Null if self.required => Err(self.named("is empty".to_string())),
            Value::I64(v) if *v < 0 && (self.time || self.ty == Type::Timestamp) => {
                Err(self.named(format!("{v} is a time before 1970")))
            }
            Value::F64(v) if !v.get().is_finite() => Err(self.named("is not a finite number".to_string())),
            _ => Ok(value),
        }
    }

    /// A cause with the column in front.
    pub fn named(&self, cause: String) -> String {
        format!("column `{}`: {cause}", self.name)
    }
}

fn text_value(ty: &Type, field: &str, separator: char) -> Result<Value, String> {
    if let Type::List(item) = ty {
        let parts = field.split(separator).filter(|part| !part.is_empty());
        return Ok(Value::List(
            parts.map(|part| text_value(item, part, separator)).collect::<Result<_, _>>()?,
        ));
    }
    if field.is_empty() {
        return Ok(Value::Null);
    }
    match ty {
        Type::Text => Ok(Value::text(field)),
        _ => scalar(ty, field.trim_matches([' ', '\t'])).ok_or_else(|| misfit(field, ty)),
    }
}

/// A bool or number spelled as text; `None` if it is none or does not fit.
fn scalar(ty: &Type, text: &str) -> Option<Value> {
    match ty {
        Type::Bool => match text.to_ascii_lowercase().as_str() {
            "true" | "1" => Some(Value::Bool(true)),
            "false" | "0" => Some(Value::Bool(false)),
            _ => None,
        },
        Type::U64 => {
            let whole = || u64::try_from(whole_float(text)?).ok();
            text.parse().ok().or_else(whole).map(Value::U64)
        }
        Type::I64 | Type::Timestamp => text.parse().ok().or_else(|| whole_float(text)).map(Value::I64),
        Type::F64 => text.parse().ok().filter(|v: &f64| v.is_finite()).map(Value::float),
        Type::Text | Type::Bytes | Type::List(_) | Type::Tuple(_) => None,
    }
}

/// A whole number written as a float, such as `881250949.0`, where the float is exact.
fn whole_float(text: &str) -> Option<i64> {
    let value: f64 = text.parse().ok()?;
    exact_whole(value)
}

/// The whole number a float is, if it is one and small enough to be exact.
pub(super) fn exact_whole(value: f64) -> Option<i64> {
    (value.fract() == 0.0 && value.abs() < (1u64 << 53) as f64).then_some(value as i64)
}

fn json_value(ty: &Type, json: Json) -> Result<Value, String> {
    match (ty, json) {
        (_, Json::Null) => Ok(Value::Null),
        (Type::List(item), Json::Array(items)) => {
            Ok(Value::List(items.into_iter().map(|json| json_value(item, json)).collect::<Result<_, _>>()?))
        }
        (Type::Bool, Json::Bool(v)) => Ok(Value::Bool(v)),
        (Type::Text, Json::String(v)) => Ok(Value::text(v)),
        (Type::Text, Json::Number(v)) if v.is_i64() || v.is_u64() => Ok(Value::text(v.to_string())),
        (Type::Bool | Type::U64 | Type::I64 | Type::F64 | Type::Timestamp, Json::String(v)) => {
            scalar(ty, v.trim()).ok_or_else(|| misfit(&v, ty))
        }
        (Type::U64 | Type::I64 | Type::F64 | Type::Timestamp, Json::Number(v)) => {
            let text = v.to_string();
            scalar(ty, &text).ok_or_else(|| misfit(&text, ty))
        }
        (_, other) => Err(misfit(&other.to_string(), ty)),
    }
}

/// The cause of a cell of the wrong type. What was found is cut: a cause is for reading.
pub(super) fn misfit(found: &str, ty: &Type) -> String {
    let mut shown: String = found.chars().take(40).collect();
    if shown.len() < found.len() {
        shown.push('…');
    }
    let what = match ty {
        Type::U64 => "a whole number from 0 to 18446744073709551615",
        Type::I64 => "a whole number of 64 bits",
        Type::F64 => "a finite number",
        Type::Bool => "true or false",
        Type::Timestamp => "a whole number of seconds since 1970",
        Type::Text => "text",
        Type::Bytes | Type::List(_) | Type::Tuple(_) => "of the declared type",
    };
    format!("`{shown}` is not {what} ({ty})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(ty: &str, required: bool, time: bool) -> Cell {
        Cell { name: "c".to_string(), ty: ty.parse().unwrap(), required, time }
    }

    #[test]
    fn fields_become_typed_cells() {
        for (ty, field, value) in [
            ("u64", "18446744073709551615", Value::U64(u64::MAX)),
            ("u64", " 5.0", Value::U64(5)),
            ("i64", "-5", Value::I64(-5)),
            ("f64", "1e3", Value::float(1000.0)),
            ("bool", "TRUE", Value::Bool(true)),
            ("timestamp", "8.81250949e8", Value::I64(881_250_949)),
            ("text", " a ", Value::text(" a ")),
            ("text", "", Value::Null),
            ("list<text>", "a|b", Value::list([Value::text("a"), Value::text("b")])),
            ("list<text>", "", Value::list([])),
        ] {
            assert_eq!(cell(ty, false, false).read_text(field, '|'), Ok(value), "{ty} {field}");
        }
        for (ty, field) in [
            ("u64", "-1"),
            ("u64", "18446744073709551616"),
            ("u64", "5.5"),
            ("i64", "9223372036854775808"),
            ("f64", "NaN"),
            ("f64", "inf"),
            ("f64", "1e400"),
            ("bool", "yes"),
            ("timestamp", "-1"),
            ("timestamp", "1997-12-04"),
            ("list<u64>", "1|x"),
        ] {
            let cause = cell(ty, false, false).read_text(field, '|').unwrap_err();
            assert!(cause.starts_with("column `c`: "), "{cause}");
        }
        assert!(cell("u64", true, false).read_text("", '|').is_err());
        assert!(cell("i64", true, true).read_text("-1", '|').is_err());
    }

    #[test]
    fn json_becomes_typed_cells() {
        for (ty, json, value) in [
            ("u64", "5.0", Value::U64(5)),
            ("u64", "\"7\"", Value::U64(7)),
            ("text", "42", Value::text("42")),
            ("text", "\"\"", Value::text("")),
            ("text", "null", Value::Null),
            ("list<text>", "[\"a\",null]", Value::list([Value::text("a"), Value::Null])),
        ] {
            let json = serde_json::from_str(json).unwrap();
            assert_eq!(cell(ty, false, false).read_json(json), Ok(value), "{ty}");
        }
        for (ty, json) in [
            ("u64", "18446744073709551616"),
            ("text", "{\"a\":1}"),
            ("u64", "[1]"),
            ("bool", "1"),
            ("text", "1.5"),
        ] {
            let json = serde_json::from_str(json).unwrap();
            assert!(cell(ty, false, false).read_json(json).is_err(), "{ty}");
        }
    }
}
