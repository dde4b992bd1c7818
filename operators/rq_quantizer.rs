//! A user's group identity: residual quantisation of the long-term vector (CoEA 3.3, 4.2.3).
//!
//! The tuple of codes is reported as it is; what keys are made of is a fitted table tuple → group,
//! because nearly every user has a tuple of their own.

mod codebook;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::codebook::Codebook;
pub use self::codebook::group_name;
use crate::{
    nn::{RqConfig, RqVae},
    operator::{Described, Inputs, Operator, Problem, Problems},
    row::Row,
    schema::{Column, Schema, Type},
    shape::{Graph, LeafId, Progress, Snapshot, present},
};

/// Quantises vectors into code tuples and groups.
///
/// Input: vectors by user.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RqQuantizer {
    /// Residual steps.
    #[serde(default = "levels")]
    pub levels: usize,
    /// Codes per step.
    #[serde(default = "codebook")]
    pub codebook: usize,
    /// Groups the tuples are gathered into (M_N).
    pub groups: usize,
    /// Width of the quantised vectors.
    #[serde(default = "latent")]
    pub latent: usize,
    /// Width of the hidden layers of encoder and decoder.
    #[serde(default = "hidden")]
    pub hidden: usize,
    /// Passes over the data.
    #[serde(default = "epochs")]
    pub epochs: usize,
    /// Step size of the optimiser.
    #[serde(default = "learning_rate")]
    pub learning_rate: f32,
    /// Weight of the commitment term.
    #[serde(default = "commitment")]
    pub commitment: f32,
    /// Decay of the codebooks' moving averages.
    #[serde(default = "ema_decay")]
    pub ema_decay: f32,
    /// Users the smallest group has at the fit.
    #[serde(default = "min_group")]
    pub min_group: usize,
    /// Seed of initial weights and restarts.
    #[serde(default)]
    pub seed: u64,
}

fn levels() -> usize {
    4
}
fn codebook() -> usize {
    16
}
fn latent() -> usize {
    32
}
fn hidden() -> usize {
    128
}
fn epochs() -> usize {
    200
}
fn learning_rate() -> f32 {
    0.005
}
fn commitment() -> f32 {
    0.25
}
fn ema_decay() -> f32 {
    0.95
}
fn min_group() -> usize {
    8
}

impl RqQuantizer {
    fn config(&self) -> RqConfig {
        RqConfig {
            levels: self.levels,
            codebook: self.codebook,
            latent: self.latent,
            hidden: self.hidden,
            epochs: self.epochs,
            learning_rate: self.learning_rate,
            commitment: self.commitment,
            ema_decay: self.ema_decay,
            seed: self.seed,
            groups: self.groups,
            min_group: self.min_group,
        }
    }

    fn column(&self, inputs: &Inputs<'_>) -> Result<usize, Vec<Problem>> {
        let mut problems = Problems::default();
        problems.take(inputs.at_most(1));
        for (name, value) in [
            ("levels", self.levels),
            ("codebook", self.codebook),
            ("groups", self.groups),
            ("latent", self.latent),
            ("hidden", self.hidden),
        ] {
            problems.require(value > 0, || Problem::with(name, "must be at least 1"));
        }
        problems.require(self.codebook <= usize::from(u16::MAX), || {
            Problem::with("codebook", "must be at most 65535")
        });
        let input = problems.take(inputs.relation(0, "vectors by user"));
        let column = input.and_then(|input| problems.take(inputs.column(0, input, "embedding")));
        problems.finish(column)
    }
}

/// The vectors by user.
fn vectors_of(rows: &dyn Snapshot, column: usize) -> Vec<(Row, Vec<f32>)> {
    let mut vectors = Vec::new();
    rows.for_each(&mut |user, row, _| {
        vectors.extend(row[column].as_floats().map(|vector| (user.clone(), vector)));
    });
    vectors
}

impl Operator for RqQuantizer {
    fn output(&self, inputs: &Inputs<'_>) -> Result<Schema, Vec<Problem>> {
        self.column(inputs)?;
        let columns = [Column::new("csid", Type::U64.list()), Column::new("group", Type::Text)];
        Ok(Schema::new(inputs.inputs[0].schema.key.clone(), columns).made_of(inputs))
    }

    fn model_kinds(&self) -> &'static [&'static str] {
        &["rq_quantizer"]
    }

    fn renews(&self) -> bool {
        true
    }

    fn build(&self, inputs: &Inputs<'_>, graph: &mut Graph) -> LeafId {
        let Ok(column) = self.column(inputs) else { unreachable!("checked by output") };
        let vectors = inputs.inputs[0].leaf;
        let config = self.config();
        let logic = format!("rq_fit/2 {config:?}");
        let codebook = graph.fit("codebook", &[vectors], &[], logic, move |inputs, artifacts, progress| {
            let vectors = vectors_of(inputs[0], column);
            let data: Vec<Vec<f32>> = vectors.iter().map(|(_, vector)| vector.clone()).collect();
            let mut tell = |p: crate::nn::RqProgress| {
                let note = format!("error {:.3}", p.reconstruction);
                progress(Progress { done: p.epoch as u64, total: p.epochs as u64, note: &note });
            };
            let (quantiser, _) = RqVae::fit(&data, &config, &mut tell).map_err(|e| e.to_string())?;
            let before = match inputs.get(1) {
                Some(rows) => Some((*rows, present::<Codebook>(artifacts.first())?)),
                None => None,
            };
            Ok(Codebook::new(quantiser, &vectors, before)?)
        });
        graph.compares(codebook);
        graph.drifts(codebook, move |inputs, codebook: &Codebook| {
            codebook.drift(&vectors_of(inputs[0], column))
        });
        graph.map_with("", vectors, codebook, move |codebook: &Codebook, key, row, out| {
            let vector = row[column].as_floats().ok_or("not a vector")?;
            out.push((key.clone(), codebook.row(&vector)?));
            Ok(())
        })
    }
}

impl Described for RqQuantizer {
    const NAME: &'static str = "rq_quantizer";
    const EXAMPLE: &'static str = include_str!("examples/rq_quantizer.yaml");
}
