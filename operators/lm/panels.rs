//! Weights panel by panel, as the matrix kernel reads them.
//!
//! Decision: weights stay as narrow in memory as in their file, and are widened to f32 a block at a
//! time, just before the kernel takes the block from the first-level cache. Writing a text reads
//! every weight once per token, so it takes as long as they take to come from memory; and where many
//! rows share a block, widening costs next to nothing. The numbers are the ones that dequantising
//! the whole file would give, so no result depends on this.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::kernel::{PANEL, prefetch};
use super::simd::{dispatched, mul_add};
use super::weights::{Bits, Coded, Rows};

/// Weights in the kernel's layout: lines of one input's weight for each output of a panel,
/// `[panel][input][PANEL]`; outputs past the last are zero.
pub(super) enum Panels {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    /// Bytes of code in a line (`PANEL`, or half of it with output `j + PANEL/2` in the high bits of
    /// byte `j`), and lines of a group; scales and offsets are `[panel][group][PANEL]`.
    Coded {
        line: usize,
        group: usize,
        codes: Vec<u8>,
        scales: Vec<f32>,
        offsets: Vec<f32>,
    },
}

impl Panels {
    /// Packs tensors one under the other; their number of outputs, and the panels.
    pub(super) fn pack(parts: Vec<Rows>, inputs: usize) -> (usize, Self) {
        let rows = parts.into_iter().reduce(Rows::append).unwrap_or(Rows::F32(Vec::new()));
        let outputs = rows.len() / inputs;
        let panels = match rows {
            Rows::F32(weights) => Self::F32(transpose(&weights, inputs)),
            Rows::F16(weights) => Self::F16(transpose(&weights, inputs)),
            Rows::Bf16(weights) => Self::Bf16(transpose(&weights, inputs)),
            Rows::Coded(Coded { bits, group, codes, scales, offsets }) => {
                let mut codes = transpose(&codes, inputs);
                if bits == Bits::Four {
                    let fold = |line: &[u8]| {
                        std::array::from_fn::<u8, { PANEL / 2 }, _>(|j| line[j] | line[j + PANEL / 2] << 4)
                    };
                    codes = codes.chunks_exact(PANEL).flat_map(fold).collect();
                }
                let line = if bits == Bits::Four { PANEL / 2 } else { PANEL };
                let (scales, offsets) =
                    (transpose(&scales, inputs / group), transpose(&offsets, inputs / group));
                Self::Coded { line, group, codes, scales, offsets }
            }
        };
        (outputs, panels)
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::F32(weights) => size_of_val(&weights[..]),
            Self::F16(weights) => size_of_val(&weights[..]),
            Self::Bf16(weights) => size_of_val(&weights[..]),
            Self::Coded { codes, scales, offsets, .. } => codes.len() + 4 * (scales.len() + offsets.len()),
        }
    }

    /// Some lines in f32, counted over all panels, widened into `wide` if they are narrow; codes by
    /// whole groups.
    pub(super) fn lines<'a>(&'a self, lines: Range<usize>, wide: &'a mut [f32]) -> &'a [f32] {
        let numbers = lines.start * PANEL..lines.end * PANEL;
        let wide = match self {
            Self::F32(weights) => return &weights[numbers],
            _ => &mut wide[..numbers.len()],
        };
        match self {
            Self::F32(_) => {}
            Self::F16(weights) => {
                ahead(weights, &numbers);
                weights[numbers].convert_to_f32_slice(wide);
            }
            Self::Bf16(weights) => {
                ahead(weights, &numbers);
                widen_bf16(&weights[numbers], wide);
            }
            Self::Coded { line, group, codes, scales, offsets } => {
                let range = lines.start * line..lines.end * line;
                ahead(codes, &range);
                let groups = lines.start / group * PANEL..lines.end.div_ceil(*group) * PANEL;
                let (codes, scales, offsets) = (&codes[range], &scales[groups.clone()], &offsets[groups]);
                match *line {
                    PANEL => widen_bytes(codes, scales, offsets, *group, wide),
                    _ => widen_halves(codes, scales, offsets, *group, wide),
                }
            }
        }
        wide
    }

    /// The numbers after some lines, where they are read as they lie.
    pub(super) fn after(&self, line: usize) -> &[f32] {
        match self {
            Self::F32(weights) => &weights[weights.len().min(line * PANEL)..],
            _ => &[],
        }
    }
}

/// `[row][width]` to `[panel of rows][width][PANEL]`.
fn transpose<T: Copy + Default>(rows: &[T], width: usize) -> Vec<T> {
    let count = rows.len() / width;
    let mut panels = vec![T::default(); count.div_ceil(PANEL) * PANEL * width];
    for (panel, rows) in panels.chunks_exact_mut(PANEL * width).zip(rows.chunks(PANEL * width)) {
        for (j, row) in rows.chunks_exact(width).enumerate() {
            for (slot, value) in panel.chunks_exact_mut(PANEL).zip(row) {
                slot[j] = *value;
            }
        }
    }
    panels
}

/// Asks for what follows a range, as much again.
fn ahead<T>(weights: &[T], range: &Range<usize>) {
    let next = range.end..weights.len().min(range.end + range.len());
    weights[next].chunks(64 / size_of::<T>()).for_each(prefetch);
}

dispatched! {
    fn widen_bf16 = widen_bf16_body(weights: &[bf16], wide: &mut [f32])
}

#[inline(always)]
fn widen_bf16_body<const FUSED: bool>(weights: &[bf16], wide: &mut [f32]) {
    for (wide, weight) in wide.iter_mut().zip(weights) {
        *wide = f32::from_bits(u32::from(weight.to_bits()) << 16);
    }
}

dispatched! {
    /// Codes of eight bits.
    fn widen_bytes = widen_bytes_body(codes: &[u8], scales: &[f32], offsets: &[f32], group: usize, wide: &mut [f32])
}

#[inline(always)]
fn widen_bytes_body<const FUSED: bool>(
    codes: &[u8],
    scales: &[f32],
    offsets: &[f32],
    group: usize,
    wide: &mut [f32],
) {
    let scales = scales.as_chunks::<PANEL>().0.iter().zip(offsets.as_chunks::<PANEL>().0);
    let groups = codes.chunks(group * PANEL).zip(wide.chunks_mut(group * PANEL));
    for ((codes, wide), (scale, offset)) in groups.zip(scales) {
        for (codes, wide) in codes.as_chunks::<PANEL>().0.iter().zip(wide.as_chunks_mut::<PANEL>().0) {
            for j in 0..PANEL {
                wide[j] = mul_add::<FUSED>(f32::from(codes[j]), scale[j], offset[j]);
            }
        }
    }
}

dispatched! {
    /// Codes of four bits.
    fn widen_halves = widen_halves_body(codes: &[u8], scales: &[f32], offsets: &[f32], group: usize, wide: &mut [f32])
}

#[inline(always)]
fn widen_halves_body<const FUSED: bool>(
    codes: &[u8],
    scales: &[f32],
    offsets: &[f32],
    group: usize,
    wide: &mut [f32],
) {
    const HALF: usize = PANEL / 2;
    let scales = scales.as_chunks::<PANEL>().0.iter().zip(offsets.as_chunks::<PANEL>().0);
    let groups = codes.chunks(group * HALF).zip(wide.chunks_mut(group * PANEL));
    for ((codes, wide), (scale, offset)) in groups.zip(scales) {
        for (codes, wide) in codes.as_chunks::<HALF>().0.iter().zip(wide.as_chunks_mut::<PANEL>().0) {
            // The compiler vectorises shifts of whole numbers of a vector's width, and not of bytes.
            let codes: [i32; HALF] = std::array::from_fn(|j| i32::from(codes[j]));
            for j in 0..HALF {
                wide[j] = mul_add::<FUSED>((codes[j] & 15) as f32, scale[j], offset[j]);
            }
            for j in 0..HALF {
                wide[j + HALF] = mul_add::<FUSED>((codes[j] >> 4) as f32, scale[j + HALF], offset[j + HALF]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::testing::noise;
    use crate::lm::weights::tests::some;

    fn widened(panels: &Panels, lines: usize, step: usize) -> Vec<f32> {
        let mut wide = vec![0.0; step * PANEL];
        let ranges = (0..lines).step_by(step).map(|first| first..lines.min(first + step));
        ranges.flat_map(|range| panels.lines(range, &mut wide).to_vec()).collect()
    }

    #[test]
    fn narrow_weights_are_widened_to_what_they_say() {
        let (inputs, outputs) = (96, 2 * PANEL + 3);
        let plain = noise(41, inputs * outputs);
        let kinds = [
            Rows::F32(plain.clone()),
            Rows::F16(plain.iter().map(|x| f16::from_f32(*x)).collect()),
            Rows::Bf16(plain.iter().map(|x| bf16::from_f32(*x)).collect()),
            Rows::Coded(some(Bits::Four, 32, inputs * outputs, 42)),
            Rows::Coded(some(Bits::Eight, 16, inputs * outputs, 43)),
        ];
        for rows in kinds {
            let expected = transpose(&rows.to_f32(), inputs);
            let (found, panels) = Panels::pack(vec![rows.clone()], inputs);
            assert_eq!(found, outputs);
            let bytes = match &rows {
                Rows::F32(_) => 4 * expected.len(),
                Rows::F16(_) | Rows::Bf16(_) => 2 * expected.len(),
                Rows::Coded(coded) if coded.bits == Bits::Four => expected.len() * 3 / 4,
                Rows::Coded(_) => expected.len() * 3 / 2,
            };
            assert_eq!(panels.bytes(), bytes);
            for step in [32, 64, 96] {
                // The padding of a last panel has codes like any other, of no scale.
                assert_eq!(widened(&panels, 3 * inputs, step), expected);
            }
        }
    }

    #[test]
    fn tensors_of_several_kinds_are_stacked() {
        let inputs = 64;
        let parts = [
            Rows::Coded(some(Bits::Four, 32, 8 * inputs, 51)),
            Rows::Coded(some(Bits::Eight, 16, 8 * inputs, 52)),
            Rows::F32(noise(53, 16 * inputs)),
        ];
        for used in [&parts[..2], &parts[..]] {
            let all: Vec<f32> = used.iter().flat_map(Rows::to_f32).collect();
            let (outputs, panels) = Panels::pack(used.to_vec(), inputs);
            assert_eq!(outputs, all.len() / inputs);
            assert_eq!(matches!(panels, Panels::F32(_)), used.len() == 3);
            assert_eq!(widened(&panels, all.len() / PANEL, 64), transpose(&all, inputs));
        }
    }
}
