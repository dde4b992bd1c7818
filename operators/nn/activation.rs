//! Element-wise functions with exponentials.
//!
//! The exponential is a polynomial written without branches or library calls, because that is what
//! the compiler can vectorise (a full-softmax epoch takes 10⁸ of them) and what rounds the same on
//! every machine.

/// eˣ with a relative error below 3·10⁻⁷; arguments are held to −87…88.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5·2²³ rounds to a whole number and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, the first exact in products with small whole numbers.
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    p * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// x·σ(x), element by element (Elfwing et al. 2018): smooth, so its gradient can be checked.
pub fn silu(x: &[f32]) -> Vec<f32> {
    x.iter().map(|&x| x / (1.0 + exp(-x))).collect()
}

/// Turns the gradient with respect to `silu(x)` into that with respect to `x`, in place.
pub fn silu_backward(x: &[f32], gradient: &mut [f32]) {
    for (g, &x) in gradient.iter_mut().zip(x) {
        let sigmoid = 1.0 / (1.0 + exp(-x));
        *g *= sigmoid * (1.0 + x * (1.0 - sigmoid));
    }
}

/// Replaces scores by exp(score − max) and returns (max, sum of those); the caller divides.
pub fn exp_shifted(scores: &mut [f32]) -> (f32, f32) {
    let max = max(scores);
    scores.iter_mut().for_each(|s| *s = exp(*s - max));
    (max, super::matrix::sum(scores))
}

/// The largest of the values, in eight lanes.
fn max(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = values.as_chunks::<8>();
    let mut lanes = [f32::MIN; 8];
    for chunk in chunks {
        for lane in 0..8 {
            lanes[lane] = larger(lanes[lane], chunk[lane]);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::MIN, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_library() {
        for i in -8600..8700 {
            let x = i as f32 / 100.0;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 3e-7, "exp({x}) is off by {error:e}");
        }
        assert!(exp(-1e9) < 1e-37 && exp(1e9).is_finite());
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn silu_follows_its_gradient() {
        let x: Vec<f32> = (-20..20).map(|i| i as f32 / 4.0).collect();
        let mut gradient = vec![1.0; x.len()];
        silu_backward(&x, &mut gradient);
        for (x, g) in x.iter().zip(gradient) {
            let numeric = (silu(&[x + 1e-2])[0] - silu(&[x - 1e-2])[0]) / 2e-2;
            assert!((g - numeric).abs() < 1e-4, "at {x}: {g} against {numeric}");
        }
    }

    #[test]
    fn shifted_exponentials_sum_to_the_normaliser() {
        let mut scores = vec![1.0, 3.0, 2.0, -1e9];
        let (max, sum) = exp_shifted(&mut scores);
        assert_eq!(max, 3.0);
        assert!((sum - 1.503_214_7).abs() < 1e-6);
        assert!(scores[3] < 1e-30);
    }
}
