//! New groups under the names of old ones, and how far the two groupings agree.
//!
//! Decision: the number of a group means nothing, so a refit would rename all groups and move every key.
//! The new groups take names such that as many users as can be keep theirs, which is the assignment
//! problem (Kuhn 1955). A group that no old one is given to takes a name that was never in use.

use std::collections::{BTreeMap, BTreeSet};

use pathfinding::prelude::{Matrix, kuhn_munkres};

/// Users by the name of their old group and the number of their new one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared(BTreeMap<(u32, u32), u64>);

impl Shared {
    /// Counts a user.
    pub(crate) fn add(&mut self, old: u32, new: u32) {
        *self.0.entry((old, new)).or_default() += 1;
    }

    /// The names of `count` new groups; those that take no old name are called `next` and so on.
    pub(crate) fn names(&self, count: usize, mut next: u32) -> Vec<u32> {
        let old: BTreeSet<u32> = self.0.keys().map(|(old, _)| *old).collect();
        let old: Vec<u32> = old.into_iter().collect();
        // As many columns more as there are groups, so that none has to take a name it shares no user with.
        let shared = |new: usize, at: usize| {
            let users = old.get(at).and_then(|old| self.0.get(&(*old, new as u32)));
            users.map_or(0, |users| *users as i64)
        };
        if count == 0 {
            return Vec::new();
        }
        let weights = Matrix::from_fn(count, old.len() + count, |(new, at)| shared(new, at));
        let (_, places) = kuhn_munkres(&weights);
        let mut name = |(new, at): (usize, usize)| match old.get(at).filter(|_| shared(new, at) > 0) {
            Some(old) => *old,
            None => {
                next += 1;
                next - 1
            }
        };
        places.into_iter().enumerate().map(&mut name).collect()
    }

    /// The share of users whose group has another name than before; 0 without users.
    pub(crate) fn moved(&self, names: &[u32]) -> f64 {
        let all: u64 = self.0.values().sum();
        let moved = self.0.iter().filter(|((old, new), _)| names.get(*new as usize) != Some(old));
        moved.map(|(_, users)| users).sum::<u64>() as f64 / all.max(1) as f64
    }

    /// The Rand index, adjusted for chance (Hubert & Arabie 1985, eq. 5): 1 for the same grouping, 0 for
    /// one at random; names play no part.
    pub(crate) fn rand_index(&self) -> f64 {
        let pairs = |users: u64| users as f64 * (users as f64 - 1.0) / 2.0;
        let (mut by_old, mut by_new) = (BTreeMap::<u32, u64>::new(), BTreeMap::<u32, u64>::new());
        for ((old, new), users) in &self.0 {
            *by_old.entry(*old).or_default() += users;
            *by_new.entry(*new).or_default() += users;
        }
        let together: f64 = self.0.values().copied().map(pairs).sum();
        let of = |sizes: &BTreeMap<u32, u64>| sizes.values().copied().map(pairs).sum::<f64>();
        let (old, new, all) = (of(&by_old), of(&by_new), pairs(self.0.values().sum()));
        let expected = if all > 0.0 { old * new / all } else { 0.0 };
        let most = (old + new) / 2.0;
        if most - expected > 0.0 { (together - expected) / (most - expected) } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(users: &[(u32, u32, u64)]) -> Shared {
        Shared(users.iter().map(|(old, new, users)| ((*old, *new), *users)).collect())
    }

    #[test]
    fn names_keep_as_many_users_as_can_be() {
        // Greedily, new group 0 would take name 4 and leave 1 with the 2 users of name 7: 12 kept, not 18.
        let users = shared(&[(4, 0, 10), (4, 1, 9), (7, 0, 9), (7, 1, 2)]);
        assert_eq!(users.names(2, 8), [7, 4]);
        assert!((users.moved(&[7, 4]) - 12.0 / 30.0).abs() < 1e-12);
    }

    #[test]
    fn a_group_of_newcomers_takes_a_name_of_its_own() {
        let users = shared(&[(3, 1, 5), (0, 0, 2)]);
        assert_eq!(users.names(4, 6), [0, 3, 6, 7]);
        assert_eq!(shared(&[]).names(2, 0), [0, 1]);
        assert!(users.names(0, 6).is_empty());
        // Fewer groups than before: the one with fewer users in common vanishes.
        assert_eq!(shared(&[(1, 0, 5), (2, 0, 8)]).names(1, 3), [2]);
    }

    #[test]
    fn renaming_moves_nobody() {
        let users = shared(&[(0, 2, 7), (1, 0, 8), (2, 1, 9)]);
        let names = users.names(3, 3);
        assert_eq!(names, [1, 2, 0]);
        assert!(users.moved(&names).abs() < 1e-12);
        assert!((users.rand_index() - 1.0).abs() < 1e-12);
        assert!(shared(&[]).moved(&[]).abs() < 1e-12);
    }

    #[test]
    fn the_rand_index_is_that_of_the_literature() {
        // scikit-learn, adjusted_rand_score([0,0,1,1], [0,0,1,2]) and ([0,0,0,0], [0,1,2,3]).
        assert!((shared(&[(0, 0, 2), (1, 1, 1), (1, 2, 1)]).rand_index() - 4.0 / 7.0).abs() < 1e-12);
        assert!(shared(&[(0, 0, 1), (0, 1, 1), (0, 2, 1), (0, 3, 1)]).rand_index().abs() < 1e-12);
    }
}
