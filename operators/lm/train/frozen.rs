//! What the layers below the adapters make of tokens, kept from batch to batch and from fit to fit.
//!
//! Decision: a row follows from the tokens up to it alone, so rows lie in a tree over tokens: what
//! prompts share is held once, whichever batch, epoch or cycle they come in. When memory is full, rows
//! that the fits under way have not used go; if there are none, what is new is not kept, because in
//! an epoch that is larger than memory each row would go just before its turn. No bit depends on it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::forest::Forest;
use super::network::below;
use crate::lm::llama::Llama;

/// Bytes of a row beside its numbers, about.
const OVERHEAD: usize = 96;

/// A row: the first adapted layer, the row before it, and its token.
type Name = (usize, Option<u64>, u32);

struct Row {
    /// What rows after it call it.
    name: u64,
    /// The fit that used it last.
    used: u64,
    /// The input of the first adapted layer.
    hidden: Box<[f32]>,
}

struct Rows {
    bound: usize,
    bytes: usize,
    by_name: BTreeMap<Name, Row>,
    named: u64,
    fit: u64,
}

/// The rows that a model keeps; see the head of this file.
pub(crate) struct Frozen(Mutex<Rows>);

impl Frozen {
    /// Keeps at most so many bytes.
    pub(crate) fn new(bound: usize) -> Self {
        Self(Mutex::new(Rows { bound, bytes: 0, by_name: BTreeMap::new(), named: 0, fit: 0 }))
    }

    /// Begins a fit: what the ones before have used alone makes room for it.
    pub(super) fn begin(&self) {
        self.rows().fit += 1;
    }

    /// The input of layer `first`, `[row][hidden]`: it does not change while the layers from there on are
    /// tuned. Computed are the rows that are not kept, and those they attend to.
    pub(super) fn below(&self, network: &Llama, first: usize, forest: &Forest) -> Vec<f32> {
        if first == 0 {
            return below(network, first, forest);
        }
        let size = network.sizes().hidden;
        let mut hidden = vec![0.0; forest.len() * size];
        let known = self.rows().read(first, forest, &mut hidden);
        let mut asked: Vec<bool> = known.iter().map(|known| !known).collect();
        for row in (0..forest.len()).rev().filter(|row| !known[*row]) {
            let mut above = forest.parent(row);
            while let Some(row) = above.filter(|row| !asked[*row]) {
                asked[row] = true;
                above = forest.parent(row);
            }
        }
        let asked: Vec<usize> = (0..forest.len()).filter(|row| asked[*row]).collect();
        if asked.is_empty() {
            return hidden;
        }
        let computed = below(network, first, &forest.part(&asked));
        for (row, computed) in asked.into_iter().zip(computed.chunks_exact(size)) {
            hidden[row * size..][..size].copy_from_slice(computed);
        }
        self.rows().write(first, forest, &hidden, size);
        hidden
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        // Rows are put in whole, so a panic elsewhere leaves none half made.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rows {
    /// Reads what is kept of a forest; tells which rows were.
    fn read(&mut self, first: usize, forest: &Forest, hidden: &mut [f32]) -> Vec<bool> {
        let (fit, size) = (self.fit, hidden.len() / forest.len().max(1));
        let mut names: Vec<Option<u64>> = Vec::with_capacity(forest.len());
        for (row, to) in hidden.chunks_exact_mut(size.max(1)).enumerate() {
            let found = name(first, forest, row, &names).and_then(|name| self.by_name.get_mut(&name));
            names.push(found.map(|found| {
                found.used = fit;
                to.copy_from_slice(&found.hidden);
                found.name
            }));
        }
        names.iter().map(Option::is_some).collect()
    }

    /// Keeps the rows of a forest, as far as there is room; those it continues are used and stay.
    fn write(&mut self, first: usize, forest: &Forest, hidden: &[f32], size: usize) {
        let each = size * size_of::<f32>() + OVERHEAD;
        let mut names: Vec<Option<u64>> = Vec::with_capacity(forest.len());
        let mut swept = false;
        for (row, hidden) in hidden.chunks_exact(size).enumerate() {
            let Some(place) = name(first, forest, row, &names) else {
                names.push(None);
                continue;
            };
            let fit = self.fit;
            let known = self.by_name.get_mut(&place).map(|row| {
                row.used = fit;
                row.name
            });
            if known.is_none() && self.bytes + each > self.bound && !swept {
                self.sweep();
                swept = true;
            }
            let new = known.is_none() && self.bytes + each <= self.bound;
            if new {
                (self.bytes, self.named) = (self.bytes + each, self.named + 1);
                let row = Row { name: self.named, used: self.fit, hidden: hidden.into() };
                self.by_name.insert(place, row);
            }
            names.push(known.or(new.then_some(self.named)));
        }
    }

    /// Forgets what the present fit has not used. What a row continues was used when it was.
    fn sweep(&mut self) {
        let (fit, mut bytes) = (self.fit, 0);
        self.by_name.retain(|_, row| {
            let stays = row.used == fit;
            bytes += usize::from(stays) * (size_of_val(&row.hidden[..]) + OVERHEAD);
            stays
        });
        self.bytes = bytes;
    }
}

/// The name of a row, if the one before it has one.
fn name(first: usize, forest: &Forest, row: usize, names: &[Option<u64>]) -> Option<Name> {
    let above = match forest.parent(row) {
        Some(parent) => Some(names[parent]?),
        None => None,
    };
    Some((first, above, forest.tokens()[row]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::testing::{noise, small_network};
    use crate::lm::train::forest::Text;

    /// Prompts of few tokens, so that many begin alike.
    fn forest(seed: u64) -> Forest {
        let tokens = |seed| noise(seed, 12).into_iter().map(|x| 20 + ((x + 1.0) * 1.5) as u32).collect();
        let prompts: Vec<Vec<u32>> = (0..4).map(|i| tokens(seed * 10 + i)).collect();
        Forest::new(&prompts.iter().map(|prompt| Text { prompt, tree: &[] }).collect::<Vec<_>>()).0
    }

    fn bits(rows: &[f32]) -> Vec<u32> {
        rows.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn no_bit_depends_on_what_is_kept() {
        let network = small_network(3);
        for rows in [0, 7, 40, 1000] {
            let frozen = Frozen::new(rows * (36 * 4 + OVERHEAD));
            for at in [0, 1, 0, 2, 3, 1, 2, 0, 4] {
                if at == 3 {
                    frozen.begin();
                }
                for first in [1, 2] {
                    let forest = forest(at);
                    let found = frozen.below(&network, first, &forest);
                    assert_eq!(bits(&found), bits(&below(&network, first, &forest)), "{rows} {at} {first}");
                    let kept = frozen.rows();
                    assert!(kept.bytes <= kept.bound);
                }
            }
            assert_eq!(frozen.rows().by_name.is_empty(), rows == 0);
        }
    }

    #[test]
    fn what_is_kept_is_not_computed_again() {
        let (network, forest) = (small_network(3), forest(0));
        let frozen = Frozen::new(1 << 20);
        frozen.below(&network, 1, &forest);
        let kept = frozen.rows().by_name.len();
        assert_eq!(kept, forest.len());
        // Were a row computed again, it would not be this one.
        frozen.rows().by_name.values_mut().for_each(|row| row.hidden.fill(7.0));
        assert!(frozen.below(&network, 1, &forest).iter().all(|x| *x == 7.0));
        assert_eq!(frozen.rows().by_name.len(), kept);
    }

    #[test]
    fn a_new_fit_takes_the_place_of_the_one_before_and_not_its_own() {
        let network = small_network(3);
        let (old, new) = (forest(0), forest(1));
        let room = old.len().max(new.len());
        let frozen = Frozen::new(room * (36 * 4 + OVERHEAD));
        let kept = |forest: &Forest| {
            let known = frozen.rows().read(1, forest, &mut vec![0.0; forest.len() * 36]);
            known.iter().filter(|known| **known).count()
        };
        frozen.below(&network, 1, &old);
        assert_eq!(kept(&old), old.len());
        frozen.below(&network, 1, &new);
        assert_eq!(kept(&old), old.len(), "what a fit uses stays while it lasts");
        frozen.begin();
        frozen.below(&network, 1, &new);
        assert_eq!(kept(&new), new.len());
    }
}
