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

use super::simd::{FUSED_BY_DEFAULT, mul_add};

/// Columns of one packed panel of the right operand.
pub(crate) const PANEL: usize = 16;
/// Rows of one packed tile of the left operand.
pub(crate) const TILE: usize = 12;
/// Rows of a tile that fit the registers of AVX2 with one panel.
const HALF: usize = TILE / 2;
/// Depth of a block of weights: 12 KiB per panel, so that it stays in the first-level cache.
const DEPTH: usize = 192;
/// Numbers of a cache line.
const LINE: usize = 16;
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

    /// Number of rows packed.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// The rows in blocks that stay in the second-level cache while all weights pass by.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (rows, size) = (self.rows, (BLOCK / (self.depth * TILE)).max(1) * TILE);
        (0..rows).step_by(size).map(move |first| first..rows.min(first + size))
    }
}

/// A constant right operand, `[panel][inputs][PANEL]`; outputs past the last are zero.
pub(crate) struct Matrix {
    outputs: usize,
    inputs: usize,
    data: Vec<f32>,
}

impl Matrix {
    /// Packs weights given as rows `[output][input]`, several blocks one under the other.
    pub(crate) fn pack(blocks: &[&[f32]], inputs: usize) -> Self {
        let outputs = blocks.iter().map(|b| b.len() / inputs).sum::<usize>();
        let mut data = vec![0.0; outputs.div_ceil(PANEL) * PANEL * inputs];
        for (j, row) in blocks.iter().flat_map(|b| b.chunks_exact(inputs)).enumerate() {
            let panel = &mut data[j / PANEL * PANEL * inputs..][..PANEL * inputs];
            for (slot, value) in panel.chunks_exact_mut(PANEL).zip(row) {
                slot[j % PANEL] = *value;
            }
        }
        Self { outputs, inputs, data }
    }

    /// Number of outputs (rows of the unpacked weights).
    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&self.data[..])
    }

    /// Copies the weights of one output (an embedding, where the matrix is a tied table).
    pub(crate) fn read_output(&self, output: usize, into: &mut [f32]) {
        let panel = &self.data[output / PANEL * PANEL * self.inputs..];
        for (slot, values) in into.iter_mut().zip(panel.chunks_exact(PANEL)) {
            *slot = values[output % PANEL];
        }
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
        let panel_len = PANEL * self.inputs;
        let tiles = rows.start / TILE..rows.end.div_ceil(TILE);
        c.resize(tiles.len() * TILE * PANEL, 0.0);
        for p in from / PANEL..to.min(self.outputs).div_ceil(PANEL) {
            c.fill(0.0);
            let panel = &self.data[p * panel_len..][..panel_len];
            for (i, b) in panel.chunks(DEPTH * PANEL).enumerate() {
                // Weights are one long stream: while this block is in use, the next one is fetched.
                let next = &self.data[(p * panel_len + i * DEPTH * PANEL + b.len()).min(self.data.len())..];
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

/// Asks for the cache line where a slice begins.
#[inline(always)]
fn prefetch(line: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch of any address is allowed, and this one is that of a slice.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// The same block of depth of several tiles.
#[derive(Clone, Copy)]
struct Strip<'a> {
    data: &'a [f32],
    /// Numbers from one tile to the next.
    stride: usize,
}

/// [`accumulate`] of some tiles of a left operand of `rows` rows with one panel; `next` is fetched meanwhile.
fn strip(rows: usize, tiles: Range<usize>, a: Strip, b: &[f32], next: &[f32], c: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn avx512(rows: usize, tiles: Range<usize>, a: Strip, b: &[f32], next: &[f32], c: &mut [f32]) {
            strip_body(tiles, a, b, next, c, |_, a, b, c| whole(a, b, c), rows);
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(rows: usize, tiles: Range<usize>, a: Strip, b: &[f32], next: &[f32], c: &mut [f32]) {
            strip_body(tiles, a, b, next, c, |rows, a, b, c| halves::<true>(rows, a, b, c), rows);
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature the function is compiled for was just detected.
            return unsafe { avx512(rows, tiles, a, b, next, c) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the features the function is compiled for were just detected.
            return unsafe { avx2(rows, tiles, a, b, next, c) };
        }
    }
    strip_body(tiles, a, b, next, c, |rows, a, b, c| halves::<FUSED_BY_DEFAULT>(rows, a, b, c), rows);
}

#[inline(always)]
fn strip_body(
    tiles: Range<usize>,
    a: Strip,
    b: &[f32],
    next: &[f32],
    c: &mut [f32],
    tile: impl Fn(usize, &[f32], &[f32], &mut [f32]),
    rows: usize,
) {
    let share = b.len().div_ceil(tiles.len().max(1)).next_multiple_of(LINE);
    let mut next = next[..next.len().min(b.len())].chunks(share);
    for (t, c) in tiles.zip(c.chunks_exact_mut(TILE * PANEL)) {
        next.next().into_iter().flat_map(|share| share.chunks(LINE)).for_each(prefetch);
        tile(rows - t * TILE, &a.data[t * a.stride..][..b.len() / PANEL * TILE], b, c);
    }
}

/// `c += a · b` for one tile and one panel: `a [depth][TILE]`, `b [depth][PANEL]`, `c [TILE][PANEL]`.
///
/// Only the first `rows` rows need be computed; the chain of each element starts at its value in `c`.
pub(crate) fn accumulate(rows: usize, a: &[f32], b: &[f32], c: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn avx512(a: &[f32], b: &[f32], c: &mut [f32]) {
            whole(a, b, c);
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(rows: usize, a: &[f32], b: &[f32], c: &mut [f32]) {
            halves::<true>(rows, a, b, c);
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature the function is compiled for was just detected.
            return unsafe { avx512(a, b, c) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the features the function is compiled for were just detected.
            return unsafe { avx2(rows, a, b, c) };
        }
    }
    halves::<FUSED_BY_DEFAULT>(rows, a, b, c);
}

/// Half a tile of sums. The compiler keeps exactly this size in registers; a whole tile in one array
/// it vectorises across the rows, which is slower by an order of magnitude.
type Sums = [[f32; PANEL]; HALF];

#[inline(always)]
fn load(c: &[f32]) -> Sums {
    let mut sums = [[0.0; PANEL]; HALF];
    for (sum, c) in sums.iter_mut().zip(c.chunks_exact(PANEL)) {
        sum.copy_from_slice(c);
    }
    sums
}

#[inline(always)]
fn store(sums: &Sums, c: &mut [f32]) {
    for (sum, c) in sums.iter().zip(c.chunks_exact_mut(PANEL)) {
        c.copy_from_slice(sum);
    }
}

#[inline(always)]
fn step<const FUSED: bool>(a: &[f32], b: &[f32], sums: &mut Sums) {
    for i in 0..HALF {
        for j in 0..PANEL {
            sums[i][j] = mul_add::<FUSED>(a[i], b[j], sums[i][j]);
        }
    }
}

/// [`accumulate`] by halves of a tile, for sixteen vector registers.
#[inline(always)]
fn halves<const FUSED: bool>(rows: usize, a: &[f32], b: &[f32], c: &mut [f32]) {
    for first in (0..rows.min(TILE)).step_by(HALF) {
        let c = &mut c[first * PANEL..][..HALF * PANEL];
        let mut sums = load(c);
        for (a, b) in a.chunks_exact(TILE).zip(b.chunks_exact(PANEL)) {
            step::<FUSED>(&a[first..first + HALF], b, &mut sums);
        }
        store(&sums, c);
    }
}

/// [`accumulate`] for thirty-two registers of a panel's width.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn whole(a: &[f32], b: &[f32], c: &mut [f32]) {
    let (low, high) = c[..TILE * PANEL].split_at_mut(HALF * PANEL);
    let mut sums = (load(low), load(high));
    for (a, b) in a.chunks_exact(TILE).zip(b.chunks_exact(PANEL)) {
        step::<true>(&a[..HALF], b, &mut sums.0);
        step::<true>(&a[HALF..], b, &mut sums.1);
    }
    store(&sums.0, low);
    store(&sums.1, high);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::testing::noise;

    fn product(x: &[f32], rows: usize, w: &[f32], inputs: usize) -> Vec<f32> {
        let matrix = Matrix::pack(&[w], inputs);
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
    fn the_chain_is_the_same_wherever_the_depth_is_cut() {
        let (a, b) = (noise(5, 90 * TILE), noise(6, 90 * PANEL));
        let mut whole = vec![0.0; TILE * PANEL];
        accumulate(TILE, &a, &b, &mut whole);
        for cut in [1, 17, 89] {
            let mut parts = vec![0.0; TILE * PANEL];
            accumulate(TILE, &a[..cut * TILE], &b[..cut * PANEL], &mut parts);
            accumulate(TILE, &a[cut * TILE..], &b[cut * PANEL..], &mut parts);
            assert_eq!(parts, whole);
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn whole_tiles_and_halves_give_the_same_bits() {
        let (a, b, start) = (noise(8, 40 * TILE), noise(9, 40 * PANEL), noise(10, TILE * PANEL));
        let (mut at_once, mut by_halves, mut dispatched) = (start.clone(), start.clone(), start);
        whole(&a, &b, &mut at_once);
        halves::<true>(TILE, &a, &b, &mut by_halves);
        accumulate(TILE, &a, &b, &mut dispatched);
        assert_eq!(at_once, by_halves);
        if is_x86_feature_detected!("fma") {
            assert_eq!(dispatched, by_halves);
        }
    }

    #[test]
    fn a_tied_table_gives_its_rows_back() {
        let w = noise(7, 20 * 6);
        let matrix = Matrix::pack(&[&w[..48], &w[48..]], 6);
        let mut row = [0.0; 6];
        matrix.read_output(17, &mut row);
        assert_eq!(row, w[17 * 6..18 * 6]);
    }
}
