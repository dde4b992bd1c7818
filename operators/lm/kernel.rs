//! The innermost product: a tile of rows times a panel of columns, summed over a stretch of depth.
//!
//! Decision: sums live in registers and every one of them is a single chain of fused multiply-adds
//! in ascending depth, continued from what stands in the output; so a result does not depend on
//! which instruction set ran it, on how the depth was cut, or on what else was computed.

use std::ops::Range;

use super::simd::{FUSED_BY_DEFAULT, mul_add};

/// Columns of one packed panel of the right operand.
pub(crate) const PANEL: usize = 16;
/// Rows of one packed tile of the left operand.
pub(crate) const TILE: usize = 12;
/// Rows of a tile that fit the registers of AVX2 with one panel.
const HALF: usize = TILE / 2;
/// Numbers of a cache line.
const LINE: usize = 16;

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
pub(crate) struct Strip<'a> {
    pub(crate) data: &'a [f32],
    /// Numbers from one tile to the next.
    pub(crate) stride: usize,
}

/// [`accumulate`] of some tiles of a left operand of `rows` rows with one panel; `next` is fetched meanwhile.
pub(crate) fn strip(rows: usize, tiles: Range<usize>, a: Strip, b: &[f32], next: &[f32], c: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn avx512(rows: usize, tiles: Range<usize>, a: Strip, b: &[f32], next: &[f32], c: &mut [f32]) {
            strip_body(tiles, a, b, next, c, |_, a, b, c| whole(a, b, c), rows);
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(rows: usize, tiles: Range<usize>, a: Strip, b: &[f32], next: &[f32], c: &mut [f32]) {
            strip_body(tiles, a, b, next, c, halves::<true>, rows);
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
    strip_body(tiles, a, b, next, c, halves::<FUSED_BY_DEFAULT>, rows);
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
}
