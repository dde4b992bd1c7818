//! What the layers below the adapters make of tokens, kept from batch to batch and from fit to fit.
//!
//! Decision: a row follows from the tokens up to it alone, so rows lie in a tree over tokens: what
//! prompts share is held once, whichever batch, epoch or cycle they come in. When memory is full, the
//! rows that no fit under way has used make room, those used longest ago first; if there are none, what is
//! new is not kept, because in an epoch that is larger than memory each row would go just before its
//! turn. No bit depends on it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::forest::Forest;
use super::network::below;
use crate::lm::llama::Llama;

/// Bytes of a row beside its numbers, about.
const OVERHEAD: usize = 96;

/// Where a row lies: the first adapted layer, the number of the row before it, and its token.
type Place = (usize, Option<u64>, u32);

struct Row {
    /// Above that of the row it continues.
    number: u64,
    /// The fit that used it last; no fit has used a row later than the one it continues.
    used: u64,
    /// The input of the first adapted layer.
    hidden: Box<[f32]>,
}

impl Row {
    fn bytes(numbers: usize) -> usize {
        numbers * size_of::<f32>() + OVERHEAD
    }
}

struct Rows {
    bound: usize,
    bytes: usize,
    by_place: BTreeMap<Place, Row>,
    /// The number of the row that came last.
    last: u64,
    /// The fit that began last.
    fit: u64,
    /// The fits under way.
    open: BTreeSet<u64>,
}

/// The rows that a model keeps; see the head of this file.
pub(crate) struct Frozen(Mutex<Rows>);

/// A fit under way: what it uses stays until this is dropped.
pub(super) struct Fit {
    frozen: Arc<Frozen>,
    number: u64,
}

impl Fit {
    pub(super) fn begin(frozen: &Arc<Frozen>) -> Self {
        let mut rows = frozen.rows();
        rows.fit += 1;
        let number = rows.fit;
        rows.open.insert(number);
        Self { frozen: frozen.clone(), number }
    }
}

impl Drop for Fit {
    fn drop(&mut self) {
        self.frozen.rows().open.remove(&self.number);
    }
}

impl Frozen {
    /// Keeps at most so many bytes.
    pub(crate) fn new(bound: usize) -> Self {
        let by_place = BTreeMap::new();
        Self(Mutex::new(Rows { bound, bytes: 0, by_place, last: 0, fit: 0, open: BTreeSet::new() }))
    }

    /// The input of layer `first`, `[row][hidden]`: it does not change while the layers from there on are
    /// tuned. Computed are the rows that are not kept, and those they attend to.
    pub(super) fn below(&self, network: &Llama, first: usize, forest: &Forest) -> Vec<f32> {
        if first == 0 {
            return below(network, first, forest);
        }
        let size = network.sizes().hidden;
        let mut hidden = vec![0.0; forest.len() * size];
        let mut asked: Vec<bool> = self.rows().read(first, forest, size, &mut hidden);
        for row in (0..forest.len()).rev() {
            if let Some(above) = forest.parent(row).filter(|_| asked[row]) {
                asked[above] = true;
            }
        }
        let asked: Vec<usize> = (0..forest.len()).filter(|row| asked[*row]).collect();
        if asked.is_empty() {
            return hidden;
        }
        let computed = below(network, first, &forest.part(&asked));
        for (row, numbers) in asked.into_iter().zip(computed.chunks_exact(size)) {
            hidden[row * size..][..size].copy_from_slice(numbers);
        }
        self.rows().write(first, forest, size, &hidden);
        hidden
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        // Rows are put in whole, so a panic elsewhere leaves none half made.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rows {
    /// Reads what is kept of a forest; tells which rows are not.
    fn read(&mut self, first: usize, forest: &Forest, size: usize, hidden: &mut [f32]) -> Vec<bool> {
        let mut numbers: Vec<Option<u64>> = Vec::with_capacity(forest.len());
        for (row, to) in hidden.chunks_exact_mut(size).enumerate() {
            let found = place(first, forest, row, &numbers).and_then(|place| self.touch(place));
            numbers.push(found.map(|found| {
                to.copy_from_slice(&found.hidden);
                found.number
            }));
        }
        numbers.iter().map(Option::is_none).collect()
    }

    /// Keeps the rows of a forest, as far as there is room.
    fn write(&mut self, first: usize, forest: &Forest, size: usize, hidden: &[f32]) {
        let mut numbers: Vec<Option<u64>> = Vec::with_capacity(forest.len());
        let mut missing = 0;
        for row in 0..forest.len() {
            let known = place(first, forest, row, &numbers).and_then(|place| self.touch(place));
            numbers.push(known.map(|row| row.number));
            missing += usize::from(numbers[row].is_none());
        }
        self.make_room(missing * Row::bytes(size));
        for (row, hidden) in hidden.chunks_exact(size).enumerate() {
            if numbers[row].is_none() {
                let place = place(first, forest, row, &numbers);
                numbers[row] = place.and_then(|place| self.insert(place, hidden));
            }
        }
    }

    /// A row that is kept; now it was used.
    fn touch(&mut self, place: Place) -> Option<&Row> {
        let row = self.by_place.get_mut(&place)?;
        row.used = self.fit;
        Some(row)
    }

    /// Keeps a row, if there is room; its number.
    fn insert(&mut self, place: Place, hidden: &[f32]) -> Option<u64> {
        let bytes = self.bytes + Row::bytes(hidden.len());
        if bytes > self.bound {
            return None;
        }
        (self.bytes, self.last) = (bytes, self.last + 1);
        let (number, used) = (self.last, self.fit);
        self.by_place.insert(place, Row { number, used, hidden: hidden.into() });
        Some(number)
    }

    /// Forgets rows that no fit under way has used until there is room for so many bytes, or none is left. What
    /// continues a row goes before it: it was used no later, and has the higher number.
    fn make_room(&mut self, bytes: usize) {
        let mut excess = (self.bytes + bytes).saturating_sub(self.bound);
        if excess == 0 {
            return;
        }
        let oldest = self.open.first().copied().unwrap_or(self.fit);
        let idle = self.by_place.iter().filter(|(_, row)| row.used < oldest);
        let mut idle: Vec<_> = idle.map(|(place, row)| (row.used, Reverse(row.number), *place)).collect();
        idle.sort_unstable();
        for (.., place) in idle {
            if excess == 0 {
                break;
            }
            let freed = self.by_place.remove(&place).map_or(0, |row| Row::bytes(row.hidden.len()));
            self.bytes -= freed;
            excess = excess.saturating_sub(freed);
        }
    }
}

/// The place of a row, if the one before it has a number.
fn place(first: usize, forest: &Forest, row: usize, numbers: &[Option<u64>]) -> Option<Place> {
    let above = match forest.parent(row) {
        Some(parent) => Some(numbers[parent]?),
        None => None,
    };
    Some((first, above, forest.tokens()[row]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::testing::{noise, small_network};
    use crate::lm::train::forest::Text;

    /// Numbers of a row of the small network.
    const SIZE: usize = 36;

    /// Prompts of few tokens, so that many begin alike.
    fn forest(seed: u64) -> Forest {
        let tokens = |seed| noise(seed, 12).into_iter().map(|x| 20 + ((x + 1.0) * 1.5) as u32).collect();
        let prompts: Vec<Vec<u32>> = (0..4).map(|i| tokens(seed * 10 + i)).collect();
        Forest::new(&prompts.iter().map(|prompt| Text { prompt, tree: &[] }).collect::<Vec<_>>()).0
    }

    fn with_room(rows: usize) -> Arc<Frozen> {
        Arc::new(Frozen::new(rows * Row::bytes(SIZE)))
    }

    /// How many rows of a forest are kept.
    fn kept(frozen: &Frozen, forest: &Forest) -> usize {
        let rows = frozen.rows();
        let mut numbers: Vec<Option<u64>> = Vec::new();
        for row in 0..forest.len() {
            let found = place(1, forest, row, &numbers).and_then(|place| rows.by_place.get(&place));
            numbers.push(found.map(|row| row.number));
        }
        numbers.iter().flatten().count()
    }

    fn bits(rows: &[f32]) -> Vec<u32> {
        rows.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn no_bit_depends_on_what_is_kept() {
        let network = small_network(3);
        for room in [0, 7, 40, 1000] {
            let frozen = with_room(room);
            let mut fits = vec![Fit::begin(&frozen)];
            for (at, seed) in [0, 1, 0, 2, 3, 1, 2, 0, 4].into_iter().enumerate() {
                match at {
                    3 => fits.push(Fit::begin(&frozen)),
                    5 | 7 => fits = vec![Fit::begin(&frozen)],
                    _ => {}
                }
                for first in [1, 2] {
                    let forest = forest(seed);
                    let found = frozen.below(&network, first, &forest);
                    assert_eq!(bits(&found), bits(&below(&network, first, &forest)), "{room} {at} {first}");
                    let rows = frozen.rows();
                    assert_eq!(rows.bytes, rows.by_place.len() * Row::bytes(SIZE));
                    assert!(rows.bytes <= rows.bound);
                    let numbers: BTreeSet<u64> = rows.by_place.values().map(|row| row.number).collect();
                    let mut above = rows.by_place.keys().filter_map(|(_, above, _)| *above);
                    assert!(above.all(|number| numbers.contains(&number)), "a row that nothing leads to");
                }
            }
            assert_eq!(frozen.rows().by_place.is_empty(), room == 0);
        }
    }

    #[test]
    fn what_is_kept_is_not_computed_again() {
        let (network, forest) = (small_network(3), forest(0));
        let frozen = with_room(1000);
        frozen.below(&network, 1, &forest);
        assert_eq!(kept(&frozen, &forest), forest.len());
        // Were a row computed again, it would not be this one.
        frozen.rows().by_place.values_mut().for_each(|row| row.hidden.fill(7.0));
        assert!(frozen.below(&network, 1, &forest).iter().all(|x| *x == 7.0));
        assert_eq!(frozen.rows().by_place.len(), forest.len());
    }

    #[test]
    fn what_fits_under_way_use_stays_and_the_rest_makes_room() {
        let (network, old, new) = (small_network(3), forest(0), forest(1));
        let frozen = with_room(old.len().max(new.len()));
        let first = Fit::begin(&frozen);
        frozen.below(&network, 1, &old);
        let second = Fit::begin(&frozen);
        frozen.below(&network, 1, &new);
        assert_eq!(kept(&frozen, &old), old.len(), "the first is not done");
        drop(first);
        frozen.below(&network, 1, &new);
        assert_eq!(kept(&frozen, &new), new.len());
        drop(second);
    }

    #[test]
    fn one_new_prompt_takes_the_place_of_no_more_rows_than_it_needs() {
        let (network, old) = (small_network(3), forest(0));
        let frozen = with_room(old.len());
        let first = Fit::begin(&frozen);
        frozen.below(&network, 1, &old);
        drop(first);
        let _second = Fit::begin(&frozen);
        let prompt: Vec<u32> = (60..65).collect();
        let (new, _) = Forest::new(&[Text { prompt: &prompt, tree: &[] }]);
        frozen.below(&network, 1, &new);
        assert_eq!((kept(&frozen, &new), kept(&frozen, &old)), (5, old.len() - 5));
    }
}
