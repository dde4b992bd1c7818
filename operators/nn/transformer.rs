//! The stack of causal self-attention layers.
//!
//! Post-norm, as the paper has it: H⁽ˡ⁾ = LayerNorm(A + H⁽ˡ⁻¹⁾) (CoEA, section 3.2), followed by the
//! feed-forward sublayer of the transformer it cites. So the output is normalised, which suits a
//! quantiser. The first row of each sequence is the feature token: one embedding per feature,
//! summed.

use std::ops::Range;

use super::{
    activation::{silu, silu_backward},
    attention,
    layers::{LayerNorm, Linear, Normalised},
    matrix::add_scaled,
    params::{Init, Layout, Slot},
    random::Stream,
    softmax_loss::Output,
    windows::Packed,
};

/// Width of the feed-forward sublayer, in multiples of the model's; one, as in SASRec: twice that
/// costs a fifth more time and predicts no better.
const EXPANSION: usize = 1;
const EMBEDDING_DEVIATION: f32 = 0.02;
/// Start of the maps that end a sublayer, relative to the others. Nearly silent sublayers are what
/// lets four post-norm layers train at a high rate from the first step.
const RESIDUAL_START: f32 = 0.1;

/// The sizes a network is built from.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// Width of every row.
    pub dim: usize,
    /// Number of layers.
    pub layers: usize,
    /// Attention heads; they divide `dim`.
    pub heads: usize,
    /// Longest item sequence.
    pub max_length: usize,
    /// Items beside the unknown one.
    pub n_items: usize,
    /// Buckets of each feature beside the missing one.
    pub feature_sizes: &'a [usize],
}

/// Places of all parameters.
#[derive(Clone, Debug)]
pub struct Transformer {
    /// The table of parameters.
    pub layout: Layout,
    dim: usize,
    items: Slot,
    item_bias: Slot,
    features: Vec<Slot>,
    positions: Slot,
    norm: LayerNorm,
    blocks: Vec<Block>,
}

#[derive(Clone, Debug)]
struct Block {
    dim: usize,
    heads: usize,
    qkv: Linear,
    mix: Linear,
    norm1: LayerNorm,
    widen: Linear,
    narrow: Linear,
    norm2: LayerNorm,
}

/// Where dropout masks come from; without a stream nothing is dropped.
pub struct Dropout {
    /// Share of entries set to zero.
    pub rate: f32,
    /// The stream of this step and shard, `None` outside training.
    pub stream: Option<Stream>,
}

impl Dropout {
    /// No dropout.
    pub fn none() -> Self {
        Dropout { rate: 0.0, stream: None }
    }

    fn apply(&mut self, x: &mut [f32]) -> Mask {
        let Some(stream) = self.stream.as_mut().filter(|_| self.rate > 0.0) else { return Mask(None) };
        let mask = Mask(Some(stream.dropout_mask(x.len(), self.rate)));
        mask.apply(x);
        mask
    }
}

/// The factors a dropout used.
struct Mask(Option<Vec<f32>>);

impl Mask {
    fn apply(&self, x: &mut [f32]) {
        if let Some(mask) = &self.0 {
            x.iter_mut().zip(mask).for_each(|(x, m)| *x *= m);
        }
    }
}

/// What the backward pass needs from the forward pass.
pub struct Cache {
    norm: Normalised,
    mask: Mask,
    blocks: Vec<BlockCache>,
}

struct BlockCache {
    x: Vec<f32>,
    qkv: Vec<f32>,
    weights: attention::Weights,
    mixed: Vec<f32>,
    mask1: Mask,
    norm1: Normalised,
    middle: Vec<f32>,
    wide: Vec<f32>,
    active: Vec<f32>,
    mask2: Mask,
    norm2: Normalised,
}

impl Transformer {
    /// Lays out the parameters.
    pub fn new(shape: Shape<'_>) -> Self {
        let mut layout = Layout::default();
        let dim = shape.dim;
        let embedding = Init::Random(EMBEDDING_DEVIATION);
        let items = layout.add("items", shape.n_items + 1, dim, embedding, false);
        let item_bias = layout.add("items.bias", 1, shape.n_items, Init::Constant(0.0), false);
        let positions = layout.add("positions", shape.max_length + 1, dim, embedding, false);
        let sizes = shape.feature_sizes.iter().enumerate();
        let features =
            sizes.map(|(i, n)| layout.add(format!("features.{i}"), n + 1, dim, embedding, false)).collect();
        let norm = LayerNorm::new(&mut layout, "norm", dim);
        let blocks = (0..shape.layers).map(|i| Block::new(&mut layout, i, dim, shape.heads)).collect();
        Transformer { layout, dim, items, item_bias, features, positions, norm, blocks }
    }

    /// The output weights: embeddings of items 1..=n and their biases.
    pub fn output<'a>(&self, params: &'a [f32]) -> Output<'a> {
        Output { items: &params[self.known_items()], bias: &params[self.item_bias.range()] }
    }

    /// Where the output's weights and biases lie; the biases follow directly.
    pub fn output_ranges(&self) -> (Range<usize>, Range<usize>) {
        (self.known_items(), self.item_bias.range())
    }

    /// Row 0 stands for unknown items, which are never predicted.
    fn known_items(&self) -> Range<usize> {
        self.items.row(0).end..self.items.range().end
    }

    /// The last layer's rows, `rows × dim`.
    pub fn forward(&self, params: &[f32], batch: &Packed<'_>, dropout: &mut Dropout) -> (Vec<f32>, Cache) {
        let (mut x, norm) = self.norm.forward(params, &self.embed(params, batch));
        let mask = dropout.apply(&mut x);
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let (y, cache) = block.forward(params, x, &batch.segments, dropout);
            blocks.push(cache);
            x = y;
        }
        (x, Cache { norm, mask, blocks })
    }

    /// Adds the gradient of every parameter, given that of the last layer's rows.
    pub fn backward(
        &self,
        params: &[f32],
        gradient: &mut [f32],
        batch: &Packed<'_>,
        cache: &Cache,
        dy: Vec<f32>,
    ) {
        let mut dx = dy;
        for (block, cache) in self.blocks.iter().zip(&cache.blocks).rev() {
            dx = block.backward(params, gradient, cache, &batch.segments, &dx);
        }
        cache.mask.apply(&mut dx);
        let dx = self.norm.backward(params, gradient, &cache.norm, &dx);
        self.each_embedding(batch, |row, embedding| {
            add_scaled(&mut gradient[embedding], 1.0, &dx[row * self.dim..(row + 1) * self.dim]);
        });
    }

    fn embed(&self, params: &[f32], batch: &Packed<'_>) -> Vec<f32> {
        let mut x = vec![0.0; batch.items.len() * self.dim];
        self.each_embedding(batch, |row, embedding| {
            add_scaled(&mut x[row * self.dim..(row + 1) * self.dim], 1.0, &params[embedding]);
        });
        x
    }

    /// Calls `visit` with every (row, place of an embedding summed into it).
    fn each_embedding(&self, batch: &Packed<'_>, mut visit: impl FnMut(usize, Range<usize>)) {
        for (segment, features) in batch.segments.iter().zip(&batch.features) {
            for (position, row) in segment.clone().enumerate() {
                visit(row, self.positions.row(position));
                if position > 0 {
                    visit(row, self.items.row(batch.items[row] as usize));
                }
            }
            for (slot, bucket) in self.features.iter().zip(*features) {
                visit(segment.start, slot.row(*bucket as usize));
            }
        }
    }
}

impl Block {
    fn new(layout: &mut Layout, index: usize, dim: usize, heads: usize) -> Self {
        let name = |part: &str| format!("layers.{index}.{part}");
        Block {
            dim,
            heads,
            qkv: Linear::new(layout, &name("qkv"), dim, 3 * dim),
            mix: Linear::scaled(layout, &name("mix"), dim, dim, RESIDUAL_START),
            norm1: LayerNorm::new(layout, &name("norm1"), dim),
            widen: Linear::new(layout, &name("widen"), dim, EXPANSION * dim),
            narrow: Linear::scaled(layout, &name("narrow"), EXPANSION * dim, dim, RESIDUAL_START),
            norm2: LayerNorm::new(layout, &name("norm2"), dim),
        }
    }

    fn forward(
        &self,
        params: &[f32],
        x: Vec<f32>,
        segments: &[Range<usize>],
        dropout: &mut Dropout,
    ) -> (Vec<f32>, BlockCache) {
        let qkv = self.qkv.forward(params, &x);
        let (mixed, weights) = attention::forward(&qkv, segments, self.dim, self.heads);
        let mut attended = self.mix.forward(params, &mixed);
        let mask1 = dropout.apply(&mut attended);
        add_scaled(&mut attended, 1.0, &x);
        let (middle, norm1) = self.norm1.forward(params, &attended);
        let wide = self.widen.forward(params, &middle);
        let active = silu(&wide);
        let mut fed = self.narrow.forward(params, &active);
        let mask2 = dropout.apply(&mut fed);
        add_scaled(&mut fed, 1.0, &middle);
        let (y, norm2) = self.norm2.forward(params, &fed);
        (y, BlockCache { x, qkv, weights, mixed, mask1, norm1, middle, wide, active, mask2, norm2 })
    }

    fn backward(
        &self,
        params: &[f32],
        gradient: &mut [f32],
        cache: &BlockCache,
        segments: &[Range<usize>],
        dy: &[f32],
    ) -> Vec<f32> {
        let dsum = self.norm2.backward(params, gradient, &cache.norm2, dy);
        let mut dfed = dsum.clone();
        cache.mask2.apply(&mut dfed);
        let mut dwide = self.narrow.backward(params, gradient, &cache.active, &dfed);
        silu_backward(&cache.wide, &mut dwide);
        let mut dmiddle = self.widen.backward(params, gradient, &cache.middle, &dwide);
        add_scaled(&mut dmiddle, 1.0, &dsum);
        let dsum = self.norm1.backward(params, gradient, &cache.norm1, &dmiddle);
        let mut dattended = dsum.clone();
        cache.mask1.apply(&mut dattended);
        let dmixed = self.mix.backward(params, gradient, &cache.mixed, &dattended);
        let dqkv = attention::backward(&cache.qkv, segments, self.dim, self.heads, &cache.weights, &dmixed);
        let mut dx = self.qkv.backward(params, gradient, &cache.x, &dqkv);
        add_scaled(&mut dx, 1.0, &dsum);
        dx
    }
}

#[cfg(test)]
mod tests {
    use super::{super::grad_check, *};

    fn tiny() -> Transformer {
        Transformer::new(Shape {
            dim: 4,
            layers: 2,
            heads: 2,
            max_length: 3,
            n_items: 5,
            feature_sizes: &[2, 1],
        })
    }

    fn batch() -> Packed<'static> {
        let mut packed = Packed::default();
        packed.push(&[1, 4, 4], &[2, 0]);
        packed.push(&[], &[1, 1]);
        packed.push(&[5], &[0, 1]);
        packed
    }

    #[test]
    fn gradients_through_the_whole_stack() {
        let (model, batch) = (tiny(), batch());
        grad_check::check(
            &model.layout,
            0,
            |params, _| model.forward(params, &batch, &mut Dropout::none()).0,
            |params, gradient, _, dy| {
                let (_, cache) = model.forward(params, &batch, &mut Dropout::none());
                model.backward(params, gradient, &batch, &cache, dy.to_vec());
                Vec::new()
            },
        );
    }

    #[test]
    fn gradients_under_dropout() {
        let (model, batch) = (tiny(), batch());
        let dropout = || Dropout { rate: 0.4, stream: Some(Stream::new(5, "dropout", &[])) };
        grad_check::check(
            &model.layout,
            0,
            |params, _| model.forward(params, &batch, &mut dropout()).0,
            |params, gradient, _, dy| {
                let (_, cache) = model.forward(params, &batch, &mut dropout());
                model.backward(params, gradient, &batch, &cache, dy.to_vec());
                Vec::new()
            },
        );
    }
}
