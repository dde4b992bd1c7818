//! The network of Llama and Qwen2: its weights, and loading them.
//!
//! Decision: related matrices over the same input are packed as one, and the embedding table is the
//! output weights where the model ties them, so that nothing is held twice. What one architecture
//! has and the other has not is an option here; there is one network.

use std::sync::Arc;

use super::adapters::{Adapter, Adapters, Loaded, Place};
use super::error::LmError;
use super::head::Head;
use super::matmul::Matrix;
use super::sizes::Sizes;
use super::weights::Rows;

/// Gives a tensor by its GGUF name after checking its shape; query and key rows in rotation order.
pub(super) type Source<'a> = dyn FnMut(&str, &[usize]) -> Result<Rows, LmError> + 'a;

/// The weights of a layer.
pub(super) struct Layer {
    pub(super) attention_norm: Vec<f32>,
    /// `[query | key | value]` over the same input.
    pub(super) projection: Matrix,
    /// `[query | key | value]` to add, where the model has it.
    pub(super) bias: Option<Vec<f32>>,
    pub(super) output: Matrix,
    pub(super) output_bias: Option<Vec<f32>>,
    pub(super) inner_norm: Vec<f32>,
    /// `[gate | up]` over the same input.
    pub(super) gate_up: Matrix,
    pub(super) down: Matrix,
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
            attention_norm: get("attn_norm", &[hidden])?.to_f32(),
            projection: Matrix::pack(vec![wq, wk, wv], hidden),
            bias,
            output_bias,
            output: Matrix::pack(vec![get("attn_output", &[hidden, q])?], q),
            inner_norm: get("ffn_norm", &[hidden])?.to_f32(),
            gate_up: Matrix::pack(vec![gate, up], hidden),
            down: Matrix::pack(vec![get("ffn_down", &[hidden, inner])?], inner),
        })
    }

    /// The weights of a place.
    pub(super) fn matrix(&self, place: Place) -> &Matrix {
        match place {
            Place::Projection => &self.projection,
            Place::Output => &self.output,
            Place::GateUp => &self.gate_up,
            Place::Down => &self.down,
        }
    }
}

/// The biases of a layer: of `[query | key | value]`, and of the output of attention.
type Biases = (Option<Vec<f32>>, Option<Vec<f32>>);

fn biases(sizes: &Sizes, layer: usize, source: &mut Source) -> Result<Biases, LmError> {
    let mut get = |name: &str, size: usize| {
        source(&format!("blk.{layer}.{name}.bias"), &[size]).map(|rows| rows.to_f32())
    };
    let (q, kv) = (sizes.heads.query_width(), sizes.heads.key_width());
    let bias = match sizes.biases {
        true => Some([get("attn_q", q)?, get("attn_k", kv)?, get("attn_v", kv)?].concat()),
        false => None,
    };
    Ok((bias, sizes.output_bias.then(|| get("attn_output", sizes.hidden)).transpose()?))
}

/// Adds a bias to each row, where there is one.
pub(super) fn add_bias(rows: &mut [f32], bias: &Option<Vec<f32>>) {
    if let Some(bias) = bias {
        rows.chunks_exact_mut(bias.len()).for_each(|row| row.iter_mut().zip(bias).for_each(|(x, b)| *x += b));
    }
}

/// The weights of a llama network; a copy shares them.
#[derive(Clone)]
pub(crate) struct Llama {
    pub(super) sizes: Sizes,
    /// The embedding table, where it is not the output weights.
    pub(super) embedding: Option<Arc<Matrix>>,
    pub(super) layers: Arc<[Layer]>,
    pub(super) head: Arc<Head>,
    /// Angle per position of each rotated pair.
    pub(super) frequencies: Vec<f64>,
    /// What is added to the layers from one on to the last.
    adapters: Option<(usize, Arc<Loaded>)>,
}

impl Llama {
    /// Takes all weights from `source`.
    pub(super) fn load(sizes: Sizes, source: &mut Source) -> Result<Self, LmError> {
        let table = source("token_embd.weight", &[sizes.vocab, sizes.hidden])?;
        let table = Matrix::pack(vec![table], sizes.hidden);
        let (embedding, output) = match sizes.tied {
            true => (None, table),
            false => {
                let output = source("output.weight", &[sizes.vocab, sizes.hidden])?;
                (Some(Arc::new(table)), Matrix::pack(vec![output], sizes.hidden))
            }
        };
        let size = sizes.heads.size;
        let factors = match sizes.scaled {
            true => source("rope_freqs.weight", &[size / 2])?.to_f32(),
            false => vec![1.0; size / 2],
        };
        let frequency = |(i, factor): (usize, &f32)| {
            (sizes.rope_base as f64).powf(-2.0 * i as f64 / size as f64) / f64::from(*factor)
        };
        let layers: Vec<Layer> =
            (0..sizes.layers).map(|i| Layer::load(&sizes, i, source)).collect::<Result<_, _>>()?;
        let gain = source("output_norm.weight", &[sizes.hidden])?.to_f32();
        Ok(Self {
            sizes,
            embedding,
            layers: layers.into(),
            head: Arc::new(Head::new(output, gain, sizes.epsilon)),
            frequencies: factors.iter().enumerate().map(frequency).collect(),
            adapters: None,
        })
    }

    /// The network with adapters of these numbers instead of those it has.
    pub(crate) fn with_adapters(&self, adapters: &Adapters, values: &[f32]) -> Self {
        let loaded = Some((adapters.first(), Arc::new(adapters.load(values))));
        Self { adapters: loaded, ..self.clone() }
    }

    /// The adapter of a place in a layer, where it has one.
    pub(super) fn adapter(&self, layer: usize, place: Place) -> Option<&Adapter> {
        let (first, loaded) = self.adapters.as_ref()?;
        Some(&loaded.layer(layer.checked_sub(*first)?)[place as usize])
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
            + self.embedding.as_ref().map_or(0, |table| table.bytes())
            + self.head.bytes()
    }
}
