//! A trained adapter as a value: its numbers, how it was trained, and what it was trained for.
//!
//! Decision: the durable form is one safetensors file with everything else in its metadata, so that a
//! version of a model is one blob with one digest. It fits the models whose layers have the sizes of
//! the one it was trained on, and says so when it does not. What other programs read is the layout
//! of PEFT (`peft.rs`).

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::adapters::{Adapters, LoraSettings};
use super::error::LmError;
use super::model::LocalModel;
use super::sizes::Sizes;
use crate::nn::params::read_config;
use crate::shape::{Artifact, KernelError};

/// A low-rank adapter of a language model.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    about: About,
    /// A safetensors file with `about` in its metadata.
    bytes: Vec<u8>,
}

/// What stands beside the numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct About {
    settings: LoraSettings,
    lineage: Value,
}

impl Lora {
    /// An adapter for networks of these sizes; `values` in the order of the layout of its settings.
    ///
    /// # Errors
    /// If the settings do not fit the network.
    pub(crate) fn new(
        sizes: &Sizes,
        settings: LoraSettings,
        values: &[f32],
        lineage: Value,
    ) -> Result<Self, LmError> {
        let adapters = Adapters::new(sizes, settings)?;
        let about = About { settings, lineage };
        let config = serde_json::to_string(&about).map_err(|error| LmError::Malformed(error.to_string()))?;
        Ok(Self { bytes: adapters.layout().to_bytes(values, &config), about })
    }

    /// How it was trained.
    pub fn settings(&self) -> LoraSettings {
        self.about.settings
    }

    /// Where it comes from, in its trainer's words: parent, data, metrics.
    pub fn lineage(&self) -> &Value {
        &self.about.lineage
    }

    /// What names it: a hash of numbers, settings and lineage.
    pub fn digest(&self) -> String {
        blake3::hash(&self.bytes).to_hex().to_string()
    }

    /// Its numbers, in the order of the layout of its settings, for a network of these sizes.
    ///
    /// # Errors
    /// If it was trained for a network of other sizes.
    pub(crate) fn values(&self, sizes: &Sizes) -> Result<Vec<f32>, LmError> {
        let adapters = Adapters::new(sizes, self.about.settings)?;
        let values = adapters.layout().from_bytes(&self.bytes);
        values.map_err(|error| LmError::Malformed(format!("the adapter is of another model: {error}")))
    }
}

impl Artifact for Lora {
    fn to_bytes(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, KernelError> {
        let config = read_config(bytes).map_err(|error| format!("adapter: {error}"))?;
        let about = serde_json::from_str(&config).map_err(|error| format!("adapter: {error}"))?;
        Ok(Self { about, bytes: bytes.to_vec() })
    }
}

impl LocalModel {
    /// An adapter of these numbers for this model.
    ///
    /// # Errors
    /// If the settings do not fit it.
    pub fn adapter(&self, settings: LoraSettings, values: &[f32], lineage: Value) -> Result<Lora, LmError> {
        Lora::new(self.network().sizes(), settings, values, lineage)
    }

    /// The numbers of an adapter, in the order of the layout of its settings.
    ///
    /// # Errors
    /// If the adapter is of another model.
    pub fn adapter_values(&self, lora: &Lora) -> Result<Vec<f32>, LmError> {
        lora.values(self.network().sizes())
    }

    /// The model with an adapter in place of the one it has, and a memory of its own for prompts.
    ///
    /// # Errors
    /// If the adapter is of another model.
    pub fn with_adapter(&self, lora: &Lora) -> Result<Self, LmError> {
        let sizes = self.network().sizes();
        let adapters = Adapters::new(sizes, lora.settings())?;
        let network = self.network().with_adapters(&adapters, &lora.values(sizes)?);
        Ok(self.with_network(network))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::batch::Sequence;
    use crate::lm::testing::{noise, small_network, tokens};

    const SETTINGS: LoraSettings = LoraSettings { rank: 3, alpha: 6.0, dropout: 0.0, top: Some(2) };

    fn lora(seed: u64) -> Lora {
        let sizes = *small_network(1).sizes();
        let values = noise(seed, Adapters::new(&sizes, SETTINGS).unwrap().layout().len());
        Lora::new(&sizes, SETTINGS, &values, Value::Null).unwrap()
    }

    #[test]
    fn an_adapter_reads_back_and_knows_its_model() {
        let lora = lora(7);
        let again = Lora::from_bytes(&lora.to_bytes()).unwrap();
        assert_eq!(again, lora);
        assert_ne!(again.digest(), self::lora(8).digest());
        let sizes = *small_network(1).sizes();
        let values = lora.values(&sizes).unwrap();
        assert_eq!(values, noise(7, values.len()));
        let other = Sizes { hidden: sizes.hidden + 2, ..sizes };
        assert!(lora.values(&other).unwrap_err().to_string().contains("of another model"));
        assert!(Lora::from_bytes(b"weights").unwrap_err().starts_with("adapter: "));
    }

    #[test]
    fn an_adapted_network_gives_the_same_bits_in_any_company() {
        let base = small_network(1);
        let sizes = *base.sizes();
        let adapters = Adapters::new(&sizes, SETTINGS).unwrap();
        let network = base.with_adapters(&adapters, &lora(7).values(&sizes).unwrap());
        let texts = [tokens(31, 30), tokens(32, 7), tokens(33, 19)];
        let hidden = |texts: &[&Vec<u32>]| {
            let sequences: Vec<_> = texts.iter().map(|text| Sequence::new(None, text, &[])).collect();
            network.hidden(&sequences)
        };
        let alone: Vec<f32> = texts.iter().flat_map(|text| hidden(&[text])).collect();
        assert_eq!(hidden(&texts.iter().collect::<Vec<_>>()), alone);
        // It adds something, and a network without it is as it was.
        let without = base.hidden(&[Sequence::new(None, &texts[0], &[])]);
        assert_ne!(without, hidden(&[&texts[0]]));
        assert_eq!(without, small_network(1).hidden(&[Sequence::new(None, &texts[0], &[])]));
    }
}
