//! Sizes and training settings of the residual-quantised autoencoder.

use serde::{Deserialize, Serialize};

use super::NnError;

/// Sizes and training settings of an [`RqVae`](super::RqVae).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RqConfig {
    /// Residual levels, the length of a CSID.
    pub levels: usize,
    /// Codes per level, at most 65,536.
    pub codebook: usize,
    /// Width of what is quantised.
    pub latent: usize,
    /// Width of the hidden layer of encoder and decoder.
    pub hidden: usize,
    /// Passes over the data.
    pub epochs: usize,
    /// Peak learning rate.
    pub learning_rate: f32,
    /// Weight of the commitment term.
    pub commitment: f32,
    /// Decay of the codes' running averages, per batch, below 1.
    pub ema_decay: f32,
    /// Groups wanted (M_N); fewer where users are few.
    pub groups: usize,
    /// Users in the smallest group.
    pub min_group: usize,
    /// Seed of everything random.
    pub seed: u64,
}

impl Default for RqConfig {
    fn default() -> Self {
        RqConfig {
            levels: 4,
            codebook: 16,
            latent: 32,
            hidden: 128,
            epochs: 200,
            learning_rate: 5e-3,
            commitment: 0.25,
            ema_decay: 0.95,
            groups: 12,
            min_group: 8,
            seed: 0,
        }
    }
}

impl RqConfig {
    pub(super) fn validate(&self) -> Result<(), NnError> {
        let positive = [
            ("levels", self.levels),
            ("codebook", self.codebook),
            ("latent", self.latent),
            ("hidden", self.hidden),
            ("groups", self.groups),
        ];
        for (name, value) in positive {
            if value == 0 {
                return Err(NnError::config(name, value, "at least 1"));
            }
        }
        if self.codebook > 1 << 16 {
            return Err(NnError::config("codebook", self.codebook, "at most 65536"));
        }
        if !(0.0..1.0).contains(&self.ema_decay) {
            return Err(NnError::config("ema_decay", self.ema_decay, "at least 0 and below 1"));
        }
        for (name, value) in [("learning_rate", self.learning_rate), ("commitment", self.commitment)] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(NnError::config(name, value, "finite and not negative"));
            }
        }
        Ok(())
    }
}
