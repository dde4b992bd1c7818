//! A block of a history as bytes: appended to without being read, and read from its newest event.
//!
//! New events are nearly always the newest, and what folds want are the newest ones. So a record
//! ends with its own length, written backwards, and the block ends with what the next record needs
//! to know of the one before it:
//!
//! ```text
//! key  { count × 2 + timed, time − time of the record before, other cells, length }*  time, events
//! ```

use coea_operators::{
    compact::{put_row, put_signed, put_unsigned, take_row, take_signed, take_unsigned},
    ordered::DecodeError,
    row::{Row, Value},
};

use super::StateError;

/// An event with its signed count.
pub type Counted = (Row, i64);

/// Bytes behind the records: the newest time, and the number of events.
const TRAILER: usize = 12;

fn corrupt(error: DecodeError) -> StateError {
    StateError::Corrupt(format!("history: {error}"))
}

fn cut() -> StateError {
    StateError::Corrupt("history: a block is cut short".to_string())
}

/// A block of a key's events, oldest first.
pub fn encode(key: &Row, events: &[Counted]) -> Vec<u8> {
    let mut block = Vec::with_capacity(24 * events.len() + 32);
    put_row(key, &mut block);
    block.extend([0; TRAILER]);
    append(&mut block, events);
    block
}

/// Appends events, oldest first, that are newer than those of the block.
pub fn append(block: &mut Vec<u8>, events: &[Counted]) {
    let (mut time, mut count) = trailer(block).unwrap_or_default();
    block.truncate(block.len() - TRAILER);
    for event in events {
        time = put_record(event, time, block);
    }
    count += events.len() as u32;
    block.extend(time.to_le_bytes());
    block.extend(count.to_le_bytes());
}

/// Appends one record and says its time.
fn put_record((row, count): &Counted, before: i64, block: &mut Vec<u8>) -> i64 {
    let start = block.len();
    let (time, rest) = match row.split_first() {
        Some((Value::I64(time), rest)) => (Some(*time), rest),
        _ => (None, &row[..]),
    };
    // Zigzag, so that the bit beside it is free whatever the sign.
    let zigzag = ((count << 1) ^ (count >> 63)) as u64;
    put_unsigned(zigzag << 1 | u64::from(time.is_some()), block);
    if let Some(time) = time {
        put_signed(time.wrapping_sub(before), block);
    }
    put_row(rest, block);
    let mut length = (block.len() - start) as u64;
    let mut reversed = [0u8; 10];
    let mut used = 0;
    while length >= 0x80 {
        reversed[used] = length as u8 | 0x80;
        length >>= 7;
        used += 1;
    }
    reversed[used] = length as u8;
    block.extend(reversed[..=used].iter().rev());
    time.unwrap_or(before)
}

fn trailer(block: &[u8]) -> Option<(i64, u32)> {
    let (_, trailer) = block.split_last_chunk::<TRAILER>()?;
    let (time, count) = trailer.split_first_chunk::<8>()?;
    Some((i64::from_le_bytes(*time), u32::from_le_bytes(count.try_into().ok()?)))
}

/// How many events a block has.
pub fn len(block: &[u8]) -> usize {
    trailer(block).map_or(0, |(_, count)| count as usize)
}

/// The key a block belongs to.
///
/// # Errors
/// If the bytes hold no block.
pub fn key(block: &[u8]) -> Result<Row, StateError> {
    take_row(None, block, &mut 0).map_err(corrupt)
}

/// Visits events from the newest until `visit` answers `false`; says whether it never did.
///
/// # Errors
/// If the bytes hold no block.
pub fn walk(block: &[u8], visit: &mut dyn FnMut(Row, i64) -> bool) -> Result<bool, StateError> {
    let (mut time, count) = trailer(block).ok_or_else(cut)?;
    let mut end = block.len() - TRAILER;
    for _ in 0..count {
        let length = length_before(block, &mut end)?;
        let start = end.checked_sub(length).ok_or_else(cut)?;
        let (record, at) = (&block[start..end], &mut 0);
        let head = take_unsigned(record, at).map_err(corrupt)?;
        let zigzag = head >> 1;
        let signed = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
        let now = time;
        let timed = (head & 1 == 1).then_some(Value::I64(now));
        if timed.is_some() {
            time = now.wrapping_sub(take_signed(record, at).map_err(corrupt)?);
        }
        let row = take_row(timed, record, at).map_err(corrupt)?;
        if !visit(row, signed) {
            return Ok(false);
        }
        end = start;
    }
    Ok(true)
}

/// Reads a record's length backwards from `end`, and moves `end` before it.
fn length_before(block: &[u8], end: &mut usize) -> Result<usize, StateError> {
    let mut length = 0usize;
    for shift in (0..64).step_by(7) {
        let at = end.checked_sub(1).ok_or_else(cut)?;
        *end = at;
        length |= usize::from(block[at] & 0x7F) << shift;
        if block[at] < 0x80 {
            return Ok(length);
        }
    }
    Err(cut())
}

/// All events of a block, oldest first.
///
/// # Errors
/// If the bytes hold no block.
pub fn events(block: &[u8]) -> Result<Vec<Counted>, StateError> {
    // A record takes two bytes at least, so a broken count cannot ask for much memory.
    let mut events = Vec::with_capacity(len(block).min(block.len()));
    walk(block, &mut |row, count| {
        events.push((row, count));
        true
    })?;
    events.reverse();
    Ok(events)
}

/// The newest event of a block.
///
/// # Errors
/// If the bytes hold no block.
pub fn newest(block: &[u8]) -> Result<Option<Row>, StateError> {
    let mut newest = None;
    walk(block, &mut |row, _| {
        newest = Some(row);
        false
    })?;
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row() -> impl Strategy<Value = Row> {
        let first = prop_oneof![
            3 => any::<i64>().prop_map(Value::I64),
            2 => (0i64..9).prop_map(Value::I64),
            1 => any::<u64>().prop_map(Value::U64),
        ];
        let rest = prop::collection::vec(prop_oneof![Just("".to_string()), Just("x".repeat(300))], 0..3);
        prop_oneof![
            9 => (first, rest).prop_map(|(first, rest)| {
                Row::new(std::iter::once(first).chain(rest.into_iter().map(Value::text)))
            }),
            1 => Just(Row::empty()),
        ]
    }

    proptest! {
        #[test]
        fn blocks_hold_what_was_put_into_them(
            first in prop::collection::vec((row(), any::<i64>().prop_map(|n| n >> 2)), 0..9),
            more in prop::collection::vec((row(), -2i64..3), 0..9),
        ) {
            let owner = Row::from([Value::text("someone")]);
            let mut block = encode(&owner, &first);
            append(&mut block, &more);
            let all = [first, more].concat();
            prop_assert_eq!(len(&block), all.len());
            prop_assert_eq!(key(&block).unwrap(), owner.clone());
            prop_assert_eq!(&events(&block).unwrap(), &all);
            prop_assert_eq!(newest(&block).unwrap(), all.last().map(|(row, _)| row.clone()));
            prop_assert_eq!(block, encode(&owner, &all));
        }

        #[test]
        fn broken_blocks_are_errors(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = (events(&bytes), key(&bytes), newest(&bytes));
        }
    }
}
