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

/// Why bytes do not hold an encoded row.
#[derive(Debug, thiserror::Error)]
#[error("bytes do not hold a row: {0}")]
pub struct DecodeError(pub(crate) &'static str);

const NULL: u8 = 1;
const FALSE: u8 = 2;
const TRUE: u8 = 3;
const I64: u8 = 4;
const U64: u8 = 5;
const F64: u8 = 6;
const TEXT: u8 = 7;
const BYTES: u8 = 8;
const LIST: u8 = 9;
const END: u8 = 0;

/// Appends `value` so that comparing encodings byte by byte compares values, and no encoding is a
/// prefix of another.
pub fn encode_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.push(NULL),
        Value::Bool(v) => out.push(if *v { TRUE } else { FALSE }),
        Value::I64(v) => {
            out.push(I64);
            out.extend((*v as u64 ^ (1 << 63)).to_be_bytes());
        }
        Value::U64(v) => {
            out.push(U64);
            out.extend(v.to_be_bytes());
        }
        Value::F64(v) => {
            let bits = v.get().to_bits();
            let ordered = if bits >> 63 == 1 { !bits } else { bits | (1 << 63) };
            out.push(F64);
            out.extend(ordered.to_be_bytes());
        }
        Value::Text(v) => {
            out.push(TEXT);
            encode_bytes(v.as_bytes(), out);
        }
        Value::Bytes(v) => {
            out.push(BYTES);
            encode_bytes(v, out);
        }
        Value::List(v) => {
            out.push(LIST);
            v.iter().for_each(|item| encode_value(item, out));
            out.push(END);
        }
    }
}

/// Zero bytes are doubled with a 0xFF so that the closing zero sorts below every continuation.
fn encode_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    for &byte in bytes {
        out.push(byte);
        if byte == 0 {
            out.push(0xFF);
        }
    }
    out.extend([0, 0]);
}

/// The ordered encoding of a whole row: cells, then a closing zero.
pub fn encode_row(row: &[Value]) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 * row.len() + 1);
    row.iter().for_each(|value| encode_value(value, &mut out));
    out.push(END);
    out
}

/// Reads one row from the front of `bytes` and says how many bytes it took.
///
/// # Errors
/// If the bytes were not written by [`encode_row`].
pub fn decode_row(bytes: &[u8]) -> Result<(Row, usize), DecodeError> {
    let mut at = 0;
    let cells = decode_until_end(bytes, &mut at)?;
    Ok((Row(cells.into()), at))
}

fn decode_until_end(bytes: &[u8], at: &mut usize) -> Result<Vec<Value>, DecodeError> {
    let mut cells = Vec::new();
    loop {
        let tag = *bytes.get(*at).ok_or(DecodeError("cut short"))?;
        *at += 1;
        if tag == END {
            return Ok(cells);
        }
        cells.push(decode_cell(tag, bytes, at)?);
    }
}

fn decode_cell(tag: u8, bytes: &[u8], at: &mut usize) -> Result<Value, DecodeError> {
    Ok(match tag {
        NULL => Value::Null,
        FALSE => Value::Bool(false),
        TRUE => Value::Bool(true),
        I64 => Value::I64((decode_u64(bytes, at)? ^ (1 << 63)) as i64),
        U64 => Value::U64(decode_u64(bytes, at)?),
        F64 => {
            let ordered = decode_u64(bytes, at)?;
            let bits = if ordered >> 63 == 1 { ordered & !(1 << 63) } else { !ordered };
            Value::float(f64::from_bits(bits))
        }
        TEXT => {
            let raw = decode_bytes(bytes, at)?;
            Value::text(String::from_utf8(raw).map_err(|_| DecodeError("text is not UTF-8"))?)
        }
        BYTES => Value::Bytes(decode_bytes(bytes, at)?.into()),
        LIST => Value::List(decode_until_end(bytes, at)?.into()),
        _ => return Err(DecodeError("unknown tag")),
    })
}

fn decode_u64(bytes: &[u8], at: &mut usize) -> Result<u64, DecodeError> {
    let (head, _) = bytes[*at..].split_first_chunk::<8>().ok_or(DecodeError("cut short"))?;
    *at += 8;
    Ok(u64::from_be_bytes(*head))
}

fn decode_bytes(bytes: &[u8], at: &mut usize) -> Result<Vec<u8>, DecodeError> {
    let mut out = Vec::new();
    loop {
        let byte = *bytes.get(*at).ok_or(DecodeError("cut short"))?;
        *at += 1;
        if byte != 0 {
            out.push(byte);
            continue;
        }
        let escape = *bytes.get(*at).ok_or(DecodeError("cut short"))?;
        *at += 1;
        if escape == 0 {
            return Ok(out);
        }
        out.push(0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::row;

    proptest! {
        #[test]
        fn encoding_keeps_order(a in row(), b in row()) {
            prop_assert_eq!(encode_row(&a).cmp(&encode_row(&b)), a.cmp(&b));
        }

        #[test]
        fn encoding_round_trips(a in row(), tail in prop::collection::vec(any::<u8>(), 0..3)) {
            let mut bytes = encode_row(&a);
            let len = bytes.len();
            bytes.extend(tail);
            let (back, used) = decode_row(&bytes).unwrap();
            prop_assert_eq!((back, used), (a, len));
        }

        #[test]
        fn cut_encodings_are_errors(a in row(), cut in 1usize..8) {
            let bytes = encode_row(&a);
            prop_assert!(decode_row(&bytes[..bytes.len().saturating_sub(cut)]).is_err());
        }
    }

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
