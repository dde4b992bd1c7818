//! A short way from any state of a document to its end.
//!
//! Decision: found by walking: each frame knows the next bytes that bring it nearer to its end, and
//! the automaton takes them, so the way cannot disagree with what is allowed.

use super::automaton::{Char, Frame, State, last_name};
use super::schema::{Schema, Shape};

impl State {
    /// The shortest rest of the text, as far as the next byte or two of each frame can tell.
    pub(crate) fn rest(&self, schema: &Schema) -> Vec<u8> {
        let mut state = self.clone();
        let mut rest = Vec::new();
        while !state.complete() {
            let bytes = state.next(schema, state.0.len() - 1);
            let taken = state.take(schema, &bytes);
            assert!(taken && !bytes.is_empty(), "the automaton takes its own way to the end");
            rest.extend(bytes);
        }
        rest
    }

    /// The next bytes on a short way to the end.
    fn next(&self, schema: &Schema, top: usize) -> Vec<u8> {
        let shortest = |all: &[Vec<u8>], pick: usize, last: usize, at: usize| {
            let agree = (pick..=last).filter(|i| all[*i].get(..at) == Some(&all[pick][..at]));
            agree.map(|i| &all[i][at..]).min_by_key(|rest| rest.len()).unwrap_or_default().to_vec()
        };
        match &self.0[top] {
            Frame::Value { shape, .. } => match &schema.shapes[*shape] {
                Shape::Object { .. } => b"{".to_vec(),
                Shape::Array { .. } => b"[".to_vec(),
                Shape::Text(_) => b"\"".to_vec(),
                Shape::Number { .. } => b"0".to_vec(),
                Shape::Choice(all) => shortest(all, 0, all.len() - 1, 0),
            },
            Frame::Choice { shape, pick, at } => match &schema.shapes[*shape] {
                Shape::Choice(all) => shortest(all, *pick, all.len() - 1, *at),
                _ => Vec::new(),
            },
            Frame::Name { shape, pick, at, .. } => match &schema.shapes[*shape] {
                Shape::Object { names, required, .. } => {
                    // A required name, where it is still possible, spares another one.
                    let last = last_name(required, *pick);
                    let wanted = required[last] && names[last].get(..*at) == Some(&names[*pick][..*at]);
                    if wanted { names[last][*at..].to_vec() } else { shortest(names, *pick, last, *at) }
                }
                _ => Vec::new(),
            },
            Frame::Text { char, .. } => match char {
                Char::Whole => b"\"".to_vec(),
                Char::Escape => b"n".to_vec(),
                Char::Inside { low, .. } => vec![*low],
            },
            Frame::Number { digits, .. } if digits.whole() => self.next(schema, top - 1),
            Frame::Number { .. } => b"1".to_vec(),
            Frame::Array { shape, items } => match &schema.shapes[*shape] {
                Shape::Array { items: item, least, .. } if items < least => match items {
                    0 => State(vec![Frame::Value { shape: *item, space: false }]).next(schema, 0),
                    _ => b",".to_vec(),
                },
                _ => b"]".to_vec(),
            },
            Frame::Object { shape, next, some } => match &schema.shapes[*shape] {
                Shape::Object { required, .. } if required[*next..].contains(&true) => {
                    if *some {
                        b",".to_vec()
                    } else {
                        b"\"".to_vec()
                    }
                }
                _ => b"}".to_vec(),
            },
        }
    }
}
