//! The fitted table from code tuples to groups.
//!
//! The paper calls each tuple a group, yet has 16⁴ tuples and "50 groups". Here the tuple stays the
//! tuple, and groups come from k-means over the distinct quantised vectors, each weighted by how
//! many users have it. A group is only useful if it is large enough to have representatives, so
//! small ones are dissolved into their neighbours and large ones split in their place.

use std::collections::BTreeMap;

use super::{
    kmeans::{self, Clusters, Points, means, nearest},
    matrix::{add_scaled, dot, squared_distance},
    random::Stream,
};

/// Starts of k-means tried; the tightest clustering wins.
const STARTS: u64 = 8;
const ITERATIONS: usize = 100;

/// Tuple → group, and where the groups lie.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupTable {
    /// The group of every tuple seen at fit time.
    pub groups: BTreeMap<Vec<u16>, u32>,
    /// Centroids of the groups among quantised vectors, row-major.
    pub centroids: Vec<f32>,
}

/// A distinct tuple: its quantised vector and the number of users that have it.
pub type Occupied = BTreeMap<Vec<u16>, (Vec<f32>, usize)>;

impl GroupTable {
    /// At most `k` groups, each of at least `min_group` users unless there are fewer in all. Groups
    /// are numbered from the largest down, ties by their first tuple.
    pub fn fit(occupied: &Occupied, k: usize, min_group: usize, seed: u64) -> Self {
        let dim = occupied.values().next().map_or(1, |(latent, _)| latent.len());
        let data: Vec<f32> = occupied.values().flat_map(|(latent, _)| latent.iter().copied()).collect();
        let weights: Vec<f32> = occupied.values().map(|(_, users)| *users as f32).collect();
        let points = Points { data: &data, dim, weights: &weights };
        let mut labels = tightest(points, k, |start| Stream::new(seed, "groups", &[start])).labels;
        dissolve_small(points, &mut labels, min_group as f32);
        split_large(points, &mut labels, k, min_group as f32, seed);
        let labels = number_by_size(points, &labels);
        let count = labels.iter().max().map_or(0, |l| l + 1);
        let (centroids, _) = means(points, &labels, count);
        let groups = occupied.keys().cloned().zip(labels.into_iter().map(|l| l as u32)).collect();
        GroupTable { groups, centroids }
    }

    /// The group of a tuple; an unseen one takes that of the nearest centroid to its `latent`.
    pub fn group(&self, csid: &[u16], latent: &[f32]) -> u32 {
        self.groups.get(csid).copied().unwrap_or_else(|| nearest(latent, &self.centroids).0 as u32)
    }
}

fn tightest(points: Points<'_>, k: usize, stream: impl Fn(u64) -> Stream) -> Clusters {
    let mut best = kmeans::fit(points, k, ITERATIONS, &mut stream(0));
    for start in 1..STARTS {
        let next = kmeans::fit(points, k, ITERATIONS, &mut stream(start));
        if next.inertia < best.inertia {
            best = next;
        }
    }
    best
}

/// Gives the members of the smallest group below `least` to the groups nearest to each, until no
/// such group is left or only one group.
fn dissolve_small(points: Points<'_>, labels: &mut [usize], least: f32) {
    loop {
        let count = labels.iter().max().map_or(0, |l| l + 1);
        let (centroids, totals) = means(points, labels, count);
        let present = || totals.iter().enumerate().filter(|(_, total)| **total > 0.0);
        let smallest = present().min_by(|a, b| a.1.total_cmp(b.1).then(a.0.cmp(&b.0)));
        let Some((smallest, total)) = smallest else { return };
        if *total >= least || present().count() == 1 {
            return;
        }
        let others: Vec<usize> = present().map(|(g, _)| g).filter(|g| *g != smallest).collect();
        let places: Vec<f32> =
            others.iter().flat_map(|g| &centroids[g * points.dim..][..points.dim]).copied().collect();
        for (i, label) in labels.iter_mut().enumerate().filter(|(_, label)| **label == smallest) {
            *label = others[nearest(points.get(i), &places).0];
        }
    }
}

/// Splits the loosest group that falls into two of at least `least`, until there are `k` groups or
/// none can be split.
fn split_large(points: Points<'_>, labels: &mut [usize], k: usize, least: f32, seed: u64) {
    let mut open: Vec<usize> = labels.to_vec();
    open.sort_unstable();
    open.dedup();
    let mut count = open.len();
    let mut next = open.last().map_or(0, |l| l + 1);
    while count < k {
        let spreads = open.iter().map(|group| spread(points, labels, *group));
        let loosest = spreads.enumerate().reduce(|a, b| if b.1 > a.1 { b } else { a });
        let Some((loosest, _)) = loosest else { return };
        // A group found unsplittable stays so: its members no longer change.
        let group = open.remove(loosest);
        let second = best_cut(points, labels, group, least, seed);
        if !second.is_empty() {
            second.into_iter().for_each(|i| labels[i] = next);
            open.extend([group, next]);
            next += 1;
            count += 1;
        }
    }
}

/// Weighted sum of squared distances of a group's members to their mean.
fn spread(points: Points<'_>, labels: &[usize], group: usize) -> f64 {
    let (data, weights, _) = members(points, labels, group);
    let (mean, _) =
        means(Points { data: &data, dim: points.dim, weights: &weights }, &vec![0; weights.len()], 1);
    let square = |(x, w): (&[f32], &f32)| f64::from(*w) * f64::from(squared_distance(x, &mean));
    data.chunks_exact(points.dim).zip(&weights).map(square).sum()
}

/// The members to take out of a group so that both parts have at least `least` users and are as
/// tight as possible; none if there is no such cut. Members are cut in their order along the line
/// between the centroids of 2-means: unlike 2-means itself, that finds a cut beside an outlier.
fn best_cut(points: Points<'_>, labels: &[usize], group: usize, least: f32, seed: u64) -> Vec<usize> {
    let (data, weights, indices) = members(points, labels, group);
    let inside = Points { data: &data, dim: points.dim, weights: &weights };
    let halves = tightest(inside, 2, |start| Stream::new(seed, "split", &[start]));
    let [first, second] = halves.centroids.chunks_exact(points.dim).collect::<Vec<_>>()[..] else {
        return Vec::new();
    };
    let axis: Vec<f32> = second.iter().zip(first).map(|(b, a)| b - a).collect();
    let mut order: Vec<usize> = (0..indices.len()).collect();
    order.sort_by(|a, b| dot(inside.get(*a), &axis).total_cmp(&dot(inside.get(*b), &axis)).then(a.cmp(b)));
    // Tightest is where |sum|²/weight of both parts together is largest.
    let (mut left, mut left_weight) = (vec![0.0; points.dim], 0.0);
    let (mut right, right_weights) = (vec![0.0; points.dim], weights.iter().sum::<f32>());
    order.iter().for_each(|i| add_scaled(&mut right, weights[*i], inside.get(*i)));
    let mut best = (f32::NEG_INFINITY, indices.len());
    for (cut, i) in order.iter().enumerate() {
        add_scaled(&mut left, weights[*i], inside.get(*i));
        add_scaled(&mut right, -weights[*i], inside.get(*i));
        left_weight += weights[*i];
        let right_weight = right_weights - left_weight;
        let tightness = dot(&left, &left) / left_weight + dot(&right, &right) / right_weight;
        if left_weight >= least && right_weight >= least.max(1.0) && tightness > best.0 {
            best = (tightness, cut + 1);
        }
    }
    order[best.1..].iter().map(|i| indices[*i]).collect()
}

/// Coordinates, weights and indices of the points of one group.
fn members(points: Points<'_>, labels: &[usize], group: usize) -> (Vec<f32>, Vec<f32>, Vec<usize>) {
    let indices: Vec<usize> = (0..points.len()).filter(|i| labels[*i] == group).collect();
    let data = indices.iter().flat_map(|i| points.get(*i)).copied().collect();
    let weights = indices.iter().map(|i| points.weights[*i]).collect();
    (data, weights, indices)
}

fn number_by_size(points: Points<'_>, labels: &[usize]) -> Vec<usize> {
    let mut sizes: BTreeMap<usize, (f32, usize)> = BTreeMap::new();
    for (i, label) in labels.iter().enumerate() {
        sizes.entry(*label).or_insert((0.0, i)).0 += points.weights[i];
    }
    let mut order: Vec<(usize, (f32, usize))> = sizes.into_iter().collect();
    order.sort_by(|(_, a), (_, b)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let number: BTreeMap<usize, usize> =
        order.iter().enumerate().map(|(n, (label, _))| (*label, n)).collect();
    labels.iter().map(|label| number[label]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tuples at the given places on a line, with so many users each.
    fn occupied(places: &[(f32, usize)]) -> Occupied {
        places.iter().enumerate().map(|(i, (x, n))| (vec![i as u16], (vec![*x], *n))).collect()
    }

    fn sizes(table: &GroupTable, occupied: &Occupied) -> Vec<usize> {
        let mut sizes = vec![0; table.centroids.len()];
        occupied.iter().for_each(|(csid, (_, n))| sizes[table.groups[csid] as usize] += n);
        sizes
    }

    #[test]
    fn small_groups_are_dissolved_and_large_ones_split() {
        let users = occupied(&[(0.0, 20), (1.0, 20), (2.0, 20), (50.0, 3), (100.0, 20)]);
        let table = GroupTable::fit(&users, 3, 8, 0);
        let sizes = sizes(&table, &users);
        assert_eq!(sizes.len(), 3);
        assert!(sizes.iter().all(|n| *n >= 8), "{sizes:?}");
        assert!(sizes.is_sorted_by(|a, b| a >= b));
    }

    #[test]
    fn occupancy_decides_where_groups_lie() {
        let users = occupied(&[(0.0, 100), (4.0, 100), (5.0, 1), (6.0, 1)]);
        let table = GroupTable::fit(&users, 2, 1, 0);
        assert_ne!(table.groups[&vec![0]], table.groups[&vec![1]]);
        assert_eq!(table.groups[&vec![1]], table.groups[&vec![3]]);
    }

    #[test]
    fn fewer_users_than_groups() {
        let users = occupied(&[(0.0, 1), (9.0, 1)]);
        let table = GroupTable::fit(&users, 10, 8, 0);
        assert_eq!(table.centroids.len(), 1);
        assert_eq!(GroupTable::fit(&users, 10, 1, 0).centroids.len(), 2);
        assert_eq!(GroupTable::fit(&Occupied::new(), 4, 8, 0).centroids.len(), 0);
    }

    #[test]
    fn an_unseen_tuple_takes_the_nearest_group() {
        let users = occupied(&[(0.0, 10), (9.0, 10)]);
        let table = GroupTable::fit(&users, 2, 8, 0);
        assert_eq!(table.group(&[77], &[7.0]), table.groups[&vec![1]]);
    }
}
