//! Residual quantisation: level after level, the nearest code to what is left.
//!
//! Codebooks move by exponential averages of what they were assigned (van den Oord et al. 2017,
//! appendix A.1), not by gradients: there is nothing to tune, and the encoder's optimiser never
//! sees them. They start from residual k-means over a full pass, which is also the baseline the
//! autoencoder has to beat.

use super::{
    kmeans::{self, Points, nearest},
    matrix::{add_scaled, squared_distance},
    random::Stream,
};

/// Codebooks of all levels: `levels × codebook × dim`.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantiser {
    /// Codes, row-major.
    pub codes: Vec<f32>,
    /// Codes per level.
    pub codebook: usize,
    /// Values per code.
    pub dim: usize,
}

impl Quantiser {
    /// Residual k-means: each level clusters what the levels before left over.
    pub fn residual_kmeans(data: &[f32], dim: usize, levels: usize, codebook: usize, seed: u64) -> Self {
        let weights = vec![1.0; data.len() / dim];
        let mut residuals = data.to_vec();
        let mut codes = Vec::with_capacity(levels * codebook * dim);
        for level in 0..levels {
            let points = Points { data: &residuals, dim, weights: &weights };
            let mut stream = Stream::new(seed, "codebook", &[level as u64]);
            let mut clusters = kmeans::fit(points, codebook, 50, &mut stream);
            for (residual, label) in residuals.chunks_exact_mut(dim).zip(&clusters.labels) {
                add_scaled(residual, -1.0, &clusters.centroids[label * dim..][..dim]);
            }
            // Fewer distinct residuals than codes: copies of the first one are never nearest first.
            let first = clusters.centroids[..dim].to_vec();
            while clusters.centroids.len() < codebook * dim {
                clusters.centroids.extend(&first);
            }
            codes.extend(clusters.centroids);
        }
        Quantiser { codes, codebook, dim }
    }

    /// Number of levels.
    pub fn levels(&self) -> usize {
        self.codes.len() / (self.codebook * self.dim)
    }

    /// The codebook of one level, `codebook × dim`.
    pub fn level(&self, level: usize) -> &[f32] {
        &self.codes[level * self.codebook * self.dim..][..self.codebook * self.dim]
    }

    /// One code.
    pub fn code(&self, level: usize, code: usize) -> &[f32] {
        &self.level(level)[code * self.dim..][..self.dim]
    }

    /// The code of each level for `z` (CoEA, eq. 2), calling `visit(level, code, residual)` with
    /// what each level was given.
    pub fn quantise_with(&self, z: &[f32], mut visit: impl FnMut(usize, usize, &[f32])) -> Vec<u16> {
        let mut residual = z.to_vec();
        (0..self.levels())
            .map(|level| {
                let (code, _) = nearest(&residual, self.level(level));
                visit(level, code, &residual);
                add_scaled(&mut residual, -1.0, self.code(level, code));
                code as u16
            })
            .collect()
    }

    /// The code of each level for `z`.
    pub fn quantise(&self, z: &[f32]) -> Vec<u16> {
        self.quantise_with(z, |_, _, _| ())
    }

    /// The sum of the codes of a tuple, in level order.
    pub fn latent(&self, csid: &[u16]) -> Vec<f32> {
        let mut sum = vec![0.0; self.dim];
        csid.iter().enumerate().for_each(|(l, c)| add_scaled(&mut sum, 1.0, self.code(l, usize::from(*c))));
        sum
    }

    /// Mean squared error per value over `data`.
    pub fn error(&self, data: &[f32]) -> f64 {
        let rows = data.chunks_exact(self.dim);
        let squares = rows.map(|z| f64::from(squared_distance(z, &self.latent(&self.quantise(z)))));
        squares.sum::<f64>() / data.len() as f64
    }

    /// How often each code is used over `data`, level by level.
    pub fn usage(&self, data: &[f32]) -> Vec<Vec<usize>> {
        let mut usage = vec![vec![0; self.codebook]; self.levels()];
        for z in data.chunks_exact(self.dim) {
            self.quantise(z).iter().zip(&mut usage).for_each(|(c, u)| u[usize::from(*c)] += 1);
        }
        usage
    }

    /// Moves codes that `data` never uses to the residuals worst served on their level, until all
    /// are used or a round brings no more into use.
    pub fn revive(&mut self, data: &[f32]) {
        let dead = |q: &Self| q.usage(data).iter().flatten().filter(|n| **n == 0).count();
        let mut before = usize::MAX;
        let mut now = dead(self);
        while now > 0 && now < before {
            // Level by level: moving a code changes every residual below it.
            (0..self.levels()).for_each(|level| self.revive_level(level, data));
            before = now;
            now = dead(self);
        }
    }

    fn revive_level(&mut self, level: usize, data: &[f32]) {
        let mut worst = Vec::new();
        let mut used = vec![false; self.codebook];
        for z in data.chunks_exact(self.dim) {
            self.quantise_with(z, |l, code, residual| {
                if l == level {
                    used[code] = true;
                    worst.push((squared_distance(residual, self.code(l, code)), residual.to_vec()));
                }
            });
        }
        worst.sort_by(|a, b| b.0.total_cmp(&a.0));
        worst.dedup_by(|a, b| a.1 == b.1);
        let dead = (0..self.codebook).filter(|code| !used[*code]);
        for (code, (_, residual)) in dead.zip(worst.into_iter().filter(|w| w.0 > 0.0)) {
            self.set(level, code, &residual);
        }
    }

    fn set(&mut self, level: usize, code: usize, value: &[f32]) {
        let start = (level * self.codebook + code) * self.dim;
        self.codes[start..start + self.dim].copy_from_slice(value);
    }
}

/// Running averages of what each code was assigned.
#[derive(Clone, Debug)]
pub struct Averages {
    decay: f32,
    counts: Vec<f32>,
    sums: Vec<f32>,
    /// Uses since the last restart, by level and code.
    uses: Vec<usize>,
}

impl Averages {
    /// Averages that agree with `quantiser` as it stands, for batches of `batch` rows of `data`.
    pub fn new(quantiser: &Quantiser, data: &[f32], batch: usize, decay: f32) -> Self {
        let share = batch as f32 * quantiser.dim as f32 / data.len() as f32;
        let counts: Vec<f32> =
            quantiser.usage(data).into_iter().flatten().map(|n| n.max(1) as f32 * share).collect();
        let codes = quantiser.codes.chunks_exact(quantiser.dim);
        let sums = codes.zip(&counts).flat_map(|(code, n)| code.iter().map(move |v| v * n)).collect();
        let uses = vec![0; counts.len()];
        Averages { decay, counts, sums, uses }
    }

    /// Moves the codes towards what the rows of `batch` assign to them.
    pub fn update(&mut self, quantiser: &mut Quantiser, batch: &[f32]) {
        let dim = quantiser.dim;
        self.counts.iter_mut().chain(&mut self.sums).for_each(|v| *v *= self.decay);
        for z in batch.chunks_exact(dim) {
            quantiser.quantise_with(z, |level, code, residual| {
                let at = level * quantiser.codebook + code;
                self.counts[at] += 1.0 - self.decay;
                add_scaled(&mut self.sums[at * dim..][..dim], 1.0 - self.decay, residual);
                self.uses[at] += 1;
            });
        }
        let codes = quantiser.codes.chunks_exact_mut(dim).zip(self.sums.chunks_exact(dim));
        for ((code, sum), &count) in codes.zip(&self.counts) {
            // An unused code has a vanishing count: it stays where it is until it is restarted.
            if count > 1e-4 {
                code.iter_mut().zip(sum).for_each(|(c, s)| *c = s / count);
            }
        }
    }

    /// Restarts codes unused since the last call at the residual of a random row of `data`.
    pub fn restart_dead(&mut self, quantiser: &mut Quantiser, data: &[f32], stream: &mut Stream) {
        let dim = quantiser.dim;
        for at in 0..self.uses.len() {
            if std::mem::take(&mut self.uses[at]) > 0 {
                continue;
            }
            let (level, code) = (at / quantiser.codebook, at % quantiser.codebook);
            let row = stream.below(data.len() / dim);
            let mut found = Vec::new();
            quantiser.quantise_with(&data[row * dim..][..dim], |l, _, residual| {
                if l == level {
                    found = residual.to_vec();
                }
            });
            quantiser.set(level, code, &found);
            self.counts[at] = 1.0;
            self.sums[at * dim..][..dim].copy_from_slice(&found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(n: usize, dim: usize) -> Vec<f32> {
        let mut data = vec![0.0; n * dim];
        Stream::new(4, "test", &[]).fill_centred(1.0, &mut data);
        data
    }

    #[test]
    fn each_level_lowers_the_error() {
        let data = data(200, 6);
        let errors: Vec<f64> =
            (1..=3).map(|levels| Quantiser::residual_kmeans(&data, 6, levels, 8, 0).error(&data)).collect();
        assert!(errors[0] < 1.0 && errors[1] < errors[0] && errors[2] < errors[1], "{errors:?}");
    }

    #[test]
    fn codes_follow_the_greedy_rule() {
        let q = Quantiser { codes: vec![0.0, 10.0, -1.0, 1.0], codebook: 2, dim: 1 };
        assert_eq!(q.quantise(&[9.2]), [1, 0]);
        assert_eq!(q.latent(&[1, 0]), [9.0]);
        assert!((q.error(&[9.2, 8.8]) - 0.04).abs() < 1e-6);
    }

    #[test]
    fn dead_codes_are_revived() {
        let data = data(100, 3);
        let mut q = Quantiser::residual_kmeans(&data, 3, 2, 8, 0);
        q.set(0, 5, &[99.0; 3]);
        q.set(1, 2, &[-99.0; 3]);
        q.revive(&data);
        assert!(q.usage(&data).iter().flatten().all(|n| *n > 0), "{:?}", q.usage(&data));
    }

    #[test]
    fn averages_restart_unused_codes() {
        let data = data(100, 3);
        let mut q = Quantiser::residual_kmeans(&data, 3, 1, 4, 0);
        q.set(0, 1, &[99.0; 3]);
        let mut averages = Averages::new(&q, &data, 100, 0.9);
        averages.update(&mut q, &data);
        averages.restart_dead(&mut q, &data, &mut Stream::new(0, "test", &[]));
        assert!(q.code(0, 1).iter().all(|v| v.abs() < 5.0));
    }
}
