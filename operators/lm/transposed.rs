//! Products with the transpose of packed weights: how a gradient passes a frozen matrix.
//!
//! Decision: the weights are not packed a second time for it, which would double the memory of a
//! model that is tuned. Sixteen lines of a panel lie within one group of codes; they are widened and
//! turned round in the first-level cache, and the same kernel does the rest. So here too each
//! number is one chain of multiply-adds, over outputs in ascending order.

use std::ops::Range;

use super::kernel::{PANEL, Strip, TILE, strip};
use super::matmul::{DEPTH, Matrix, Tiles};
use super::simd::dispatched;

impl Matrix {
    /// Computes rows `rows` (a range of [`Tiles::blocks`]) of `dy · W` for the outputs `from..to` of the
    /// weights (`from` on a panel boundary), which are the columns of `dy`, one panel at a time.
    ///
    /// `emit(first_input, c)` receives `c` as `[row of the range][PANEL]`, rows past `dy.rows()` and
    /// inputs past the last being padding.
    pub(crate) fn product_transposed(
        &self,
        dy: &Tiles,
        rows: Range<usize>,
        (from, to): (usize, usize),
        c: &mut Vec<f32>,
        mut emit: impl FnMut(usize, &[f32]),
    ) {
        assert_eq!((dy.depth, from % PANEL, rows.start % TILE), (to - from, 0, 0));
        let tiles = rows.start / TILE..rows.end.div_ceil(TILE);
        c.resize(tiles.len() * TILE * PANEL, 0.0);
        let mut turned = [0.0; DEPTH * PANEL];
        for input in (0..self.inputs).step_by(PANEL) {
            c.fill(0.0);
            for first in (from..to).step_by(DEPTH) {
                let outputs = first..to.min(first + DEPTH);
                let a = Strip { data: &dy.data[(first - from) * TILE..], stride: dy.depth * TILE };
                let b = &mut turned[..outputs.len() * PANEL];
                self.read_turned(outputs, input, b);
                strip(dy.rows, tiles.clone(), a, b, &[], c);
            }
            emit(input, c);
        }
    }

    /// Weights of some outputs (the first on a panel boundary) by sixteen inputs, `[output][PANEL]`;
    /// zero past the last input.
    fn read_turned(&self, outputs: Range<usize>, input: usize, into: &mut [f32]) {
        let width = PANEL.min(self.inputs - input);
        let mut wide = [0.0; PANEL * PANEL];
        for (panel, into) in (outputs.start / PANEL..).zip(into.chunks_mut(PANEL * PANEL)) {
            let line = panel * self.inputs + input;
            turn(self.panels.lines(line..line + width, &mut wide), into);
        }
    }

    /// `dx = dy · W`, or `dx += dy · W`; `dx` is `[row][inputs]`.
    pub(crate) fn apply_transposed(&self, dy: &Tiles, c: &mut Vec<f32>, dx: &mut [f32], add: bool) {
        self.add_transposed(dy, (0, self.outputs()), c, dx, add);
    }

    /// [`Matrix::apply_transposed`] of some outputs of the weights, which are the columns of `dy`.
    pub(crate) fn add_transposed(
        &self,
        dy: &Tiles,
        outputs: (usize, usize),
        c: &mut Vec<f32>,
        dx: &mut [f32],
        add: bool,
    ) {
        let n = self.inputs;
        for rows in dy.blocks() {
            let dx = &mut dx[rows.start * n..rows.end * n];
            self.product_transposed(dy, rows, outputs, c, |first, c| {
                let width = PANEL.min(n - first);
                for (dx, c) in dx.chunks_exact_mut(n).zip(c.chunks_exact(PANEL)) {
                    let dx = dx[first..first + width].iter_mut().zip(c);
                    if add { dx.for_each(|(dx, c)| *dx += c) } else { dx.for_each(|(dx, c)| *dx = *c) }
                }
            });
        }
    }
}

dispatched! {
    /// `[input][PANEL]` to `[output][PANEL]`, for as many outputs as there is room for.
    fn turn = turn_body(lines: &[f32], into: &mut [f32])
}

/// A square of weights.
type Square = [[f32; PANEL]; PANEL];

/// Side of the squares that are turned round within registers.
const SIDE: usize = 8;

#[inline(always)]
fn turn_body<const FUSED: bool>(lines: &[f32], into: &mut [f32]) {
    let (lines, _) = lines.as_chunks::<PANEL>();
    let (into, _) = into.as_chunks_mut::<PANEL>();
    match (lines.first_chunk::<PANEL>(), into.first_chunk_mut::<PANEL>()) {
        (Some(lines), Some(into)) => transpose(lines, into),
        _ => {
            let (mut whole, mut turned) = ([[0.0; PANEL]; PANEL], [[0.0; PANEL]; PANEL]);
            whole[..lines.len()].copy_from_slice(lines);
            transpose(&whole, &mut turned);
            into.copy_from_slice(&turned[..into.len()]);
        }
    }
}

#[inline(always)]
fn transpose(lines: &Square, into: &mut Square) {
    for (top, left) in [(0, 0), (0, SIDE), (SIDE, 0), (SIDE, SIDE)] {
        let mut square = [[0.0; SIDE]; SIDE];
        for row in 0..SIDE {
            square[row].copy_from_slice(&lines[top + row][left..left + SIDE]);
        }
        let turned = interleaved(interleaved(interleaved(square)));
        for row in 0..SIDE {
            into[left + row][top..top + SIDE].copy_from_slice(&turned[row]);
        }
    }
}

/// The numbers of the upper rows, each followed by its like in the lower ones. That turns the bits of
/// every number's place round by one; after three times, rows and columns have changed places.
#[inline(always)]
fn interleaved(rows: [[f32; SIDE]; SIDE]) -> [[f32; SIDE]; SIDE] {
    let mut next = [[0.0; SIDE]; SIDE];
    for row in 0..SIDE / 2 {
        for lane in 0..SIDE / 2 {
            next[2 * row][2 * lane] = rows[row][lane];
            next[2 * row][2 * lane + 1] = rows[SIDE / 2 + row][lane];
            next[2 * row + 1][2 * lane] = rows[row][SIDE / 2 + lane];
            next[2 * row + 1][2 * lane + 1] = rows[SIDE / 2 + row][SIDE / 2 + lane];
        }
    }
    next
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::lm::testing::noise;
    use crate::lm::weights::tests::some;
    use crate::lm::weights::{Bits, Rows};

    fn apply(matrix: &Matrix, dy: &[f32], dx: &mut [f32], add: bool) {
        let outputs = matrix.outputs();
        let mut tiles = Tiles::default();
        tiles.pack(dy.len() / outputs, outputs, |r| &dy[r * outputs..]);
        matrix.apply_transposed(&tiles, &mut Vec::new(), dx, add);
    }

    #[test]
    fn agrees_with_the_definition_for_weights_of_every_kind() {
        // More outputs than a block is deep; no size fills its panel but where codes come by groups.
        for (rows, inputs, outputs) in [(1, 5, 3), (30, 41, 33), (50, 96, DEPTH + 35)] {
            let plain = noise(71, inputs * outputs);
            let mut kinds = vec![
                Rows::F32(plain.clone()),
                Rows::F16(plain.iter().map(|x| f16::from_f32(*x)).collect()),
                Rows::Bf16(plain.iter().map(|x| bf16::from_f32(*x)).collect()),
            ];
            if inputs % 32 == 0 {
                kinds.push(Rows::Coded(some(Bits::Four, 32, inputs * outputs, 72)));
                kinds.push(Rows::Coded(some(Bits::Eight, 16, inputs * outputs, 73)));
            }
            let (dy, start) = (noise(74, rows * outputs), noise(75, rows * inputs));
            for weights in kinds {
                let w = weights.to_f32();
                let matrix = Matrix::pack(vec![weights], inputs);
                for add in [false, true] {
                    let mut dx = start.clone();
                    apply(&matrix, &dy, &mut dx, add);
                    for (at, found) in dx.iter().enumerate() {
                        let (r, i) = (at / inputs, at % inputs);
                        let term = |o: usize| f64::from(dy[r * outputs + o]) * f64::from(w[o * inputs + i]);
                        let sum: f64 = (0..outputs).map(term).sum();
                        let exact = sum + if add { f64::from(start[at]) } else { 0.0 };
                        let scale = (0..outputs).map(|o| term(o).abs()).sum::<f64>();
                        assert!((f64::from(*found) - exact).abs() <= 1e-6 * (scale + 1.0), "{r} {i}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_rows_beside_it() {
        let (rows, inputs, outputs) = (31, 40, 500);
        let matrix = Matrix::pack(vec![Rows::F32(noise(76, outputs * inputs))], inputs);
        let dy = noise(77, rows * outputs);
        let mut all = vec![0.0; rows * inputs];
        apply(&matrix, &dy, &mut all, false);
        for (dy, expected) in dy.chunks_exact(outputs).zip(all.chunks_exact(inputs)) {
            let mut alone = vec![0.0; inputs];
            apply(&matrix, dy, &mut alone, false);
            assert_eq!(alone, expected);
        }
    }

    #[test]
    fn chunks_of_outputs_add_up() {
        let (rows, inputs, outputs) = (7, 20, 3 * PANEL + 5);
        let matrix = Matrix::pack(vec![Rows::F32(noise(78, outputs * inputs))], inputs);
        let dy = noise(79, rows * outputs);
        let (mut whole, mut parts) = (vec![0.0; rows * inputs], vec![0.0; rows * inputs]);
        apply(&matrix, &dy, &mut whole, false);
        for (from, to) in [(0, PANEL), (PANEL, outputs)] {
            let mut tiles = Tiles::default();
            tiles.pack(rows, to - from, |r| &dy[r * outputs + from..]);
            matrix.add_transposed(&tiles, (from, to), &mut Vec::new(), &mut parts, true);
        }
        for (a, b) in whole.iter().zip(&parts) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }
}
