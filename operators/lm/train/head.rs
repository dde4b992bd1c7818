//! Log-probabilities of edges over the whole vocabulary, and their gradient.
//!
//! Decision: logits are made in chunks of the vocabulary and kept for the gradient as long as they are
//! few; all of a large batch would be the largest table of a step, and are made again. Of a
//! row's edges the gradient is `Σ g_e W_t − (Σ g_e) Σ_v p_v W_v`, so it takes one product with the
//! transposed weights however many edges there are.

use std::ops::Range;

use rayon::prelude::*;

use super::math::norm_backward;
use crate::lm::head::{CHUNK, Edge, Head};
use crate::lm::kernel::TILE;
use crate::lm::math::boltzmann;
use crate::lm::matmul::Tiles;

/// Rows that are taken at once, at most.
const ROWS: usize = 8 * TILE;

/// Bytes of logits that are kept for the gradient, at most.
pub(super) const KEPT: usize = 256 << 20;

/// Edges in order of rows, and in blocks of some rows each.
struct Blocks {
    edges: Vec<Edge>,
    /// The edge of each as they were given.
    places: Vec<usize>,
    blocks: Vec<Range<usize>>,
    /// How many rows there are.
    rows: usize,
}

impl Blocks {
    fn new(edges: &[Edge]) -> Self {
        let mut places: Vec<usize> = (0..edges.len()).collect();
        places.sort_by_key(|place| (edges[*place].row, edges[*place].token));
        let edges: Vec<Edge> = places.iter().map(|place| edges[*place]).collect();
        let rows = 1 + edges.windows(2).filter(|pair| pair[0].row != pair[1].row).count();
        let size = rows.div_ceil(rayon::current_num_threads()).next_multiple_of(TILE).min(ROWS);
        let mut blocks: Vec<Range<usize>> = Vec::new();
        let mut held = 0;
        for i in 0..edges.len() {
            let new = i == 0 || edges[i].row != edges[i - 1].row;
            match blocks.last_mut().filter(|_| !(new && held == size)) {
                Some(block) => {
                    block.end = i + 1;
                    held += usize::from(new);
                }
                None => {
                    blocks.push(i..i + 1);
                    held = 1;
                }
            }
        }
        Self { edges, places, blocks, rows }
    }
}

/// Log-probabilities of edges.
pub(crate) struct Scores {
    blocks: Blocks,
    /// By block, of each row the logarithm of the sum over the vocabulary.
    totals: Vec<Vec<f64>>,
    /// By block, the chunks of its logits one after the other; nothing if they are too many.
    logits: Vec<Vec<f32>>,
    /// In the order the edges were given.
    pub(crate) logs: Vec<f64>,
}

/// Log-probability of each edge, in any order; `hidden` is `[row][hidden]`. For [`Scores::backward`] it
/// keeps `kept` bytes of logits at most.
pub(crate) fn score(head: &Head, hidden: &[f32], edges: &[Edge], kept: usize) -> Scores {
    let blocks = Blocks::new(edges);
    let vocabulary = head.weights().outputs().next_multiple_of(CHUNK);
    let keep = blocks.rows * vocabulary * size_of::<f32>() <= kept;
    let of = |block: &Range<usize>| {
        let mut logits = Vec::new();
        let (logs, totals) = head.log_probs_and_totals(hidden, &blocks.edges[block.clone()], |chunk| {
            if keep {
                logits.extend_from_slice(chunk);
            }
        });
        ((logs, totals), logits)
    };
    let (found, logits): (Vec<_>, Vec<_>) = blocks.blocks.par_iter().map(of).unzip();
    let (sorted, totals): (Vec<Vec<f64>>, Vec<_>) = found.into_iter().unzip();
    let mut logs = vec![0.0; edges.len()];
    blocks.places.iter().zip(sorted.iter().flatten()).for_each(|(place, log)| logs[*place] = *log);
    Scores { blocks, totals, logits, logs }
}

impl Scores {
    /// The gradient of the hidden states, `[row][hidden]`, given that of each log-probability.
    pub(crate) fn backward(&self, head: &Head, hidden: &[f32], slopes: &[f64]) -> Vec<f32> {
        let sorted: Vec<f64> = self.blocks.places.iter().map(|place| slopes[*place]).collect();
        let of = |((block, totals), logits): ((&Range<usize>, &Vec<f64>), &Vec<f32>)| {
            let edges = &self.blocks.edges[block.clone()];
            pull(head, hidden, (edges, &sorted[block.clone()]), totals, logits)
        };
        let found: Vec<_> =
            self.blocks.blocks.par_iter().zip(&self.totals).zip(&self.logits).map(of).collect();
        let size = head.norm.len();
        let mut gradient = vec![0.0; hidden.len()];
        for (rows, block) in found {
            for (row, slopes) in rows.iter().zip(block.chunks_exact(size)) {
                gradient[row * size..][..size].copy_from_slice(slopes);
            }
        }
        gradient
    }
}

/// The rows of some edges, and the gradient of the hidden state of each.
fn pull(
    head: &Head,
    hidden: &[f32],
    (edges, slopes): (&[Edge], &[f64]),
    totals: &[f64],
    logits: &[f32],
) -> (Vec<usize>, Vec<f32>) {
    let mut rows: Vec<usize> = edges.iter().map(|edge| edge.row).collect();
    rows.dedup();
    let size = head.norm.len();
    let mut along = vec![0f64; rows.len()];
    // By token, the row's place and the slope.
    let mut direct: Vec<(usize, usize, f64)> = Vec::with_capacity(edges.len());
    let mut place = 0;
    for (edge, slope) in edges.iter().zip(slopes) {
        place += usize::from(rows[place] != edge.row);
        along[place] += slope;
        direct.push((edge.token as usize, place, *slope));
    }
    direct.sort_by_key(|(token, place, _)| (*token, *place));

    let x = head.normalised(hidden, &rows);
    let (mut tiles, mut panel, mut slopes) = (Tiles::default(), Vec::new(), Vec::new());
    let mut by_normed = vec![0.0; rows.len() * size];
    let mut kept = logits;
    for block in x.blocks() {
        let (totals, along) = (&totals[block.clone()], &along[block.clone()]);
        let by_normed = &mut by_normed[block.start * size..block.end * size];
        let mut direct = direct.iter().filter(|(_, place, _)| block.contains(place)).peekable();
        let mut pull = |start: usize, width: usize, logits: &[f32]| {
            slopes.clear();
            slopes.extend_from_slice(logits);
            for ((row, total), along) in slopes.chunks_exact_mut(CHUNK).zip(totals).zip(along) {
                boltzmann(&mut row[..width], *total as f32, 1.0);
                row[..width].iter_mut().for_each(|p| *p *= -*along as f32);
            }
            while let Some((token, place, slope)) = direct.next_if(|(token, ..)| *token < start + width) {
                slopes[(place - block.start) * CHUNK + token - start] += *slope as f32;
            }
            tiles.pack(block.len(), width, |r| &slopes[r * CHUNK..]);
            head.weights().add_transposed(&tiles, (start, start + width), &mut panel, by_normed, true);
        };
        match kept.is_empty() {
            true => head.chunks(&x, block.clone(), pull),
            false => head.each_chunk(|start, width| {
                let (chunk, rest) = kept.split_at(block.len() * CHUNK);
                kept = rest;
                pull(start, width, chunk);
            }),
        }
    }
    let taken: Vec<f32> = rows.iter().flat_map(|row| &hidden[row * size..][..size]).copied().collect();
    let mut gradient = vec![0.0; by_normed.len()];
    norm_backward(&taken, &head.norm, head.epsilon, &by_normed, &mut gradient);
    (rows, gradient)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::matmul::Matrix;
    use crate::lm::testing::noise;
    use crate::lm::weights::Rows;

    const SIZE: usize = 24;
    const VOCAB: usize = CHUNK * 2 + 37;

    fn head() -> Head {
        let table = Rows::F32(noise(111, VOCAB * SIZE));
        Head::new(Matrix::pack(vec![table], SIZE), noise(112, SIZE), 1e-5)
    }

    /// Several rows, in no order, some with several edges, one edge twice.
    fn edges(rows: usize) -> Vec<Edge> {
        let token = |i: usize| (i * 389) % VOCAB;
        let mut edges: Vec<Edge> =
            (0..2 * rows).map(|i| Edge { row: (i * 7) % rows, token: token(i) as u32 }).collect();
        edges.push(edges[3]);
        edges
    }

    #[test]
    fn agrees_with_the_head_for_edges_in_any_order() {
        let (head, hidden) = (head(), noise(113, 5 * SIZE));
        let edges = edges(5);
        let found = score(&head, &hidden, &edges, KEPT).logs;
        for (edge, found) in edges.iter().zip(&found) {
            assert_eq!(head.log_probs(&hidden, &[*edge]), [*found]);
        }
        assert!(score(&head, &hidden, &[], KEPT).logs.is_empty());
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let (head, hidden) = (head(), noise(114, 5 * SIZE));
        let edges = edges(5);
        let weights: Vec<f64> = noise(115, edges.len()).iter().map(|w| f64::from(*w)).collect();
        let value = |hidden: &[f32]| -> f64 {
            score(&head, hidden, &edges, 0).logs.iter().zip(&weights).map(|(log, w)| log * w).sum()
        };
        let gradient = score(&head, &hidden, &edges, KEPT).backward(&head, &hidden, &weights);
        let largest = gradient.iter().fold(0f64, |most, g| most.max(f64::from(g.abs())));
        let h = 3e-3;
        for i in 0..hidden.len() {
            let (mut above, mut below) = (hidden.clone(), hidden.clone());
            (above[i], below[i]) = (hidden[i] + h, hidden[i] - h);
            let expected = (value(&above) - value(&below)) / f64::from(above[i] - below[i]);
            let error = (f64::from(gradient[i]) - expected).abs();
            assert!(error < 1e-3 * largest, "{i}: {} instead of {expected}", gradient[i]);
        }
    }

    #[test]
    fn many_rows_have_the_bits_of_few() {
        let (head, rows) = (head(), 3 * ROWS + 5);
        let (hidden, edges) = (noise(116, rows * SIZE), edges(rows));
        let slopes: Vec<f64> = noise(117, edges.len()).iter().map(|w| f64::from(*w)).collect();
        let all = score(&head, &hidden, &edges, KEPT).backward(&head, &hidden, &slopes);
        for row in [0, ROWS, rows - 1] {
            let own = edges.iter().zip(&slopes).filter(|(edge, _)| edge.row == row);
            let (own, slopes): (Vec<Edge>, Vec<f64>) =
                own.map(|(edge, slope)| (Edge { row: 0, ..*edge }, *slope)).unzip();
            let hidden = &hidden[row * SIZE..][..SIZE];
            let alone = score(&head, hidden, &own, 0).backward(&head, hidden, &slopes);
            assert_eq!(alone, all[row * SIZE..][..SIZE]);
        }
    }
}
