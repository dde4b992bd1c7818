//! A pass of few rows on all threads: the next token of every text that is being written.
//!
//! Decision: prompts come by the hundred and each thread takes passes of its own; the tokens of a
//! text come one after the other, so there the threads share each product, by runs of outputs, and
//! the attention, by texts. An output is the same chain of sums wherever it is computed, so that
//! changes no bit.

use rayon::prelude::*;

use super::attention::{self, Heads, KeyValues, Scratch, Sight};
use super::batch::{Prefix, Sequence};
use super::kernel::PANEL;
use super::matmul::{Matrix, Tiles};

/// Which threads work on a pass.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The one that asked, while others take other passes.
    One,
    /// All of the current pool, on a pass of one token per sequence that everything waits for.
    All,
}

/// Attention of a pass of one token per sequence, each on a thread of its own: the keys and values
/// of every token, in order.
pub(crate) fn attend(
    heads: Heads,
    layer: usize,
    sequences: &[Sequence],
    projected: &[f32],
    mixed: &mut [f32],
) -> Vec<KeyValues> {
    let rows =
        projected.par_chunks_exact(heads.row_width()).zip(mixed.par_chunks_exact_mut(heads.query_width()));
    let one = |((row, mixed), sequence): ((&[f32], &mut [f32]), &Sequence)| {
        assert!(sequence.rows() == 1 && sequence.tree.is_empty(), "a step is one token per sequence");
        let mut own = KeyValues::default();
        own.pack(heads, row, 0, 1);
        let mut path = sequence.prefix.map_or(Vec::new(), |prefix| prefix.path(layer));
        path.push(&own);
        let prompt = sequence.prefix.map_or(0, Prefix::end) + 1;
        let sight = Sight { prompt, ancestors: Vec::new() };
        attention::attend(heads, row, 0, &[sight], &path, &mut Scratch::default(), mixed);
        own
    };
    rows.zip(sequences).map(one).collect()
}

impl Matrix {
    /// [`Matrix::apply`] by all threads of the current pool, each a run of panels.
    pub(crate) fn apply_spread(&self, x: &Tiles, y: &mut [f32], add: bool) {
        let (n, rows) = (self.outputs(), y.len() / self.outputs());
        let each = n.div_ceil(PANEL).div_ceil(rayon::current_num_threads()) * PANEL;
        let part = |first: usize| {
            let (mut panel, mut part) = (Vec::new(), Vec::with_capacity(rows * each));
            self.product(x, 0..rows, (first, (first + each).min(n)), &mut panel, |_, c| {
                part.extend_from_slice(&c[..rows * PANEL]);
            });
            part
        };
        let parts: Vec<Vec<f32>> = (0..n.div_ceil(each)).into_par_iter().map(|i| part(i * each)).collect();
        for (first, c) in parts.iter().flat_map(|part| part.chunks_exact(rows * PANEL)).enumerate() {
            let (first, width) = (first * PANEL, PANEL.min(n - first * PANEL));
            for (y, c) in y.chunks_exact_mut(n).zip(c.chunks_exact(PANEL)) {
                let y = &mut y[first..first + width];
                if add {
                    y.iter_mut().zip(c).for_each(|(y, c)| *y += c);
                } else {
                    y.copy_from_slice(&c[..width]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::testing::noise;

    #[test]
    fn the_bits_are_those_of_one_thread() {
        let (rows, inputs, outputs) = (5, 300, 150);
        let (x, w, start) =
            (noise(13, rows * inputs), noise(14, outputs * inputs), noise(15, rows * outputs));
        let matrix = Matrix::pack(&[&w], inputs);
        let mut tiles = Tiles::default();
        tiles.pack(rows, inputs, |r| &x[r * inputs..]);
        for add in [false, true] {
            let mut expected = start.clone();
            matrix.apply(&tiles, &mut Vec::new(), &mut expected, add);
            for threads in [1, 2, 3, 7] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut y = start.clone();
                pool.install(|| matrix.apply_spread(&tiles, &mut y, add));
                assert_eq!(y, expected, "{threads} threads");
            }
        }
    }
}
