//! The llama network for inference: many short sequences, shared prefixes, trees of tokens.
//!
//! Decision: a forward pass runs on one thread, and threads take different passes. Prompts come by
//! the hundred, so all cores are busy without a barrier, and no result can depend on their number.
//! The rows of several sequences go through each weight matrix together; attention alone knows
//! which row belongs where.

use std::sync::Arc;

use super::attention::{KeyValues, Scratch, attend};
use super::batch::{Layout, Prefix, Sequence};
use super::error::LmError;
use super::head::Head;
use super::math::{gate, rms_norm, rotate};
use super::matmul::{Matrix, Tiles};
use super::sizes::Sizes;
use super::spread::{self, Threads};

/// Gives a tensor by its GGUF name after checking its shape; query and key rows in rotation order.
pub(crate) type Source<'a> = dyn FnMut(&str, &[usize]) -> Result<Vec<f32>, LmError> + 'a;

struct Layer {
    attention_norm: Vec<f32>,
    /// `[query | key | value]` over the same input.
    projection: Matrix,
    /// `[query | key | value]` to add, where the model has it.
    bias: Option<Vec<f32>>,
    output: Matrix,
    output_bias: Option<Vec<f32>>,
    inner_norm: Vec<f32>,
    /// `[gate | up]` over the same input.
    gate_up: Matrix,
    down: Matrix,
}

impl Layer {
    fn load(sizes: &Sizes, layer: usize, source: &mut Source) -> Result<Self, LmError> {
        let (hidden, inner) = (sizes.hidden, sizes.inner);
        let (bias, output_bias) = biases(sizes, layer, source)?;
        let (q, kv) = (sizes.heads.query_width(), sizes.heads.key_width());
        let mut get = |name: &str, shape: &[usize]| source(&format!("blk.{layer}.{name}.weight"), shape);
        let (wq, wk, wv) =
            (get("attn_q", &[q, hidden])?, get("attn_k", &[kv, hidden])?, get("attn_v", &[kv, hidden])?);
        let (gate, up) = (get("ffn_gate", &[inner, hidden])?, get("ffn_up", &[inner, hidden])?);
        Ok(Self {
            attention_norm: get("attn_norm", &[hidden])?,
            projection: Matrix::pack(&[&wq, &wk, &wv], hidden),
            bias,
            output_bias,
            output: Matrix::pack(&[&get("attn_output", &[hidden, q])?], q),
            inner_norm: get("ffn_norm", &[hidden])?,
            gate_up: Matrix::pack(&[&gate, &up], hidden),
            down: Matrix::pack(&[&get("ffn_down", &[hidden, inner])?], inner),
        })
    }
}

/// The biases of a layer: of `[query | key | value]`, and of the output of attention.
type Biases = (Option<Vec<f32>>, Option<Vec<f32>>);

fn biases(sizes: &Sizes, layer: usize, source: &mut Source) -> Result<Biases, LmError> {
    let mut get = |name: &str, size: usize| source(&format!("blk.{layer}.{name}.bias"), &[size]);
    let (q, kv) = (sizes.heads.query_width(), sizes.heads.key_width());
    let bias = match sizes.biases {
        true => Some([get("attn_q", q)?, get("attn_k", kv)?, get("attn_v", kv)?].concat()),
        false => None,
    };
    Ok((bias, sizes.output_bias.then(|| get("attn_output", sizes.hidden)).transpose()?))
}

/// Adds a bias to each row, where there is one.
fn add_bias(rows: &mut [f32], bias: &Option<Vec<f32>>) {
    if let Some(bias) = bias {
        rows.chunks_exact_mut(bias.len()).for_each(|row| row.iter_mut().zip(bias).for_each(|(x, b)| *x += b));
    }
}

/// The weights of a llama network.
pub(crate) struct Llama {
    sizes: Sizes,
    /// The embedding table, where it is not the output weights.
    embedding: Option<Matrix>,
    layers: Vec<Layer>,
    head: Head,
    /// Angle per position of each rotated pair.
    frequencies: Vec<f64>,
}

impl Llama {
    /// Takes all weights from `source`.
    pub(crate) fn load(sizes: Sizes, source: &mut Source) -> Result<Self, LmError> {
        let table = source("token_embd.weight", &[sizes.vocab, sizes.hidden])?;
        let table = Matrix::pack(&[&table], sizes.hidden);
        let (embedding, output) = match sizes.tied {
            true => (None, table),
            false => {
                let output = source("output.weight", &[sizes.vocab, sizes.hidden])?;
                (Some(table), Matrix::pack(&[&output], sizes.hidden))
            }
        };
        let size = sizes.heads.size;
        let factors = match sizes.scaled {
            true => source("rope_freqs.weight", &[size / 2])?,
            false => vec![1.0; size / 2],
        };
        let frequency = |(i, factor): (usize, &f32)| {
            (sizes.rope_base as f64).powf(-2.0 * i as f64 / size as f64) / f64::from(*factor)
        };
        Ok(Self {
            sizes,
            embedding,
            layers: (0..sizes.layers).map(|i| Layer::load(&sizes, i, source)).collect::<Result<_, _>>()?,
            head: Head::new(output, source("output_norm.weight", &[sizes.hidden])?, sizes.epsilon),
            frequencies: factors.iter().enumerate().map(frequency).collect(),
        })
    }

    /// The sizes of the network.
    pub(crate) fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// The output weights.
    pub(crate) fn head(&self) -> &Head {
        &self.head
    }

    /// Bytes of all weights.
    pub(crate) fn bytes(&self) -> usize {
        let layer = |l: &Layer| {
            let matrices = [&l.projection, &l.output, &l.gate_up, &l.down];
            matrices.iter().map(|m| m.bytes()).sum::<usize>()
                + size_of_val(&l.attention_norm[..])
                + size_of_val(&l.inner_norm[..])
        };
        self.layers.iter().map(layer).sum::<usize>()
            + self.embedding.as_ref().map_or(0, Matrix::bytes)
            + self.head.bytes()
    }

    /// Computes the keys and values of `tokens` after `parent`.
    pub(crate) fn extend(&self, parent: Option<Arc<Prefix>>, tokens: &[u32]) -> Prefix {
        let mut layers = Vec::with_capacity(self.sizes.layers);
        let sequence = Sequence { prefix: parent.as_deref(), tokens, tree: &[] };
        self.forward(&[sequence], Threads::One, &mut |keys_values| layers.push(std::mem::take(keys_values)));
        Prefix::new(parent, tokens.len(), layers)
    }

    /// Hidden states of all rows, and of each sequence the keys and values of its tokens by layer.
    pub(crate) fn read(&self, sequences: &[Sequence], threads: Threads) -> (Vec<f32>, Vec<Vec<KeyValues>>) {
        let mut seen: Vec<Vec<KeyValues>> = sequences.iter().map(|_| Vec::new()).collect();
        let mut order = (0..sequences.len()).cycle();
        let hidden = self.forward(sequences, threads, &mut |keys_values| {
            order.by_ref().take(1).for_each(|at| seen[at].push(std::mem::take(keys_values)));
        });
        (hidden, seen)
    }

    /// Hidden states before the last norm, `[row][hidden]`, the rows of the sequences in order.
    pub(crate) fn hidden(&self, sequences: &[Sequence]) -> Vec<f32> {
        self.forward(sequences, Threads::One, &mut |_| ())
    }

    /// `seen` gets the keys and values of the tokens of each sequence, layer by layer.
    fn forward(
        &self,
        sequences: &[Sequence],
        threads: Threads,
        seen: &mut dyn FnMut(&mut KeyValues),
    ) -> Vec<f32> {
        let Sizes { hidden, inner, heads, epsilon, .. } = self.sizes;
        let layout = Layout::new(sequences);
        let rows = layout.tokens.len();
        let rotation = self.rotation(&layout.positions);
        let mut x = self.embed(&layout.tokens);
        let mut normed = vec![0.0; rows * hidden];
        let mut projected = vec![0.0; rows * heads.row_width()];
        let mut mixed = vec![0.0; rows * heads.query_width()];
        let mut wide = vec![0.0; rows * 2 * inner];
        let (mut tiles, mut panel, mut scratch) = (Tiles::default(), Vec::new(), Scratch::default());
        let mut product = |matrix: &Matrix, tiles: &Tiles, y: &mut [f32], add| match threads {
            Threads::One => matrix.apply(tiles, &mut panel, y, add),
            Threads::All => matrix.apply_spread(tiles, y, add),
        };
        let mut own = KeyValues::default();
        for (index, layer) in self.layers.iter().enumerate() {
            rms_norm(&x, &layer.attention_norm, epsilon, &mut normed);
            tiles.pack(rows, hidden, |r| &normed[r * hidden..]);
            product(&layer.projection, &tiles, &mut projected, false);
            add_bias(&mut projected, &layer.bias);
            self.rotate(&rotation, &mut projected);
            if threads == Threads::All {
                spread::attend(heads, index, sequences, &projected, &mut mixed)
                    .iter_mut()
                    .for_each(&mut *seen);
            }
            let mut first = 0;
            for sequence in sequences.iter().filter(|_| threads == Threads::One) {
                own.pack(heads, &projected, first, sequence.tokens.len());
                let mut path = sequence.prefix.map_or(Vec::new(), |prefix| prefix.path(index));
                path.push(&own);
                let sights = &layout.sights[first..first + sequence.rows()];
                attend(heads, &projected, first, sights, &path, &mut scratch, &mut mixed);
                seen(&mut own);
                first += sequence.rows();
            }
            tiles.pack(rows, heads.query_width(), |r| &mixed[r * heads.query_width()..]);
            product(&layer.output, &tiles, &mut x, true);
            add_bias(&mut x, &layer.output_bias);

            rms_norm(&x, &layer.inner_norm, epsilon, &mut normed);
            tiles.pack(rows, hidden, |r| &normed[r * hidden..]);
            product(&layer.gate_up, &tiles, &mut wide, false);
            gate(&mut wide, inner);
            tiles.pack(rows, inner, |r| &wide[r * 2 * inner..]);
            product(&layer.down, &tiles, &mut x, true);
        }
        x
    }

    fn embed(&self, tokens: &[u32]) -> Vec<f32> {
        let table = self.embedding.as_ref().unwrap_or(self.head.weights());
        let mut x = vec![0.0; tokens.len() * self.sizes.hidden];
        for (token, x) in tokens.iter().zip(x.chunks_exact_mut(self.sizes.hidden)) {
            table.read_output(*token as usize, x);
        }
        x
    }

    /// `[cos | sin]` of each row.
    fn rotation(&self, positions: &[usize]) -> Vec<f32> {
        let mut rotation = Vec::with_capacity(positions.len() * self.sizes.heads.size);
        for position in positions {
            let angles = self.frequencies.iter().map(|frequency| *position as f64 * frequency);
            rotation.extend(angles.clone().map(|angle| angle.cos() as f32));
            rotation.extend(angles.map(|angle| angle.sin() as f32));
        }
        rotation
    }

    /// Rotates queries and keys in place, and scales the queries by `1/√size`.
    fn rotate(&self, rotation: &[f32], projected: &mut [f32]) {
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
