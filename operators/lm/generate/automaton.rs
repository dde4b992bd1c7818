//! Which bytes may come next, for a text that is to satisfy a schema.
//!
//! Decision: the text is compact JSON, with at most one space after `:` and `,` as models like to
//! write, properties in the order of the schema and escapes of one letter. So there is one way to
//! write each document but for those spaces, the automaton is a short stack of plain values that
//! can be copied and compared.

use super::schema::{Schema, Shape, ShapeId};

/// Digits before the point of a number, and behind it, at most: what an `f64` holds exactly.
const DIGITS: u8 = 15;

/// How far a character of a string is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Char {
    /// Between characters.
    Whole,
    /// After a backslash.
    Escape,
    /// Inside one: the next byte is in this range, and so many ordinary ones follow it.
    Inside { low: u8, high: u8, more: u8 },
}

/// How far a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Digits {
    Minus,
    Zero,
    Whole(u8),
    Point,
    Fraction(u8),
}

/// Something begun, that what is above it on the stack belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Frame {
    /// A value is to begin, perhaps after a space.
    Value { shape: ShapeId, space: bool },
    /// One of the choices `pick..=last` that agree with `pick` in the first `at` bytes.
    Choice { shape: ShapeId, pick: usize, at: usize },
    /// As `Choice`, among the names of an object, perhaps after a space.
    Name { shape: ShapeId, pick: usize, at: usize, space: bool },
    /// In a string with so many characters left.
    Text { left: u32, char: Char },
    /// In a number.
    Number { fraction: bool, digits: Digits },
    /// In a list, with so many items begun (of those that matter).
    Array { shape: ShapeId, items: u32 },
    /// In an object: the first property that may come, and whether there was one.
    Object { shape: ShapeId, next: usize, some: bool },
}

/// How far a text is on its way through a schema.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State(pub(super) Vec<Frame>);

impl State {
    /// Before the first byte.
    pub(crate) fn start(schema: &Schema) -> Self {
        Self(vec![Frame::Value { shape: schema.root(), space: false }])
    }

    /// Whether the document is complete and nothing can follow.
    pub(crate) fn closed(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the text may end here.
    pub(crate) fn complete(&self) -> bool {
        match &self.0[..] {
            [] => true,
            [Frame::Number { digits, .. }] => digits.whole(),
            _ => false,
        }
    }

    /// Takes all bytes, or says no.
    pub(crate) fn take(&mut self, schema: &Schema, bytes: &[u8]) -> bool {
        bytes.iter().all(|byte| self.push(schema, *byte))
    }

    /// Takes a byte, or says no; then the state is of no further use.
    pub(crate) fn push(&mut self, schema: &Schema, byte: u8) -> bool {
        let Some(frame) = self.0.pop() else { return false };
        match frame {
            Frame::Value { shape, space: true } if byte == b' ' => {
                self.enter(Frame::Value { shape, space: false })
            }
            Frame::Value { shape, .. } => self.value(schema, shape, byte),
            Frame::Choice { shape, pick, at } => {
                let Shape::Choice(all) = &schema.shapes[shape] else { return false };
                match narrow(all, pick, all.len() - 1, at, byte) {
                    Some(pick) if all[pick].len() == at + 1 => true,
                    Some(pick) => self.enter(Frame::Choice { shape, pick, at: at + 1 }),
                    None => false,
                }
            }
            Frame::Name { shape, pick, at, space } if space && byte == b' ' => {
                self.enter(Frame::Name { shape, pick, at, space: false })
            }
            Frame::Name { shape, pick, at, .. } => self.name(schema, shape, pick, at, byte),
            Frame::Text { left, char } => self.text(left, char, byte),
            Frame::Number { fraction, digits } => match digits.next(byte, fraction) {
                Some(digits) => self.enter(Frame::Number { fraction, digits }),
                None => digits.whole() && self.push(schema, byte),
            },
            Frame::Array { shape, items } => self.array(schema, shape, items, byte),
            Frame::Object { shape, next, some } => self.object(schema, shape, next, some, byte),
        }
    }

    fn enter(&mut self, frame: Frame) -> bool {
        self.0.push(frame);
        true
    }

    fn value(&mut self, schema: &Schema, shape: ShapeId, byte: u8) -> bool {
        match (&schema.shapes[shape], byte) {
            (Shape::Object { .. }, b'{') => self.enter(Frame::Object { shape, next: 0, some: false }),
            (Shape::Array { .. }, b'[') => self.enter(Frame::Array { shape, items: 0 }),
            (Shape::Text(most), b'"') => self.enter(Frame::Text { left: *most, char: Char::Whole }),
            (Shape::Number { fraction }, byte) => {
                let digits = match byte {
                    b'-' => Digits::Minus,
                    b'0' => Digits::Zero,
                    b'1'..=b'9' => Digits::Whole(1),
                    _ => return false,
                };
                self.enter(Frame::Number { fraction: *fraction, digits })
            }
            (Shape::Choice(_), byte) => {
                self.enter(Frame::Choice { shape, pick: 0, at: 0 });
                self.push(schema, byte)
            }
            _ => false,
        }
    }

    fn name(&mut self, schema: &Schema, shape: ShapeId, pick: usize, at: usize, byte: u8) -> bool {
        let Shape::Object { names, required, values } = &schema.shapes[shape] else { return false };
        let Some(pick) = narrow(names, pick, last_name(required, pick), at, byte) else { return false };
        if names[pick].len() > at + 1 {
            return self.enter(Frame::Name { shape, pick, at: at + 1, space: false });
        }
        self.enter(Frame::Object { shape, next: pick + 1, some: true });
        self.enter(Frame::Value { shape: values[pick], space: true })
    }

    fn text(&mut self, left: u32, char: Char, byte: u8) -> bool {
        let one = |char| Frame::Text { left: left.saturating_sub(u32::from(left < u32::MAX)), char };
        let inside = |low, high, more| one(Char::Inside { low, high, more });
        let frame = match (char, byte) {
            (Char::Whole, b'"') => return true,
            (Char::Escape, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                Frame::Text { left, char: Char::Whole }
            }
            (Char::Inside { low, high, more }, byte) if (low..=high).contains(&byte) => {
                let char = match more {
                    0 => Char::Whole,
                    more => Char::Inside { low: 0x80, high: 0xbf, more: more - 1 },
                };
                Frame::Text { left, char }
            }
            (Char::Whole, _) if left == 0 => return false,
            (Char::Whole, b'\\') => one(Char::Escape),
            (Char::Whole, 0x20..=0x7e) => one(Char::Whole),
            // The well-formed sequences of Unicode, table 3-7.
            (Char::Whole, 0xc2..=0xdf) => inside(0x80, 0xbf, 0),
            (Char::Whole, 0xe0) => inside(0xa0, 0xbf, 1),
            (Char::Whole, 0xed) => inside(0x80, 0x9f, 1),
            (Char::Whole, 0xe1..=0xef) => inside(0x80, 0xbf, 1),
            (Char::Whole, 0xf0) => inside(0x90, 0xbf, 2),
            (Char::Whole, 0xf1..=0xf3) => inside(0x80, 0xbf, 2),
            (Char::Whole, 0xf4) => inside(0x80, 0x8f, 2),
            _ => return false,
        };
        self.enter(frame)
    }

    fn array(&mut self, schema: &Schema, shape: ShapeId, items: u32, byte: u8) -> bool {
        let Shape::Array { items: item, least, most } = schema.shapes[shape] else { return false };
        match byte {
            b']' if items >= least => true,
            _ if items >= most => false,
            b',' if items > 0 => self.item(shape, item, items, least, most, true),
            byte if items == 0 => {
                self.item(shape, item, items, least, most, false);
                self.push(schema, byte)
            }
            _ => false,
        }
    }

    /// Begins an item. Where there is no limit, items past the least are not counted, so that states
    /// repeat.
    fn item(
        &mut self,
        shape: ShapeId,
        item: ShapeId,
        items: u32,
        least: u32,
        most: u32,
        space: bool,
    ) -> bool {
        let items = if most == u32::MAX { (items + 1).min(least.max(1)) } else { items + 1 };
        self.enter(Frame::Array { shape, items });
        self.enter(Frame::Value { shape: item, space })
    }

    fn object(&mut self, schema: &Schema, shape: ShapeId, next: usize, some: bool, byte: u8) -> bool {
        let Shape::Object { names, required, .. } = &schema.shapes[shape] else { return false };
        match byte {
            b'}' => !required[next..].contains(&true),
            _ if next == names.len() => false,
            b',' if some => self.enter(Frame::Name { shape, pick: next, at: 0, space: true }),
            byte if !some => {
                self.enter(Frame::Name { shape, pick: next, at: 0, space: false });
                self.push(schema, byte)
            }
            _ => false,
        }
    }
}

impl Digits {
    /// Whether this is a number as it stands.
    pub(super) fn whole(self) -> bool {
        matches!(self, Digits::Zero | Digits::Whole(_) | Digits::Fraction(_))
    }

    fn next(self, byte: u8, fraction: bool) -> Option<Self> {
        match (self, byte) {
            // A whole number has no negative zero.
            (Digits::Minus, b'0') if fraction => Some(Digits::Zero),
            (Digits::Minus, b'1'..=b'9') => Some(Digits::Whole(1)),
            (Digits::Whole(n), b'0'..=b'9') if n < DIGITS => Some(Digits::Whole(n + 1)),
            (Digits::Zero | Digits::Whole(_), b'.') if fraction => Some(Digits::Point),
            (Digits::Point, b'0'..=b'9') => Some(Digits::Fraction(1)),
            (Digits::Fraction(n), b'0'..=b'9') if n < DIGITS => Some(Digits::Fraction(n + 1)),
            _ => None,
        }
    }
}

/// The last property that may come when `next` is the first: none behind a required one.
pub(super) fn last_name(required: &[bool], next: usize) -> usize {
    required[next..].iter().position(|required| *required).map_or(required.len() - 1, |at| next + at)
}

/// The first of `pick..=last` that agrees with `pick` in the first `at` bytes and goes on with `byte`.
fn narrow(all: &[Vec<u8>], pick: usize, last: usize, at: usize, byte: u8) -> Option<usize> {
    let begun = &all[pick][..at];
    (pick..=last).find(|i| all[*i].get(..at) == Some(begun) && all[*i].get(at) == Some(&byte))
}
