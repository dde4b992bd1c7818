//! All parameters of a model in one flat vector, with a table of names.
//!
//! Layers hold [`Slot`]s, plain offsets, instead of tensors: gradients, optimiser moments and saved
//! files then share one order by construction, a shard's gradient is one vector to add, and nothing
//! can be forgotten by the optimiser.

use std::{collections::HashMap, ops::Range};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::{NnError, random::Stream};

/// The place of one parameter matrix in the flat vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    start: usize,
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub cols: usize,
}

impl Slot {
    /// Where the matrix lies.
    pub fn range(self) -> Range<usize> {
        self.start..self.start + self.rows * self.cols
    }

    /// Where one row of it lies.
    pub fn row(self, row: usize) -> Range<usize> {
        debug_assert!(row < self.rows);
        let start = self.start + row * self.cols;
        start..start + self.cols
    }
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Every entry the same.
    Constant(f32),
    /// Mean zero, this standard deviation.
    Random(f32),
}

/// One named parameter.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name, unique in the model.
    pub name: String,
    /// Its place.
    pub slot: Slot,
    /// Whether weight decay applies: to matrices of weights, not to biases, gains and embeddings.
    pub decay: bool,
    init: Init,
}

/// The table of names, in order of declaration.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    entries: Vec<Entry>,
    len: usize,
}

impl Layout {
    /// Declares a `rows × cols` parameter.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        rows: usize,
        cols: usize,
        init: Init,
        decay: bool,
    ) -> Slot {
        let slot = Slot { start: self.len, rows, cols };
        self.len += rows * cols;
        self.entries.push(Entry { name: name.into(), slot, decay, init });
        slot
    }

    /// The parameters in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The length of the flat vector.
    #[expect(clippy::len_without_is_empty, reason = "a model without parameters does not occur")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Starting values; each parameter draws from a stream of its own name.
    pub fn initial(&self, seed: u64) -> Vec<f32> {
        let mut values = vec![0.0; self.len];
        for entry in &self.entries {
            let out = &mut values[entry.slot.range()];
            match entry.init {
                Init::Constant(value) => out.fill(value),
                Init::Random(deviation) => {
                    Stream::new(seed, &format!("init {}", entry.name), &[]).fill_centred(deviation, out);
                }
            }
        }
        values
    }

    /// The values as a safetensors file with `config` in its metadata; same input, same bytes.
    pub fn to_bytes(&self, values: &[f32], config: &str) -> Vec<u8> {
        assert_eq!(values.len(), self.len, "values of another model");
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let tensors = self.entries.iter().map(|entry| {
            let Range { start, end } = entry.slot.range();
            let shape = vec![entry.slot.rows, entry.slot.cols];
            let view = TensorView::new(Dtype::F32, shape, &bytes[4 * start..4 * end]);
            (entry.name.as_str(), view.expect("four bytes for each of rows × cols values"))
        });
        // One metadata key only: several would be written in hash order.
        let metadata = HashMap::from([(CONFIG.to_string(), config.to_string())]);
        safetensors::serialize(tensors, Some(metadata)).expect("names are unique and sizes checked above")
    }

    /// The values of a file written by [`Layout::to_bytes`] for the same layout.
    ///
    /// # Errors
    /// [`NnError::Format`] if a parameter is missing or has another shape or type.
    pub fn from_bytes(&self, bytes: &[u8]) -> Result<Vec<f32>, NnError> {
        let file = SafeTensors::deserialize(bytes).map_err(|e| NnError::Format(e.to_string()))?;
        let mut values = vec![0.0; self.len];
        for entry in &self.entries {
            let tensor = file.tensor(&entry.name).map_err(|e| NnError::Format(e.to_string()))?;
            if tensor.dtype() != Dtype::F32 || tensor.shape() != [entry.slot.rows, entry.slot.cols] {
                return Err(NnError::Format(format!("`{}` has another shape or type", entry.name)));
            }
            let (floats, _) = tensor.data().as_chunks::<4>();
            let out = &mut values[entry.slot.range()];
            out.iter_mut().zip(floats).for_each(|(v, b)| *v = f32::from_le_bytes(*b));
        }
        Ok(values)
    }
}

const CONFIG: &str = "config";

/// The config text in the metadata of a saved model.
///
/// # Errors
/// [`NnError::Format`] if the bytes are no safetensors file or hold no config.
pub fn read_config(bytes: &[u8]) -> Result<String, NnError> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| NnError::Format(e.to_string()))?;
    let config = header.metadata().as_ref().and_then(|m| m.get(CONFIG)).cloned();
    config.ok_or_else(|| NnError::Format("no config in the metadata".to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> (Layout, Slot) {
        let mut layout = Layout::default();
        let a = layout.add("b.first", 2, 3, Init::Random(1.0), true);
        layout.add("a.second", 1, 2, Init::Constant(0.5), false);
        (layout, a)
    }

    #[test]
    fn files_read_back_and_repeat() {
        let (layout, _) = layout();
        let values = layout.initial(3);
        let bytes = layout.to_bytes(&values, "{}");
        assert_eq!(bytes, layout.to_bytes(&values, "{}"));
        assert_eq!(layout.from_bytes(&bytes).unwrap(), values);
        assert_eq!(read_config(&bytes).unwrap(), "{}");
    }

    #[test]
    fn another_shape_is_an_error() {
        let (layout, _) = layout();
        let bytes = layout.to_bytes(&layout.initial(3), "{}");
        let mut other = Layout::default();
        other.add("b.first", 3, 2, Init::Constant(0.0), true);
        assert!(matches!(other.from_bytes(&bytes), Err(NnError::Format(_))));
        assert!(matches!(other.from_bytes(&bytes[..20]), Err(NnError::Format(_))));
    }

    #[test]
    fn a_parameter_starts_alike_wherever_it_stands() {
        let (first, slot) = layout();
        let mut moved = Layout::default();
        moved.add("a.second", 1, 2, Init::Constant(0.5), false);
        let after = moved.add("b.first", 2, 3, Init::Random(1.0), true);
        assert_eq!(first.initial(3)[slot.range()], moved.initial(3)[after.range()]);
    }
}
