//! The bytes behind token ids, for texts that are written token by token.
//!
//! Decision: a text is put together from the bytes of its tokens, not by decoding lists of ids
//! again and again: a token may hold half a character, a stop may lie across tokens, and a schema
//! is checked byte by byte. Tokens are also kept in the order of their bytes, so that a walk over
//! the whole vocabulary shares beginnings like a trie without being one.

use std::collections::BTreeSet;

use super::error::LmError;

/// Control tokens that end an answer, whichever the model's metadata names.
const ENDS: [&str; 9] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|eot|>",
    "<end_of_turn>",
    "</s>",
];

/// What each token writes.
pub(crate) struct Vocabulary {
    bytes: Vec<Box<[u8]>>,
    ends: BTreeSet<u32>,
    /// Control tokens that end nothing.
    markers: Vec<u32>,
    /// Tokens that write something, sorted by what they write.
    sorted: Vec<u32>,
}

impl Vocabulary {
    /// From what each token writes, which of them are control tokens, and those that end an answer.
    pub(crate) fn new(bytes: Vec<Box<[u8]>>, control: Vec<bool>, ends: BTreeSet<u32>) -> Self {
        let text = |token: &u32| !control[*token as usize] && !bytes[*token as usize].is_empty();
        let mut sorted: Vec<u32> = (0..).take(bytes.len()).filter(text).collect();
        sorted.sort_by(|a, b| bytes[*a as usize].cmp(&bytes[*b as usize]).then(a.cmp(b)));
        let marker = |token: &u32| control[*token as usize] && !ends.contains(token);
        let markers = (0..).take(bytes.len()).filter(marker).collect();
        Self { bytes, ends, markers, sorted }
    }

    /// From the tokens of a byte-level tokenizer as they are spelled in its vocabulary.
    ///
    /// # Errors
    /// If a token that is none of control holds a character that stands for no byte.
    pub(crate) fn byte_level(
        spelled: &[&str],
        literal: &[bool],
        control: Vec<bool>,
        mut ends: BTreeSet<u32>,
    ) -> Result<Self, LmError> {
        let mut bytes: Vec<Box<[u8]>> = Vec::with_capacity(spelled.len());
        for (id, token) in (0..).zip(spelled) {
            let at = bytes.len();
            if control[at] && ENDS.contains(token) {
                ends.insert(id);
            }
            bytes.push(match control[at] || literal[at] {
                true => token.as_bytes().into(),
                false => token.chars().map(byte_of).collect::<Option<_>>().ok_or_else(|| {
                    LmError::Malformed(format!("token {token:?} is not spelled in the alphabet of bytes"))
                })?,
            });
        }
        Ok(Self::new(bytes, control, ends))
    }

    /// Number of tokens.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// What a token writes.
    pub(crate) fn bytes(&self, token: u32) -> &[u8] {
        &self.bytes[token as usize]
    }

    /// Whether a token ends an answer.
    pub(crate) fn is_end(&self, token: u32) -> bool {
        self.ends.contains(&token)
    }

    /// The tokens that end an answer.
    pub(crate) fn ends(&self) -> impl Iterator<Item = u32> + '_ {
        self.ends.iter().copied()
    }

    /// The control tokens that do not end an answer: they have no place in a text.
    pub(crate) fn markers(&self) -> &[u32] {
        &self.markers
    }

    /// The tokens that write something, in the order of what they write.
    pub(crate) fn sorted(&self) -> &[u32] {
        &self.sorted
    }

    /// The longest token that `text` begins with.
    pub(crate) fn longest(&self, text: &[u8]) -> Option<u32> {
        let find = |part: &[u8]| {
            let at = self.sorted.partition_point(|token| self.bytes(*token) < part);
            self.sorted.get(at).copied().filter(|token| self.bytes(*token) == part)
        };
        (1..=text.len().min(LONGEST)).rev().find_map(|len| find(&text[..len]))
    }
}

/// Bytes of the longest token that is looked for.
const LONGEST: usize = 32;

/// The byte that a character of a byte-level vocabulary stands for: printable ones for themselves,
/// the others counted on from 256 (Radford et al. 2019).
fn byte_of(c: char) -> Option<u8> {
    let printable = |b: &u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let code = u32::from(c);
    match code {
        0..256 => printable(&code).then_some(code),
        _ => (0..256).filter(|b| !printable(b)).nth(code as usize - 256),
    }
    .and_then(|b| u8::try_from(b).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_of_bytes() {
        let cases = [('a', 97), ('Ġ', 32), ('Ċ', 10), ('é', 0xe9), ('Ā', 0), ('Ń', 173), ('ÿ', 255)];
        for (c, byte) in cases {
            assert_eq!(byte_of(c), Some(byte), "{c}");
        }
        assert_eq!((byte_of(' '), byte_of('ń'), byte_of('語')), (None, None, None));
        let alphabet = (0..0x200).filter_map(char::from_u32).filter_map(byte_of);
        assert_eq!(alphabet.collect::<BTreeSet<_>>().len(), 256);
    }

    #[test]
    fn tokens_by_what_they_write() {
        let spelled = ["a", "Ġa", "<|im_start|>", "<|im_end|>", "<tool>", "ab"];
        let control = [false, false, true, true, false, false];
        let literal = [false, false, false, false, true, false];
        let vocabulary = Vocabulary::byte_level(&spelled, &literal, control.to_vec(), [1].into()).unwrap();
        assert_eq!(vocabulary.bytes(1), b" a");
        assert_eq!(vocabulary.bytes(4), b"<tool>");
        assert_eq!(vocabulary.sorted(), [1, 4, 0, 5]);
        assert_eq!(vocabulary.longest(b"abc"), Some(5));
        assert_eq!(vocabulary.longest(b"xa"), None);
        assert_eq!(vocabulary.markers(), [2]);
        assert!(vocabulary.is_end(3) && vocabulary.is_end(1) && !vocabulary.is_end(2));
        assert!(Vocabulary::byte_level(&["語"], &[false], vec![false], [0].into()).is_err());
    }
}
