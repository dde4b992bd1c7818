//! Weights row by row, as narrow as a file gives them.
//!
//! Decision: what is known of a tensor here is its rows alone: they are read in the file's order,
//! reordered, put one under the other, and then packed for the kernel (`panels.rs`).

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Bits of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Bits {
    Four,
    Eight,
}

/// Weights `code · scale + offset`, rounded once; codes row by row, scale and offset of each group of
/// neighbours in a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Coded {
    pub(super) bits: Bits,
    pub(super) group: usize,
    pub(super) codes: Vec<u8>,
    pub(super) scales: Vec<f32>,
    pub(super) offsets: Vec<f32>,
}

impl Coded {
    /// No weights yet.
    pub(super) fn new(bits: Bits, group: usize) -> Self {
        Self { bits, group, codes: Vec::new(), scales: Vec::new(), offsets: Vec::new() }
    }

    /// Adds a group.
    pub(super) fn push(&mut self, scale: f32, offset: f32, codes: impl Iterator<Item = u8>) {
        self.codes.extend(codes);
        self.scales.push(scale);
        self.offsets.push(offset);
    }

    fn to_f32(&self) -> Vec<f32> {
        let groups = self.codes.chunks(self.group).zip(self.scales.iter().zip(&self.offsets));
        let weight = |code: &u8, scale: &f32, offset: &f32| f32::from(*code).mul_add(*scale, *offset);
        groups.flat_map(|(codes, (s, o))| codes.iter().map(move |code| weight(code, s, o))).collect()
    }

    /// The same weights in smaller groups.
    fn regrouped(mut self, group: usize) -> Self {
        let times = self.group / group;
        let repeat = |values: Vec<f32>| values.iter().flat_map(|v| std::iter::repeat_n(*v, times)).collect();
        (self.scales, self.offsets) = (repeat(self.scales), repeat(self.offsets));
        Self { group, ..self }
    }

    fn append(self, more: Self) -> Self {
        let (bits, group) = (self.bits.max(more.bits), self.group.min(more.group));
        let (mut all, more) = (self.regrouped(group), more.regrouped(group));
        all.bits = bits;
        all.codes.extend(more.codes);
        all.scales.extend(more.scales);
        all.offsets.extend(more.offsets);
        all
    }
}

/// The weights of a tensor, `[output][input]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Rows {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    Coded(Coded),
}

impl Rows {
    /// Number of weights.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::F32(weights) => weights.len(),
            Self::F16(weights) => weights.len(),
            Self::Bf16(weights) => weights.len(),
            Self::Coded(coded) => coded.codes.len(),
        }
    }

    /// All of them in f32.
    pub(super) fn to_f32(&self) -> Vec<f32> {
        match self {
            Self::F32(weights) => weights.clone(),
            Self::F16(weights) => weights.to_f32_vec(),
            Self::Bf16(weights) => weights.to_f32_vec(),
            Self::Coded(coded) => coded.to_f32(),
        }
    }

    /// Rows one under the other: narrow if both are of a kind.
    pub(super) fn append(self, more: Self) -> Self {
        match (self, more) {
            (Self::F16(a), Self::F16(b)) => Self::F16([a, b].concat()),
            (Self::Bf16(a), Self::Bf16(b)) => Self::Bf16([a, b].concat()),
            (Self::Coded(a), Self::Coded(b)) => Self::Coded(a.append(b)),
            (a, b) => Self::F32([a.to_f32(), b.to_f32()].concat()),
        }
    }

    /// With the rows of each head of `head_size` in another order: see [`unpermute`].
    pub(super) fn unpermuted(self, head_size: usize, inputs: usize) -> Self {
        match self {
            Self::F32(weights) => Self::F32(unpermute(&weights, head_size, inputs)),
            Self::F16(weights) => Self::F16(unpermute(&weights, head_size, inputs)),
            Self::Bf16(weights) => Self::Bf16(unpermute(&weights, head_size, inputs)),
            Self::Coded(Coded { bits, group, codes, scales, offsets }) => Self::Coded(Coded {
                bits,
                group,
                codes: unpermute(&codes, head_size, inputs),
                scales: unpermute(&scales, head_size, inputs / group),
                offsets: unpermute(&offsets, head_size, inputs / group),
            }),
        }
    }
}

/// Undoes the row order that llama GGUF files give to query and key weights.
///
/// The converter interleaves the two halves of each head (row `2i + half`) for rotary kernels that
/// pair neighbours; this restores `half · size/2 + i`, the order of the original weights, in which
/// rotation pairs halves.
fn unpermute<T: Copy>(values: &[T], head_size: usize, width: usize) -> Vec<T> {
    let mut restored = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_size * width) {
        for half in 0..2 {
            for i in 0..head_size / 2 {
                restored.extend_from_slice(&head[(2 * i + half) * width..][..width]);
            }
        }
    }
    restored
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::lm::testing::noise;

    /// Some weights in codes.
    pub(in crate::lm) fn some(bits: Bits, group: usize, weights: usize, seed: u64) -> Coded {
        let mut coded = Coded::new(bits, group);
        let most = if bits == Bits::Four { 7.5 } else { 127.5 };
        for (g, codes) in noise(seed, weights).chunks(group).enumerate() {
            let codes = codes.iter().map(|x| ((x + 1.0) * most) as u8);
            coded.push(0.01 * (g + 1) as f32, -0.07 * (g % 5) as f32, codes);
        }
        coded
    }

    #[test]
    fn unpermute_restores_halves() {
        // Two heads of four rows with one input, numbered in the file's order.
        let file: Vec<f32> = (0..8).map(|i| i as f32).collect();
        assert_eq!(unpermute(&file, 4, 1), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        let coded = some(Bits::Four, 32, 8 * 64, 61);
        let all = Rows::Coded(coded).unpermuted(4, 64);
        let expected = unpermute(&Rows::Coded(some(Bits::Four, 32, 8 * 64, 61)).to_f32(), 4, 64);
        assert_eq!(all.to_f32(), expected);
    }
}
