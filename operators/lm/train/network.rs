//! The network as it is tuned: a forward pass that keeps what its gradient needs, and the gradient.
//!
//! Decision: kept are five tables per layer, the ones that matrices and attention would have to make
//! again; norms, gates and attention weights are cheap and made again. Rows are cut into as many
//! parts as threads want, since no row's numbers depend on the rows of another part; what sums over
//! rows (keys, adapters) does so in their order. Layers below the adapters keep nothing: all that is
//! above them needs is their output.

use std::ops::Range;

use rayon::prelude::*;

use super::attention::{Scene, Turned};
use super::forest::Forest;
use super::linear::{Dropout, Linear, Scratch, Trace, add_gradients};
use super::math::{gate_backward, norm_backward};
use crate::lm::adapters::{Adapter, Adapters, Loaded, Place};
use crate::lm::kernel::TILE;
use crate::lm::llama::{Layer, Llama, add_bias};
use crate::lm::math::{gate, rms_norm, rotate};

/// Rows of a part, at most: many, since each part widens all weights and turns them round for itself.
const PART: usize = 24 * TILE;

/// What a part keeps of a layer, beside its rows of `[query | key | value]`.
struct Kept {
    /// Its input.
    x: Vec<f32>,
    /// The output of attention, before its matrix.
    mixed: Vec<f32>,
    /// The sum of input and attention.
    middle: Vec<f32>,
    /// `[gate | up]`
    wide: Vec<f32>,
}

/// Some rows on their way through the layers.
struct Part {
    rows: Range<usize>,
    x: Vec<f32>,
    kept: Vec<Kept>,
    scratch: Scratch,
    traces: [Trace; 4],
}

/// What a forward pass leaves for its gradient.
pub(crate) struct Tape {
    parts: Vec<Part>,
    /// `[query | key | value]` of all rows by adapted layer, rotated, the queries scaled.
    projected: Vec<Vec<f32>>,
    rotation: Vec<f32>,
    dropout: Option<Dropout>,
}

impl Tape {
    /// Hidden states before the last norm, `[row][hidden]`.
    pub(crate) fn hidden(&self) -> Vec<f32> {
        self.parts.iter().flat_map(|part| &part.x).copied().collect()
    }
}

/// A layer with the adapters of its matrices.
#[derive(Clone, Copy)]
struct Adapted<'a> {
    network: &'a Llama,
    layer: &'a Layer,
    linears: [Linear<'a>; 4],
}

/// A network with adapters.
#[derive(Clone, Copy)]
pub(crate) struct Tuned<'a> {
    pub(crate) network: &'a Llama,
    pub(crate) adapters: &'a Adapters,
    pub(crate) loaded: &'a Loaded,
}

impl Tuned<'_> {
    /// The adapted layers, from the output of [`below`].
    pub(crate) fn forward(&self, forest: &Forest, below: &[f32], dropout: Option<(u64, u64)>) -> Tape {
        let rate = self.adapters.dropout();
        let dropout = dropout.filter(|_| rate > 0.0).map(|(seed, step)| Dropout { rate, seed, step });
        let mut parts = parts(self.network, forest, below);
        let rotation = self.network.rotation(forest.positions());
        let layers = self.adapters.first()..self.network.layers.len();
        let one = |index| self.tuned(index, &dropout).forward(forest, &rotation, &mut parts, true);
        let projected = layers.map(one).collect();
        Tape { parts, projected, rotation, dropout }
    }

    fn tuned<'b>(&'b self, index: usize, dropout: &'b Option<Dropout>) -> Adapted<'b> {
        let adapters = self.loaded.layer(index - self.adapters.first());
        Adapted::new(self.network, index, Some(adapters), dropout.as_ref())
    }

    /// Adds the gradient of the adapters' parameters to `gradient`, given that of the hidden states.
    pub(crate) fn backward(&self, forest: &Forest, tape: Tape, slopes: &[f32], gradient: &mut [f32]) {
        let Tape { mut parts, mut projected, rotation, dropout } = tape;
        let hidden = self.network.sizes.hidden;
        for part in &mut parts {
            part.x.copy_from_slice(&slopes[part.rows.start * hidden..part.rows.end * hidden]);
        }
        for index in (self.adapters.first()..self.network.layers.len()).rev() {
            // One table of each kind was kept for each adapted layer.
            let projected = projected.pop().unwrap_or_default();
            self.tuned(index, &dropout).backward(forest, &rotation, &projected, &mut parts);
            for place in Place::ALL {
                let traces: Vec<&Trace> = parts.iter().map(|part| &part.traces[place as usize]).collect();
                add_gradients(self.adapters.modules(index, place), self.adapters.scale(), &traces, gradient);
            }
        }
    }
}

/// The input of layer `first`, `[row][hidden]`.
pub(super) fn below(network: &Llama, first: usize, forest: &Forest) -> Vec<f32> {
    let mut parts = parts(network, forest, &network.embed(forest.tokens()));
    let rotation = network.rotation(forest.positions());
    for index in 0..first {
        Adapted::new(network, index, None, None).forward(forest, &rotation, &mut parts, false);
    }
    parts.iter().flat_map(|part| &part.x).copied().collect()
}

/// The rows of a forest in parts of whole tiles, as many for each thread of the current pool.
fn parts(network: &Llama, forest: &Forest, x: &[f32]) -> Vec<Part> {
    let threads = rayon::current_num_threads();
    let count = forest.len().div_ceil(PART).next_multiple_of(threads);
    let size = forest.len().div_ceil(count).next_multiple_of(TILE);
    let starts = (0..forest.len()).step_by(size.max(1));
    let part = |(first, x): (usize, &[f32])| Part {
        rows: first..forest.len().min(first + size),
        x: x.to_vec(),
        kept: Vec::new(),
        scratch: Scratch::default(),
        traces: Default::default(),
    };
    starts.zip(x.chunks(size.max(1) * network.sizes.hidden)).map(part).collect()
}

impl<'a> Adapted<'a> {
    fn new(
        network: &'a Llama,
        index: usize,
        adapters: Option<&'a [Adapter; 4]>,
        dropout: Option<&'a Dropout>,
    ) -> Self {
        let layer = &network.layers[index];
        let linear = |place: Place| {
            let adapter = adapters.map(|adapters| &adapters[place as usize]);
            Linear { weights: layer.matrix(place), adapter, dropout, at: (index, place as usize) }
        };
        Self { network, layer, linears: Place::ALL.map(linear) }
    }

    fn norm(&self, x: &[f32], gain: &[f32]) -> Vec<f32> {
        let mut normed = vec![0.0; x.len()];
        rms_norm(x, gain, self.network.sizes.epsilon, &mut normed);
        normed
    }

    /// The layer's `[query | key | value]`; parts move on to its output.
    fn forward(&self, forest: &Forest, rotation: &[f32], parts: &mut [Part], keep: bool) -> Vec<f32> {
        let heads = self.network.sizes.heads;
        let mut projected = vec![0.0; forest.len() * heads.row_width()];
        // All parts but the last are of one size.
        let size = parts.first().map_or(1, |part| part.rows.len()) * heads.row_width();
        parts.par_iter_mut().zip(projected.par_chunks_mut(size)).for_each(|(part, projected)| {
            self.project(rotation, part, projected);
        });
        let keys = Turned::keys(heads, &projected);
        let scene = Scene { heads, forest, projected: &projected };
        parts.par_iter_mut().for_each(|part| self.finish(&scene, &keys, part, keep));
        projected
    }

    fn project(&self, rotation: &[f32], part: &mut Part, projected: &mut [f32]) {
        let normed = self.norm(&part.x, &self.layer.attention_norm);
        let linear = &self.linears[Place::Projection as usize];
        linear.forward(part.rows.start, &normed, projected, false, &mut part.scratch);
        add_bias(projected, &self.layer.bias);
        let size = self.network.sizes.heads.size;
        self.network.rotate(&rotation[part.rows.start * size..part.rows.end * size], projected);
    }

    fn finish(&self, scene: &Scene, keys: &Turned, part: &mut Part, keep: bool) {
        let (sizes, first) = (&self.network.sizes, part.rows.start);
        let mut mixed = vec![0.0; part.rows.len() * sizes.heads.query_width()];
        scene.attend(keys, part.rows.clone(), &mut mixed);
        let mut middle = part.x.clone();
        let [_, output, gate_up, down] = &self.linears;
        output.forward(first, &mixed, &mut middle, true, &mut part.scratch);
        add_bias(&mut middle, &self.layer.output_bias);

        let normed = self.norm(&middle, &self.layer.inner_norm);
        let mut wide = vec![0.0; part.rows.len() * 2 * sizes.inner];
        gate_up.forward(first, &normed, &mut wide, false, &mut part.scratch);
        let gated = gated(&wide, sizes.inner);
        let mut y = middle.clone();
        down.forward(first, &gated, &mut y, true, &mut part.scratch);
        let x = std::mem::replace(&mut part.x, y);
        if keep {
            part.kept.push(Kept { x, mixed, middle, wide });
        }
    }

    /// Parts move from the gradient of the layer's output to that of its input.
    fn backward(&self, forest: &Forest, rotation: &[f32], projected: &[f32], parts: &mut [Part]) {
        let heads = self.network.sizes.heads;
        let scene = Scene { heads, forest, projected };
        let turned = [Turned::keys(heads, projected), Turned::values(heads, projected)];
        let mut mixed = vec![0.0; forest.len() * heads.query_width()];
        let mut trace = vec![0.0; forest.pairs(0..forest.len()).len() * scene.trace_width()];
        let size = parts.first().map_or(1, |part| part.rows.len()) * heads.query_width();
        let mut rest = &mut trace[..];
        let traces = parts.iter().map(|part| {
            let count = forest.pairs(part.rows.clone()).len() * scene.trace_width();
            let (own, after) = std::mem::take(&mut rest).split_at_mut(count);
            rest = after;
            own
        });
        let traces: Vec<&mut [f32]> = traces.collect();
        let outputs = mixed.par_chunks_mut(size).zip(traces);
        let queries: Vec<Vec<f32>> = parts
            .par_iter_mut()
            .zip(outputs)
            .map(|(part, (mixed, trace))| {
                mixed.copy_from_slice(&self.pull_inner(part));
                scene.pull_queries(&turned, part.rows.clone(), mixed, trace)
            })
            .collect();
        parts.par_iter_mut().zip(queries).for_each(|(part, queries)| {
            let keys = scene.pull_keys(part.rows.clone(), &trace, &mixed);
            self.pull_projection(rotation, part, &queries, &keys);
        });
    }

    /// From the layer's output to the output of attention, whose gradient is returned.
    fn pull_inner(&self, part: &mut Part) -> Vec<f32> {
        let (sizes, first) = (&self.network.sizes, part.rows.start);
        let [_, output, gate_up, down] = &self.linears;
        let Part { x: slopes, kept, scratch, traces, .. } = part;
        let Some(Kept { mixed, middle, wide, .. }) = kept.last_mut() else { return Vec::new() };
        let (by_gated, trace) = down.backward(first, gated(wide, sizes.inner), slopes.clone(), scratch);
        traces[Place::Down as usize] = trace;
        let mut by_wide = vec![0.0; wide.len()];
        gate_backward(wide, &by_gated, sizes.inner, &mut by_wide);
        let normed = self.norm(middle, &self.layer.inner_norm);
        let (by_normed, trace) = gate_up.backward(first, normed, by_wide, scratch);
        traces[Place::GateUp as usize] = trace;
        norm_backward(middle, &self.layer.inner_norm, sizes.epsilon, &by_normed, slopes);
        let (by_mixed, trace) = output.backward(first, std::mem::take(mixed), slopes.clone(), scratch);
        traces[Place::Output as usize] = trace;
        by_mixed
    }

    /// From `[query | key | value]` to the layer's input.
    fn pull_projection(&self, rotation: &[f32], part: &mut Part, queries: &[f32], keys: &[f32]) {
        let heads = self.network.sizes.heads;
        let both = queries.chunks_exact(heads.query_width()).zip(keys.chunks_exact(2 * heads.key_width()));
        let mut slopes = Vec::with_capacity(queries.len() + keys.len());
        for (queries, keys) in both {
            slopes.extend_from_slice(queries);
            slopes.extend_from_slice(keys);
        }
        let rotation = &rotation[part.rows.start * heads.size..part.rows.end * heads.size];
        let scale = 1.0 / (heads.size as f32).sqrt();
        for (row, rotation) in
            slopes.chunks_exact_mut(heads.row_width()).zip(rotation.chunks_exact(heads.size))
        {
            // The transpose of a rotation is the rotation back.
            let (cos, sin) = rotation.split_at(heads.size / 2);
            let back: Vec<f32> = sin.iter().map(|sin| -sin).collect();
            let (queries, keys) = row.split_at_mut(heads.query_width());
            rotate(queries, cos, &back, scale);
            rotate(&mut keys[..heads.key_width()], cos, &back, 1.0);
        }
        let Some(Kept { x, .. }) = part.kept.pop() else { return };
        let normed = self.norm(&x, &self.layer.attention_norm);
        let linear = &self.linears[Place::Projection as usize];
        let (by_normed, trace) = linear.backward(part.rows.start, normed, slopes, &mut part.scratch);
        part.traces[Place::Projection as usize] = trace;
        norm_backward(&x, &self.layer.attention_norm, self.network.sizes.epsilon, &by_normed, &mut part.x);
    }
}

/// `silu(gate)·up` of rows `[gate | up]`, `[row][inner]`.
fn gated(wide: &[f32], inner: usize) -> Vec<f32> {
    let mut gated = Vec::with_capacity(wide.len() / 2);
    for (at, row) in wide.chunks_exact(2 * inner).enumerate() {
        gated.extend_from_slice(&row[..inner]);
        gate(&mut gated[at * inner..], &row[inner..]);
    }
    gated
}
