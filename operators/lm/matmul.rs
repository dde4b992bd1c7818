//! Matrix products with packed operands.
//!
//! Decision: a kernel of our own, though `gemm` is a good crate. The weights never change, so they
//! are packed once instead of at every call, which is what a thread with one prompt's 50 to 250
//! rows needs; and every output element is *one* chain of fused multiply-adds over the depth in
//! ascending order, carried through the output between blocks. So a row's result depends neither
//! on the number of rows beside it, nor on where blocks or cached prefixes were cut: the bits of a
//! prompt's answer are the same in every batch, by construction. `benches/language_model.rs`
//! measures both.

use std::ops::Range;

use super::kernel::{PANEL, Strip, TILE, strip};
use super::panels::Panels;
use super::weights::Rows;

/// Depth of a block of weights, 12 KiB of a panel, so that it stays in the first-level cache; whole
/// groups of any code.
const DEPTH: usize = 192;
/// Numbers in a block of rows of the left operand: 1 MiB, so that it stays near while weights pass by.
const BLOCK: usize = 1 << 18;

/// A left operand in the kernel's layout, `[tile][depth][TILE]`; rows past the last are zero.
#[derive(Default)]
pub(crate) struct Tiles {
    rows: usize,
    depth: usize,
    data: Vec<f32>,
}

impl Tiles {
    /// Packs `rows` rows of length `depth`, reusing the allocation.
    pub(crate) fn pack<'a>(&mut self, rows: usize, depth: usize, row: impl Fn(usize) -> &'a [f32]) {
        self.rows = rows;
        self.depth = depth;
        self.data.resize(rows.div_ceil(TILE) * TILE * depth, 0.0);
        for (t, tile) in self.data.chunks_exact_mut(TILE * depth).enumerate() {
            let live = TILE.min(rows - t * TILE);
            if live < TILE {
                tile.fill(0.0);
            }
            for i in 0..live {
                let source = &row(t * TILE + i)[..depth];
                for (slot, value) in tile.chunks_exact_mut(TILE).zip(source) {
                    slot[i] = *value;
                }
            }
        }
    }

    /// The rows in blocks that stay in the second-level cache while all weights pass by.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (rows, size) = (self.rows, (BLOCK / (self.depth * TILE)).max(1) * TILE);
        (0..rows).step_by(size).map(move |first| first..rows.min(first + size))
    }
}

/// A constant right operand.
pub(crate) struct Matrix {
    outputs: usize,
    inputs: usize,
    panels: Panels,
}

impl Matrix {
    /// Packs tensors `[output][input]`, one under the other.
    pub(super) fn pack(parts: Vec<Rows>, inputs: usize) -> Self {
        let (outputs, panels) = Panels::pack(parts, inputs);
        Self { outputs, inputs, panels }
    }

    /// Number of outputs (rows of the unpacked weights).
    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.panels.bytes()
    }

    /// Copies the weights of one output (an embedding, where the matrix is a tied table).
    pub(crate) fn read_output(&self, output: usize, into: &mut [f32]) {
        let mut wide = [0.0; DEPTH * PANEL];
        for (lines, into) in self.blocks(output / PANEL).zip(into.chunks_mut(DEPTH)) {
            let lines = self.panels.lines(lines, &mut wide).chunks_exact(PANEL);
            into.iter_mut().zip(lines).for_each(|(slot, line)| *slot = line[output % PANEL]);
        }
    }

    /// The lines of a panel in blocks of [`DEPTH`].
    fn blocks(&self, panel: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let (first, end) = (panel * self.inputs, (panel + 1) * self.inputs);
        (first..end).step_by(DEPTH).map(move |first| first..end.min(first + DEPTH))
    }

    /// Computes rows `rows` (a range of [`Tiles::blocks`]) of `x · Wᵀ` for outputs `from..to`
    /// (`from` on a panel boundary), one panel at a time.
    ///
    /// `emit(first_output, c)` receives `c` as `[row of the range][PANEL]`, rows past `x.rows()` being
    /// padding.
    pub(crate) fn product(
        &self,
        x: &Tiles,
        rows: Range<usize>,
        (from, to): (usize, usize),
        c: &mut Vec<f32>,
        mut emit: impl FnMut(usize, &[f32]),
    ) {
        assert_eq!((x.depth, from % PANEL, rows.start % TILE), (self.inputs, 0, 0));
        let tiles = rows.start / TILE..rows.end.div_ceil(TILE);
        c.resize(tiles.len() * TILE * PANEL, 0.0);
        let mut wide = [0.0; DEPTH * PANEL];
        for p in from / PANEL..to.min(self.outputs).div_ceil(PANEL) {
            c.fill(0.0);
            for (i, lines) in self.blocks(p).enumerate() {
                // Weights are one long stream: while this block is in use, the next one is fetched.
                let next = self.panels.after(lines.end);
                let b = self.panels.lines(lines, &mut wide);
                let a = Strip { data: &x.data[i * DEPTH * TILE..], stride: self.inputs * TILE };
                strip(x.rows, tiles.clone(), a, b, next, c);
            }
            emit(p * PANEL, c);
        }
    }

    /// `y = x · Wᵀ`, or `y += x · Wᵀ`; `y` is `[row][outputs]`.
    pub(crate) fn apply(&self, x: &Tiles, c: &mut Vec<f32>, y: &mut [f32], add: bool) {
        let n = self.outputs;
        for rows in x.blocks() {
            let y = &mut y[rows.start * n..rows.end * n];
            self.product(x, rows, (0, n), c, |first, c| {
                let width = PANEL.min(n - first);
                for (y, c) in y.chunks_exact_mut(n).zip(c.chunks_exact(PANEL)) {
                    let y = &mut y[first..first + width];
                    if add {
                        y.iter_mut().zip(c).for_each(|(y, c)| *y += c);
                    } else {
                        y.copy_from_slice(&c[..width]);
                    }
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::testing::noise;

    fn product(x: &[f32], rows: usize, w: &[f32], inputs: usize) -> Vec<f32> {
        let matrix = Matrix::pack(vec![Rows::F32(w.to_vec())], inputs);
        let mut tiles = Tiles::default();
        tiles.pack(rows, inputs, |r| &x[r * inputs..]);
        let mut y = vec![0.0; rows * matrix.outputs()];
        matrix.apply(&tiles, &mut Vec::new(), &mut y, false);
        y
    }

    #[test]
    fn agrees_with_the_definition() {
        for (rows, inputs, outputs) in [(1, 5, 3), (7, 33, 16), (25, 400, 50)] {
            let (x, w) = (noise(1, rows * inputs), noise(2, outputs * inputs));
            let y = product(&x, rows, &w, inputs);
            for r in 0..rows {
                for o in 0..outputs {
                    let exact: f64 =
                        (0..inputs).map(|i| x[r * inputs + i] as f64 * w[o * inputs + i] as f64).sum();
                    assert!((y[r * outputs + o] as f64 - exact).abs() < 1e-4, "{rows} {r} {o}");
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_rows_beside_it() {
        let (rows, inputs, outputs) = (31, 500, 40);
        let (x, w) = (noise(3, rows * inputs), noise(4, outputs * inputs));
        let all = product(&x, rows, &w, inputs);
        for r in 0..rows {
            let alone = product(&x[r * inputs..][..inputs], 1, &w, inputs);
            assert_eq!(alone, all[r * outputs..][..outputs]);
        }
    }

    #[test]
    fn a_tied_table_gives_its_rows_back() {
        let w = noise(7, 20 * 6);
        let parts = [&w[..48], &w[48..]].map(|part| Rows::F32(part.to_vec()));
        let matrix = Matrix::pack(parts.to_vec(), 6);
        let mut row = [0.0; 6];
        matrix.read_output(17, &mut row);
        assert_eq!(row, w[17 * 6..18 * 6]);
    }
}
