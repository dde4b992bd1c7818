//! What a forward pass is given: prompts, cached beginnings, trees of tokens.
//!
//! Decision: a tree is a list of tokens with their parents, and what a row may attend to is worked
//! out once per pass, as a number of prompt positions and a list of ancestor rows. No mask matrix
//! is ever built: most of it would be zeros.

use std::ops::Range;
use std::sync::Arc;

use super::attention::{Heads, Sight};
use super::keys_values::KeyValues;

/// One token of a tree that grows from the last token of a prompt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Branch {
    /// The token.
    pub(crate) token: u32,
    /// Its parent, an earlier branch, those [`Grown`] before counted first; `None` is the last token
    /// of the prompt.
    pub(crate) parent: Option<usize>,
}

/// Branches that were computed in earlier passes: where they hang, and their keys and values.
#[derive(Clone, Debug, Default)]
pub(crate) struct Grown {
    parents: Vec<Option<usize>>,
    /// By layer, `[key | value]` of each branch.
    layers: Vec<Vec<f32>>,
}

impl Grown {
    /// Number of branches.
    pub(crate) fn len(&self) -> usize {
        self.parents.len()
    }

    /// Adds a branch, whose keys and values are to be taken from the pass under way.
    pub(crate) fn push(&mut self, parent: Option<usize>) {
        self.parents.push(parent);
    }

    /// Takes the `[key | value]` of a branch that was pushed, one layer after the other.
    pub(crate) fn take(&mut self, layer: usize, keys_values: &[f32]) {
        if self.layers.len() <= layer {
            self.layers.resize(layer + 1, Vec::new());
        }
        self.layers[layer].extend_from_slice(keys_values);
    }

    /// The `[key | value]` of a branch in one layer, both of them `width` numbers together.
    pub(crate) fn keys_values(&self, layer: usize, branch: usize, width: usize) -> &[f32] {
        &self.layers[layer][branch * width..][..width]
    }
}

/// No branches.
static BARE: Grown = Grown { parents: Vec::new(), layers: Vec::new() };

/// One prompt of a forward pass; its rows are its tokens, then the branches of its tree.
#[derive(Clone, Copy)]
pub(crate) struct Sequence<'a> {
    /// Keys and values of the tokens before `tokens`.
    pub(crate) prefix: Option<&'a Prefix>,
    /// The tokens to compute.
    pub(crate) tokens: &'a [u32],
    /// The branches of a tree on top of them that were computed before; then `tokens` is empty.
    pub(crate) grown: &'a Grown,
    /// The tree's branches to compute.
    pub(crate) tree: &'a [Branch],
}

impl<'a> Sequence<'a> {
    /// A sequence whose tree is new.
    pub(crate) fn new(prefix: Option<&'a Prefix>, tokens: &'a [u32], tree: &'a [Branch]) -> Self {
        Sequence { prefix, tokens, grown: &BARE, tree }
    }

    /// Rows in a forward pass.
    pub(crate) fn rows(&self) -> usize {
        self.tokens.len() + self.tree.len()
    }
}

/// Keys and values of consecutive tokens of a prompt.
#[derive(Clone)]
pub(crate) struct Run {
    tokens: usize,
    layers: Vec<KeyValues>,
}

impl Run {
    /// Of so many tokens, by layer.
    pub(crate) fn new(tokens: usize, layers: Vec<KeyValues>) -> Self {
        Self { tokens, layers }
    }

    /// Some of its tokens, copied.
    pub(crate) fn part(&self, heads: Heads, tokens: Range<usize>) -> Run {
        let layers = self.layers.iter().map(|layer| layer.part(heads, tokens.clone())).collect();
        Run { tokens: tokens.len(), layers }
    }

    /// Bytes of its keys and values.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.layers.iter().map(KeyValues::held).sum()
    }

    /// Appends one token's keys and values, by layer.
    fn append(&mut self, heads: Heads, token: &[KeyValues]) {
        self.tokens += 1;
        self.layers.iter_mut().zip(token).for_each(|(layer, more)| layer.append(heads, more));
    }
}

/// The beginning of some prompts: one run after the other, each shared with whoever else needs it.
#[derive(Clone, Default)]
pub(crate) struct Prefix {
    runs: Vec<Arc<Run>>,
    end: usize,
}

impl Prefix {
    /// Adds a run to its end.
    pub(crate) fn push(&mut self, run: Arc<Run>) {
        self.end += run.tokens;
        self.runs.push(run);
    }

    /// Appends one token's keys and values, by layer, to the last run, which is copied if it is shared.
    pub(crate) fn grow(&mut self, heads: Heads, token: &[KeyValues]) {
        if let Some(last) = self.runs.last_mut() {
            Arc::make_mut(last).append(heads, token);
            self.end += 1;
        } else {
            self.push(Arc::new(Run::new(1, token.to_vec())));
        }
    }

    /// Tokens in the runs.
    pub(crate) fn end(&self) -> usize {
        self.end
    }

    /// The runs in one layer, first to last.
    pub(crate) fn path(&self, layer: usize) -> Vec<&KeyValues> {
        self.runs.iter().map(|run| &run.layers[layer]).collect()
    }
}

/// Positions and sight of the rows of a batch.
pub(crate) struct Layout {
    pub(crate) tokens: Vec<u32>,
    pub(crate) positions: Vec<usize>,
    pub(crate) sights: Vec<Sight>,
    /// Sequence and branch of the rows that were computed before; they come after all others.
    pub(crate) given: Vec<(usize, usize)>,
}

impl Layout {
    /// Lays the rows of the sequences out one after the other.
    pub(crate) fn new(sequences: &[Sequence]) -> Self {
        let computed: usize = sequences.iter().map(Sequence::rows).sum();
        let mut layout =
            Self { tokens: Vec::new(), positions: Vec::new(), sights: Vec::new(), given: Vec::new() };
        for (index, sequence) in sequences.iter().enumerate() {
            let start = sequence.prefix.map_or(0, Prefix::end);
            for (i, token) in sequence.tokens.iter().enumerate() {
                let prompt = start + i + 1;
                layout.push(*token, start + i, Sight { prompt, ancestors: Vec::new() });
            }
            let prompt = start + sequence.tokens.len();
            // By branch, the rows from the root of the tree down to it.
            let mut paths: Vec<Vec<usize>> = Vec::with_capacity(sequence.grown.len() + sequence.tree.len());
            let mut grow = |parent: Option<usize>, row: usize| {
                let mut path = parent.map_or(Vec::new(), |parent| paths[parent].clone());
                path.push(row);
                paths.push(path.clone());
                path
            };
            for (branch, parent) in sequence.grown.parents.iter().enumerate() {
                grow(*parent, computed + layout.given.len());
                layout.given.push((index, branch));
            }
            for branch in sequence.tree {
                let ancestors = grow(branch.parent, layout.tokens.len());
                let position = prompt + ancestors.len() - 1;
                layout.push(branch.token, position, Sight { prompt, ancestors });
            }
        }
        layout
    }

    fn push(&mut self, token: u32, position: usize, sight: Sight) {
        self.tokens.push(token);
        self.positions.push(position);
        self.sights.push(sight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Five tokens in two runs.
    fn five() -> Prefix {
        let mut prefix = Prefix::default();
        [2, 3].into_iter().for_each(|tokens| prefix.push(Arc::new(Run::new(tokens, Vec::new()))));
        prefix
    }

    #[test]
    fn rows_see_their_prompt_and_their_ancestors() {
        let prefix = five();
        let branch = |token, parent| Branch { token, parent };
        let tree = [branch(7, None), branch(8, Some(0)), branch(9, None)];
        let first = Sequence::new(None, &[1, 2], &tree);
        let second = Sequence::new(Some(&prefix), &[3], &tree[..1]);
        let layout = Layout::new(&[first, second]);
        assert_eq!(layout.tokens, [1, 2, 7, 8, 9, 3, 7]);
        assert_eq!(layout.positions, [0, 1, 2, 3, 2, 5, 6]);
        let prompts: Vec<_> = layout.sights.iter().map(|sight| sight.prompt).collect();
        assert_eq!(prompts, [1, 2, 2, 2, 2, 6, 6]);
        let ancestors: Vec<_> = layout.sights.iter().map(|sight| &sight.ancestors[..]).collect();
        assert_eq!(ancestors, [&[][..], &[], &[2], &[2, 3], &[4], &[], &[6]]);
    }

    #[test]
    fn rows_see_ancestors_that_were_computed_before() {
        let prefix = five();
        let grown = Grown { parents: vec![None, Some(0), None], layers: Vec::new() };
        let branch = |token, parent| Branch { token, parent };
        // Below the grown branch 1, beside the grown ones, and below the latter.
        let tree = [branch(7, Some(1)), branch(8, None), branch(9, Some(4))];
        let old = Sequence { prefix: Some(&prefix), tokens: &[], grown: &grown, tree: &tree };
        let layout = Layout::new(&[Sequence::new(None, &[1], &[]), old]);
        assert_eq!(layout.positions, [0, 7, 5, 6]);
        let ancestors: Vec<_> = layout.sights.iter().map(|sight| &sight.ancestors[..]).collect();
        assert_eq!(ancestors, [&[][..], &[4, 5, 1], &[2], &[2, 3]]);
        assert_eq!(layout.given, [(1, 0), (1, 1), (1, 2)]);
    }
}
