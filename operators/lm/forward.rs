//! The forward pass: many short sequences, shared prefixes, trees of tokens.
//!
//! Decision: a pass over prompts runs on one thread, and threads take different passes. Prompts come by
//! the hundred, so all cores are busy without a barrier, and no result can depend on their number.
//! The rows of several sequences go through each weight matrix together; attention alone knows
//! which row belongs where.

use rayon::prelude::*;

use super::adapters::{Place, Spare};
use super::attention::{Scratch, attend};
use super::batch::{Layout, Prefix, Run, Sequence};
use super::keys_values::KeyValues;
use super::llama::{Llama, add_bias};
use super::math::{gate, rms_norm, rotate};
use super::matmul::Tiles;
use super::sizes::Sizes;
use super::spread::{self, Threads};

/// Sees what a forward pass computes on its way.
pub(crate) trait Watch {
    /// The keys and values of the tokens of a sequence, layer by layer and in each sequence by
    /// sequence; may take them.
    fn prompt(&mut self, _keys_values: &mut KeyValues) {}

    /// `[query | key | value]` of all rows of the pass, rotated, layer by layer.
    fn rows(&mut self, _layer: usize, _rows: &[f32]) {}
}

/// Watches nothing.
struct Nothing;

impl Watch for Nothing {}

/// Takes the keys and values of the one sequence of a pass.
struct Layers(Vec<KeyValues>);

impl Watch for Layers {
    fn prompt(&mut self, keys_values: &mut KeyValues) {
        self.0.push(std::mem::take(keys_values));
    }
}

/// Takes the keys and values of each sequence of a pass.
struct Taken {
    by_sequence: Vec<Vec<KeyValues>>,
    next: usize,
}

impl Watch for Taken {
    fn prompt(&mut self, keys_values: &mut KeyValues) {
        self.by_sequence[self.next].push(std::mem::take(keys_values));
        self.next = (self.next + 1) % self.by_sequence.len();
    }
}

impl Llama {
    /// Computes the keys and values of `tokens` after `before`.
    pub(crate) fn extend(&self, before: &Prefix, tokens: &[u32]) -> Run {
        self.read(before, tokens).0
    }

    /// [`Llama::extend`], and the hidden state of the last of the tokens, before the last norm.
    pub(crate) fn read(&self, before: &Prefix, tokens: &[u32]) -> (Run, Vec<f32>) {
        let mut layers = Layers(Vec::with_capacity(self.sizes.layers));
        let mut hidden = self.forward(&[Sequence::new(Some(before), tokens, &[])], &mut layers);
        let last = hidden.split_off(hidden.len() - self.sizes.hidden);
        (Run::new(tokens.len(), layers.0), last)
    }

    /// Hidden states of all rows, and of each sequence the keys and values of its tokens.
    pub(crate) fn read_all(&self, sequences: &[Sequence]) -> (Vec<f32>, Vec<Run>) {
        let (hidden, layers) = self.taking(sequences, Threads::One);
        let run = |(sequence, layers): (&Sequence, _)| Run::new(sequence.tokens.len(), layers);
        (hidden, sequences.iter().zip(layers).map(run).collect())
    }

    /// A pass of one token per sequence: its hidden states, and the keys and values of each by layer.
    pub(crate) fn step(&self, sequences: &[Sequence]) -> (Vec<f32>, Vec<Vec<KeyValues>>) {
        self.taking(sequences, Threads::All)
    }

    fn taking(&self, sequences: &[Sequence], threads: Threads) -> (Vec<f32>, Vec<Vec<KeyValues>>) {
        let mut taken = Taken { by_sequence: sequences.iter().map(|_| Vec::new()).collect(), next: 0 };
        let hidden = self.pass(sequences, threads, &mut taken);
        (hidden, taken.by_sequence)
    }

    /// Hidden states before the last norm, `[row][hidden]`, the rows of the sequences in order.
    pub(crate) fn hidden(&self, sequences: &[Sequence]) -> Vec<f32> {
        self.forward(sequences, &mut Nothing)
    }

    /// Hidden states before the last norm; `watch` sees what goes by.
    pub(crate) fn forward(&self, sequences: &[Sequence], watch: &mut dyn Watch) -> Vec<f32> {
        self.pass(sequences, Threads::One, watch)
    }

    fn pass(&self, sequences: &[Sequence], threads: Threads, watch: &mut dyn Watch) -> Vec<f32> {
        let Sizes { hidden, inner, heads, epsilon, .. } = self.sizes;
        let layout = Layout::new(sequences);
        let rows = layout.tokens.len();
        let rotation = self.rotation(&layout.positions);
        let mut x = self.embed(&layout.tokens);
        let mut normed = vec![0.0; rows * hidden];
        let mut projected = vec![0.0; (rows + layout.given.len()) * heads.row_width()];
        let mut mixed = vec![0.0; rows * heads.query_width()];
        let mut wide = vec![0.0; rows * 2 * inner];
        let (mut tiles, mut panel, mut scratch) = (Tiles::default(), Vec::new(), Scratch::default());
        let mut spare = Spare::default();
        let mut product = |index: usize, place: Place, tiles: &Tiles, y: &mut [f32], add| {
            let matrix = self.layers[index].matrix(place);
            match threads {
                Threads::One => matrix.apply(tiles, &mut panel, y, add),
                Threads::All => matrix.apply_spread(tiles, y, add),
            }
            if let Some(adapter) = self.adapter(index, place) {
                adapter.add(tiles, &mut spare, y);
            }
        };
        let mut own = KeyValues::default();
        for (index, layer) in self.layers.iter().enumerate() {
            rms_norm(&x, &layer.attention_norm, epsilon, &mut normed);
            tiles.pack(rows, hidden, |r| &normed[r * hidden..]);
            product(index, Place::Projection, &tiles, &mut projected[..rows * heads.row_width()], false);
            add_bias(&mut projected[..rows * heads.row_width()], &layer.bias);
            self.rotate(&rotation, &mut projected);
            self.give(index, sequences, &layout, &mut projected);
            watch.rows(index, &projected);
            if threads == Threads::All {
                let seen = spread::attend(heads, index, sequences, &projected, &mut mixed);
                seen.into_iter().for_each(|mut own| watch.prompt(&mut own));
            }
            let mut first = 0;
            for sequence in sequences.iter().filter(|_| threads == Threads::One) {
                own.pack(heads, &projected, first, sequence.tokens.len());
                let mut path = sequence.prefix.map_or(Vec::new(), |prefix| prefix.path(index));
                path.push(&own);
                let sights = &layout.sights[first..first + sequence.rows()];
                attend(heads, &projected, first, sights, &path, &mut scratch, &mut mixed);
                watch.prompt(&mut own);
                first += sequence.rows();
            }
            tiles.pack(rows, heads.query_width(), |r| &mixed[r * heads.query_width()..]);
            product(index, Place::Output, &tiles, &mut x, true);
            add_bias(&mut x, &layer.output_bias);

            rms_norm(&x, &layer.inner_norm, epsilon, &mut normed);
            tiles.pack(rows, hidden, |r| &normed[r * hidden..]);
            product(index, Place::GateUp, &tiles, &mut wide, false);
            let gated = |row: &mut [f32]| {
                let (first, up) = row.split_at_mut(inner);
                gate(first, up);
            };
            match threads {
                Threads::One => wide.chunks_mut(2 * inner).for_each(gated),
                Threads::All => wide.par_chunks_mut(2 * inner).for_each(gated),
            }
            tiles.pack(rows, inner, |r| &wide[r * 2 * inner..]);
            product(index, Place::Down, &tiles, &mut x, true);
        }
        x
    }

    /// Puts the keys and values of branches that were computed before into their rows.
    fn give(&self, layer: usize, sequences: &[Sequence], layout: &Layout, projected: &mut [f32]) {
        let heads = self.sizes.heads;
        let rows = projected.chunks_exact_mut(heads.row_width()).skip(layout.tokens.len());
        for ((sequence, branch), row) in layout.given.iter().zip(rows) {
            let keys_values = sequences[*sequence].grown.keys_values(layer, *branch, 2 * heads.key_width());
            row[heads.query_width()..].copy_from_slice(keys_values);
        }
    }

    pub(super) fn embed(&self, tokens: &[u32]) -> Vec<f32> {
        let table = self.embedding.as_deref().unwrap_or(self.head.weights());
        let mut x = vec![0.0; tokens.len() * self.sizes.hidden];
        for (token, x) in tokens.iter().zip(x.chunks_exact_mut(self.sizes.hidden)) {
            table.read_output(*token as usize, x);
        }
        x
    }

    /// `[cos | sin]` of each row.
    pub(super) fn rotation(&self, positions: &[usize]) -> Vec<f32> {
        let mut rotation = Vec::with_capacity(positions.len() * self.sizes.heads.size);
        for position in positions {
            let angles = self.frequencies.iter().map(|frequency| *position as f64 * frequency);
            rotation.extend(angles.clone().map(|angle| angle.cos() as f32));
            rotation.extend(angles.map(|angle| angle.sin() as f32));
        }
        rotation
    }

    /// Rotates queries and keys in place, and scales the queries by `1/√size`.
    pub(super) fn rotate(&self, rotation: &[f32], projected: &mut [f32]) {
        let heads = self.sizes.heads;
        let scale = 1.0 / (heads.size as f32).sqrt();
        for (row, rotation) in
            projected.chunks_exact_mut(heads.row_width()).zip(rotation.chunks_exact(heads.size))
        {
            let (cos, sin) = rotation.split_at(heads.size / 2);
            let (queries, keys) = row.split_at_mut(heads.query_width());
            rotate(queries, cos, sin, scale);
            rotate(&mut keys[..heads.key_width()], cos, sin, 1.0);
        }
    }
}
