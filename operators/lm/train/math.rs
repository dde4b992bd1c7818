//! The arithmetic of gradients row by row: norm, gate, softmax, and sums of rows.
//!
//! Decision: attention here is two primitives, a softmax and "some coefficients times some rows",
//! since queries times keys are sums over components of keys laid out by component; so no inner
//! product is reduced across a register, and every number is one chain in ascending order.

use crate::lm::kernel::PANEL;
use crate::lm::math::{dot_body, exp, reduce};
use crate::lm::simd::{dispatched, mul_add};

#[inline(always)]
fn some<const FUSED: bool, const N: usize>(c: &[f32], rows: &[f32], stride: usize, out: &mut [f32]) {
    let (out, _) = out.as_chunks_mut::<PANEL>();
    let mut sums = [[0f32; PANEL]; N];
    sums.copy_from_slice(&out[..N]);
    for (j, c) in c.iter().enumerate() {
        let row = &rows[j * stride..][..N * PANEL];
        for n in 0..N {
            for lane in 0..PANEL {
                sums[n][lane] = mul_add::<FUSED>(*c, row[n * PANEL + lane], sums[n][lane]);
            }
        }
    }
    out[..N].copy_from_slice(&sums);
}

#[inline(always)]
fn combine_body<const FUSED: bool>(c: &[f32], rows: &[f32], stride: usize, out: &mut [f32]) {
    let mut at = 0;
    while out.len() - at >= 4 * PANEL {
        some::<FUSED, 4>(c, &rows[at..], stride, &mut out[at..]);
        at += 4 * PANEL;
    }
    while out.len() - at >= PANEL {
        some::<FUSED, 1>(c, &rows[at..], stride, &mut out[at..]);
        at += PANEL;
    }
    for (i, out) in out.iter_mut().enumerate().skip(at) {
        for (j, c) in c.iter().enumerate() {
            *out = mul_add::<FUSED>(*c, rows[j * stride + i], *out);
        }
    }
}
dispatched! {
    /// `out += Σ_j c_j · rows[j·stride..]`, each number one chain over `j`.
    fn combine = combine_body(c: &[f32], rows: &[f32], stride: usize, out: &mut [f32])
}

#[inline(always)]
fn softmax_body<const FUSED: bool>(scores: &mut [f32]) -> f32 {
    let top = scores.iter().fold(f32::NEG_INFINITY, |top, x| if *x > top { *x } else { top });
    let mut lanes = [0f32; PANEL];
    let (whole, rest) = scores.as_chunks_mut::<PANEL>();
    for row in whole {
        for lane in 0..PANEL {
            row[lane] = exp::<FUSED>(row[lane] - top);
            lanes[lane] += row[lane];
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *x = exp::<FUSED>(*x - top);
        *lane += *x;
    }
    reduce(lanes)
}
dispatched! {
    /// Turns scores into weights that are yet to be divided by their sum, which is returned.
    fn softmax = softmax_body(scores: &mut [f32]) -> f32
}

#[inline(always)]
fn softmax_backward_body<const FUSED: bool>(weights: &[f32], slopes: &mut [f32]) {
    let mean = dot_body::<FUSED>(weights, slopes);
    for (slope, weight) in slopes.iter_mut().zip(weights) {
        *slope = weight * (*slope - mean);
    }
}
dispatched! {
    /// The gradient of scores, in place of that of the weights they give.
    fn softmax_backward = softmax_backward_body(weights: &[f32], slopes: &mut [f32])
}

#[inline(always)]
fn norm_backward_body<const FUSED: bool>(x: &[f32], gain: &[f32], epsilon: f32, dy: &[f32], dx: &mut [f32]) {
    let width = gain.len();
    for ((x, dy), dx) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
        let scale = 1.0 / (dot_body::<FUSED>(x, x) / width as f32 + epsilon).sqrt();
        let mut lanes = [0f32; PANEL];
        for ((x, dy), gain) in x.chunks(PANEL).zip(dy.chunks(PANEL)).zip(gain.chunks(PANEL)) {
            for (lane, ((x, dy), g)) in lanes.iter_mut().zip(x.iter().zip(dy).zip(gain)) {
                *lane = mul_add::<FUSED>(x * g, *dy, *lane);
            }
        }
        let along = reduce(lanes) * scale * scale * scale / width as f32;
        for (((dx, x), dy), g) in dx.iter_mut().zip(x).zip(dy).zip(gain) {
            *dx += mul_add::<FUSED>(scale * g, *dy, -(along * x));
        }
    }
}
dispatched! {
    /// Adds the gradient of the input of a root-mean-square norm.
    fn norm_backward = norm_backward_body(x: &[f32], gain: &[f32], epsilon: f32, dy: &[f32], dx: &mut [f32])
}

#[inline(always)]
fn gate_backward_body<const FUSED: bool>(rows: &[f32], dy: &[f32], width: usize, slopes: &mut [f32]) {
    let rows = rows.chunks_exact(2 * width).zip(dy.chunks_exact(width));
    for ((row, dy), slopes) in rows.zip(slopes.chunks_exact_mut(2 * width)) {
        let ((gate, up), (by_gate, by_up)) = (row.split_at(width), slopes.split_at_mut(width));
        for i in 0..width {
            let sigmoid = 1.0 / (1.0 + exp::<FUSED>((-gate[i]).min(88.0)));
            by_up[i] = dy[i] * gate[i] * sigmoid;
            by_gate[i] = dy[i] * up[i] * sigmoid * mul_add::<FUSED>(gate[i], 1.0 - sigmoid, 1.0);
        }
    }
}
dispatched! {
    /// The gradient of rows `[gate | up]` of `2·width`, given that of `silu(gate)·up`.
    fn gate_backward = gate_backward_body(rows: &[f32], dy: &[f32], width: usize, slopes: &mut [f32])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::math::{gate, rms_norm};
    use crate::lm::testing::noise;

    /// Compares a gradient with central differences of `f`, by its largest entry.
    fn check(at: &[f32], gradient: &[f32], f: impl Fn(&[f32]) -> f64) {
        let h = 4e-3;
        let numeric = |i: usize| {
            let (mut above, mut below) = (at.to_vec(), at.to_vec());
            (above[i], below[i]) = (at[i] + h, at[i] - h);
            (f(&above) - f(&below)) / f64::from(above[i] - below[i])
        };
        let largest = gradient.iter().fold(0f64, |most, g| most.max(f64::from(g.abs())));
        for (i, slope) in gradient.iter().enumerate() {
            let error = (f64::from(*slope) - numeric(i)).abs();
            assert!(error < 1e-3 * largest, "{i}: {slope} instead of {}", numeric(i));
        }
    }

    fn along(y: &[f32], weights: &[f32]) -> f64 {
        y.iter().zip(weights).map(|(y, w)| f64::from(*y) * f64::from(*w)).sum()
    }

    #[test]
    fn sums_of_rows_are_their_definition() {
        for width in [3, 16, 21, 64, 100, 150] {
            let (stride, count) = (width + 7, 9);
            let (c, rows, start) = (noise(81, count), noise(82, count * stride), noise(83, width));
            let mut out = start.clone();
            combine(&c, &rows, stride, &mut out);
            for i in 0..width {
                let sum: f64 = (0..count).map(|j| f64::from(c[j]) * f64::from(rows[j * stride + i])).sum();
                assert!((f64::from(out[i]) - f64::from(start[i]) - sum).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn the_norm() {
        let (x, gain, weights) = (noise(84, 2 * 37), noise(85, 37), noise(86, 2 * 37));
        let mut dx = noise(87, x.len());
        let before = dx.clone();
        norm_backward(&x, &gain, 1e-5, &weights, &mut dx);
        dx.iter_mut().zip(&before).for_each(|(dx, before)| *dx -= before);
        check(&x, &dx, |x| {
            let mut y = vec![0.0; x.len()];
            rms_norm(x, &gain, 1e-5, &mut y);
            along(&y, &weights)
        });
    }

    #[test]
    fn the_gate() {
        let (rows, weights) = (noise(88, 2 * 2 * 19), noise(89, 2 * 19));
        let mut slopes = vec![0.0; rows.len()];
        gate_backward(&rows, &weights, 19, &mut slopes);
        check(&rows, &slopes, |rows| {
            let mut y: Vec<f32> = Vec::new();
            for row in rows.chunks(2 * 19) {
                let mut gated = row[..19].to_vec();
                gate(&mut gated, &row[19..]);
                y.extend(gated);
            }
            along(&y, &weights)
        });
        let mut far = [0.0; 4];
        gate_backward(&[-1e4, 1e4, 1.0, 2.0], &[3.0, 5.0], 2, &mut far);
        assert_eq!((far[1], far[3]), (10.0, 5e4));
        assert!(far[0].abs() < 1e-20 && far[2].abs() < 1e-20);
    }

    #[test]
    fn the_softmax() {
        let (scores, weights) = (noise(90, 37), noise(91, 37));
        let normal = |scores: &[f32]| {
            let mut p = scores.to_vec();
            let sum = softmax(&mut p);
            p.iter_mut().for_each(|p| *p /= sum);
            p
        };
        let p = normal(&scores);
        assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        let mut slopes = weights.clone();
        softmax_backward(&p, &mut slopes);
        check(&scores, &slopes, |scores| along(&normal(scores), &weights));
    }
}
