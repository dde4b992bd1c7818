//! Multi-head causal attention over packed sequences: softmax(QKᵀ/√d + M)·V.
//!
//! The paper prints MV inside the softmax (CoEA, eq. 1), a slip. The mask M is never materialised:
//! row *i* of the scores simply has *i + 1* entries, so there is no minus infinity to get wrong.
//! Sequences lie one after another in one matrix; each attends to itself only and needs no padding.

use std::ops::Range;

use super::{
    activation::exp_shifted,
    matrix::{Store, View, dot, multiply},
};

/// Attention weights of every sequence and head, for the backward pass: a square per pair, row by
/// row, zero above the diagonal.
#[derive(Clone, Debug)]
pub struct Weights(Vec<Vec<f32>>);

/// One head of one sequence inside the packed `rows × 3·width` matrix of queries, keys, values.
#[derive(Clone, Copy)]
struct Head {
    first: usize,
    rows: usize,
    width: usize,
    offset: usize,
    size: usize,
}

impl Head {
    /// Where the queries (0), keys (1) or values (2) start.
    fn start(self, part: usize) -> usize {
        self.first * 3 * self.width + part * self.width + self.offset
    }

    fn view(self, qkv: &[f32], part: usize) -> View<'_> {
        View::band(&qkv[self.start(part)..], self.rows, self.size, 3 * self.width)
    }

    fn out(self) -> usize {
        self.first * self.width + self.offset
    }
}

fn heads(segments: &[Range<usize>], width: usize, heads: usize) -> impl Iterator<Item = Head> {
    let size = width / heads;
    segments.iter().flat_map(move |segment| {
        let (first, rows) = (segment.start, segment.len());
        (0..heads).map(move |head| Head { first, rows, width, offset: head * size, size })
    })
}

/// `rows × 3·width` of queries, keys and values to `rows × width`; `segments` are the row ranges of
/// the sequences, none empty.
pub fn forward(qkv: &[f32], segments: &[Range<usize>], width: usize, n_heads: usize) -> (Vec<f32>, Weights) {
    let mut out = vec![0.0; qkv.len() / 3];
    let mut weights = Vec::with_capacity(segments.len() * n_heads);
    for head in heads(segments, width, n_heads) {
        let (rows, scale) = (head.rows, 1.0 / (head.size as f32).sqrt());
        let mut scores = vec![0.0; rows * rows];
        multiply(&mut scores, rows, head.view(qkv, 0), head.view(qkv, 1).t(), scale, Store::Overwrite);
        for (i, row) in scores.chunks_exact_mut(rows).enumerate() {
            let (seen, hidden) = row.split_at_mut(i + 1);
            let (_, sum) = exp_shifted(seen);
            seen.iter_mut().for_each(|s| *s /= sum);
            hidden.fill(0.0);
        }
        let scores_view = View::new(&scores, rows, rows);
        multiply(&mut out[head.out()..], width, scores_view, head.view(qkv, 2), 1.0, Store::Overwrite);
        weights.push(scores);
    }
    (out, Weights(weights))
}

/// The gradient with respect to `qkv`, given that with respect to the output.
pub fn backward(
    qkv: &[f32],
    segments: &[Range<usize>],
    width: usize,
    n_heads: usize,
    weights: &Weights,
    dy: &[f32],
) -> Vec<f32> {
    let mut dqkv = vec![0.0; qkv.len()];
    let stride = 3 * width;
    for (head, weights) in heads(segments, width, n_heads).zip(&weights.0) {
        let (rows, scale) = (head.rows, 1.0 / (head.size as f32).sqrt());
        let p = View::new(weights, rows, rows);
        let dy = View::band(&dy[head.out()..], rows, head.size, width);
        multiply(&mut dqkv[head.start(2)..], stride, p.t(), dy, 1.0, Store::Overwrite);
        let mut ds = vec![0.0; rows * rows];
        multiply(&mut ds, rows, dy, head.view(qkv, 2).t(), 1.0, Store::Overwrite);
        // Where the weight is zero, above the diagonal, so is the gradient of the score.
        for (d, p) in ds.chunks_exact_mut(rows).zip(weights.chunks_exact(rows)) {
            let mean = dot(d, p);
            d.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - mean));
        }
        let ds = View::new(&ds, rows, rows);
        multiply(&mut dqkv[head.start(0)..], stride, ds, head.view(qkv, 1), scale, Store::Overwrite);
        multiply(&mut dqkv[head.start(1)..], stride, ds.t(), head.view(qkv, 0), scale, Store::Overwrite);
    }
    dqkv
}

#[cfg(test)]
mod tests {
    use super::{
        super::{grad_check, params::Layout, random::Stream},
        *,
    };

    const WIDTH: usize = 6;
    const HEADS: usize = 2;

    #[test]
    fn gradients() {
        let segments = [0..4, 4..5, 5..8];
        grad_check::check(
            &Layout::default(),
            8 * 3 * WIDTH,
            |_, qkv| forward(qkv, &segments, WIDTH, HEADS).0,
            |_, _, qkv, dy| {
                let (_, weights) = forward(qkv, &segments, WIDTH, HEADS);
                backward(qkv, &segments, WIDTH, HEADS, &weights, dy)
            },
        );
    }

    #[test]
    fn a_position_sees_nothing_later_and_no_other_sequence() {
        let mut qkv = vec![0.0; 8 * 3 * WIDTH];
        Stream::new(1, "test", &[]).fill_centred(1.0, &mut qkv);
        let before = forward(&qkv, &[0..4, 4..8], WIDTH, HEADS).0;
        let row = 3 * WIDTH;
        qkv[3 * row..4 * row].fill(5.0);
        let after = forward(&qkv, &[0..4, 4..8], WIDTH, HEADS).0;
        assert_eq!(before[..3 * WIDTH], after[..3 * WIDTH]);
        assert_ne!(before[3 * WIDTH..4 * WIDTH], after[3 * WIDTH..4 * WIDTH]);
        assert_eq!(before[4 * WIDTH..], after[4 * WIDTH..]);
    }

    #[test]
    fn equal_keys_average_the_values_seen() {
        // One head of size one: query 0, so every weight in row i is 1/(i+1).
        let qkv = [0.0, 1.0, 3.0, 0.0, 1.0, 6.0, 0.0, 1.0, 0.0];
        let (out, _) = forward(&qkv, std::slice::from_ref(&(0..3)), 1, 1);
        for (got, expected) in out.iter().zip([3.0, 4.5, 3.0]) {
            assert!((got - expected).abs() < 1e-6);
        }
    }
}
