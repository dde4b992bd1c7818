//! Next-item cross-entropy over all items, with the item embeddings as output weights.
//!
//! The logits of an epoch would be gigabytes, so they exist a block of rows at a time: loss and
//! gradient are taken while the block is in cache.

use super::{
    activation::exp_shifted,
    matrix::{Store, View, multiply},
};

const BLOCK: usize = 128;

/// Output weights: the embeddings of items 1..=n, row-major `n × width`, and a bias for each.
#[derive(Clone, Copy)]
pub struct Output<'a> {
    /// `n × width`.
    pub items: &'a [f32],
    /// `n`.
    pub bias: &'a [f32],
}

impl Output<'_> {
    /// Scores of every item for each row of `hidden`: `rows × n`.
    pub fn scores(self, hidden: &[f32]) -> Vec<f32> {
        let n = self.bias.len();
        let width = self.items.len() / n;
        let rows = hidden.len() / width;
        let mut scores = self.bias.repeat(rows);
        let items = View::new(self.items, n, width);
        multiply(&mut scores, n, View::new(hidden, rows, width), items.t(), 1.0, Store::Add);
        scores
    }
}

/// Gradients to add to, in the shapes of [`Output`].
pub struct OutputGradient<'a> {
    /// `n × width`.
    pub items: &'a mut [f32],
    /// `n`.
    pub bias: &'a mut [f32],
}

/// The summed cross-entropy of `targets` (0-based items, one per row of `hidden`) and the gradient
/// of `scale` times it with respect to `hidden`.
pub fn loss_and_gradient(
    output: Output<'_>,
    hidden: &[f32],
    targets: &[usize],
    scale: f32,
    gradient: OutputGradient<'_>,
) -> (f64, Vec<f32>) {
    let n = output.bias.len();
    let width = output.items.len() / n;
    let mut loss = 0.0;
    let mut dhidden = vec![0.0; hidden.len()];
    let blocks = hidden.chunks(BLOCK * width).zip(targets.chunks(BLOCK));
    for ((hidden, targets), dhidden) in blocks.zip(dhidden.chunks_mut(BLOCK * width)) {
        let rows = targets.len();
        let mut scores = output.scores(hidden);
        for (row, &target) in scores.chunks_exact_mut(n).zip(targets) {
            loss += softmax_gradient(row, target, scale);
            gradient.bias.iter_mut().zip(&*row).for_each(|(d, g)| *d += g);
        }
        let dscores = View::new(&scores, rows, n);
        multiply(gradient.items, width, dscores.t(), View::new(hidden, rows, width), 1.0, Store::Add);
        multiply(dhidden, width, dscores, View::new(output.items, n, width), 1.0, Store::Overwrite);
    }
    (loss, dhidden)
}

/// Turns scores into `scale · (softmax − onehot)` and returns the cross-entropy.
fn softmax_gradient(scores: &mut [f32], target: usize, scale: f32) -> f64 {
    let of_target = scores[target];
    let (max, sum) = exp_shifted(scores);
    let normalise = scale / sum;
    scores.iter_mut().for_each(|s| *s *= normalise);
    scores[target] -= scale;
    f64::from(sum).ln() + f64::from(max) - f64::from(of_target)
}

/// The cross-entropy of `target` in one row of scores.
pub fn cross_entropy(scores: &[f32], target: usize) -> f64 {
    softmax_gradient(&mut scores.to_vec(), target, 1.0)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            grad_check,
            params::{Init, Layout},
        },
        *,
    };

    #[test]
    fn gradients() {
        let (n, width, targets) = (7, 4, [0usize, 6, 3]);
        let mut layout = Layout::default();
        let items = layout.add("items", n, width, Init::Random(0.5), false);
        let bias = layout.add("bias", 1, n, Init::Random(0.5), false);
        let run = |params: &[f32], gradient: &mut [f32], hidden: &[f32], scale: f32| {
            let output = Output { items: &params[items.range()], bias: &params[bias.range()] };
            let (items, bias) = gradient.split_at_mut(items.range().end);
            loss_and_gradient(output, hidden, &targets, scale, OutputGradient { items, bias })
        };
        grad_check::check(
            &layout,
            targets.len() * width,
            |params, hidden| vec![run(params, &mut vec![0.0; params.len()], hidden, 1.0).0 as f32],
            |params, gradient, hidden, dy| run(params, gradient, hidden, dy[0]).1,
        );
    }

    #[test]
    fn equal_scores_cost_the_logarithm_of_their_number() {
        assert!((cross_entropy(&[2.0; 8], 3) - 8f64.ln()).abs() < 1e-6);
    }
}
