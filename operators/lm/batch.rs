//! What a forward pass is given: prompts, cached beginnings, trees of tokens.
//!
//! Decision: a tree is a list of tokens with their parents, and what a row may attend to is worked
//! out once per pass, as a number of prompt positions and a list of ancestor rows. No mask matrix
//! is ever built: most of it would be zeros.

use std::sync::Arc;

use super::attention::{Heads, KeyValues, Sight};

/// One token of a tree that grows from the last token of a prompt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Branch {
    /// The token.
    pub(crate) token: u32,
    /// Its parent, an earlier branch; `None` is the last token of the prompt.
    pub(crate) parent: Option<usize>,
}

/// One prompt of a forward pass; its rows are its tokens, then the branches of its tree.
#[derive(Clone, Copy)]
pub(crate) struct Sequence<'a> {
    /// Keys and values of the tokens before `tokens`.
    pub(crate) prefix: Option<&'a Prefix>,
    /// The tokens to compute.
    pub(crate) tokens: &'a [u32],
    /// The tree on top of them.
    pub(crate) tree: &'a [Branch],
}

impl Sequence<'_> {
    /// Rows in a forward pass.
    pub(crate) fn rows(&self) -> usize {
        self.tokens.len() + self.tree.len()
    }
}

/// Keys and values of the beginning of some prompts, as a chain of pieces.
pub(crate) struct Prefix {
    parent: Option<Arc<Prefix>>,
    end: usize,
    layers: Vec<KeyValues>,
}

impl Prefix {
    /// The piece of `tokens` tokens after `parent`, its keys and values by layer.
    pub(crate) fn new(parent: Option<Arc<Prefix>>, tokens: usize, layers: Vec<KeyValues>) -> Self {
        let end = parent.as_ref().map_or(0, |parent| parent.end) + tokens;
        Self { parent, end, layers }
    }

    /// Appends one token's keys and values, by layer, to the last piece of the chain.
    pub(crate) fn grow(&mut self, heads: Heads, token: &[KeyValues]) {
        self.end += 1;
        self.layers.iter_mut().zip(token).for_each(|(layer, more)| layer.append(heads, more));
    }

    /// Tokens in the chain.
    pub(crate) fn end(&self) -> usize {
        self.end
    }

    /// The pieces of the chain in one layer, first to last.
    pub(crate) fn path(&self, layer: usize) -> Vec<&KeyValues> {
        let mut path = self.parent.as_ref().map(|parent| parent.path(layer)).unwrap_or_default();
        path.push(&self.layers[layer]);
        path
    }
}

/// Positions and sight of the rows of a batch.
pub(crate) struct Layout {
    pub(crate) tokens: Vec<u32>,
    pub(crate) positions: Vec<usize>,
    pub(crate) sights: Vec<Sight>,
}

impl Layout {
    /// Lays the rows of the sequences out one after the other.
    pub(crate) fn new(sequences: &[Sequence]) -> Self {
        let mut layout = Self { tokens: Vec::new(), positions: Vec::new(), sights: Vec::new() };
        for sequence in sequences {
            let start = sequence.prefix.map_or(0, |prefix| prefix.end);
            for (i, token) in sequence.tokens.iter().enumerate() {
                let prompt = start + i + 1;
                layout.push(*token, start + i, Sight { prompt, ancestors: Vec::new() });
            }
            let (first, prompt) = (layout.tokens.len(), start + sequence.tokens.len());
            for branch in sequence.tree {
                let row = layout.tokens.len();
                let mut ancestors =
                    branch.parent.map_or(Vec::new(), |p| layout.sights[first + p].ancestors.clone());
                let position = prompt + ancestors.len();
                ancestors.push(row);
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

    #[test]
    fn rows_see_their_prompt_and_their_ancestors() {
        let prefix = Prefix::new(None, 5, Vec::new());
        let branch = |token, parent| Branch { token, parent };
        let tree = [branch(7, None), branch(8, Some(0)), branch(9, None)];
        let first = Sequence { prefix: None, tokens: &[1, 2], tree: &tree };
        let second = Sequence { prefix: Some(&prefix), tokens: &[3], tree: &tree[..1] };
        let layout = Layout::new(&[first, second]);
        assert_eq!(layout.tokens, [1, 2, 7, 8, 9, 3, 7]);
        assert_eq!(layout.positions, [0, 1, 2, 3, 2, 5, 6]);
        let prompts: Vec<_> = layout.sights.iter().map(|sight| sight.prompt).collect();
        assert_eq!(prompts, [1, 2, 2, 2, 2, 6, 6]);
        let ancestors: Vec<_> = layout.sights.iter().map(|sight| &sight.ancestors[..]).collect();
        assert_eq!(ancestors, [&[][..], &[], &[2], &[2, 3], &[4], &[], &[6]]);
    }
}
