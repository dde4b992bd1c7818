//! From histories to packed training batches.
//!
//! A history longer than the model's context is cut into windows at a random offset, anew in every
//! epoch: each transition is a target exactly once per epoch, at varying depths of context, which
//! costs no more than one pass over the data and never trains on the same windows twice.

use std::ops::Range;

use super::{csa::Sequence, random::Stream};

/// Sequences laid end to end, each led by its feature row.
#[derive(Clone, Debug, Default)]
pub struct Packed<'a> {
    /// Item of each row, 0 in feature rows.
    pub items: Vec<u32>,
    /// Rows of each sequence, feature row included.
    pub segments: Vec<Range<usize>>,
    /// Feature buckets of each sequence.
    pub features: Vec<&'a [u32]>,
    /// Row and next item, wherever a next item is to be predicted.
    pub targets: Vec<(usize, u32)>,
}

impl<'a> Packed<'a> {
    /// Appends a sequence without targets.
    pub fn push(&mut self, items: &[u32], features: &'a [u32]) {
        let start = self.items.len();
        self.items.push(0);
        self.items.extend(items);
        self.segments.push(start..self.items.len());
        self.features.push(features);
    }

    /// Appends the inputs of a window with the item that follows each.
    pub fn push_window(&mut self, sequence: &'a Sequence, window: &Window) {
        let start = self.items.len();
        let Range { start: from, end } = window.inputs;
        self.push(&sequence.items[from..end], &sequence.features);
        // The feature row predicts the very first item of a user, never one in the middle.
        if from == 0 {
            self.targets.push((start, sequence.items[0]));
        }
        let next = sequence.items[from + 1..=end].iter();
        self.targets.extend(next.enumerate().map(|(i, item)| (start + 1 + i, *item)));
    }
}

/// A stretch of one user's items; the item after each is its target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Index of the sequence.
    pub sequence: usize,
    /// The items read; the last item of the history is never among them, it is only a target.
    pub inputs: Range<usize>,
}

/// The windows of one epoch in random order; `data` holds no empty sequence.
pub fn of_epoch(data: &[Sequence], max_length: usize, seed: u64, epoch: u64) -> Vec<Window> {
    let mut stream = Stream::new(seed, "windows", &[epoch]);
    let mut windows = Vec::new();
    for (sequence, history) in data.iter().enumerate() {
        let end = history.items.len() - 1;
        let mut from = 0;
        let mut to = if end > max_length { 1 + stream.below(max_length) } else { end };
        loop {
            windows.push(Window { sequence, inputs: from..to });
            if to == end {
                break;
            }
            from = to;
            to = end.min(to + max_length);
        }
    }
    stream.shuffle(&mut windows);
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(n: u32) -> Sequence {
        Sequence { items: (1..=n).collect(), features: vec![1] }
    }

    #[test]
    fn every_item_is_a_target_once_per_epoch() {
        let data = [sequence(1), sequence(2), sequence(5), sequence(23)];
        for epoch in 0..20 {
            let mut packed = Packed::default();
            for window in of_epoch(&data, 5, 3, epoch) {
                assert!(window.inputs.len() <= 5);
                packed.push_window(&data[window.sequence], &window);
            }
            let mut targets: Vec<u32> = packed.targets.iter().map(|t| t.1).collect();
            targets.sort_unstable();
            let mut expected: Vec<u32> = data.iter().flat_map(|s| s.items.clone()).collect();
            expected.sort_unstable();
            assert_eq!(targets, expected);
        }
    }

    #[test]
    fn a_target_follows_its_row() {
        let data = [sequence(4)];
        let mut packed = Packed::default();
        packed.push_window(&data[0], &Window { sequence: 0, inputs: 0..3 });
        assert_eq!(packed.items, [0, 1, 2, 3]);
        assert_eq!(packed.targets, [(0, 1), (1, 2), (2, 3), (3, 4)]);
    }

    #[test]
    fn epochs_cut_differently() {
        let data = [sequence(100)];
        assert_ne!(of_epoch(&data, 10, 3, 0), of_epoch(&data, 10, 3, 1));
        assert_eq!(of_epoch(&data, 10, 3, 1), of_epoch(&data, 10, 3, 1));
    }
}
