//! The residual-quantised autoencoder that gives users their CSID, and CSIDs their group
//! (CoEA, 3.3 and 4.2.3; Lee et al. 2022).
//!
//! The quantiser is part of the network only in the forward direction: gradients pass it unchanged
//! (straight-through), a commitment term keeps the encoder near the codes, and the codes follow by
//! running averages. What is served is a pure function of one vector: the table of groups is built
//! by the same call that serves it, so a user seen at fit time is never an unseen tuple.

use serde::{Deserialize, Serialize};

use super::{
    NnError,
    activation::{silu, silu_backward},
    groups::GroupTable,
    layers::Linear,
    matrix::squared_distance,
    params::{Init, Layout, read_config},
    quantiser::Quantiser,
};
pub use super::{
    rq_config::RqConfig,
    rq_fit::{RqProgress, RqReport},
};

/// A map with one hidden layer.
#[derive(Clone, Debug)]
pub(super) struct Mlp {
    first: Linear,
    second: Linear,
}

/// Hidden activations before and after the non-linearity.
pub(super) struct MlpCache {
    wide: Vec<f32>,
    active: Vec<f32>,
}

impl Mlp {
    fn new(layout: &mut Layout, name: &str, inputs: usize, hidden: usize, outputs: usize) -> Self {
        Mlp {
            first: Linear::new(layout, &format!("{name}.0"), inputs, hidden),
            second: Linear::new(layout, &format!("{name}.1"), hidden, outputs),
        }
    }

    /// Any number of rows.
    pub(super) fn forward(&self, params: &[f32], x: &[f32]) -> (Vec<f32>, MlpCache) {
        let wide = self.first.forward(params, x);
        let active = silu(&wide);
        (self.second.forward(params, &active), MlpCache { wide, active })
    }

    /// The gradient with respect to `x`.
    pub(super) fn backward(
        &self,
        params: &[f32],
        gradient: &mut [f32],
        x: &[f32],
        cache: &MlpCache,
        dy: &[f32],
    ) -> Vec<f32> {
        let mut dwide = self.second.backward(params, gradient, &cache.active, dy);
        silu_backward(&cache.wide, &mut dwide);
        self.first.backward(params, gradient, x, &dwide)
    }
}

/// Encoder and decoder, without the quantiser between.
#[derive(Clone, Debug)]
pub(super) struct Network {
    pub(super) layout: Layout,
    pub(super) encoder: Mlp,
    pub(super) decoder: Mlp,
}

impl Network {
    pub(super) fn new(dim: usize, config: &RqConfig) -> Self {
        let mut layout = Layout::default();
        let encoder = Mlp::new(&mut layout, "encoder", dim, config.hidden, config.latent);
        let decoder = Mlp::new(&mut layout, "decoder", config.latent, config.hidden, dim);
        Network { layout, encoder, decoder }
    }
}

/// Shifts and scales inputs to mean zero and a mean variance of one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scaling {
    pub(super) centre: Vec<f32>,
    pub(super) scale: f32,
}

impl Scaling {
    pub(super) fn apply(&self, v: &[f32]) -> Vec<f32> {
        v.iter().zip(&self.centre).map(|(v, c)| (v - c) * self.scale).collect()
    }
}

/// The code of a vector on every level, and the quantised vector they stand for.
#[derive(Clone, Debug, PartialEq)]
pub struct Codes {
    /// The CSID: one code per level (CoEA, eq. 6).
    pub csid: Vec<u16>,
    /// The sum of those codes, `latent` values.
    pub latent: Vec<f32>,
}

/// What a saved model says about itself.
#[derive(Serialize, Deserialize)]
struct Header {
    kind: String,
    config: RqConfig,
    dim: usize,
    groups: Vec<(Vec<u16>, u32)>,
    n_groups: usize,
}

const KIND: &str = "rq-vae-1";

/// A fitted quantiser of user vectors with its table of groups.
#[derive(Clone, Debug)]
pub struct RqVae {
    pub(super) config: RqConfig,
    pub(super) scaling: Scaling,
    pub(super) network: Network,
    pub(super) params: Vec<f32>,
    pub(super) quantiser: Quantiser,
    pub(super) table: GroupTable,
}

impl RqVae {
    /// Fits autoencoder, codebooks and groups to vectors of one length.
    ///
    /// # Errors
    /// [`NnError::Config`] for settings out of range, [`NnError::Empty`] without vectors,
    /// [`NnError::Input`] for vectors of another length than the first or with values that are not
    /// finite, [`NnError::Diverged`] if the loss stops being finite.
    pub fn fit(
        vectors: &[Vec<f32>],
        config: &RqConfig,
        progress: &mut dyn FnMut(RqProgress),
    ) -> Result<(Self, RqReport), NnError> {
        config.validate()?;
        let dim = match vectors.first() {
            None => return Err(NnError::Empty("there are no vectors")),
            Some(first) if first.is_empty() => return Err(NnError::Empty("the vectors have no values")),
            Some(first) => first.len(),
        };
        vectors.iter().enumerate().try_for_each(|(i, v)| check(i, v, dim))?;
        super::rq_fit::fit(vectors, config, progress)
    }

    /// The settings it was fitted with.
    pub fn config(&self) -> &RqConfig {
        &self.config
    }

    /// How many groups there are; their numbers are 0 up to this, from the largest down.
    pub fn n_groups(&self) -> usize {
        self.table.centroids.len() / self.config.latent
    }

    /// The codes of one vector: a pure function of it, bit for bit.
    ///
    /// # Errors
    /// [`NnError::Input`] if it has another length than those fitted on or values that are not finite.
    pub fn quantise(&self, v: &[f32]) -> Result<Codes, NnError> {
        check(0, v, self.scaling.centre.len())?;
        let (z, _) = self.network.encoder.forward(&self.params, &self.scaling.apply(v));
        let csid = self.quantiser.quantise(&z);
        let latent = self.quantiser.latent(&csid);
        Ok(Codes { csid, latent })
    }

    /// What the decoder makes of quantised codes, in the units of the input.
    pub fn reconstruct(&self, codes: &Codes) -> Vec<f32> {
        let (x, _) = self.network.decoder.forward(&self.params, &codes.latent);
        x.iter().zip(&self.scaling.centre).map(|(x, c)| x / self.scaling.scale + c).collect()
    }

    /// Mean squared error of what is left of a vector by its codes, in units of the mean variance of the
    /// vectors fitted on; the vector is one that [`RqVae::quantise`] takes.
    pub fn error(&self, v: &[f32], codes: &Codes) -> f64 {
        let scaled = self.scaling.apply(v);
        let (decoded, _) = self.network.decoder.forward(&self.params, &codes.latent);
        f64::from(squared_distance(&scaled, &decoded)) / scaled.len() as f64
    }

    /// The group of a tuple: by the fitted table, or for an unseen tuple the nearest group.
    ///
    /// # Errors
    /// [`NnError::Input`] if it is no tuple of this codebook.
    pub fn group(&self, csid: &[u16]) -> Result<u32, NnError> {
        if csid.len() != self.config.levels || csid.iter().any(|c| usize::from(*c) >= self.config.codebook) {
            return Err(NnError::input(0, "not a tuple of this codebook"));
        }
        Ok(self.table.group(csid, &self.quantiser.latent(csid)))
    }

    /// Network, scaling, codes and group centroids, in the order they are saved.
    fn file_layout(network: &Network, config: &RqConfig, dim: usize, n_groups: usize) -> Layout {
        let mut layout = network.layout.clone();
        let mut add = |name, rows, cols| layout.add(name, rows, cols, Init::Constant(0.0), false);
        add("input.centre", 1, dim);
        add("input.scale", 1, 1);
        add("codes", config.levels * config.codebook, config.latent);
        add("groups", n_groups, config.latent);
        layout
    }

    /// The model as a safetensors file; equal models give equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (dim, n_groups) = (self.scaling.centre.len(), self.n_groups());
        let header = Header {
            kind: KIND.to_string(),
            config: self.config.clone(),
            dim,
            groups: self.table.groups.iter().map(|(csid, group)| (csid.clone(), *group)).collect(),
            n_groups,
        };
        let header = serde_json::to_string(&header).expect("a header is numbers and text");
        let scale = [self.scaling.scale];
        let parts: [&[f32]; 5] =
            [&self.params, &self.scaling.centre, &scale, &self.quantiser.codes, &self.table.centroids];
        Self::file_layout(&self.network, &self.config, dim, n_groups).to_bytes(&parts.concat(), &header)
    }

    /// Reads what [`RqVae::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`NnError::Format`] for any other bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NnError> {
        let format = |e: serde_json::Error| NnError::Format(e.to_string());
        let header: Header = serde_json::from_str(&read_config(bytes)?).map_err(format)?;
        if header.kind != KIND {
            return Err(NnError::Format(format!("kind `{}` instead of `{KIND}`", header.kind)));
        }
        let config = header.config;
        config.validate()?;
        let network = Network::new(header.dim, &config);
        let mut values =
            Self::file_layout(&network, &config, header.dim, header.n_groups).from_bytes(bytes)?.into_iter();
        let mut take = |n: usize| -> Vec<f32> { values.by_ref().take(n).collect() };
        let params = take(network.layout.len());
        let scaling = Scaling { centre: take(header.dim), scale: take(1)[0] };
        let codes = take(config.levels * config.codebook * config.latent);
        let quantiser = Quantiser { codes, codebook: config.codebook, dim: config.latent };
        let centroids = take(header.n_groups * config.latent);
        let table = GroupTable { groups: header.groups.into_iter().collect(), centroids };
        Ok(RqVae { config, scaling, network, params, quantiser, table })
    }
}

fn check(index: usize, v: &[f32], dim: usize) -> Result<(), NnError> {
    if v.len() != dim {
        return Err(NnError::input(index, format!("{} values instead of {dim}", v.len())));
    }
    if v.iter().any(|x| !x.is_finite()) {
        return Err(NnError::input(index, "a value is not finite"));
    }
    Ok(())
}

#[cfg(test)]
#[path = "rq_vae_tests.rs"]
mod tests;
