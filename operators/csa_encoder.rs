//! Long-term interest as a vector: causal self-attention over the filtered clicks (CoEA 4.2.2).
//!
//! The vector of a user is a function of that user's own clicks and features and of the fitted
//! weights, asked for like any model answer: remembered by content, recomputed only when the
//! content changed.

use std::collections::BTreeMap;

mod encode;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::encode::Encode;
use crate::{
    features::{Feature, FeatureTable, all_features},
    nn::{CsaConfig, CsaEncoder as Network, Pool, Sequence},
    operator::{Described, Inputs, Operator, Problem, Problems},
    row::{Row, Value},
    schema::{Column, Schema, Type},
    shape::{Artifact, CallError, Figures, Graph, KernelError, LeafId, Progress, Snapshot},
};

/// Encodes each user's filtered clicks, with sparse features prepended, into a vector.
///
/// Inputs: filtered clicks by user (a list of items), and optionally the users with their features.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CsaEncoder {
    /// Width of the vectors (d).
    #[serde(default = "dim")]
    pub dim: usize,
    /// Layers (L).
    #[serde(default = "four")]
    pub layers: usize,
    /// Attention heads per layer; divides `dim`.
    #[serde(default = "four")]
    pub heads: usize,
    /// What becomes the user's vector: the last position of the last layer, or the mean.
    #[serde(default)]
    pub pool: Pool,
    /// Newest clicks a user is encoded from.
    #[serde(default = "max_length")]
    pub max_length: usize,
    /// Share of activations dropped while fitting.
    #[serde(default = "dropout")]
    pub dropout: f32,
    /// Step size of the optimiser.
    #[serde(default = "learning_rate")]
    pub learning_rate: f32,
    /// Windows of at most `max_length` clicks per step.
    #[serde(default = "batch")]
    pub batch: usize,
    /// Passes over the data at most.
    #[serde(default = "max_epochs")]
    pub max_epochs: usize,
    /// Passes without gain on the held-out clicks before the fit stops.
    #[serde(default = "patience")]
    pub patience: usize,
    /// Seed of initial weights, order and dropout.
    #[serde(default)]
    pub seed: u64,
    /// The users' features; all text, truth values and numbers if absent.
    #[serde(default)]
    pub features: Option<Vec<Feature>>,
}

fn dim() -> usize {
    128
}
fn four() -> usize {
    4
}
fn max_length() -> usize {
    50
}
fn dropout() -> f32 {
    0.3
}
fn learning_rate() -> f32 {
    0.002
}
fn batch() -> usize {
    8
}
fn max_epochs() -> usize {
    8
}
fn patience() -> usize {
    3
}

/// The fitted encoder: vocabulary, feature buckets, weights.
struct FittedEncoder {
    items: BTreeMap<Value, u32>,
    features: FeatureTable,
    network: Network,
}

impl Artifact for FittedEncoder {
    fn to_bytes(&self) -> Vec<u8> {
        let items: Vec<&Value> = self.items.keys().collect();
        postcard::to_allocvec(&(items, &self.features, self.network.to_bytes())).unwrap_or_default()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, KernelError> {
        let (items, features, network): (Vec<Value>, FeatureTable, Vec<u8>) =
            postcard::from_bytes(bytes).map_err(|e| format!("encoder: {e}"))?;
        let network = Network::from_bytes(&network).map_err(|e| e.to_string())?;
        Ok(FittedEncoder { items: vocabulary(items), features, network })
    }
}

fn vocabulary(items: impl IntoIterator<Item = Value>) -> BTreeMap<Value, u32> {
    items.into_iter().zip(1..).collect()
}

/// The newest clicks of a request, and its user, in the ids the network knows; 0 is an unknown item.
fn sequence(items: &BTreeMap<Value, u32>, features: &FeatureTable, request: &Row, newest: usize) -> Sequence {
    let (clicked, user) = unpack(request);
    let clicked = &clicked[clicked.len().saturating_sub(newest)..];
    let items = clicked.iter().map(|item| items.get(item).copied().unwrap_or(0)).collect();
    Sequence { items, features: features.buckets(user.as_ref()) }
}

/// A request holds the user's items, oldest first, and the user's row as a list (absent: null).
fn request(items: &[Value], user: Option<&Row>) -> Row {
    let user = user.map_or(Value::Null, |row| Value::list(row.iter().cloned()));
    Row::from([Value::list(items.iter().cloned()), user])
}

fn unpack(request: &Row) -> (&[Value], Option<Row>) {
    let user = request[1].as_list().map(|cells| Row::new(cells.iter().cloned()));
    (request[0].as_list().unwrap_or_default(), user)
}

/// The places of the items in the clicks and of the features in the users.
struct Columns {
    items: usize,
    features: Vec<Feature>,
    places: Vec<usize>,
}

impl CsaEncoder {
    fn config(&self) -> CsaConfig {
        CsaConfig {
            dim: self.dim,
            layers: self.layers,
            heads: self.heads,
            pool: self.pool,
            max_length: self.max_length,
            dropout: self.dropout,
            learning_rate: self.learning_rate,
            batch: self.batch,
            max_epochs: self.max_epochs,
            patience: self.patience,
            seed: self.seed,
        }
    }

    fn check_parameters(&self, problems: &mut Problems) {
        for (name, value) in [
            ("dim", self.dim),
            ("layers", self.layers),
            ("heads", self.heads),
            ("max_length", self.max_length),
            ("batch", self.batch),
        ] {
            problems.require(value > 0, || Problem::with(name, "must be at least 1"));
        }
        problems.require(self.heads == 0 || self.dim.is_multiple_of(self.heads), || {
            Problem::with("heads", format!("{} heads do not divide dim {}", self.heads, self.dim))
        });
        problems.require((0.0..1.0).contains(&self.dropout), || {
            Problem::with("dropout", "must be from 0 up to, but not including, 1")
        });
        problems.require(self.learning_rate > 0.0 && self.learning_rate.is_finite(), || {
            Problem::with("learning_rate", "must be a positive number")
        });
    }

    fn columns(&self, inputs: &Inputs<'_>) -> Result<Columns, Vec<Problem>> {
        let mut problems = Problems::default();
        problems.take(inputs.at_most(2));
        self.check_parameters(&mut problems);
        let clicks = problems.take(inputs.relation(0, "filtered clicks by user"));
        let items = clicks.and_then(|clicks| problems.take(inputs.column(0, clicks, "items")));
        let mut features = self.features.clone().unwrap_or_default();
        let mut places = Vec::new();
        match inputs.inputs.get(1) {
            None => problems.require(features.is_empty(), || {
                Problem::with("features", "there is no second input to take features from")
            }),
            Some(users) => {
                problems.take(inputs.relation(1, "the users with their features"));
                if self.features.is_none() {
                    features = all_features(&users.schema);
                }
                places.extend(
                    features.iter().filter_map(|f| problems.take(inputs.column(1, users, &f.column))),
                );
                if let Some(clicks) = clicks {
                    problems.require(clicks.schema.key == users.schema.key, || {
                        let (a, b) = (&clicks.name, &users.name);
                        Problem::input(1, format!("`{a}` and `{b}` have different keys"))
                    });
                }
            }
        }
        problems.finish(items.map(|items| Columns { items, features, places }))
    }
}

/// Fits vocabulary, buckets and weights on the requests of all users.
fn fit(
    operator: &CsaEncoder,
    columns: &Columns,
    requests: &dyn Snapshot,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<FittedEncoder, CallError> {
    let mut rows = Vec::new();
    requests.for_each(&mut |_, row, _| rows.push(row.clone()));
    let items: std::collections::BTreeSet<Value> = rows.iter().flat_map(|r| unpack(r).0.to_vec()).collect();
    let users: Vec<Row> = rows.iter().filter_map(|r| unpack(r).1).collect();
    let features = FeatureTable::fit(&columns.features, &columns.places, &users);
    let items = vocabulary(items);
    let sequences: Vec<Sequence> =
        rows.iter().map(|row| sequence(&items, &features, row, usize::MAX)).collect();
    let mut tell = |p: crate::nn::FitProgress| {
        let note = format!("loss {:.3}", p.train_loss);
        progress(Progress { done: p.epoch as u64, total: p.epochs as u64, note: &note });
    };
    let (network, _) =
        Network::fit(&sequences, items.len(), &features.sizes(), &operator.config(), &mut tell)
            .map_err(|e| e.to_string())?;
    Ok(FittedEncoder { items, features, network })
}

/// The share of clicks on items that the encoder does not know.
fn drift(encoder: &FittedEncoder, requests: &dyn Snapshot) -> Figures {
    let (mut clicks, mut unknown) = (0u64, 0u64);
    requests.for_each(&mut |_, row, _| {
        let (items, _) = unpack(row);
        clicks += items.len() as u64;
        unknown += items.iter().filter(|item| !encoder.items.contains_key(*item)).count() as u64;
    });
    vec![("unknown_clicks".to_string(), unknown as f64 / clicks.max(1) as f64)]
}

impl Operator for CsaEncoder {
    fn output(&self, inputs: &Inputs<'_>) -> Result<Schema, Vec<Problem>> {
        self.columns(inputs)?;
        let schema =
            Schema::new(inputs.inputs[0].schema.key.clone(), [Column::new("embedding", Type::Bytes)]);
        Ok(schema.made_of(inputs))
    }

    fn model_kinds(&self) -> &'static [&'static str] {
        &["csa_encoder"]
    }

    fn renews(&self) -> bool {
        true
    }

    fn build(&self, inputs: &Inputs<'_>, graph: &mut Graph) -> LeafId {
        let Ok(columns) = self.columns(inputs) else { unreachable!("checked by output") };
        let leaves: Vec<LeafId> = inputs.inputs.iter().map(|i| i.leaf).collect();
        let items = columns.items;
        let requests = graph.reduce("requests", &leaves, move |_, rows, out| {
            let clicks = rows[0].last().and_then(|(row, _)| row[items].as_list()).unwrap_or_default();
            let user = rows.get(1).and_then(|users| users.last()).map(|(row, _)| row);
            out.push(request(clicks, user));
        });
        let operator = self.clone();
        let logic = format!("csa_fit/1 {:?} {:?}", self.config(), columns.features);
        let fitted = graph.fit("weights", &[requests], &[], logic, move |inputs, _, progress| {
            fit(&operator, &columns, inputs[0], progress)
        });
        graph.drifts(fitted, |inputs, encoder: &FittedEncoder| Ok(drift(encoder, inputs[0])));
        graph.infer_with("", requests, &[fitted.leaf()], Encode { max_length: self.max_length })
    }
}

impl Described for CsaEncoder {
    const NAME: &'static str = "csa_encoder";
    const EXAMPLE: &'static str = include_str!("examples/csa_encoder.yaml");
}
