//! Linear maps and layer normalisation, forward and backward.
//!
//! A layer is a few slots into the flat parameter vector; `forward` takes the parameters, `backward`
//! adds to a gradient vector of the same shape and returns the gradient of its input. Activations
//! are row-major, one row per position; what backward needs is passed in again by the caller, which
//! owns it anyway.

use super::{
    matrix::{self, Store, View, add_scaled, dot, multiply},
    params::{Init, Layout, Slot},
};

/// x ↦ x·W + b.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Slot,
    bias: Slot,
}

impl Linear {
    /// Declares a map from `inputs` to `outputs` dimensions, started with Glorot's variance
    /// 2/(inputs + outputs).
    pub fn new(layout: &mut Layout, name: &str, inputs: usize, outputs: usize) -> Self {
        Self::scaled(layout, name, inputs, outputs, 1.0)
    }

    /// The same, started `scale` times as large.
    pub fn scaled(layout: &mut Layout, name: &str, inputs: usize, outputs: usize, scale: f32) -> Self {
        let deviation = scale * (2.0 / (inputs + outputs) as f32).sqrt();
        Linear {
            weight: layout.add(format!("{name}.weight"), inputs, outputs, Init::Random(deviation), true),
            bias: layout.add(format!("{name}.bias"), 1, outputs, Init::Constant(0.0), false),
        }
    }

    fn weight<'a>(&self, params: &'a [f32]) -> View<'a> {
        View::new(&params[self.weight.range()], self.weight.rows, self.weight.cols)
    }

    /// `rows × inputs` to `rows × outputs`.
    pub fn forward(&self, params: &[f32], x: &[f32]) -> Vec<f32> {
        let (inputs, outputs) = (self.weight.rows, self.weight.cols);
        let rows = x.len() / inputs;
        let mut y = params[self.bias.range()].repeat(rows);
        multiply(&mut y, outputs, View::new(x, rows, inputs), self.weight(params), 1.0, Store::Add);
        y
    }

    /// The gradient with respect to `x`, given that with respect to the output.
    pub fn backward(&self, params: &[f32], gradient: &mut [f32], x: &[f32], dy: &[f32]) -> Vec<f32> {
        let (inputs, outputs) = (self.weight.rows, self.weight.cols);
        let rows = x.len() / inputs;
        let dy_view = View::new(dy, rows, outputs);
        let dw = &mut gradient[self.weight.range()];
        multiply(dw, outputs, View::new(x, rows, inputs).t(), dy_view, 1.0, Store::Add);
        let db = &mut gradient[self.bias.range()];
        dy.chunks_exact(outputs).for_each(|row| add_scaled(db, 1.0, row));
        let mut dx = vec![0.0; x.len()];
        multiply(&mut dx, inputs, dy_view, self.weight(params).t(), 1.0, Store::Overwrite);
        dx
    }
}

/// Layer normalisation (Ba et al. 2016) with gain and bias.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    gain: Slot,
    bias: Slot,
}

/// What the backward pass of a normalisation needs.
#[derive(Clone, Debug)]
pub struct Normalised {
    /// The rows before gain and bias.
    centred: Vec<f32>,
    /// One over the standard deviation of each row.
    inverse: Vec<f32>,
}

const EPSILON: f32 = 1e-6;

impl LayerNorm {
    /// Declares a normalisation of rows of `width`.
    pub fn new(layout: &mut Layout, name: &str, width: usize) -> Self {
        LayerNorm {
            gain: layout.add(format!("{name}.gain"), 1, width, Init::Constant(1.0), false),
            bias: layout.add(format!("{name}.bias"), 1, width, Init::Constant(0.0), false),
        }
    }

    /// Normalises each row.
    pub fn forward(&self, params: &[f32], x: &[f32]) -> (Vec<f32>, Normalised) {
        let width = self.gain.cols;
        let (gain, bias) = (&params[self.gain.range()], &params[self.bias.range()]);
        let mut centred = x.to_vec();
        let mut inverse = Vec::with_capacity(x.len() / width);
        let mut y = vec![0.0; x.len()];
        for (row, out) in centred.chunks_exact_mut(width).zip(y.chunks_exact_mut(width)) {
            let mean = matrix::sum(row) / width as f32;
            row.iter_mut().for_each(|v| *v -= mean);
            let scale = 1.0 / (dot(row, row) / width as f32 + EPSILON).sqrt();
            row.iter_mut().for_each(|v| *v *= scale);
            inverse.push(scale);
            for (((o, v), g), b) in out.iter_mut().zip(&*row).zip(gain).zip(bias) {
                *o = v * g + b;
            }
        }
        (y, Normalised { centred, inverse })
    }

    /// The gradient with respect to the input, given that with respect to the output.
    pub fn backward(&self, params: &[f32], gradient: &mut [f32], cache: &Normalised, dy: &[f32]) -> Vec<f32> {
        let width = self.gain.cols;
        let gain = &params[self.gain.range()];
        let mut dx = vec![0.0; dy.len()];
        let rows = dy.chunks_exact(width).zip(cache.centred.chunks_exact(width)).zip(&cache.inverse);
        for (out, ((dy, n), inverse)) in dx.chunks_exact_mut(width).zip(rows) {
            add_scaled(&mut gradient[self.bias.range()], 1.0, dy);
            let dgain = &mut gradient[self.gain.range()];
            dgain.iter_mut().zip(dy).zip(n).for_each(|((d, g), n)| *d += g * n);
            out.iter_mut().zip(dy).zip(gain).for_each(|((o, g), gain)| *o = g * gain);
            let mean = matrix::sum(out) / width as f32;
            let along = dot(out, n) / width as f32;
            out.iter_mut().zip(n).for_each(|(o, n)| *o = (*o - mean - n * along) * inverse);
        }
        dx
    }
}

#[cfg(test)]
mod tests {
    use super::{super::grad_check, *};

    #[test]
    fn linear_gradients() {
        let mut layout = Layout::default();
        let linear = Linear::new(&mut layout, "linear", 5, 3);
        grad_check::check(
            &layout,
            4 * 5,
            |params, x| linear.forward(params, x),
            |params, gradient, x, dy| linear.backward(params, gradient, x, dy),
        );
    }

    #[test]
    fn norm_gradients() {
        let mut layout = Layout::default();
        let norm = LayerNorm::new(&mut layout, "norm", 9);
        grad_check::check(
            &layout,
            3 * 9,
            |params, x| norm.forward(params, x).0,
            |params, gradient, x, dy| {
                let (_, cache) = norm.forward(params, x);
                norm.backward(params, gradient, &cache, dy)
            },
        );
    }

    #[test]
    fn normalised_rows_have_mean_zero_and_variance_one() {
        let mut layout = Layout::default();
        let norm = LayerNorm::new(&mut layout, "norm", 4);
        let (y, _) = norm.forward(&layout.initial(0), &[1.0, 2.0, 3.0, 6.0]);
        assert!(matrix::sum(&y).abs() < 1e-6);
        assert!((dot(&y, &y) - 4.0).abs() < 1e-4);
    }
}
