//! Where a record ends: cutting the bytes of a text file into records before any is understood.
//!
//! Framing is apart from decoding so that garbage stays where it is. One stray quote in a CSV file
//! would otherwise swallow all rows up to the next quote; here a quoted record that does not close
//! as RFC 4180 says gives up its first line only, and the next line starts afresh.

/// Longest record, in bytes.
pub(super) const MAX_RECORD: usize = 10 << 20;
/// Longest record of several lines. Smaller, because an open quote is searched up to here.
const MAX_QUOTED: usize = 1 << 20;
/// Longest unclosed record at the end of a growing file that is still believed to be in the writing.
const MAX_TORN: usize = 64 << 10;

/// How records of a text format are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// A line is a record.
    Lines,
    /// RFC 4180: line breaks inside quotes belong to the record.
    Quoted,
}

/// What stands at the front of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A record of so many bytes, its line break included, over so many lines.
    Record { len: usize, lines: u64 },
    /// A line that starts no record.
    Broken { len: usize, cause: &'static str },
    /// A record that is not closed inside the buffer.
    Open,
}

impl Framing {
    /// The frame at the front of `buffer`, which is not empty. `end` says that no bytes follow, and
    /// `complete` that none ever will.
    pub fn next(self, buffer: &[u8], end: bool, complete: bool) -> Frame {
        let line = memchr::memchr(b'\n', buffer).map(|at| at + 1);
        let quoted = self == Framing::Quoted
            && memchr::memchr(b'"', &buffer[..line.unwrap_or(buffer.len())]).is_some();
        if !quoted {
            return match line {
                Some(len) => Frame::Record { len, lines: 1 },
                None if end && complete => Frame::Record { len: buffer.len(), lines: 1 },
                None => Frame::Open,
            };
        }
        let broken = |cause| match line {
            Some(len) => Frame::Broken { len, cause },
            None if end && complete => Frame::Broken { len: buffer.len(), cause },
            None => Frame::Open,
        };
        match scan(&buffer[..buffer.len().min(MAX_RECORD)]) {
            Scan::Closed { len, lines } if lines == 1 || len <= MAX_QUOTED => Frame::Record { len, lines },
            Scan::Unterminated if end && complete => {
                let lines = 1 + memchr::memchr_iter(b'\n', buffer).count() as u64;
                Frame::Record { len: buffer.len(), lines }
            }
            Scan::Garbled => broken("text after a closing quote"),
            Scan::Closed { .. } => broken(TOO_LONG),
            Scan::InQuotes if line.is_some() && buffer.len() > MAX_QUOTED => broken(TOO_LONG),
            Scan::InQuotes if end && (complete || buffer.ends_with(b"\n") || buffer.len() > MAX_TORN) => {
                broken("a quote is opened and never closed")
            }
            Scan::InQuotes | Scan::Unterminated => Frame::Open,
        }
    }
}

const TOO_LONG: &str = "a quote is opened and not closed within 1 MiB";

/// What a pass over the front of a buffer by the rules of RFC 4180 finds.
enum Scan {
    /// A line break outside quotes.
    Closed { len: usize, lines: u64 },
    /// The buffer ends outside quotes.
    Unterminated,
    /// The buffer ends inside quotes.
    InQuotes,
    /// A closing quote is followed by text.
    Garbled,
}

fn scan(buffer: &[u8]) -> Scan {
    #[derive(PartialEq)]
    enum In {
        FieldStart,
        Plain,
        Quotes,
        AfterQuote,
    }
    let (mut state, mut lines) = (In::FieldStart, 1);
    for (at, &byte) in buffer.iter().enumerate() {
        state = match (state, byte) {
            (In::Quotes, b'"') => In::AfterQuote,
            (In::Quotes, b'\n') => {
                lines += 1;
                In::Quotes
            }
            (In::Quotes, _) | (In::AfterQuote, b'"') => In::Quotes,
            (_, b'\n') => return Scan::Closed { len: at + 1, lines },
            (_, b',') => In::FieldStart,
            (In::FieldStart, b'"') => In::Quotes,
            (In::AfterQuote, b'\r') if matches!(buffer.get(at + 1), Some(b'\n') | None) => In::AfterQuote,
            (In::AfterQuote, _) => return Scan::Garbled,
            (In::FieldStart | In::Plain, _) => In::Plain,
        };
    }
    if state == In::Quotes { Scan::InQuotes } else { Scan::Unterminated }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quoted(text: &str, end: bool, complete: bool) -> Frame {
        Framing::Quoted.next(text.as_bytes(), end, complete)
    }

    #[test]
    fn line_breaks_inside_quotes_belong_to_the_record() {
        assert_eq!(quoted("1,\"a\nb\"\"c\",2\r\nx", false, false), Frame::Record { len: 14, lines: 2 });
        assert_eq!(quoted("1,5\" disk\nx", false, false), Frame::Record { len: 10, lines: 1 });
        assert_eq!(quoted("1,\"a\"\r\nx", false, false), Frame::Record { len: 7, lines: 1 });
    }

    #[test]
    fn a_stray_quote_costs_its_own_line() {
        let cause = "a quote is opened and never closed";
        assert_eq!(quoted("1,\"a\n2,b\n", true, false), Frame::Broken { len: 5, cause });
        assert_eq!(quoted("1,\"a\n2,b", true, true), Frame::Broken { len: 5, cause });
        assert!(matches!(quoted("1,\"a\n2,\"b\"\n", true, false), Frame::Broken { len: 5, .. }));
        let long = format!("1,\"a\n{}", "2,b\n".repeat(MAX_QUOTED / 4));
        assert!(matches!(quoted(&long, false, false), Frame::Broken { len: 5, .. }));
    }

    #[test]
    fn what_may_still_be_written_waits() {
        assert_eq!(quoted("1,\"a\n2,b", true, false), Frame::Open);
        assert_eq!(quoted("1,\"a\"", true, false), Frame::Open);
        assert_eq!(quoted("1,\"a\"", true, true), Frame::Record { len: 5, lines: 1 });
        assert_eq!(Framing::Lines.next(b"ab", true, false), Frame::Open);
        assert_eq!(Framing::Lines.next(b"ab", true, true), Frame::Record { len: 2, lines: 1 });
    }
}
