//! Weighted k-means with the k-means++ start.
//!
//! Small on purpose: at most some thousands of points, so exact assignment on one thread in a fixed
//! order is fast enough and gives the same clusters every time. Fewer distinct points than clusters
//! give fewer clusters, not an error.

use super::{
    matrix::{add_scaled, squared_distance},
    random::Stream,
};

/// Points of `dim` values each, row-major, with the weight of each.
#[derive(Clone, Copy, Debug)]
pub struct Points<'a> {
    /// All coordinates.
    pub data: &'a [f32],
    /// Coordinates per point.
    pub dim: usize,
    /// One non-negative weight per point.
    pub weights: &'a [f32],
}

impl<'a> Points<'a> {
    /// The number of points.
    #[expect(clippy::len_without_is_empty, reason = "only ever asked how many")]
    pub fn len(self) -> usize {
        self.weights.len()
    }

    /// One point.
    pub fn get(self, index: usize) -> &'a [f32] {
        &self.data[index * self.dim..(index + 1) * self.dim]
    }

    fn iter(self) -> impl Iterator<Item = (&'a [f32], f32)> {
        self.data.chunks_exact(self.dim).zip(self.weights.iter().copied())
    }
}

/// A clustering.
#[derive(Clone, Debug)]
pub struct Clusters {
    /// Centroids, row-major; possibly fewer than asked for.
    pub centroids: Vec<f32>,
    /// The cluster of each point.
    pub labels: Vec<usize>,
    /// Weighted sum of squared distances to the centroids.
    pub inertia: f64,
}

/// The nearest of `centroids` (the first one on a tie) and the squared distance to it.
pub fn nearest(point: &[f32], centroids: &[f32]) -> (usize, f32) {
    let distances = centroids.chunks_exact(point.len()).map(|c| squared_distance(point, c));
    let closer = |best: (usize, f32), (i, d): (usize, f32)| if d < best.1 { (i, d) } else { best };
    distances.enumerate().fold((0, f32::INFINITY), closer)
}

/// At most `k` clusters: k-means++ seeding (Arthur & Vassilvitskii 2007), then Lloyd's iterations
/// until no label changes or `iterations` are done.
pub fn fit(points: Points<'_>, k: usize, iterations: usize, stream: &mut Stream) -> Clusters {
    let mut clusters = assign(points, seed(points, k, stream));
    for _ in 0..iterations {
        let centroids = recentre(points, &clusters);
        let next = assign(points, centroids);
        let settled = next.labels == clusters.labels;
        clusters = next;
        if settled {
            break;
        }
    }
    clusters
}

fn seed(points: Points<'_>, k: usize, stream: &mut Stream) -> Vec<f32> {
    let mut chances: Vec<f64> = points.weights.iter().map(|w| f64::from(*w)).collect();
    let mut distances = vec![f32::INFINITY; points.len()];
    let mut centroids = Vec::with_capacity(k * points.dim);
    for _ in 0..k {
        let Some(chosen) = draw(&chances, stream) else { break };
        centroids.extend(points.get(chosen));
        for (i, (point, weight)) in points.iter().enumerate() {
            distances[i] = distances[i].min(squared_distance(point, points.get(chosen)));
            chances[i] = f64::from(weight) * f64::from(distances[i]);
        }
    }
    centroids
}

/// An index drawn in proportion to `chances`; `None` if all are zero.
fn draw(chances: &[f64], stream: &mut Stream) -> Option<usize> {
    let mut left = stream.unit_f64() * chances.iter().sum::<f64>();
    let mut possible = chances.iter().enumerate().filter(|(_, c)| **c > 0.0).peekable();
    while let Some((i, chance)) = possible.next() {
        left -= chance;
        // Rounding may leave a little after the last one.
        if left < 0.0 || possible.peek().is_none() {
            return Some(i);
        }
    }
    None
}

fn assign(points: Points<'_>, centroids: Vec<f32>) -> Clusters {
    let mut inertia = 0.0;
    let label = |(point, weight): (&[f32], f32)| {
        let (label, distance) = nearest(point, &centroids);
        inertia += f64::from(weight) * f64::from(distance);
        label
    };
    let labels = points.iter().map(label).collect();
    Clusters { centroids, labels, inertia }
}

/// Weighted means of the clusters; an empty one moves to the point farthest from its centroid.
fn recentre(points: Points<'_>, clusters: &Clusters) -> Vec<f32> {
    let (mut centroids, totals) =
        means(points, &clusters.labels, clusters.centroids.len() / points.dim.max(1));
    let mut farthest: Vec<(usize, f32)> = points
        .iter()
        .zip(&clusters.labels)
        .map(|((p, w), l)| w * squared_distance(p, &clusters.centroids[l * points.dim..][..points.dim]))
        .enumerate()
        .collect();
    farthest.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let empty = totals.iter().enumerate().filter(|(_, total)| **total == 0.0);
    for ((cluster, _), (point, _)) in empty.zip(farthest) {
        centroids[cluster * points.dim..][..points.dim].copy_from_slice(points.get(point));
    }
    centroids
}

/// Weighted means of `k` labelled clusters, zero for an empty one, and their total weights.
pub fn means(points: Points<'_>, labels: &[usize], k: usize) -> (Vec<f32>, Vec<f32>) {
    let mut sums = vec![0.0; k * points.dim];
    let mut totals = vec![0.0; k];
    for ((point, weight), &label) in points.iter().zip(labels) {
        add_scaled(&mut sums[label * points.dim..][..points.dim], weight, point);
        totals[label] += weight;
    }
    for (sum, total) in sums.chunks_exact_mut(points.dim).zip(&totals) {
        if *total > 0.0 {
            sum.iter_mut().for_each(|s| *s /= total);
        }
    }
    (sums, totals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planted_clusters_are_found() {
        let mut data = vec![0.0; 90 * 2];
        Stream::new(0, "test", &[]).fill_centred(0.1, &mut data);
        for (i, point) in data.chunks_exact_mut(2).enumerate() {
            point[0] += 5.0 * (i % 3) as f32;
        }
        let points = Points { data: &data, dim: 2, weights: &[1.0; 90] };
        let clusters = fit(points, 3, 50, &mut Stream::new(1, "test", &[]));
        for (i, label) in clusters.labels.iter().enumerate() {
            assert_eq!(*label, clusters.labels[i % 3]);
        }
        assert!(clusters.inertia < 90.0 * 2.0 * 0.1 * 0.1 * 1.5);
    }

    #[test]
    fn weights_pull_the_centroid() {
        let points = Points { data: &[0.0, 4.0], dim: 1, weights: &[3.0, 1.0] };
        let clusters = fit(points, 1, 10, &mut Stream::new(1, "test", &[]));
        assert_eq!(clusters.centroids, [1.0]);
        assert_eq!(clusters.inertia, 12.0);
    }

    #[test]
    fn fewer_distinct_points_than_clusters() {
        let points = Points { data: &[2.0, 2.0, 7.0], dim: 1, weights: &[1.0; 3] };
        let clusters = fit(points, 5, 10, &mut Stream::new(1, "test", &[]));
        assert_eq!(clusters.centroids.len(), 2);
        assert_eq!(clusters.inertia, 0.0);
    }

    #[test]
    fn an_empty_cluster_moves_to_the_farthest_point() {
        let points = Points { data: &[0.0, 1.0, 10.0], dim: 1, weights: &[1.0; 3] };
        let clusters = assign(points, vec![0.5, 99.0]);
        assert_eq!(recentre(points, &clusters)[1], 10.0);
    }
}
