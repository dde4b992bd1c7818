//! The element-wise arithmetic of the transformer: exponential, norm, rotation, gate, softmax.
//!
//! Decision: everything works on rows of sixteen lanes with the order of each sum written out, and
//! the exponential is a polynomial, so that the compiler vectorises it and the bits do not depend
//! on the vector width, the system's libm, or how long the row beside is.

use super::kernel::PANEL;
use super::simd::{dispatched, mul_add};

/// Below this the exponential is taken as exactly zero (it would be subnormal).
const EXP_FLOOR: f32 = -87.0;

/// `e^x` within 2 units in the last place for `x ≤ 88`; exactly 0 below −87, so that −∞ masks.
#[inline(always)]
pub(super) fn exp<const FUSED: bool>(x: f32) -> f32 {
    // Adding 1.5·2²³ rounds to the nearest integer, which then stands in the low mantissa bits.
    const SHIFT: f32 = 12_582_912.0;
    let shifted = mul_add::<FUSED>(x, std::f32::consts::LOG2_E, SHIFT);
    let n = shifted - SHIFT;
    // ln 2 in two parts (Cody and Waite), the first exact in a product with n.
    let r = mul_add::<FUSED>(n, -0.693_359_4, x);
    let r = mul_add::<FUSED>(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0] {
        p = mul_add::<FUSED>(p, r, c);
    }
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < EXP_FLOOR { 0.0 } else { p * scale }
}

/// Sum of sixteen lanes in a fixed tree.
#[inline(always)]
pub(super) fn reduce(mut lanes: [f32; PANEL]) -> f32 {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0]
}

#[inline(always)]
pub(super) fn dot_body<const FUSED: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; PANEL];
    let (a_whole, a_rest) = a.as_chunks::<PANEL>();
    let (b_whole, b_rest) = b.as_chunks::<PANEL>();
    for (a, b) in a_whole.iter().zip(b_whole) {
        for i in 0..PANEL {
            lanes[i] = mul_add::<FUSED>(a[i], b[i], lanes[i]);
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane = mul_add::<FUSED>(*a, *b, *lane);
    }
    reduce(lanes)
}
dispatched! {
    /// Inner product of two vectors of one length.
    fn dot = dot_body(a: &[f32], b: &[f32]) -> f32
}

#[inline(always)]
fn rms_norm_body<const FUSED: bool>(x: &[f32], gain: &[f32], epsilon: f32, y: &mut [f32]) {
    for (x, y) in x.chunks_exact(gain.len()).zip(y.chunks_exact_mut(gain.len())) {
        let mean = dot_body::<FUSED>(x, x) / gain.len() as f32;
        let scale = 1.0 / (mean + epsilon).sqrt();
        for ((y, x), g) in y.iter_mut().zip(x).zip(gain) {
            *y = x * scale * g;
        }
    }
}
dispatched! {
    /// Root-mean-square norm of each row (Zhang and Sennrich 2019, eq. 4).
    fn rms_norm = rms_norm_body(x: &[f32], gain: &[f32], epsilon: f32, y: &mut [f32])
}

#[inline(always)]
fn gate_body<const FUSED: bool>(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        // The negated gate is bounded so that the exponential stays finite.
        *g = *g / (1.0 + exp::<FUSED>((-*g).min(88.0))) * u;
    }
}
dispatched! {
    /// `silu(gate)·up` in place of the gate (Shazeer 2020, eq. 5).
    fn gate = gate_body(gate: &mut [f32], up: &[f32])
}

#[inline(always)]
fn rotate_body<const FUSED: bool>(heads: &mut [f32], cos: &[f32], sin: &[f32], scale: f32) {
    for head in heads.chunks_exact_mut(2 * cos.len()) {
        let (low, high) = head.split_at_mut(cos.len());
        for (((l, h), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            let (x, y) = (*l * scale, *h * scale);
            *l = mul_add::<FUSED>(x, *c, -(y * s));
            *h = mul_add::<FUSED>(y, *c, x * s);
        }
    }
}
dispatched! {
    /// Rotary embedding of the heads of one row, halves as pairs, times a scale (Su et al. 2021).
    fn rotate = rotate_body(heads: &mut [f32], cos: &[f32], sin: &[f32], scale: f32)
}

#[inline(always)]
fn softmax_columns_body<const FUSED: bool>(
    scores: &mut [f32],
    masked: std::ops::Range<usize>,
    visible: &[u32; PANEL],
) -> [f32; PANEL] {
    let (scores, _) = scores.as_chunks_mut::<PANEL>();
    for key in masked {
        for lane in 0..PANEL {
            let hidden = key as u32 >= visible[lane];
            scores[key][lane] = if hidden { f32::NEG_INFINITY } else { scores[key][lane] };
        }
    }
    let mut top = [f32::NEG_INFINITY; PANEL];
    for row in scores.iter() {
        for lane in 0..PANEL {
            top[lane] = if row[lane] > top[lane] { row[lane] } else { top[lane] };
        }
    }
    let mut sum = [0f32; PANEL];
    for row in scores.iter_mut() {
        for lane in 0..PANEL {
            row[lane] = exp::<FUSED>(row[lane] - top[lane]);
            sum[lane] += row[lane];
        }
    }
    sum
}
dispatched! {
    /// Turns scores `[key][lane]` into unnormalised weights; returns the sum of each lane.
    ///
    /// Lane `l` sees the keys of `masked` below `visible[l]`, and all others. A lane's sum runs over
    /// the keys in order and hidden keys add an exact zero, so it does not depend on how many follow.
    fn softmax_columns = softmax_columns_body(
        scores: &mut [f32],
        masked: std::ops::Range<usize>,
        visible: &[u32; PANEL],
    ) -> [f32; PANEL]
}

#[inline(always)]
fn boltzmann_body<const FUSED: bool>(x: &mut [f32], top: f32, rate: f32) {
    for x in x {
        *x = exp::<FUSED>((*x - top) * rate);
    }
}
dispatched! {
    /// `e^(rate·(x − top))` in place, for `rate ≥ 0` and no `x` above `top`.
    fn boltzmann = boltzmann_body(x: &mut [f32], top: f32, rate: f32)
}

/// A running log-sum-exp over a row that arrives in chunks.
#[derive(Clone, Copy)]
pub(crate) struct LogSumExp {
    top: f32,
    sum: f64,
}

impl LogSumExp {
    /// Of nothing.
    pub(crate) const EMPTY: Self = Self { top: f32::NEG_INFINITY, sum: 0.0 };

    /// The logarithm of the sum so far.
    pub(crate) fn value(self) -> f64 {
        self.top as f64 + self.sum.ln()
    }

    /// Adds a chunk of logits.
    pub(crate) fn push(&mut self, logits: &[f32]) {
        let (top, sum) = chunk_sum(logits);
        let new_top = self.top.max(top);
        self.sum =
            self.sum * ((self.top - new_top) as f64).exp() + sum as f64 * ((top - new_top) as f64).exp();
        self.top = new_top;
    }
}

#[inline(always)]
fn chunk_sum_body<const FUSED: bool>(logits: &[f32]) -> (f32, f32) {
    let top = logits.iter().fold(f32::NEG_INFINITY, |top, x| if *x > top { *x } else { top });
    let mut lanes = [0f32; PANEL];
    let (whole, rest) = logits.as_chunks::<PANEL>();
    for row in whole {
        for lane in 0..PANEL {
            lanes[lane] += exp::<FUSED>(row[lane] - top);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += exp::<FUSED>(*x - top);
    }
    (top, reduce(lanes))
}
dispatched! {
    /// The largest of some logits and `Σ e^(logit − largest)`.
    fn chunk_sum = chunk_sum_body(logits: &[f32]) -> (f32, f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FUSED: bool = true;

    #[test]
    fn exponential_is_accurate_and_masks_exactly() {
        for i in -8600..8800 {
            let x = i as f32 / 100.0;
            let exact = (x as f64).exp();
            let relative = (exp::<FUSED>(x) as f64 - exact).abs() / exact;
            assert!(relative < 2.5e-7, "{x}: {relative}");
        }
        assert_eq!(exp::<FUSED>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<FUSED>(0.0), 1.0);
    }

    #[test]
    fn gate_survives_extremes() {
        let mut row = [-1e4, -3.0, 0.0, 1e4];
        gate(&mut row, &[1.0, 2.0, 3.0, 1.0]);
        assert_eq!(row[2..4], [0.0, 1e4]);
        assert!(row[0].abs() < 1e-30);
        assert!((row[1] + 3.0 / (1.0 + 3f32.exp()) * 2.0).abs() < 1e-6);
    }

    #[test]
    fn hidden_keys_change_nothing() {
        let score = |k: usize| (k % 7) as f32 / 3.0;
        let run = |keys: usize| {
            let mut s: Vec<f32> = (0..keys * PANEL).map(|i| score(i / PANEL)).collect();
            let sum = softmax_columns(&mut s, 0..keys, &[5; PANEL]);
            (s[..5 * PANEL].to_vec(), sum)
        };
        assert_eq!(run(5), run(40));
    }

    #[test]
    fn log_sum_exp_in_chunks() {
        let x: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin() * 30.0).collect();
        let exact = x.iter().map(|x| (*x as f64).exp()).sum::<f64>().ln();
        let mut running = LogSumExp::EMPTY;
        x.chunks(130).for_each(|c| running.push(c));
        assert!((running.value() - exact).abs() < 1e-6);
    }
}
