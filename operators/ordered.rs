//! Rows as bytes whose order is the rows' order: what keys of the state are made of.
//!
//! Comparing two encodings byte by byte compares the rows, and no encoding is a prefix of another,
//! so a database that sorts bytes sorts rows, and a scan from a prefix finds all rows that begin
//! with some cells. Rows that are only to be small are written by [`compact`](crate::compact).

use crate::row::{Row, Value};

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
}
