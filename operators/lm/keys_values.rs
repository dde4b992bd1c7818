//! Keys and values of consecutive positions: packed, grown by a token, cut and copied.
//!
//! Decision: they lie as left operands of the kernel, in tiles of positions, from the moment they are
//! computed, because they are read in every later pass and moved once. A tile that is not full ends in
//! zeros, so that runs of any length follow one another.

use std::ops::Range;

use super::attention::Heads;
use super::kernel::TILE;

/// Keys and values of consecutive positions in one layer, as left operands of the kernel.
#[derive(Clone, Default)]
pub(crate) struct KeyValues {
    pub(super) len: usize,
    /// Positions there is room for.
    pub(super) capacity: usize,
    /// `[head][tile of positions][size][TILE]`
    pub(super) keys: Vec<f32>,
    /// `[head][tile of the head's vector][position][TILE]`
    pub(super) values: Vec<f32>,
}

impl KeyValues {
    /// Packs the keys and values of rows `first..first + len` of `[query | key | value]` rows.
    pub(crate) fn pack(&mut self, heads: Heads, rows: &[f32], first: usize, len: usize) {
        let size = heads.size;
        self.room(heads, len);
        self.len = len;
        let (key_len, value_len) = (self.keys.len() / heads.keys, self.values.len() / heads.keys);
        for head in 0..heads.keys {
            let keys = &mut self.keys[head * key_len..][..key_len];
            let values = &mut self.values[head * value_len..][..value_len];
            for i in 0..len {
                for (d, k) in heads.key(rows, first + i, head).iter().enumerate() {
                    keys[(i / TILE * size + d) * TILE + i % TILE] = *k;
                }
                for (d, v) in heads.value(rows, first + i, head).iter().enumerate() {
                    values[(d / TILE * len + i) * TILE + d % TILE] = *v;
                }
            }
        }
    }

    /// Numbers that keys and values of so many positions take.
    fn lengths(heads: Heads, positions: usize) -> [usize; 2] {
        let key = positions.next_multiple_of(TILE) * heads.size;
        let value = heads.size.next_multiple_of(TILE) * positions;
        [heads.keys * key, heads.keys * value]
    }

    /// Bytes of the keys and values of so many positions.
    pub(crate) fn bytes(heads: Heads, positions: usize) -> usize {
        Self::lengths(heads, positions).iter().sum::<usize>() * size_of::<f32>()
    }

    /// Bytes held.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        size_of_val(&self.keys[..]) + size_of_val(&self.values[..])
    }

    /// Empty, with room for so many positions.
    fn room(&mut self, heads: Heads, capacity: usize) {
        (self.len, self.capacity) = (0, capacity);
        let [keys, values] = Self::lengths(heads, capacity);
        for (data, length) in [(&mut self.keys, keys), (&mut self.values, values)] {
            data.clear();
            data.resize(length, 0.0);
        }
    }

    /// Some of the positions, copied.
    pub(crate) fn part(&self, heads: Heads, positions: Range<usize>) -> KeyValues {
        let mut part = KeyValues::default();
        part.room(heads, positions.len());
        part.copy(heads, self, positions);
        part
    }

    /// Appends the positions of another run; room is made by doubling, so that a text that is
    /// written token by token is moved a few times in all.
    pub(crate) fn append(&mut self, heads: Heads, more: &KeyValues) {
        if self.len + more.len > self.capacity {
            let mut larger = KeyValues::default();
            larger.room(heads, (self.len + more.len).next_power_of_two().max(4 * TILE));
            larger.copy(heads, self, 0..self.len);
            *self = larger;
        }
        self.copy(heads, more, 0..more.len);
    }

    /// Copies positions of another run behind those here.
    fn copy(&mut self, heads: Heads, from: &KeyValues, positions: Range<usize>) {
        let (size, first, len) = (heads.size, self.len, positions.len());
        for head in 0..heads.keys {
            let part = |data: &[f32]| head * (data.len() / heads.keys);
            let (keys, source) = (part(&self.keys), part(&from.keys));
            let place = |i: usize| (i / TILE * size) * TILE + i % TILE;
            for i in 0..len {
                let (to, at) = (keys + place(first + i), source + place(positions.start + i));
                (0..size).for_each(|d| self.keys[to + d * TILE] = from.keys[at + d * TILE]);
            }
            let (values, source) = (part(&self.values), part(&from.values));
            for tile in 0..size.div_ceil(TILE) {
                let to = values + (tile * self.capacity + first) * TILE;
                let at = source + (tile * from.capacity + positions.start) * TILE;
                self.values[to..][..len * TILE].copy_from_slice(&from.values[at..][..len * TILE]);
            }
        }
        self.len += len;
    }
}
