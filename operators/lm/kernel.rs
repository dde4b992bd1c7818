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
pub(super) fn prefetch<T>(line: &[T]) {
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
            strip_body(tiles, a, b, next, c, whole_or_part, rows);
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(rows: usize, tiles: Range<usize>, a: Strip, b: &[f32], next: &[f32], c: &mut [f32]) {
            strip_body(tiles, a, b, next, c, parts::<true>, rows);
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
    strip_body(tiles, a, b, next, c, parts::<FUSED_BY_DEFAULT>, rows);
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
        fn avx512(rows: usize, a: &[f32], b: &[f32], c: &mut [f32]) {
            whole_or_part(rows, a, b, c);
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(rows: usize, a: &[f32], b: &[f32], c: &mut [f32]) {
            parts::<true>(rows, a, b, c);
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature the function is compiled for was just detected.
            return unsafe { avx512(rows, a, b, c) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the features the function is compiled for were just detected.
            return unsafe { avx2(rows, a, b, c) };
        }
    }
    parts::<FUSED_BY_DEFAULT>(rows, a, b, c);
}

/// The sums of some rows. The compiler keeps up to half a tile of them in registers; a whole tile in one
/// array it vectorises across the rows, which is slower by an order of magnitude.
type Sums<const ROWS: usize> = [[f32; PANEL]; ROWS];

#[inline(always)]
fn load<const ROWS: usize>(c: &[f32]) -> Sums<ROWS> {
    let mut sums = [[0.0; PANEL]; ROWS];
    for (sum, c) in sums.iter_mut().zip(c.chunks_exact(PANEL)) {
        sum.copy_from_slice(c);
    }
    sums
}

#[inline(always)]
fn store<const ROWS: usize>(sums: &Sums<ROWS>, c: &mut [f32]) {
    for (sum, c) in sums.iter().zip(c.chunks_exact_mut(PANEL)) {
        c.copy_from_slice(sum);
    }
}

#[inline(always)]
fn step<const FUSED: bool, const ROWS: usize>(a: &[f32], b: &[f32], sums: &mut Sums<ROWS>) {
    for i in 0..ROWS {
        for j in 0..PANEL {
            sums[i][j] = mul_add::<FUSED>(a[i], b[j], sums[i][j]);
        }
    }
}

/// [`accumulate`] for sixteen vector registers: in one part of at most half a tile, or two equal ones.
#[inline(always)]
fn parts<const FUSED: bool>(rows: usize, a: &[f32], b: &[f32], c: &mut [f32]) {
    let rows = rows.min(TILE);
    let size = rows.div_ceil(rows.div_ceil(HALF).max(1));
    for first in (0..rows).step_by(size.max(1)) {
        match size {
            1 => part::<FUSED, 1>(first, a, b, c),
            2 => part::<FUSED, 2>(first, a, b, c),
            3 => part::<FUSED, 3>(first, a, b, c),
            4 => part::<FUSED, 4>(first, a, b, c),
            5 => part::<FUSED, 5>(first, a, b, c),
            _ => part::<FUSED, HALF>(first, a, b, c),
        }
    }
}

/// Some rows of a tile.
#[inline(always)]
fn part<const FUSED: bool, const ROWS: usize>(first: usize, a: &[f32], b: &[f32], c: &mut [f32]) {
    let c = &mut c[first * PANEL..][..ROWS * PANEL];
    let mut sums = load::<ROWS>(c);
    for (a, b) in a.chunks_exact(TILE).zip(b.chunks_exact(PANEL)) {
        step::<FUSED, ROWS>(&a[first..first + ROWS], b, &mut sums);
    }
    store(&sums, c);
}

/// [`accumulate`] for thirty-two vector registers of a panel's width.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn whole_or_part(rows: usize, a: &[f32], b: &[f32], c: &mut [f32]) {
    if rows > HALF { whole(a, b, c) } else { parts::<true>(rows, a, b, c) }
}

/// All rows of a tile at once.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn whole(a: &[f32], b: &[f32], c: &mut [f32]) {
    let (low, high) = c[..TILE * PANEL].split_at_mut(HALF * PANEL);
    let mut sums = (load(low), load(high));
    for (a, b) in a.chunks_exact(TILE).zip(b.chunks_exact(PANEL)) {
        step::<true, HALF>(&a[..HALF], b, &mut sums.0);
        step::<true, HALF>(&a[HALF..], b, &mut sums.1);
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
    fn whole_tiles_and_parts_give_the_same_bits() {
        let (a, b, start) = (noise(8, 40 * TILE), noise(9, 40 * PANEL), noise(10, TILE * PANEL));
        let (mut at_once, mut by_parts, mut dispatched) = (start.clone(), start.clone(), start.clone());
        whole(&a, &b, &mut at_once);
        parts::<true>(TILE, &a, &b, &mut by_parts);
        accumulate(TILE, &a, &b, &mut dispatched);
        assert_eq!(at_once, by_parts);
        if is_x86_feature_detected!("fma") {
            assert_eq!(dispatched, by_parts);
        }
        for rows in 1..TILE {
            let mut some = start.clone();
            parts::<true>(rows, &a, &b, &mut some);
            assert_eq!(some[..rows * PANEL], at_once[..rows * PANEL], "{rows} rows");
        }
    }
}
