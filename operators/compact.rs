//! Rows at rest where their order does not matter: small, and quick to read and write.
//!
//! Numbers are variable-length, text is a length and its bytes. The encoding of
//! [`ordered`](crate::ordered) is for keys; this one is for what lies behind them by the million.

use std::sync::Arc;

use crate::{
    ordered::DecodeError,
    row::{Row, Value},
};

const NULL: u8 = 0;
const FALSE: u8 = 1;
const TRUE: u8 = 2;
const I64: u8 = 3;
const U64: u8 = 4;
const F64: u8 = 5;
const TEXT: u8 = 6;
const BYTES: u8 = 7;
const LIST: u8 = 8;

/// Lists in lists deeper than this are no value the engine wrote.
const DEPTH: usize = 64;

const CUT: DecodeError = DecodeError("cut short");

/// Appends a whole number, seven bits to a byte, the lowest first.
pub fn put_unsigned(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed number so that small ones of either sign are short.
pub fn put_signed(value: i64, out: &mut Vec<u8>) {
    put_unsigned(((value << 1) ^ (value >> 63)) as u64, out);
}

/// Appends a row: the number of its cells, and the cells.
pub fn put_row(cells: &[Value], out: &mut Vec<u8>) {
    put_unsigned(cells.len() as u64, out);
    cells.iter().for_each(|cell| put_cell(cell, out));
}

fn put_cell(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.push(NULL),
        Value::Bool(v) => out.push(if *v { TRUE } else { FALSE }),
        Value::I64(v) => {
            out.push(I64);
            put_signed(*v, out);
        }
        Value::U64(v) => {
            out.push(U64);
            put_unsigned(*v, out);
        }
        Value::F64(v) => {
            out.push(F64);
            out.extend(v.get().to_le_bytes());
        }
        Value::Text(v) => put_bytes(TEXT, v.as_bytes(), out),
        Value::Bytes(v) => put_bytes(BYTES, v, out),
        Value::List(v) => {
            out.push(LIST);
            put_row(v, out);
        }
    }
}

fn put_bytes(tag: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    put_unsigned(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Reads what [`put_unsigned`] wrote at `at`, and moves `at` behind it.
///
/// # Errors
/// If the bytes end, or hold no such number.
pub fn take_unsigned(bytes: &[u8], at: &mut usize) -> Result<u64, DecodeError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at).ok_or(CUT)?;
        *at += 1;
        value |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(DecodeError("a number is too long"))
}

/// Reads what [`put_signed`] wrote at `at`, and moves `at` behind it.
///
/// # Errors
/// As [`take_unsigned`].
pub fn take_signed(bytes: &[u8], at: &mut usize) -> Result<i64, DecodeError> {
    let value = take_unsigned(bytes, at)?;
    Ok((value >> 1) as i64 ^ -((value & 1) as i64))
}

/// Reads a row at `at` behind cells that are given, and moves `at` behind it.
///
/// # Errors
/// If the bytes were not written by [`put_row`].
pub fn take_row(head: Option<Value>, bytes: &[u8], at: &mut usize) -> Result<Row, DecodeError> {
    Ok(Row(take_cells(head, bytes, at, 0)?.into()))
}

fn take_cells(
    head: Option<Value>,
    bytes: &[u8],
    at: &mut usize,
    depth: usize,
) -> Result<Vec<Value>, DecodeError> {
    let count = take_unsigned(bytes, at)? as usize;
    // A cell takes a byte at least, so a broken length cannot ask for much memory.
    if count > bytes.len() - *at || depth > DEPTH {
        return Err(CUT);
    }
    let mut cells = Vec::with_capacity(count + usize::from(head.is_some()));
    cells.extend(head);
    for _ in 0..count {
        cells.push(take_cell(bytes, at, depth)?);
    }
    Ok(cells)
}

fn take_cell(bytes: &[u8], at: &mut usize, depth: usize) -> Result<Value, DecodeError> {
    let tag = *bytes.get(*at).ok_or(CUT)?;
    *at += 1;
    Ok(match tag {
        NULL => Value::Null,
        FALSE => Value::Bool(false),
        TRUE => Value::Bool(true),
        I64 => Value::I64(take_signed(bytes, at)?),
        U64 => Value::U64(take_unsigned(bytes, at)?),
        F64 => {
            let (raw, _) = bytes[*at..].split_first_chunk::<8>().ok_or(CUT)?;
            *at += 8;
            Value::float(f64::from_le_bytes(*raw))
        }
        TEXT => {
            let text = str::from_utf8(take_bytes(bytes, at)?);
            Value::Text(Arc::from(text.map_err(|_| DecodeError("text is not UTF-8"))?))
        }
        BYTES => Value::Bytes(Arc::from(take_bytes(bytes, at)?)),
        LIST => Value::List(take_cells(None, bytes, at, depth + 1)?.into()),
        _ => return Err(DecodeError("unknown tag")),
    })
}

fn take_bytes<'a>(bytes: &'a [u8], at: &mut usize) -> Result<&'a [u8], DecodeError> {
    let len = take_unsigned(bytes, at)? as usize;
    let end = at.checked_add(len).filter(|end| *end <= bytes.len()).ok_or(CUT)?;
    Ok(&bytes[std::mem::replace(at, end)..end])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{row, value};

    proptest! {
        #[test]
        fn rows_round_trip(a in row(), head in prop::option::of(value()), tail in prop::collection::vec(any::<u8>(), 0..3)) {
            let mut bytes = Vec::new();
            put_row(&a, &mut bytes);
            let len = bytes.len();
            bytes.extend(tail);
            let mut at = 0;
            let whole = Row::new(head.clone().into_iter().chain(a.iter().cloned()));
            prop_assert_eq!(take_row(head, &bytes, &mut at).unwrap(), whole);
            prop_assert_eq!(at, len);
        }

        #[test]
        fn numbers_round_trip(signed in any::<i64>(), unsigned in any::<u64>()) {
            let mut bytes = Vec::new();
            put_signed(signed, &mut bytes);
            put_unsigned(unsigned, &mut bytes);
            let mut at = 0;
            prop_assert_eq!(take_signed(&bytes, &mut at).unwrap(), signed);
            prop_assert_eq!(take_unsigned(&bytes, &mut at).unwrap(), unsigned);
            prop_assert_eq!(at, bytes.len());
        }

        #[test]
        fn broken_bytes_are_errors_or_rows(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut at = 0;
            if take_row(None, &bytes, &mut at).is_ok() {
                prop_assert!(at <= bytes.len());
            }
        }

        #[test]
        fn cut_rows_are_errors(a in row(), cut in 1usize..8) {
            let mut bytes = Vec::new();
            put_row(&a, &mut bytes);
            let short = &bytes[..bytes.len().saturating_sub(cut)];
            prop_assert!(take_row(None, short, &mut 0).is_err());
        }
    }
}
