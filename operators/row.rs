//! Values and rows: the one data type that travels on every edge.
//!
//! Differential operators are compiled once per type, so the whole engine speaks one row type
//! instead of one struct per node. A row is ordered (differential sorts, stores sort), so floats
//! are kept in total order with one NaN and one zero; see [`Float`].

use std::{cmp::Ordering, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// A finite-or-infinite 64-bit float with a total order: `-0.0` is stored as `0.0`, NaN is one value.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Float(f64);

impl Float {
    /// Wraps a float in canonical form.
    pub fn new(value: f64) -> Self {
        if value.is_nan() {
            return Float(f64::NAN);
        }
        Float(if value == 0.0 { 0.0 } else { value })
    }

    /// The float itself.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl PartialEq for Float {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Float {}

impl PartialOrd for Float {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Float {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl std::hash::Hash for Float {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

/// One cell of a row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub enum Value {
    /// Absent.
    #[default]
    Null,
    /// True or false.
    Bool(bool),
    /// A signed whole number; timestamps are seconds since 1970 in this form.
    I64(i64),
    /// An unsigned whole number.
    U64(u64),
    /// A real number in total order.
    F64(Float),
    /// UTF-8 text.
    Text(Arc<str>),
    /// Opaque bytes: memo keys, packed vectors.
    Bytes(Arc<[u8]>),
    /// A sequence of cells.
    List(Arc<[Value]>),
}

impl Value {
    /// A text cell.
    pub fn text(text: impl AsRef<str>) -> Self {
        Value::Text(Arc::from(text.as_ref()))
    }

    /// A float cell in canonical form.
    pub fn float(value: f64) -> Self {
        Value::F64(Float::new(value))
    }

    /// A list cell.
    pub fn list(values: impl IntoIterator<Item = Value>) -> Self {
        Value::List(values.into_iter().collect())
    }

    /// A vector of 32-bit floats packed into bytes, little endian: `4 * len` bytes.
    pub fn floats(values: &[f32]) -> Self {
        Value::Bytes(values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// The vector packed by [`Value::floats`]; `None` for any other cell.
    pub fn as_floats(&self) -> Option<Vec<f32>> {
        let Value::Bytes(bytes) = self else { return None };
        let (chunks, rest) = bytes.as_chunks::<4>();
        rest.is_empty().then(|| chunks.iter().map(|c| f32::from_le_bytes(*c)).collect())
    }

    /// The text of a text cell.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The cells of a list cell.
    pub fn as_list(&self) -> Option<&[Value]> {
        match self {
            Value::List(values) => Some(values),
            _ => None,
        }
    }

    /// The number of a numeric cell, as a float.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Value::I64(v) => Some(*v as f64),
            Value::U64(v) => Some(*v as f64),
            Value::F64(v) => Some(v.get()),
            _ => None,
        }
    }

    /// The number of a non-negative whole cell.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Value::I64(v) => u64::try_from(*v).ok(),
            Value::U64(v) => Some(*v),
            _ => None,
        }
    }

    /// The cell as JSON: bytes become lowercase hexadecimal, NaN and infinities become `null`.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match self {
            Value::Null => Json::Null,
            Value::Bool(v) => Json::Bool(*v),
            Value::I64(v) => Json::from(*v),
            Value::U64(v) => Json::from(*v),
            Value::F64(v) => serde_json::Number::from_f64(v.get()).map_or(Json::Null, Json::Number),
            Value::Text(v) => Json::String(v.to_string()),
            Value::Bytes(v) => Json::String(v.iter().map(|b| format!("{b:02x}")).collect()),
            Value::List(v) => Json::Array(v.iter().map(Value::to_json).collect()),
        }
    }
}

/// As a person would write the cell: text bare, lists in brackets.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Text(v) => f.write_str(v),
            other => write!(f, "{}", other.to_json()),
        }
    }
}

/// A tuple of cells; what they mean is said by the [`Schema`](crate::schema::Schema) of the edge.
///
/// A row is never changed, and one row is in several places at once (an arrangement, a fold's last
/// output, the epoch's changes), so a clone shares its cells.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct Row(pub Arc<[Value]>);

impl Row {
    /// A row of the given cells.
    pub fn new(values: impl IntoIterator<Item = Value>) -> Self {
        Row(values.into_iter().collect())
    }

    /// The row without cells.
    pub fn empty() -> Self {
        Row::default()
    }

    /// The cells of `self` followed by those of `other`.
    pub fn concat(&self, other: &Row) -> Row {
        Row(self.0.iter().chain(other.0.iter()).cloned().collect())
    }

    /// The cells as a JSON array.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::Value::Array(self.0.iter().map(Value::to_json).collect())
    }
}

impl std::ops::Deref for Row {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        &self.0
    }
}

impl<const N: usize> From<[Value; N]> for Row {
    fn from(values: [Value; N]) -> Self {
        Row(Arc::new(values))
    }
}

/// A row with the key it is grouped, joined and stored by.
pub type Keyed = (Row, Row);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_canonical() {
        assert_eq!(Value::float(-0.0), Value::float(0.0));
        assert_eq!(Value::float(f64::NAN), Value::float(-f64::NAN));
        assert!(Value::float(f64::NEG_INFINITY) < Value::float(-1.0));
    }

    #[test]
    fn vectors_round_trip() {
        assert_eq!(Value::floats(&[1.5, -2.0]).as_floats(), Some(vec![1.5, -2.0]));
        assert_eq!(Value::Null.as_floats(), None);
    }
}
