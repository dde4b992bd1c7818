//! Attention over a forest, forward and backward.
//!
//! Decision: a row is looked at from both sides. As a query it sums over the few stretches of rows
//! above it; as a key it gathers over the one stretch below it, from what those rows left behind. So
//! threads share rows, not heads or prompts, nothing is added up from several threads, and a
//! gradient has the same bits on any number of them.

use std::ops::Range;

use rayon::prelude::*;

use super::forest::Forest;
use super::math::{combine, softmax, softmax_backward};
use crate::lm::attention::Heads;
use crate::lm::kernel::PANEL;

/// Keys or values by component, `[head][component][row]`, so that scores are sums of rows.
pub(super) struct Turned {
    data: Vec<f32>,
    stride: usize,
}

impl Turned {
    fn new(heads: Heads, projected: &[f32], first: usize) -> Self {
        let rows = projected.len() / heads.row_width();
        // Sixteen more, so that a stretch may be read past its end.
        let stride = rows + PANEL;
        let mut data = vec![0.0; heads.key_width() * stride];
        data.par_chunks_mut(heads.size * stride).enumerate().for_each(|(head, data)| {
            for (row, source) in projected.chunks_exact(heads.row_width()).enumerate() {
                for (d, value) in source[first + head * heads.size..][..heads.size].iter().enumerate() {
                    data[d * stride + row] = *value;
                }
            }
        });
        Self { data, stride }
    }

    /// The keys of `[query | key | value]` rows.
    pub(super) fn keys(heads: Heads, projected: &[f32]) -> Self {
        Self::new(heads, projected, heads.query_width())
    }

    /// Their values.
    pub(super) fn values(heads: Heads, projected: &[f32]) -> Self {
        Self::new(heads, projected, heads.query_width() + heads.key_width())
    }

    /// Inner products of a vector with the rows of some stretches, one after the other.
    fn products(&self, head: usize, vector: &[f32], above: &[Range<usize>], into: &mut Vec<f32>) {
        let count: usize = above.iter().map(Range::len).sum();
        into.clear();
        into.resize(count + PANEL, 0.0);
        let mut at = 0;
        for stretch in above {
            let rows = &self.data[head * vector.len() * self.stride + stretch.start..];
            // What is read past the end is overwritten by the next stretch, or cut off.
            let out = &mut into[at..at + stretch.len().next_multiple_of(PANEL)];
            out.fill(0.0);
            combine(vector, rows, self.stride, out);
            at += stretch.len();
        }
        into.truncate(count);
    }
}

/// What attention is over: the rows of a batch in one layer, `[query | key | value]`, rotated, the
/// queries scaled.
#[derive(Clone, Copy)]
pub(super) struct Scene<'a> {
    pub(super) heads: Heads,
    pub(super) forest: &'a Forest,
    pub(super) projected: &'a [f32],
}

impl<'a> Scene<'a> {
    fn query(&self, row: usize, head: usize) -> &'a [f32] {
        &self.projected[row * self.heads.row_width() + head * self.heads.size..][..self.heads.size]
    }

    /// Weights of the rows above a row, and what they have to be divided by.
    fn weigh(
        &self,
        keys: &Turned,
        row: usize,
        head: usize,
        above: &[Range<usize>],
        into: &mut Vec<f32>,
    ) -> f32 {
        let group = self.heads.queries / self.heads.keys;
        keys.products(head / group, self.query(row, head), above, into);
        softmax(into)
    }

    /// Sums over the rows above of `coefficients` times what lies at `first` in each of them.
    fn sum(&self, coefficients: &[f32], above: &[Range<usize>], first: usize, out: &mut [f32]) {
        let (width, mut at) = (self.heads.row_width(), 0);
        for stretch in above {
            let rows = &self.projected[stretch.start * width + first..];
            combine(&coefficients[at..at + stretch.len()], rows, width, out);
            at += stretch.len();
        }
    }

    fn key_at(&self, head: usize) -> usize {
        self.heads.query_width() + head / (self.heads.queries / self.heads.keys) * self.heads.size
    }

    fn value_at(&self, head: usize) -> usize {
        self.key_at(head) + self.heads.key_width()
    }

    /// The output of some rows, `[row of the range][query_width]`.
    pub(super) fn attend(&self, keys: &Turned, rows: Range<usize>, out: &mut [f32]) {
        let (mut above, mut weights) = (Vec::new(), Vec::new());
        for (row, out) in rows.zip(out.chunks_exact_mut(self.heads.query_width())) {
            self.forest.above(row, &mut above);
            for (head, out) in out.chunks_exact_mut(self.heads.size).enumerate() {
                let total = self.weigh(keys, row, head, &above, &mut weights);
                out.fill(0.0);
                self.sum(&weights, &above, self.value_at(head), out);
                out.iter_mut().for_each(|x| *x /= total);
            }
        }
    }

    /// The gradient of the queries of some rows, `[row of the range][query_width]`, and into `trace` what
    /// the rows above need for theirs.
    pub(super) fn pull_queries(
        &self,
        turned: &[Turned; 2],
        rows: Range<usize>,
        dy: &[f32],
        trace: &mut [f32],
    ) -> Vec<f32> {
        let Heads { queries, keys, size } = self.heads;
        let mut gradient = vec![0.0; rows.len() * queries * size];
        let (mut above, mut weights, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
        let mut trace = trace;
        let outs = gradient.chunks_exact_mut(queries * size).zip(dy.chunks_exact(queries * size));
        for (row, (out, dy)) in rows.zip(outs) {
            self.forest.above(row, &mut above);
            for (head, (out, dy)) in out.chunks_exact_mut(size).zip(dy.chunks_exact(size)).enumerate() {
                let total = self.weigh(&turned[0], row, head, &above, &mut weights);
                weights.iter_mut().for_each(|weight| *weight /= total);
                turned[1].products(head / (queries / keys), dy, &above, &mut slopes);
                softmax_backward(&weights, &mut slopes);
                self.sum(&slopes, &above, self.key_at(head), out);
                let (own, rest) = trace.split_at_mut(2 * weights.len());
                own[..weights.len()].copy_from_slice(&weights);
                own[weights.len()..].copy_from_slice(&slopes);
                trace = rest;
            }
        }
        gradient
    }

    /// Numbers of a trace of one pair of rows.
    pub(super) fn trace_width(&self) -> usize {
        2 * self.heads.queries
    }

    /// The gradient of `[key | value]` of some rows, from the traces of all rows and the gradient `dy` of
    /// all outputs.
    pub(super) fn pull_keys(&self, rows: Range<usize>, trace: &[f32], dy: &[f32]) -> Vec<f32> {
        let Heads { queries, keys, size } = self.heads;
        let mut gradient = vec![0.0; rows.len() * 2 * keys * size];
        let (mut weights, mut slopes) = (Vec::new(), Vec::new());
        for (row, out) in rows.zip(gradient.chunks_exact_mut(2 * keys * size)) {
            let position = self.forest.positions()[row];
            let (by_key, by_value) = out.split_at_mut(keys * size);
            for head in 0..queries {
                weights.clear();
                slopes.clear();
                for below in self.forest.below(row) {
                    let pairs = self.forest.pairs(below..below + 1);
                    let at = pairs.start * self.trace_width() + head * 2 * pairs.len() + position;
                    weights.push(trace[at]);
                    slopes.push(trace[at + pairs.len()]);
                }
                let own = head / (queries / keys) * size..(head / (queries / keys) + 1) * size;
                let asked = &self.projected[row * self.heads.row_width() + head * size..];
                combine(&slopes, asked, self.heads.row_width(), &mut by_key[own.clone()]);
                let outputs = &dy[row * queries * size + head * size..];
                combine(&weights, outputs, queries * size, &mut by_value[own]);
            }
        }
        gradient
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::batch::Branch;
    use crate::lm::testing::{noise, tokens};
    use crate::lm::train::forest::Text;

    const HEADS: Heads = Heads { queries: 6, keys: 2, size: 10 };

    /// Two texts with a common beginning of 20 tokens, trees on both.
    fn forest() -> Forest {
        let all = tokens(101, 50);
        let tree = [(1, None), (2, Some(0)), (3, Some(0)), (4, None)];
        let tree = tree.map(|(token, parent)| Branch { token, parent });
        let other = [&all[..20], &all[30..]].concat();
        let forest =
            Forest::new(&[Text { prompt: &all[..30], tree: &tree }, Text { prompt: &other, tree: &tree }]);
        forest.0
    }

    /// Attention by its definition, in double precision.
    fn reference(forest: &Forest, rows: &[f32]) -> Vec<f64> {
        let (mut above, mut all) = (Vec::new(), Vec::new());
        for row in 0..forest.len() {
            forest.above(row, &mut above);
            let above: Vec<usize> = above.iter().cloned().flatten().collect();
            for head in 0..HEADS.queries {
                let at = |row: usize, first: usize| {
                    rows[row * HEADS.row_width() + first..][..HEADS.size].iter().map(|x| f64::from(*x))
                };
                let shared = head / 3 * HEADS.size;
                let score = |key: &usize| -> f64 {
                    let key = at(*key, HEADS.query_width() + shared);
                    at(row, head * HEADS.size).zip(key).map(|(q, k)| q * k).sum()
                };
                let weights: Vec<f64> = above.iter().map(|key| score(key).exp()).collect();
                let total: f64 = weights.iter().sum();
                let mut out = vec![0.0; HEADS.size];
                for (key, weight) in above.iter().zip(&weights) {
                    let values = at(*key, HEADS.query_width() + HEADS.key_width() + shared);
                    out.iter_mut().zip(values).for_each(|(o, v)| *o += weight / total * v);
                }
                all.extend(out);
            }
        }
        all
    }

    #[test]
    fn agrees_with_the_definition() {
        let forest = forest();
        let rows = noise(102, forest.len() * HEADS.row_width());
        let scene = Scene { heads: HEADS, forest: &forest, projected: &rows };
        let mut out = vec![0.0; forest.len() * HEADS.query_width()];
        scene.attend(&Turned::keys(HEADS, &rows), 0..forest.len(), &mut out);
        for (found, exact) in out.iter().zip(reference(&forest, &rows)) {
            assert!((f64::from(*found) - exact).abs() < 2e-6, "{found} {exact}");
        }
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let forest = forest();
        let count = forest.len();
        let rows = noise(103, count * HEADS.row_width());
        let dy = noise(104, count * HEADS.query_width());
        let scene = Scene { heads: HEADS, forest: &forest, projected: &rows };
        let turned = [Turned::keys(HEADS, &rows), Turned::values(HEADS, &rows)];
        let mut trace = vec![0.0; forest.pairs(0..count).len() * scene.trace_width()];
        let queries = scene.pull_queries(&turned, 0..count, &dy, &mut trace);
        let keys = scene.pull_keys(0..count, &trace, &dy);
        let both = queries.chunks(HEADS.query_width()).zip(keys.chunks(2 * HEADS.key_width()));
        let gradient: Vec<f32> = both.flat_map(|(q, k)| [q, k].concat()).collect();
        let value = |rows: &[f32]| -> f64 {
            reference(&forest, rows).iter().zip(&dy).map(|(y, w)| y * f64::from(*w)).sum()
        };
        let largest = gradient.iter().fold(0f64, |most, g| most.max(f64::from(g.abs())));
        for i in (0..rows.len()).step_by(7) {
            let (mut above, mut below) = (rows.clone(), rows.clone());
            (above[i], below[i]) = (rows[i] + 1e-2, rows[i] - 1e-2);
            let expected = (value(&above) - value(&below)) / f64::from(above[i] - below[i]);
            let error = (f64::from(gradient[i]) - expected).abs();
            assert!(error < 1e-3 * largest, "{i}: {} instead of {expected}", gradient[i]);
        }
    }
}
