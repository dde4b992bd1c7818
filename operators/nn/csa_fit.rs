//! Training of the encoder.
//!
//! A step is split into a fixed number of shards, each with its own gradient and its own dropout
//! stream, added up in order: the result is the same on one thread and on sixteen.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    NnError,
    adamw::{AdamW, clip},
    csa::{CsaEncoder, Sequence, rank},
    random::Stream,
    softmax_loss::{OutputGradient, cross_entropy, loss_and_gradient},
    transformer::Dropout,
    windows::{self, Packed, Window},
};

/// Pieces a step is split into.
const SHARDS: usize = 4;
/// Share of training over which the learning rate rises.
const WARM_UP: f32 = 0.05;
const WEIGHT_DECAY: f32 = 0.01;
const LONGEST_GRADIENT: f32 = 1.0;

/// How far a fit has come, told after every epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FitProgress {
    /// The epoch just finished, from 1.
    pub epoch: usize,
    /// Epochs at most.
    pub epochs: usize,
    /// Mean cross-entropy of the training targets in this epoch.
    pub train_loss: f64,
    /// Mean cross-entropy of the held-out items; `None` if no user has two items.
    pub held_out_loss: Option<f64>,
    /// Share of held-out items ranked among the first ten of all items.
    pub hit_rate_at_10: Option<f64>,
}

/// How a fit went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FitReport {
    /// Every epoch in order.
    pub epochs: Vec<FitProgress>,
    /// The epoch whose parameters were kept, from 1.
    pub best_epoch: usize,
    /// Users with a held-out item.
    pub held_out_users: usize,
    /// Items trained to be predicted.
    pub targets: usize,
}

/// Training sequences, and the held-out item of those users that have one to spare.
struct Split {
    train: Vec<Sequence>,
    held_out: Vec<(Sequence, u32)>,
}

fn split(encoder: &CsaEncoder, data: &[Sequence]) -> Result<Split, NnError> {
    let mut split = Split { train: Vec::new(), held_out: Vec::new() };
    for (index, sequence) in data.iter().enumerate() {
        let mut items = encoder.known_items(index, sequence)?;
        let features = sequence.features.clone();
        if items.len() > 1
            && let Some(last) = items.pop()
        {
            split.held_out.push((Sequence { items: items.clone(), features: features.clone() }, last));
        }
        if !items.is_empty() {
            split.train.push(Sequence { items, features });
        }
    }
    if split.train.is_empty() {
        return Err(NnError::Empty("no sequence holds a known item"));
    }
    Ok(split)
}

/// Trains `encoder` in place and leaves it at its best epoch.
pub(super) fn fit(
    encoder: &mut CsaEncoder,
    data: &[Sequence],
    progress: &mut dyn FnMut(FitProgress),
) -> Result<FitReport, NnError> {
    let split = split(encoder, data)?;
    let config = encoder.config.clone();
    start_at_popularity(encoder, &split.train);
    let mut optimiser = AdamW::new(&encoder.model.layout);
    let mut best = (f64::INFINITY, 0, encoder.params.clone());
    let mut epochs = Vec::new();
    for epoch in 1..=config.max_epochs {
        let train_loss = run_epoch(encoder, &mut optimiser, &split.train, epoch)?;
        let held_out = evaluate(encoder, &split.held_out)?;
        let done = FitProgress {
            epoch,
            epochs: config.max_epochs,
            train_loss,
            held_out_loss: held_out.map(|h| h.0),
            hit_rate_at_10: held_out.map(|h| h.1),
        };
        progress(done);
        epochs.push(done);
        // Without held-out items every epoch counts as better than the last.
        let loss = held_out.map_or(-(epoch as f64), |h| h.0);
        if loss < best.0 {
            best = (loss, epoch, encoder.params.clone());
        } else if epoch - best.1 >= config.patience.max(1) {
            break;
        }
    }
    encoder.params = best.2;
    let targets = split.train.iter().map(|s| s.items.len()).sum();
    Ok(FitReport { epochs, best_epoch: best.1, held_out_users: split.held_out.len(), targets })
}

/// Sets each item's output bias to the logarithm of its frequency, about the mean: the first steps
/// then go into who likes what, instead of learning popularity through the embeddings.
fn start_at_popularity(encoder: &mut CsaEncoder, train: &[Sequence]) {
    let mut counts = vec![1u32; encoder.n_items];
    train.iter().flat_map(|s| &s.items).for_each(|item| counts[*item as usize - 1] += 1);
    let logs: Vec<f32> = counts.iter().map(|n| (*n as f32).ln()).collect();
    let mean = logs.iter().sum::<f32>() / logs.len() as f32;
    let (_, bias) = encoder.model.output_ranges();
    encoder.params[bias].iter_mut().zip(&logs).for_each(|(b, log)| *b = log - mean);
}

/// One pass over the data; returns the mean loss.
fn run_epoch(
    encoder: &mut CsaEncoder,
    optimiser: &mut AdamW,
    train: &[Sequence],
    epoch: usize,
) -> Result<f64, NnError> {
    let config = encoder.config.clone();
    let windows = windows::of_epoch(train, config.max_length, config.seed, epoch as u64);
    let steps = windows.len().div_ceil(config.batch);
    let (mut loss, mut targets) = (0.0, 0);
    for (step, batch) in windows.chunks(config.batch).enumerate() {
        let done = (epoch as f32 - 1.0 + (step as f32 + 0.5) / steps as f32) / config.max_epochs as f32;
        let rate = config.learning_rate * (done / WARM_UP).min((1.0 - done) / (1.0 - WARM_UP)).min(1.0);
        let mut result = batch_gradient(encoder, train, batch, [epoch as u64, step as u64]);
        if !result.loss.is_finite() {
            return Err(NnError::Diverged { epoch });
        }
        clip(&mut result.gradient, LONGEST_GRADIENT);
        let layout = &encoder.model.layout;
        optimiser.step(layout, &mut encoder.params, &result.gradient, rate, WEIGHT_DECAY);
        loss += result.loss;
        targets += result.targets;
    }
    Ok(loss / targets as f64)
}

/// Summed loss, number of targets, gradient of the mean loss.
struct BatchResult {
    loss: f64,
    targets: usize,
    gradient: Vec<f32>,
}

fn batch_gradient(encoder: &CsaEncoder, train: &[Sequence], batch: &[Window], at: [u64; 2]) -> BatchResult {
    let shards: Vec<Packed<'_>> = (0..SHARDS.min(batch.len()))
        .map(|shard| {
            let mut packed = Packed::default();
            let windows = batch.iter().skip(shard).step_by(SHARDS);
            windows.for_each(|w| packed.push_window(&train[w.sequence], w));
            packed
        })
        .collect();
    let targets = shards.iter().map(|packed| packed.targets.len()).sum();
    let scale = 1.0 / targets as f32;
    let results: Vec<(f64, Vec<f32>)> = shards
        .par_iter()
        .enumerate()
        .map(|(shard, packed)| {
            let stream = Stream::new(encoder.config.seed, "dropout", &[at[0], at[1], shard as u64]);
            shard_gradient(encoder, packed, scale, stream)
        })
        .collect();
    let mut results = results.into_iter();
    let (mut loss, mut gradient) = results.next().unwrap_or_default();
    for (shard_loss, shard) in results {
        loss += shard_loss;
        super::matrix::add_scaled(&mut gradient, 1.0, &shard);
    }
    BatchResult { loss, targets, gradient }
}

/// Summed loss of a shard and the gradient of `scale` times it.
fn shard_gradient(encoder: &CsaEncoder, packed: &Packed<'_>, scale: f32, stream: Stream) -> (f64, Vec<f32>) {
    let (model, params, dim) = (&encoder.model, &encoder.params, encoder.config.dim);
    let mut gradient = vec![0.0; model.layout.len()];
    let mut dropout = Dropout { rate: encoder.config.dropout, stream: Some(stream) };
    let (rows, cache) = model.forward(params, packed, &mut dropout);
    let row = |at: usize| at * dim..(at + 1) * dim;
    let hidden: Vec<f32> = packed.targets.iter().flat_map(|t| &rows[row(t.0)]).copied().collect();
    let targets: Vec<usize> = packed.targets.iter().map(|t| t.1 as usize - 1).collect();
    let (items, bias) = model.output_ranges();
    let (before_bias, from_bias) = gradient.split_at_mut(bias.start);
    let into = OutputGradient { items: &mut before_bias[items], bias: &mut from_bias[..bias.len()] };
    let (loss, dhidden) = loss_and_gradient(model.output(params), &hidden, &targets, scale, into);
    let mut dy = vec![0.0; rows.len()];
    for (target, gradient) in packed.targets.iter().zip(dhidden.chunks_exact(dim)) {
        dy[row(target.0)].copy_from_slice(gradient);
    }
    model.backward(params, &mut gradient, packed, &cache, dy);
    (loss, gradient)
}

/// Mean cross-entropy and HR@10 of the held-out items.
fn evaluate(encoder: &CsaEncoder, held_out: &[(Sequence, u32)]) -> Result<Option<(f64, f64)>, NnError> {
    let (mut loss, mut hits) = (0.0, 0usize);
    for chunk in held_out.chunks(256) {
        let sequences: Vec<Sequence> = chunk.iter().map(|(sequence, _)| sequence.clone()).collect();
        for (scores, (_, target)) in encoder.next_item_scores(&sequences)?.iter().zip(chunk) {
            let target = *target as usize - 1;
            loss += cross_entropy(scores, target);
            hits += usize::from(rank(scores, scores[target]) < 10);
        }
    }
    let users = held_out.len() as f64;
    Ok((!held_out.is_empty()).then(|| (loss / users, hits as f64 / users)))
}
