//! Training of the residual-quantised autoencoder.

use serde::{Deserialize, Serialize};

use super::{
    NnError,
    adamw::{AdamW, clip},
    groups::{GroupTable, Occupied},
    matrix::{add_scaled, dot, squared_distance},
    quantiser::{Averages, Quantiser},
    random::Stream,
    rq_vae::{Network, RqConfig, RqVae, Scaling},
};

const BATCH: usize = 128;
const WEIGHT_DECAY: f32 = 1e-4;
const LONGEST_GRADIENT: f32 = 1.0;
/// Share of the epochs without quantisation, before the codebooks start: k-means on the latents of
/// an untrained encoder would be a start in the wrong place.
const PLAIN: f32 = 0.2;
/// Share of the epochs at the end in which no code is restarted, so that the averages settle.
const SETTLE: f32 = 0.1;

/// How far a fit has come, told after every epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RqProgress {
    /// The epoch just finished, from 1.
    pub epoch: usize,
    /// Epochs in all.
    pub epochs: usize,
    /// Mean squared error of the reconstruction, in units of the mean variance of the input.
    pub reconstruction: f64,
}

/// How a fit went. Errors are mean squared errors in units of the mean variance of the input: 1 is
/// what the mean vector alone would reach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RqReport {
    /// Error of the decoded quantised vectors over all data.
    pub reconstruction: f64,
    /// Error of residual k-means of the same shape on the vectors themselves: the bar to clear.
    pub residual_kmeans: f64,
    /// Codes no vector uses, per level.
    pub dead_codes: Vec<usize>,
    /// Distinct tuples in use.
    pub tuples: usize,
    /// Users per group.
    pub group_sizes: Vec<usize>,
    /// Mean cosine of two vectors of one group, about the mean vector; `None` without such a pair.
    pub intra_cosine: Option<f64>,
    /// Mean cosine of two vectors of different groups; `None` with one group.
    pub inter_cosine: Option<f64>,
}

/// Fits to checked vectors of one length.
pub(super) fn fit(
    vectors: &[Vec<f32>],
    config: &RqConfig,
    progress: &mut dyn FnMut(RqProgress),
) -> Result<(RqVae, RqReport), NnError> {
    let scaling = scaling(vectors);
    let data: Vec<f32> = vectors.iter().flat_map(|v| scaling.apply(v)).collect();
    if data.iter().any(|x| !x.is_finite()) {
        return Err(NnError::input(0, "the values are too large to be scaled"));
    }
    let (network, params, quantiser) = train(&data, scaling.centre.len(), config, progress)?;
    let table = GroupTable { groups: Default::default(), centroids: Vec::new() };
    let mut model = RqVae { config: config.clone(), scaling, network, params, quantiser, table };
    let codes = vectors.iter().map(|v| model.quantise(v)).collect::<Result<Vec<_>, _>>()?;
    let mut occupied = Occupied::new();
    for code in &codes {
        occupied.entry(code.csid.clone()).or_insert_with(|| (code.latent.clone(), 0)).1 += 1;
    }
    model.table = GroupTable::fit(&occupied, config.groups, config.min_group, config.seed);
    let groups: Vec<u32> = codes.iter().map(|code| model.table.groups[&code.csid]).collect();
    let mut group_sizes = vec![0; model.n_groups()];
    groups.iter().for_each(|group| group_sizes[*group as usize] += 1);
    let latents: Vec<f32> = data
        .chunks_exact(model.scaling.centre.len())
        .flat_map(|x| model.network.encoder.forward(&model.params, x).0)
        .collect();
    let usage = model.quantiser.usage(&latents);
    let (intra_cosine, inter_cosine) = cosines(&data, &groups, group_sizes.len());
    let report = RqReport {
        reconstruction: reconstruction(&model.network, &model.params, &model.quantiser, &data),
        residual_kmeans: residual_kmeans(&data, model.scaling.centre.len(), config),
        dead_codes: usage.iter().map(|level| level.iter().filter(|n| **n == 0).count()).collect(),
        tuples: occupied.len(),
        group_sizes,
        intra_cosine,
        inter_cosine,
    };
    Ok((model, report))
}

fn scaling(vectors: &[Vec<f32>]) -> Scaling {
    let (n, dim) = (vectors.len() as f64, vectors[0].len());
    let mut centre = vec![0f64; dim];
    vectors.iter().for_each(|v| centre.iter_mut().zip(v).for_each(|(c, x)| *c += f64::from(*x) / n));
    let square = |(x, c): (&f32, &f64)| (f64::from(*x) - c) * (f64::from(*x) - c);
    let squares: f64 = vectors.iter().flat_map(|v| v.iter().zip(&centre)).map(square).sum();
    let deviation = (squares / (n * dim as f64)).sqrt();
    let centre: Vec<f32> = centre.into_iter().map(|c| c as f32).collect();
    // Below this the vectors differ by rounding only.
    let floor = 1e-6 * centre.iter().fold(1e-30f32, |m, c| m.max(c.abs()));
    let scale = if deviation as f32 > floor { (1.0 / deviation) as f32 } else { 1.0 };
    Scaling { centre, scale }
}

/// Error of residual k-means on the scaled vectors; scaling makes their mean variance one.
fn residual_kmeans(data: &[f32], dim: usize, config: &RqConfig) -> f64 {
    Quantiser::residual_kmeans(data, dim, config.levels, config.codebook, config.seed).error(data)
}

type Trained = (Network, Vec<f32>, Quantiser);

fn train(
    data: &[f32],
    dim: usize,
    config: &RqConfig,
    progress: &mut dyn FnMut(RqProgress),
) -> Result<Trained, NnError> {
    let network = Network::new(dim, config);
    let mut params = network.layout.initial(config.seed);
    let mut optimiser = AdamW::new(&network.layout);
    let start = |params: &[f32]| {
        let (latents, _) = network.encoder.forward(params, data);
        let (levels, codebook) = (config.levels, config.codebook);
        let quantiser = Quantiser::residual_kmeans(&latents, config.latent, levels, codebook, config.seed);
        let averages = Averages::new(&quantiser, &latents, BATCH.min(data.len() / dim), config.ema_decay);
        (quantiser, averages)
    };
    let plain = (PLAIN * config.epochs as f32) as usize;
    let last_restart = ((1.0 - SETTLE) * config.epochs as f32) as usize;
    let mut codes = None;
    for epoch in 1..=config.epochs {
        if epoch > plain && codes.is_none() {
            codes = Some(start(&params));
        }
        let done = epoch as f32 / (config.epochs + 1) as f32;
        let rate = config.learning_rate * (1.0 - done);
        let mut order: Vec<usize> = (0..data.len() / dim).collect();
        Stream::new(config.seed, "order", &[epoch as u64]).shuffle(&mut order);
        let mut squares = 0.0;
        for rows in order.chunks(BATCH) {
            let batch: Vec<f32> = rows.iter().flat_map(|r| &data[r * dim..][..dim]).copied().collect();
            let mut step = gradient(&network, &params, codes.as_mut(), &batch, config);
            squares += step.squares;
            clip(&mut step.gradient, LONGEST_GRADIENT);
            optimiser.step(&network.layout, &mut params, &step.gradient, rate, WEIGHT_DECAY);
        }
        if !squares.is_finite() {
            return Err(NnError::Diverged { epoch });
        }
        if let Some((quantiser, averages)) = codes.as_mut().filter(|_| epoch < last_restart) {
            let (latents, _) = network.encoder.forward(&params, data);
            let mut stream = Stream::new(config.seed, "restart", &[epoch as u64]);
            averages.restart_dead(quantiser, &latents, &mut stream);
        }
        let reconstruction = squares / data.len() as f64;
        progress(RqProgress { epoch, epochs: config.epochs, reconstruction });
    }
    let (mut quantiser, _) = codes.unwrap_or_else(|| start(&params));
    quantiser.revive(&network.encoder.forward(&params, data).0);
    Ok((network, params, quantiser))
}

struct Step {
    /// Summed squared error of the reconstruction.
    squares: f64,
    gradient: Vec<f32>,
}

/// The gradient of mean squared error plus commitment; the codes move along where there are any.
fn gradient(
    network: &Network,
    params: &[f32],
    codes: Option<&mut (Quantiser, Averages)>,
    batch: &[f32],
    config: &RqConfig,
) -> Step {
    let mut gradient = vec![0.0; network.layout.len()];
    let (latents, encoded) = network.encoder.forward(params, batch);
    let mut dlatents = vec![0.0; latents.len()];
    let mut quantised = latents.clone();
    if let Some((quantiser, averages)) = codes {
        let weight = config.commitment / latents.len() as f32;
        let rows = latents.chunks_exact(quantiser.dim).zip(dlatents.chunks_exact_mut(quantiser.dim));
        for ((z, dz), q) in rows.zip(quantised.chunks_exact_mut(quantiser.dim)) {
            q.copy_from_slice(&commit(quantiser, z, weight, dz).1);
        }
        averages.update(quantiser, &latents);
    }
    let (output, decoded) = network.decoder.forward(params, &quantised);
    let squares = f64::from(squared_distance(&output, batch));
    let mut doutput = output;
    add_scaled(&mut doutput, -1.0, batch);
    doutput.iter_mut().for_each(|d| *d *= 2.0 / batch.len() as f32);
    let dquantised = network.decoder.backward(params, &mut gradient, &quantised, &decoded, &doutput);
    // Straight through: what the quantised vector should change, the latent should.
    add_scaled(&mut dlatents, 1.0, &dquantised);
    network.encoder.backward(params, &mut gradient, batch, &encoded, &dlatents);
    Step { squares, gradient }
}

/// `weight · Σ_d ‖z − ẑ⁽ᵈ⁾‖²`, with ẑ⁽ᵈ⁾ the sum of the first d codes held fixed (Lee et al. 2022,
/// eq. 7), and ẑ itself; adds the term's gradient to `dz`.
fn commit(quantiser: &Quantiser, z: &[f32], weight: f32, dz: &mut [f32]) -> (f64, Vec<f32>) {
    let mut partial = vec![0.0; z.len()];
    let mut term = 0.0;
    for (level, code) in quantiser.quantise(z).into_iter().enumerate() {
        add_scaled(&mut partial, 1.0, quantiser.code(level, usize::from(code)));
        term += f64::from(weight) * f64::from(squared_distance(z, &partial));
        dz.iter_mut().zip(z.iter().zip(&partial)).for_each(|(d, (z, p))| *d += 2.0 * weight * (z - p));
    }
    (term, partial)
}

fn reconstruction(network: &Network, params: &[f32], quantiser: &Quantiser, data: &[f32]) -> f64 {
    let (latents, _) = network.encoder.forward(params, data);
    let quantised: Vec<f32> =
        latents.chunks_exact(quantiser.dim).flat_map(|z| quantiser.latent(&quantiser.quantise(z))).collect();
    let (output, _) = network.decoder.forward(params, &quantised);
    f64::from(squared_distance(&output, data)) / data.len() as f64
}

/// Mean cosine of pairs inside and across groups. With unit vectors summed per group, the pairs
/// need not be enumerated: Σᵢ≠ⱼ uᵢ·uⱼ = ‖Σ u‖² − Σ ‖u‖².
fn cosines(data: &[f32], groups: &[u32], n_groups: usize) -> (Option<f64>, Option<f64>) {
    let dim = data.len() / groups.len();
    let mut sums = vec![vec![0f32; dim]; n_groups];
    let mut sizes = vec![0f64; n_groups];
    let mut own = vec![0f64; n_groups];
    for (x, &group) in data.chunks_exact(dim).zip(groups) {
        let length = dot(x, x).sqrt();
        sizes[group as usize] += 1.0;
        if length > 0.0 {
            add_scaled(&mut sums[group as usize], 1.0 / length, x);
            own[group as usize] += 1.0;
        }
    }
    let squared = |sum: &[f32]| f64::from(dot(sum, sum));
    let mut total = vec![0f32; dim];
    sums.iter().for_each(|sum| add_scaled(&mut total, 1.0, sum));
    let within: f64 = sums.iter().map(|sum| squared(sum)).sum();
    let intra_pairs: f64 = sizes.iter().map(|n| n * (n - 1.0)).sum();
    let n: f64 = sizes.iter().sum();
    let inter_pairs = n * (n - 1.0) - intra_pairs;
    let mean = |sum: f64, pairs: f64| (pairs > 0.0).then(|| sum / pairs);
    (mean(within - own.iter().sum::<f64>(), intra_pairs), mean(squared(&total) - within, inter_pairs))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{grad_check, params::Layout},
        *,
    };

    #[test]
    fn the_commitment_term_has_the_gradient_claimed() {
        // Codes far apart: no difference step crosses a boundary.
        let quantiser =
            Quantiser { codes: vec![0.0, 0.0, 40.0, 40.0, 0.1, -0.1, 30.0, 9.0], codebook: 2, dim: 2 };
        grad_check::check(
            &Layout::default(),
            2,
            |_, z| vec![commit(&quantiser, z, 0.25, &mut [0.0; 2]).0 as f32],
            |_, _, z, dy| {
                let mut dz = vec![0.0; 2];
                commit(&quantiser, z, 0.25 * dy[0], &mut dz);
                dz
            },
        );
    }

    #[test]
    fn cosines_count_pairs() {
        let data = [1.0, 0.0, 2.0, 0.0, -3.0, 0.0];
        let (intra, inter) = cosines(&data, &[0, 0, 1], 2);
        assert_eq!((intra, inter), (Some(1.0), Some(-1.0)));
        assert_eq!(cosines(&data[..2], &[0], 1), (None, None));
    }
}
