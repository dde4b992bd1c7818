//! Attention over a path of keys: cached prefixes, then the prompt's tail, then tree ancestors.
//!
//! Decision: everything is transposed, sixteen (row, head) queries side by side as the lanes of one
//! panel. Scores are `K·Qᵀ` and outputs `Vᵀ·P` by the same kernel as the weights, the softmax runs
//! down the columns, and keys are always taken in the order of their positions. So a query's result
//! is the same whether a key came from a cache or stood in the same batch. Ancestors in the tree
//! differ from lane to lane; they are few, and taken one by one.

use super::kernel::{PANEL, TILE, accumulate};
use super::keys_values::KeyValues;
use super::math::{dot, softmax_columns};

/// Sizes of the attention of one model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    /// Query heads.
    pub(crate) queries: usize,
    /// Key-value heads; each serves `queries / keys` query heads (Ainslie et al. 2023).
    pub(crate) keys: usize,
    /// Length of a head's vectors.
    pub(crate) size: usize,
}

impl Heads {
    /// Length of the query vector of one row.
    pub(crate) fn query_width(&self) -> usize {
        self.queries * self.size
    }

    /// Length of the key (or value) vector of one row.
    pub(crate) fn key_width(&self) -> usize {
        self.keys * self.size
    }

    /// Length of `[query | key | value]` of one row.
    pub(crate) fn row_width(&self) -> usize {
        self.query_width() + 2 * self.key_width()
    }

    pub(super) fn key<'a>(&self, rows: &'a [f32], row: usize, head: usize) -> &'a [f32] {
        &rows[row * self.row_width() + self.query_width() + head * self.size..][..self.size]
    }

    pub(super) fn value<'a>(&self, rows: &'a [f32], row: usize, head: usize) -> &'a [f32] {
        &rows[row * self.row_width() + self.query_width() + self.key_width() + head * self.size..]
            [..self.size]
    }
}

/// What one row attends to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sight {
    /// The first so many positions of its sequence's prompt.
    pub(crate) prompt: usize,
    /// Then these rows of the batch, in this order.
    pub(crate) ancestors: Vec<usize>,
}

/// Buffers reused from call to call.
#[derive(Default)]
pub(crate) struct Scratch {
    queries: Vec<f32>,
    scores: Vec<f32>,
    out: Vec<f32>,
}

/// Attention of rows `first..first + sights.len()`, which all belong to one sequence.
///
/// `rows` holds `[query | key | value]` of the whole batch, rotated, the queries scaled; `path` the
/// keys of the prompt in order; `out` is `[row of the batch][query_width]`.
pub(crate) fn attend(
    heads: Heads,
    rows: &[f32],
    first: usize,
    sights: &[Sight],
    path: &[&KeyValues],
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let group = heads.queries / heads.keys;
    for head in 0..heads.keys {
        for start in (0..sights.len() * group).step_by(PANEL) {
            let lanes = PANEL.min(sights.len() * group - start);
            let lane = |l: usize| ((start + l) / group, head * group + (start + l) % group);
            Panel { heads, rows, first, sights, path, head, lanes, lane: &lane }.attend(scratch, out);
        }
    }
}

/// Sixteen queries that share a key-value head; `lane` gives the row (within the sequence) and the
/// query head of each.
struct Panel<'a> {
    heads: Heads,
    rows: &'a [f32],
    first: usize,
    sights: &'a [Sight],
    path: &'a [&'a KeyValues],
    head: usize,
    lanes: usize,
    lane: &'a dyn Fn(usize) -> (usize, usize),
}

impl Panel<'_> {
    fn query(&self, lane: usize) -> &[f32] {
        let (row, head) = (self.lane)(lane);
        &self.rows[(self.first + row) * self.heads.row_width() + head * self.heads.size..][..self.heads.size]
    }

    fn sight(&self, lane: usize) -> &Sight {
        &self.sights[(self.lane)(lane).0]
    }

    fn attend(&self, scratch: &mut Scratch, out: &mut [f32]) {
        let size = self.heads.size;
        scratch.queries.clear();
        scratch.queries.resize(size * PANEL, 0.0);
        for lane in 0..self.lanes {
            for (slot, q) in scratch.queries.chunks_exact_mut(PANEL).zip(self.query(lane)) {
                slot[lane] = *q;
            }
        }
        // Lanes without a query see the first key, so that their sums are finite.
        let mut visible = [1u32; PANEL];
        (0..self.lanes).for_each(|l| visible[l] = self.sight(l).prompt as u32);
        let prompt = visible.iter().fold(0, |most, v| most.max(*v)) as usize;
        let least = visible.iter().fold(u32::MAX, |least, v| least.min(*v)) as usize;
        let depth = (0..self.lanes).map(|l| self.sight(l).ancestors.len()).max().unwrap_or(0);

        self.score_path(prompt, &scratch.queries, &mut scratch.scores, depth);
        self.score_ancestors(prompt, &mut scratch.scores);
        let sums = softmax_columns(&mut scratch.scores[..(prompt + depth) * PANEL], least..prompt, &visible);
        self.mix_path(prompt, &scratch.scores, &mut scratch.out);
        self.mix_ancestors(prompt, &scratch.scores, &mut scratch.out);
        for (lane, sum) in sums.iter().enumerate().take(self.lanes) {
            let (row, head) = (self.lane)(lane);
            let out = &mut out[(self.first + row) * self.heads.query_width() + head * size..][..size];
            for (o, values) in out.iter_mut().zip(scratch.out.chunks_exact(PANEL)) {
                *o = values[lane] / sum;
            }
        }
    }

    /// Scores of the first `prompt` keys, and −∞ in the `depth` rows after them.
    fn score_path(&self, prompt: usize, queries: &[f32], scores: &mut Vec<f32>, depth: usize) {
        // The last tile of each cached run may reach past it, always with zeros: the sums that the
        // next run continues are unchanged, and a tile of slack at the end takes the rest.
        scores.clear();
        scores.resize((prompt + depth.max(TILE)) * PANEL, 0.0);
        let (size, mut at) = (self.heads.size, 0);
        for run in self.path {
            let len = run.keys.len() / self.heads.keys;
            let keys = &run.keys[self.head * len..][..len];
            for (t, tile) in keys.chunks_exact(size * TILE).enumerate() {
                let key = at + t * TILE;
                if key < prompt {
                    accumulate(TILE, tile, queries, &mut scores[key * PANEL..][..TILE * PANEL]);
                }
            }
            at += run.len;
        }
        assert!(at >= prompt, "the path holds every visible key");
        scores[prompt * PANEL..].fill(f32::NEG_INFINITY);
    }

    fn score_ancestors(&self, prompt: usize, scores: &mut [f32]) {
        for lane in 0..self.lanes {
            for (i, row) in self.sight(lane).ancestors.iter().enumerate() {
                let key = self.heads.key(self.rows, *row, self.head);
                scores[(prompt + i) * PANEL + lane] = dot(self.query(lane), key);
            }
        }
    }

    /// Unnormalised outputs over the prompt, `[component][lane]`.
    fn mix_path(&self, prompt: usize, weights: &[f32], out: &mut Vec<f32>) {
        let size = self.heads.size;
        out.clear();
        out.resize(size.next_multiple_of(TILE) * PANEL, 0.0);
        let mut at = 0;
        for run in self.path {
            let seen = run.len.min(prompt.saturating_sub(at));
            let len = run.values.len() / self.heads.keys;
            let values = &run.values[self.head * len..][..len];
            let weights = &weights[at * PANEL..][..seen * PANEL];
            for (t, out) in out.chunks_exact_mut(TILE * PANEL).enumerate() {
                let tile = &values[t * run.capacity * TILE..][..seen * TILE];
                accumulate(size - t * TILE, tile, weights, out);
            }
            at += run.len;
            if at >= prompt {
                break;
            }
        }
    }

    fn mix_ancestors(&self, prompt: usize, weights: &[f32], out: &mut [f32]) {
        for lane in 0..self.lanes {
            for (i, row) in self.sight(lane).ancestors.iter().enumerate() {
                let weight = weights[(prompt + i) * PANEL + lane];
                let value = self.heads.value(self.rows, *row, self.head);
                for (o, v) in out.chunks_exact_mut(PANEL).zip(value) {
                    o[lane] += weight * v;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::testing::noise;

    const HEADS: Heads = Heads { queries: 6, keys: 2, size: 20 };

    /// Attention by its definition, in f64, of one row over explicit key rows.
    fn reference(rows: &[f32], row: usize, keys: &[usize]) -> Vec<f64> {
        let group = HEADS.queries / HEADS.keys;
        let mut out = Vec::new();
        for head in 0..HEADS.queries {
            let q = &rows[row * HEADS.row_width() + head * HEADS.size..][..HEADS.size];
            let score = |k: &usize| -> f64 {
                let key = HEADS.key(rows, *k, head / group);
                q.iter().zip(key).map(|(a, b)| *a as f64 * *b as f64).sum()
            };
            let weights: Vec<f64> = keys.iter().map(|k| score(k).exp()).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..HEADS.size {
                let value = |k: usize| HEADS.value(rows, k, head / group)[d] as f64;
                out.push(keys.iter().zip(&weights).map(|(k, w)| w / total * value(*k)).sum());
            }
        }
        out
    }

    /// 30 prompt rows, then a small tree on top of them.
    fn case() -> (Vec<f32>, Vec<Sight>, Vec<Vec<usize>>) {
        let rows = noise(11, 35 * HEADS.row_width());
        let mut sights: Vec<Sight> = (0..30).map(|i| Sight { prompt: i + 1, ancestors: vec![] }).collect();
        for path in [vec![30], vec![30, 31], vec![32], vec![30, 31, 33], vec![32, 34]] {
            sights.push(Sight { prompt: 30, ancestors: path });
        }
        let keys =
            sights.iter().map(|s| (0..s.prompt).chain(s.ancestors.iter().copied()).collect()).collect();
        (rows, sights, keys)
    }

    fn run(rows: &[f32], sights: &[Sight], first: usize, cuts: &[usize]) -> Vec<f32> {
        let runs: Vec<KeyValues> = cuts
            .windows(2)
            .map(|w| {
                let mut run = KeyValues::default();
                run.pack(HEADS, rows, w[0], w[1] - w[0]);
                run
            })
            .collect();
        let mut out = vec![0.0; 35 * HEADS.query_width()];
        let path: Vec<&KeyValues> = runs.iter().collect();
        attend(HEADS, rows, first, &sights[first..], &path, &mut Scratch::default(), &mut out);
        out
    }

    #[test]
    fn agrees_with_the_definition() {
        let (rows, sights, keys) = case();
        let out = run(&rows, &sights, 0, &[0, 30]);
        for (row, keys) in keys.iter().enumerate() {
            let exact = reference(&rows, row, keys);
            for (a, b) in out[row * HEADS.query_width()..].iter().zip(&exact) {
                assert!((*a as f64 - b).abs() < 2e-6, "row {row}: {a} {b}");
            }
        }
    }

    #[test]
    fn where_the_path_is_cut_changes_no_bit() {
        let (rows, sights, _) = case();
        let whole = run(&rows, &sights, 20, &[0, 30]);
        for cuts in [&[0, 1, 30][..], &[0, 12, 30], &[0, 7, 19, 30], &[0, 29, 30]] {
            assert_eq!(run(&rows, &sights, 20, cuts), whole);
        }
        // A run that grew position by position, with room to spare.
        let mut grown = KeyValues::default();
        for at in 0..30 {
            let mut one = KeyValues::default();
            one.pack(HEADS, &rows, at, 1);
            grown.append(HEADS, &one);
        }
        assert!(grown.capacity > grown.len);
        let mut out = vec![0.0; 35 * HEADS.query_width()];
        attend(HEADS, &rows, 20, &sights[20..], &[&grown], &mut Scratch::default(), &mut out);
        assert_eq!(out, whole);
        // Runs that were cut out of longer ones, tidy and with room to spare.
        let mut long = KeyValues::default();
        long.pack(HEADS, &rows, 0, 30);
        for long in [&long, &grown] {
            for cut in [1, 13, 16, 21] {
                let (first, second) = (long.part(HEADS, 0..cut), long.part(HEADS, cut..30));
                for part in [&first, &second] {
                    assert_eq!(part.held(), KeyValues::bytes(HEADS, part.len));
                }
                let path = [&first, &second];
                attend(HEADS, &rows, 20, &sights[20..], &path, &mut Scratch::default(), &mut out);
                assert_eq!(out, whole);
            }
        }
        // Rows before the first are computed too when the prompt is not cached: same bits.
        let fresh = run(&rows, &sights, 0, &[0, 30]);
        assert_eq!(fresh[20 * HEADS.query_width()..], whole[20 * HEADS.query_width()..]);
    }
}
