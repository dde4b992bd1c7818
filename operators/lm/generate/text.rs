//! One text while it is written: its bytes, and when it is over.
//!
//! Decision: bytes are gathered and become characters only at the end, because a token may hold
//! half of one; stops are looked for in the bytes, where they may lie across tokens.

use crate::language_model::{Writing, Written};

/// A text so far.
#[derive(Default)]
pub(crate) struct Text {
    bytes: Vec<u8>,
    /// Tokens written, the end token not counted.
    pub(crate) tokens: u64,
}

impl Text {
    /// Adds a token; says whether a stop was reached, which is cut off.
    pub(crate) fn push(&mut self, bytes: &[u8], how: &Writing) -> bool {
        let before = self.bytes.len();
        self.tokens += 1;
        self.bytes.extend_from_slice(bytes);
        let find = |stop: &String| {
            let from = before.saturating_sub(stop.len() - 1);
            let windows = self.bytes[from..].windows(stop.len());
            windows.into_iter().position(|window| window == stop.as_bytes()).map(|at| from + at)
        };
        let stop = how.stop.iter().filter(|stop| !stop.is_empty()).filter_map(find).min();
        if let Some(at) = stop {
            self.bytes.truncate(at);
        }
        stop.is_some()
    }

    /// The text; half a character at its end is left off.
    pub(crate) fn written(&self, finished: bool) -> Written {
        let mut text = String::new();
        let mut chunks = self.bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let half = chunks.peek().is_none() && is_half(chunk.invalid());
            // Bytes that no further ones could make a character of.
            if !chunk.invalid().is_empty() && !half {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        Written { text, tokens: self.tokens, finished }
    }
}

/// Whether more bytes could make this a character.
fn is_half(bytes: &[u8]) -> bool {
    matches!(std::str::from_utf8(bytes), Err(error) if error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(pieces: &[&[u8]], stops: &[&str]) -> (String, bool) {
        let stop = stops.iter().map(ToString::to_string).collect();
        let how = Writing { stop, ..super::super::tests::greedy(10) };
        let mut text = Text::default();
        let stopped = pieces.iter().any(|piece| text.push(piece, &how));
        (text.written(stopped).text, stopped)
    }

    #[test]
    fn stops_may_lie_across_tokens() {
        assert_eq!(write(&[b"a b", b"c\n", b"\nd"], &["\n\n"]), ("a bc".into(), true));
        assert_eq!(write(&[b"one END", b"END"], &["zzz", "ENDE"]), ("one ".into(), true));
        assert_eq!(write(&[b"xyz"], &["z", "y"]), ("x".into(), true));
        assert_eq!(write(&[b"xyz"], &["xyzz"]), ("xyz".into(), false));
    }

    #[test]
    fn half_a_character_is_never_written() {
        let e = "é".as_bytes();
        assert_eq!(write(&[b"caf", &e[..1], &e[1..]], &[]).0, "café");
        assert_eq!(write(&[b"caf", &e[..1]], &[]).0, "caf");
        assert_eq!(write(&[b"a", &[0xff], b"b"], &[]).0, "a\u{fffd}b");
        assert_eq!(write(&[b"a", &[0xff], b"b", &e[..1]], &[]).0, "a\u{fffd}b");
        let smile = "🙂".as_bytes();
        assert_eq!(write(&[&smile[..3]], &[]).0, "");
        assert_eq!(write(&[&smile[..2], &smile[2..]], &["🙂"]), (String::new(), true));
    }
}
