//! Low-rank adapters: which matrices have one, and where its numbers lie.
//!
//! Decision: the parameters of all adapters are one flat vector with a table of names, as those of
//! the other networks here are, so optimiser, checkpoints and clipping are theirs. Modules whose
//! weights are packed as one matrix have one adapter as far as products are concerned: their `A`
//! one under the other, their `B` along the diagonal.

use serde::{Deserialize, Serialize};

use super::error::LmError;
use super::matmul::{Matrix, Tiles};
use super::sizes::Sizes;
use super::weights::Rows;
use crate::nn::params::{Init, Layout, Slot};

/// How a model is adapted (Hu et al. 2021): `y = W x + alpha/rank · B A x`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraSettings {
    /// Rows of each `A`, columns of each `B`.
    pub rank: usize,
    /// Scale of what adapters add, times the rank.
    pub alpha: f32,
    /// Share of the inputs of adapters that is left out in training.
    pub dropout: f32,
    /// How many of the layers at the top are adapted; all if absent.
    pub top: Option<usize>,
}

impl LoraSettings {
    fn check(&self, sizes: &Sizes) -> Result<(), LmError> {
        let must = |fine: bool, parameter: &str, reason: String| match fine {
            true => Ok(()),
            false => Err(LmError::Tuning { parameter: parameter.to_owned(), reason }),
        };
        must(self.rank > 0, "rank", "must be at least 1".to_owned())?;
        let alpha = self.alpha.is_finite() && self.alpha > 0.0;
        must(alpha, "alpha", format!("must be a positive number, not {}", self.alpha))?;
        let dropout = (0.0..1.0).contains(&self.dropout);
        must(dropout, "dropout", format!("must be at least 0 and below 1, not {}", self.dropout))?;
        let (top, layers) = (self.top.unwrap_or(sizes.layers), sizes.layers);
        let reason = format!("must be between 1 and the model's {layers} layers, not {top}");
        must((1..=layers).contains(&top), "layers", reason)
    }
}

/// The matrices of a layer, each of one or several modules over the same input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Projection,
    Output,
    GateUp,
    Down,
}

impl Place {
    pub(super) const ALL: [Place; 4] = [Place::Projection, Place::Output, Place::GateUp, Place::Down];

    /// Its inputs, and its modules with their outputs.
    fn modules(self, sizes: &Sizes) -> (usize, Vec<(&'static str, usize)>) {
        let (hidden, inner) = (sizes.hidden, sizes.inner);
        let (q, kv) = (sizes.heads.query_width(), sizes.heads.key_width());
        match self {
            Place::Projection => (hidden, vec![("attn_q", q), ("attn_k", kv), ("attn_v", kv)]),
            Place::Output => (q, vec![("attn_output", hidden)]),
            Place::GateUp => (hidden, vec![("ffn_gate", inner), ("ffn_up", inner)]),
            Place::Down => (inner, vec![("ffn_down", hidden)]),
        }
    }
}

/// Where the adapter of one module lies: `A [rank][inputs]`, `B [outputs][rank]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Module {
    pub(super) a: Slot,
    pub(super) b: Slot,
}

/// The adapters of a model.
pub(crate) struct Adapters {
    settings: LoraSettings,
    /// The first layer that has them.
    first: usize,
    layout: Layout,
    /// By adapted layer and place.
    modules: Vec<[Vec<Module>; 4]>,
}

impl Adapters {
    /// The adapters of a network.
    ///
    /// # Errors
    /// If a setting is out of its range.
    pub(crate) fn new(sizes: &Sizes, settings: LoraSettings) -> Result<Self, LmError> {
        settings.check(sizes)?;
        let first = sizes.layers - settings.top.unwrap_or(sizes.layers);
        let mut layout = Layout::default();
        let rank = settings.rank;
        let mut place = |layer: usize, place: Place| {
            let (inputs, modules) = place.modules(sizes);
            // Kaiming's bound 1/√inputs, as other implementations start; nothing is added at first.
            let start = Init::Random((1.0 / (3.0 * inputs as f32)).sqrt());
            let mut add = |(name, outputs): (&str, usize)| Module {
                a: layout.add(format!("blk.{layer}.{name}.A"), rank, inputs, start, true),
                b: layout.add(format!("blk.{layer}.{name}.B"), outputs, rank, Init::Constant(0.0), true),
            };
            modules.into_iter().map(&mut add).collect::<Vec<_>>()
        };
        let modules = (first..sizes.layers).map(|layer| Place::ALL.map(|p| place(layer, p))).collect();
        Ok(Self { settings, first, layout, modules })
    }

    /// The table of parameters.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How many layers have none, at the bottom.
    pub(crate) fn first(&self) -> usize {
        self.first
    }

    /// What the adapters' products are multiplied by.
    pub(crate) fn scale(&self) -> f32 {
        self.settings.alpha / self.settings.rank as f32
    }

    /// The share of inputs left out in training.
    pub(super) fn dropout(&self) -> f32 {
        self.settings.dropout
    }

    /// The modules of a place in an adapted layer (counted from the first layer of the model).
    pub(super) fn modules(&self, layer: usize, place: Place) -> &[Module] {
        &self.modules[layer - self.first][place as usize]
    }

    /// The adapters with these numbers, ready for products; by adapted layer and place.
    pub(crate) fn load(&self, values: &[f32]) -> Loaded {
        let load = |modules: &Vec<Module>| Adapter::pack(modules, values, self.scale());
        Loaded(
            self.modules.iter().map(|layer| Place::ALL.map(|place| load(&layer[place as usize]))).collect(),
        )
    }
}

/// The adapters of one step.
pub(crate) struct Loaded(Vec<[Adapter; 4]>);

impl Loaded {
    /// Those of a layer, counted from the first that has them.
    pub(super) fn layer(&self, index: usize) -> &[Adapter; 4] {
        &self.0[index]
    }
}

/// The adapter of a matrix with these numbers.
pub(crate) struct Adapter {
    /// `A` of all modules one under the other.
    pub(super) down: Matrix,
    /// `B` of all modules along the diagonal, times the scale.
    pub(super) up: Matrix,
}

impl Adapter {
    /// Packs the adapters of modules over the same input.
    fn pack(modules: &[Module], values: &[f32], scale: f32) -> Self {
        let rank: usize = modules.iter().map(|module| module.a.rows).sum();
        let outputs: usize = modules.iter().map(|module| module.b.rows).sum();
        let (mut down, mut up) = (Vec::new(), vec![0.0; outputs * rank]);
        let mut rows = up.chunks_exact_mut(rank);
        let mut first = 0;
        for Module { a, b } in modules {
            down.extend_from_slice(&values[a.range()]);
            for (source, row) in values[b.range()].chunks_exact(b.cols).zip(&mut rows) {
                row[first..first + b.cols].iter_mut().zip(source).for_each(|(x, b)| *x = scale * b);
            }
            first += b.cols;
        }
        let inputs = modules.first().map_or(0, |module| module.a.cols);
        Self {
            down: Matrix::pack(vec![Rows::F32(down)], inputs),
            up: Matrix::pack(vec![Rows::F32(up)], rank),
        }
    }

    /// Adds the adapter's part to `y`, `[row][outputs]`.
    pub(super) fn add(&self, x: &Tiles, spare: &mut Spare, y: &mut [f32]) {
        let (rows, rank) = (x.rows, self.rank());
        spare.inner.resize(rows * rank, 0.0);
        self.down.apply(x, &mut spare.panel, &mut spare.inner, false);
        spare.tiles.pack(rows, rank, |r| &spare.inner[r * rank..]);
        self.up.apply(&spare.tiles, &mut spare.panel, y, true);
    }

    /// Rows of `A` of all modules.
    pub(super) fn rank(&self) -> usize {
        self.down.outputs()
    }
}

/// Buffers reused from one adapter to the next.
#[derive(Default)]
pub(super) struct Spare {
    inner: Vec<f32>,
    tiles: Tiles,
    panel: Vec<f32>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::testing::small_network;

    const SETTINGS: LoraSettings = LoraSettings { rank: 2, alpha: 4.0, dropout: 0.0, top: Some(1) };

    #[test]
    fn only_the_layers_asked_for_have_parameters() {
        let sizes = *small_network(1).sizes();
        let adapters = Adapters::new(&sizes, SETTINGS).unwrap();
        assert_eq!((adapters.first(), adapters.scale()), (2, 2.0));
        let names: Vec<_> = adapters.layout().entries().iter().map(|e| e.name.as_str()).collect();
        assert_eq!(names.len(), 14);
        assert_eq!(names[..3], ["blk.2.attn_q.A", "blk.2.attn_q.B", "blk.2.attn_k.A"]);
        let per_layer = 2 * ((36 + 36) + 2 * (36 + 12) + (36 + 36) + 2 * (36 + 52) + (52 + 36));
        assert_eq!(adapters.layout().len(), per_layer);
        let all = Adapters::new(&sizes, LoraSettings { top: None, ..SETTINGS }).unwrap();
        assert_eq!((all.first(), all.layout().len()), (0, 3 * per_layer));
        // A starts at random, B at zero.
        for (entry, zero) in adapters.layout().entries().iter().zip([false, true].into_iter().cycle()) {
            let values = &adapters.layout().initial(3)[entry.slot.range()];
            assert_eq!(values.iter().all(|v| *v == 0.0), zero, "{}", entry.name);
        }
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let sizes = *small_network(1).sizes();
        for (settings, name) in [
            (LoraSettings { rank: 0, ..SETTINGS }, "rank"),
            (LoraSettings { alpha: f32::NAN, ..SETTINGS }, "alpha"),
            (LoraSettings { dropout: 1.0, ..SETTINGS }, "dropout"),
            (LoraSettings { top: Some(0), ..SETTINGS }, "layers"),
            (LoraSettings { top: Some(4), ..SETTINGS }, "layers"),
        ] {
            let message = Adapters::new(&sizes, settings).err().unwrap().to_string();
            assert!(message.starts_with(&format!("{name}: must be ")), "{message}");
        }
    }
}
