//! The rows of a batch: a forest of tokens.
//!
//! Decision: prompts are made from one template and all labels hang below each, so a batch is full
//! of equal beginnings. Each row is a token with the row before it, and equal beginnings are one
//! row: the gradients of all that continue it add up there by themselves. Rows lie depth first, so
//! the rows that attend to a row are a stretch, and those it attends to are a few: no mask, no list.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::lm::batch::Branch;

/// A prompt (of at least one token), and the tree of tokens that grows from its last one.
#[derive(Clone, Copy)]
pub(crate) struct Text<'a> {
    pub(crate) prompt: &'a [u32],
    pub(crate) tree: &'a [Branch],
}

/// Rows, parents before children and each row's descendants right behind it.
pub(crate) struct Forest {
    tokens: Vec<u32>,
    parents: Vec<Option<usize>>,
    positions: Vec<usize>,
    /// The first of the rows that end with this one, each the parent of the next.
    starts: Vec<usize>,
    /// The row after the last descendant.
    ends: Vec<usize>,
    /// Where a row's pairs with the rows it attends to begin, in a list of all of them.
    pairs: Vec<usize>,
}

/// A token while the forest grows.
struct Node {
    token: u32,
    children: Vec<usize>,
}

impl Forest {
    /// The rows of some texts, and of each text the row of its prompt's last token and of each branch.
    pub(crate) fn new(texts: &[Text]) -> (Self, Vec<Vec<usize>>) {
        // Node 0 is above all roots.
        let mut nodes = vec![Node { token: 0, children: Vec::new() }];
        let mut known: BTreeMap<(usize, u32), usize> = BTreeMap::new();
        let mut child = |parent: usize, token: u32| {
            *known.entry((parent, token)).or_insert_with(|| {
                nodes.push(Node { token, children: Vec::new() });
                let node = nodes.len() - 1;
                nodes[parent].children.push(node);
                node
            })
        };
        let mut places: Vec<Vec<usize>> = Vec::with_capacity(texts.len());
        for text in texts {
            assert!(!text.prompt.is_empty(), "a prompt has a token");
            let mut place = vec![text.prompt.iter().fold(0, |node, token| child(node, *token))];
            for branch in text.tree {
                let parent = branch.parent.map_or(0, |parent| parent + 1);
                place.push(child(place[parent], branch.token));
            }
            places.push(place);
        }
        let (forest, rows) = Self::depth_first(&nodes);
        places.iter_mut().flatten().for_each(|node| *node = rows[*node]);
        (forest, places)
    }

    /// The nodes in order, and the row of each.
    fn depth_first(nodes: &[Node]) -> (Self, Vec<usize>) {
        let (mut tokens, mut parents) = (Vec::new(), Vec::new());
        let mut rows = vec![0; nodes.len()];
        let below =
            |node: usize, row: Option<usize>| nodes[node].children.iter().rev().map(move |c| (*c, row));
        let mut open: Vec<(usize, Option<usize>)> = below(0, None).collect();
        while let Some((node, parent)) = open.pop() {
            let row = tokens.len();
            tokens.push(nodes[node].token);
            parents.push(parent);
            rows[node] = row;
            open.extend(below(node, Some(row)));
        }
        (Self::of(tokens, parents), rows)
    }

    /// From tokens in the order of rows, and the row that each continues.
    fn of(tokens: Vec<u32>, parents: Vec<Option<usize>>) -> Self {
        let count = tokens.len();
        let mut positions: Vec<usize> = Vec::with_capacity(count);
        let mut starts = Vec::with_capacity(count);
        let mut pairs = vec![0];
        for (row, parent) in parents.iter().enumerate() {
            let position = parent.map_or(0, |parent| positions[parent] + 1);
            let follows = row > 0 && *parent == Some(row - 1);
            positions.push(position);
            starts.push(if follows { starts[row - 1] } else { row });
            pairs.push(pairs[row] + position + 1);
        }
        let mut ends: Vec<usize> = (1..=count).collect();
        for row in (0..count).rev() {
            if let Some(parent) = parents[row] {
                ends[parent] = ends[parent].max(ends[row]);
            }
        }
        Self { tokens, parents, positions, starts, ends, pairs }
    }

    /// Some rows in ascending order, with each all those it attends to.
    pub(crate) fn part(&self, rows: &[usize]) -> Self {
        let tokens = rows.iter().map(|row| self.tokens[*row]).collect();
        let place = |row: usize| rows.binary_search(&row).expect("a row comes with those it attends to");
        Self::of(tokens, rows.iter().map(|row| self.parents[*row].map(place)).collect())
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The row that a row continues.
    pub(crate) fn parent(&self, row: usize) -> Option<usize> {
        self.parents[row]
    }

    /// The token of each row.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The position of each row: how many it attends to beside itself.
    pub(crate) fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// The rows that attend to a row, itself first.
    pub(crate) fn below(&self, row: usize) -> Range<usize> {
        row..self.ends[row]
    }

    /// The rows a row attends to, itself last, as stretches in ascending order.
    pub(crate) fn above(&self, row: usize, into: &mut Vec<Range<usize>>) {
        into.clear();
        let mut last = Some(row);
        while let Some(row) = last {
            into.push(self.starts[row]..row + 1);
            last = self.parents[self.starts[row]];
        }
        into.reverse();
    }

    /// Where the pairs of some rows with the rows they attend to lie in a list of all pairs, that of row
    /// `r` with its ancestor at position `p` being the `p`-th of `r`.
    pub(crate) fn pairs(&self, rows: Range<usize>) -> Range<usize> {
        self.pairs[rows.start]..self.pairs[rows.end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::testing::noise;

    /// Random texts of few tokens, so that many beginnings are equal.
    fn texts(seed: u64) -> Vec<(Vec<u32>, Vec<Branch>)> {
        let numbers: Vec<u32> = noise(seed, 4000).iter().map(|x| ((x + 1.0) * 500.0) as u32).collect();
        let mut numbers = numbers.into_iter();
        let mut next = |below: u32| numbers.next().unwrap() % below;
        let one = |_| {
            let prompt = (0..1 + next(6)).map(|_| next(2)).collect();
            let mut tree: Vec<Branch> = Vec::new();
            for i in 0..next(7) {
                let parent = (next(i + 1) as usize).checked_sub(1);
                tree.push(Branch { token: next(4), parent });
            }
            (prompt, tree)
        };
        (0..30).map(one).collect()
    }

    /// The tokens from the beginning of a text to one of its places.
    fn path(prompt: &[u32], tree: &[Branch], place: usize) -> Vec<u32> {
        let Some(branch) = place.checked_sub(1) else { return prompt.to_vec() };
        let parent = tree[branch].parent.map_or(0, |parent| parent + 1);
        [path(prompt, tree, parent), vec![tree[branch].token]].concat()
    }

    #[test]
    fn every_place_is_the_row_of_its_path() {
        for seed in 0..20 {
            let texts = texts(seed);
            let texts: Vec<Text> = texts.iter().map(|(prompt, tree)| Text { prompt, tree }).collect();
            let (forest, places) = Forest::new(&texts);
            let mut paths = BTreeMap::new();
            let mut stretches = Vec::new();
            for (text, rows) in texts.iter().zip(&places) {
                assert_eq!(rows.len(), text.tree.len() + 1);
                for (place, row) in rows.iter().enumerate() {
                    let path = path(text.prompt, text.tree, place);
                    forest.above(*row, &mut stretches);
                    let above: Vec<usize> = stretches.iter().cloned().flatten().collect();
                    let found: Vec<u32> = above.iter().map(|row| forest.tokens()[*row]).collect();
                    assert_eq!(found, path);
                    assert!(stretches.windows(2).all(|pair| pair[0].end < pair[1].start));
                    // Equal paths are one row.
                    assert_eq!(*paths.entry(path).or_insert(*row), *row);
                }
            }
        }
    }

    #[test]
    fn a_part_has_the_paths_of_the_whole() {
        for seed in 0..20 {
            let texts = texts(seed);
            let texts: Vec<Text> = texts.iter().map(|(prompt, tree)| Text { prompt, tree }).collect();
            let (forest, _) = Forest::new(&texts);
            let path = |forest: &Forest, row: usize| {
                let mut stretches = Vec::new();
                forest.above(row, &mut stretches);
                stretches.into_iter().flatten().map(|row| forest.tokens()[row]).collect::<Vec<_>>()
            };
            let mut taken: Vec<bool> = noise(seed + 50, forest.len()).iter().map(|x| *x > 0.5).collect();
            for row in (0..forest.len()).rev().filter(|row| forest.parent(*row).is_some()) {
                let above = forest.parent(row).unwrap();
                taken[above] |= taken[row];
            }
            let rows: Vec<usize> = (0..forest.len()).filter(|row| taken[*row]).collect();
            let part = forest.part(&rows);
            assert_eq!(part.len(), rows.len());
            for (at, row) in rows.iter().enumerate() {
                assert_eq!(path(&part, at), path(&forest, *row));
                assert_eq!(part.positions()[at], forest.positions()[*row]);
                let below: Vec<usize> = part.below(at).map(|at| rows[at]).collect();
                let whole: Vec<usize> = forest.below(*row).filter(|row| taken[*row]).collect();
                assert_eq!(below, whole);
            }
        }
    }

    #[test]
    fn rows_below_are_those_that_attend() {
        for seed in 0..20 {
            let texts = texts(seed);
            let texts: Vec<Text> = texts.iter().map(|(prompt, tree)| Text { prompt, tree }).collect();
            let (forest, _) = Forest::new(&texts);
            let (mut stretches, mut pairs) = (Vec::new(), 0);
            for row in 0..forest.len() {
                forest.above(row, &mut stretches);
                let above: Vec<usize> = stretches.iter().cloned().flatten().collect();
                for (position, other) in above.iter().enumerate() {
                    assert_eq!(forest.positions()[*other], position);
                }
                for other in 0..forest.len() {
                    assert_eq!(forest.below(other).contains(&row), above.contains(&other), "{row} {other}");
                }
                assert_eq!(forest.pairs(row..row + 1), pairs..pairs + above.len());
                pairs += above.len();
            }
        }
    }
}
