//! The output weights: log-probabilities of chosen tokens at chosen rows.
//!
//! Decision: the normaliser needs the whole vocabulary, the answer a few tokens of it. So logits
//! are made in chunks of the vocabulary small enough to stay in the cache, folded into a running
//! log-sum-exp, and the wanted ones copied out as they pass: they are never all in memory.

use std::ops::Range;

use super::kernel::PANEL;
use super::math::{LogSumExp, rms_norm};
use super::matmul::{Matrix, Tiles};

/// Vocabulary entries of one chunk.
pub(super) const CHUNK: usize = 32 * PANEL;

/// A question: the log-probability of `token` after `row`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edge {
    pub(crate) row: usize,
    pub(crate) token: u32,
}

/// The last norm and the output weights.
pub(crate) struct Head {
    weights: Matrix,
    pub(super) norm: Vec<f32>,
    pub(super) epsilon: f32,
}

impl Head {
    /// From weights `[token][hidden]` and the gain of the last norm.
    pub(crate) fn new(weights: Matrix, norm: Vec<f32>, epsilon: f32) -> Self {
        Self { weights, norm, epsilon }
    }

    /// The output weights.
    pub(crate) fn weights(&self) -> &Matrix {
        &self.weights
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.weights.bytes() + size_of_val(&self.norm[..])
    }

    /// Log-probability of each edge; `hidden` is `[row][hidden]`, edges are in the order of rows.
    pub(crate) fn log_probs(&self, hidden: &[f32], edges: &[Edge]) -> Vec<f64> {
        self.log_probs_and_totals(hidden, edges, |_| ()).0
    }

    /// [`Head::log_probs`], and of each row asked the logarithm of its sum over the vocabulary; `see` is
    /// shown the logits, as [`Head::chunks`] makes them of one block of rows after the other.
    pub(super) fn log_probs_and_totals(
        &self,
        hidden: &[f32],
        edges: &[Edge],
        mut see: impl FnMut(&[f32]),
    ) -> (Vec<f64>, Vec<f64>) {
        assert!(edges.is_sorted_by_key(|edge| edge.row));
        let mut rows: Vec<usize> = edges.iter().map(|edge| edge.row).collect();
        rows.dedup();
        let tiles = self.normalised(hidden, &rows);

        // The edges in order of tokens, each with its place among the rows that are read.
        let mut wanted: Vec<(usize, usize, usize)> = Vec::with_capacity(edges.len());
        let mut place = 0;
        for (i, edge) in edges.iter().enumerate() {
            place += usize::from(rows[place] != edge.row);
            wanted.push((edge.token as usize, place, i));
        }
        wanted.sort_unstable();

        let mut totals = vec![LogSumExp::EMPTY; rows.len()];
        let mut logits = vec![0f64; edges.len()];
        for block in tiles.blocks() {
            let totals = &mut totals[block.clone()];
            let asked = wanted.iter().filter(|(_, place, _)| block.contains(place));
            let mut asked = asked.peekable();
            self.chunks(&tiles, block.clone(), |start, width, chunk| {
                see(chunk);
                for (total, chunk) in totals.iter_mut().zip(chunk.chunks_exact(CHUNK)) {
                    total.push(&chunk[..width]);
                }
                while let Some((token, place, i)) = asked.next_if(|(token, ..)| *token < start + width) {
                    logits[*i] = chunk[(place - block.start) * CHUNK + token - start] as f64;
                }
            });
        }
        for (token, place, i) in wanted {
            assert!(token < self.weights.outputs(), "token {token} is in the vocabulary");
            logits[i] -= totals[place].value();
        }
        (logits, totals.into_iter().map(LogSumExp::value).collect())
    }

    /// All logits of each row, `[row][token]`, by all threads of the current pool.
    pub(crate) fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        let rows: Vec<usize> = (0..hidden.len() / self.norm.len()).collect();
        let mut all = vec![0.0; rows.len() * self.weights.outputs()];
        self.weights.apply_spread(&self.normalised(hidden, &rows), &mut all, false);
        all
    }

    /// The rows behind the last norm, packed.
    pub(super) fn normalised(&self, hidden: &[f32], rows: &[usize]) -> Tiles {
        let size = self.norm.len();
        let mut normed = vec![0.0; rows.len() * size];
        for (row, normed) in rows.iter().zip(normed.chunks_exact_mut(size)) {
            rms_norm(&hidden[row * size..][..size], &self.norm, self.epsilon, normed);
        }
        let mut tiles = Tiles::default();
        tiles.pack(rows.len(), size, |r| &normed[r * size..]);
        tiles
    }

    /// Calls `each(first_token, width, logits)` with `logits` as `[row of the range][CHUNK]`.
    pub(super) fn chunks(&self, x: &Tiles, rows: Range<usize>, mut each: impl FnMut(usize, usize, &[f32])) {
        let mut logits = vec![0.0; rows.len() * CHUNK];
        let mut panel = Vec::new();
        self.each_chunk(|start, width| {
            let end = start + width;
            self.weights.product(x, rows.clone(), (start, end), &mut panel, |first, c| {
                for (row, c) in logits.chunks_exact_mut(CHUNK).zip(c.chunks_exact(PANEL)) {
                    row[first - start..][..PANEL].copy_from_slice(c);
                }
            });
            each(start, width, &logits);
        });
    }

    /// Calls `each(first_token, width)` for each chunk of the vocabulary, in order.
    pub(super) fn each_chunk(&self, mut each: impl FnMut(usize, usize)) {
        let outputs = self.weights.outputs();
        (0..outputs).step_by(CHUNK).for_each(|start| each(start, CHUNK.min(outputs - start)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::testing::noise;
    use crate::lm::weights::Rows;

    #[test]
    fn agrees_with_all_logits() {
        let (vocab, size) = (CHUNK * 2 + 37, 24);
        let table = noise(21, vocab * size);
        let head = Head::new(Matrix::pack(vec![Rows::F32(table)], size), noise(22, size), 1e-5);
        let hidden = noise(23, 40 * size);
        let edges: Vec<Edge> = [(0, 3), (0, CHUNK), (2, vocab - 1), (39, 2 * CHUNK - 1), (39, 0)]
            .map(|(row, token)| Edge { row, token: token as u32 })
            .to_vec();
        for (edge, found) in edges.iter().zip(head.log_probs(&hidden, &edges)) {
            let logits = head.logits(&hidden[edge.row * size..][..size]);
            let total = logits.iter().map(|l| (*l as f64).exp()).sum::<f64>().ln();
            assert!((found - (logits[edge.token as usize] as f64 - total)).abs() < 1e-6);
        }
    }
}
