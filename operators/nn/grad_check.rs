//! Gradients against central finite differences.
//!
//! The objective is a fixed random projection of the output, summed in double precision; the step
//! is chosen so that the error of single-precision forward passes stays well under the tolerance.

use super::{params::Layout, random::Stream};

const STEP: f32 = 5e-3;
const TOLERANCE: f64 = 1e-3;

/// Compares analytic with numeric gradients, of every parameter and of the input, and fails if any
/// differs by more than 10⁻³ of the largest entry of its matrix.
///
/// `forward(params, x)` gives the output, `backward(params, gradient, x, dy)` adds parameter
/// gradients and returns the input's.
pub fn check(
    layout: &Layout,
    inputs: usize,
    forward: impl Fn(&[f32], &[f32]) -> Vec<f32>,
    backward: impl Fn(&[f32], &mut [f32], &[f32], &[f32]) -> Vec<f32>,
) {
    let mut params = layout.initial(11);
    // Away from special points such as gains of one and biases of zero.
    let mut noise = vec![0.0; params.len()];
    Stream::new(11, "noise", &[]).fill_centred(0.3, &mut noise);
    params.iter_mut().zip(&noise).for_each(|(p, n)| *p += n);
    let mut x = vec![0.0; inputs];
    Stream::new(11, "input", &[]).fill_centred(1.0, &mut x);
    let mut weights = vec![0.0; forward(&params, &x).len()];
    Stream::new(11, "weights", &[]).fill_centred(1.0, &mut weights);

    let mut gradient = vec![0.0; params.len()];
    let dx = backward(&params, &mut gradient, &x, &weights);
    let objective = |params: &[f32], x: &[f32]| -> f64 {
        forward(params, x).iter().zip(&weights).map(|(y, w)| f64::from(*y) * f64::from(*w)).sum()
    };
    for entry in layout.entries() {
        let range = entry.slot.range();
        let numeric = differences(&params, range.clone(), |p| objective(p, &x));
        compare(&entry.name, &gradient[range], &numeric);
    }
    let numeric = differences(&x, 0..inputs, |x| objective(&params, x));
    compare("input", &dx, &numeric);
}

fn differences(at: &[f32], range: std::ops::Range<usize>, f: impl Fn(&[f32]) -> f64) -> Vec<f64> {
    range
        .map(|i| {
            let (mut above, mut below) = (at.to_vec(), at.to_vec());
            above[i] += STEP;
            below[i] -= STEP;
            (f(&above) - f(&below)) / f64::from(above[i] - below[i])
        })
        .collect()
}

fn compare(name: &str, analytic: &[f32], numeric: &[f64]) {
    let largest = numeric.iter().fold(0f64, |m, g| m.max(g.abs()));
    for (i, (a, n)) in analytic.iter().zip(numeric).enumerate() {
        let error = (f64::from(*a) - n).abs();
        assert!(error <= TOLERANCE * largest.max(1e-2), "{name}[{i}]: analytic {a}, numeric {n}");
    }
}

#[test]
#[should_panic(expected = "linear.weight")]
fn a_wrong_gradient_is_noticed() {
    let mut layout = Layout::default();
    let linear = super::layers::Linear::new(&mut layout, "linear", 2, 2);
    check(
        &layout,
        2,
        |params, x| linear.forward(params, x),
        |params, gradient, x, dy| {
            let dx = linear.backward(params, gradient, x, dy);
            gradient.iter_mut().for_each(|g| *g *= 1.01);
            dx
        },
    );
}
