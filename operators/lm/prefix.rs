//! Which beginnings of prompts are computed once and read many times.
//!
//! Decision: the plan depends on the token ids of the prompts alone, and on those of the calls before
//! ([`Cache`]), so pricing a set of prompts and scoring it first give the same numbers, on any machine
//! and any number of threads. Sorted prompts that share at least
//! [`LEAST`] further tokens get a common piece, as far as no call before left it; shorter coincidences
//! are cheaper to recompute inside a full batch than to run alone. Pieces end at [`LIMIT`] tokens, which
//! bounds what is held beside the tree: the chains in use are at most one per prompt being scored.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::attention::Heads;
use super::batch::{Prefix, Run};
use super::cache::{Cache, Cell, LEAST, ROOT, Tree};
use super::llama::Llama;
use crate::shape::Cost;

/// Positions from which no prompt is cached.
const LIMIT: usize = 2048;

/// A shared piece of some prompts.
struct Piece {
    parent: Option<usize>,
    /// A prompt that contains the piece, and where.
    prompt: usize,
    start: usize,
    end: usize,
    /// Tails that still need it.
    users: AtomicUsize,
    /// Its node of the tree, and whether that outlasts the call.
    node: usize,
    kept: bool,
    cell: Arc<Cell>,
    /// Whether it was computed before this call.
    known: bool,
}

/// A distinct prompt: its last piece, and the tokens after it to compute.
pub(crate) struct Tail {
    piece: Option<usize>,
    /// First token not in a piece.
    pub(crate) start: usize,
    /// The prompts, all equal, that this tail answers; never empty.
    pub(crate) prompts: Vec<usize>,
    /// How many of its tokens outlast the call, and where.
    left: Option<(usize, Arc<Cell>)>,
}

/// Pieces and tails of a set of tokenised prompts.
pub(crate) struct Plan<'a> {
    prompts: &'a [Vec<u32>],
    pieces: Vec<Piece>,
    /// In sorted order of prompts, so that neighbours share pieces.
    pub(crate) tails: Vec<Tail>,
}

impl<'a> Plan<'a> {
    /// Plans prompts, none of which is empty.
    pub(crate) fn new(prompts: &'a [Vec<u32>], cache: &Cache) -> Self {
        Self::with(prompts, &mut cache.tree())
    }

    /// Plans prompts, none of which is empty, as if none had been asked before.
    pub(crate) fn cold(prompts: &'a [Vec<u32>]) -> Self {
        Self::with(prompts, &mut Tree::of_nothing())
    }

    fn with(prompts: &'a [Vec<u32>], tree: &mut Tree) -> Self {
        let mut order: Vec<usize> = (0..prompts.len()).collect();
        order.sort_by(|a, b| prompts[*a].cmp(&prompts[*b]).then(a.cmp(b)));
        let mut distinct: Vec<Vec<usize>> = Vec::new();
        for prompt in order {
            match distinct.last_mut() {
                Some(same) if prompts[same[0]] == prompts[prompt] => same.push(prompt),
                _ => distinct.push(vec![prompt]),
            }
        }
        tree.begin();
        let mut planning = Planning { prompts, tree, pieces: Vec::new(), tails: Vec::new() };
        planning.split(&distinct, At::default());
        planning.done()
    }

    /// Tokens computed, and tokens read from a piece or from an equal prompt instead.
    pub(crate) fn cost(&self) -> Cost {
        let pieces = self.pieces.iter().filter(|piece| !piece.known);
        let pieces: usize = pieces.map(|piece| piece.end - piece.start).sum();
        let tails: usize = self.tails.iter().map(|tail| self.tokens(tail).len()).sum();
        let all: usize = self.prompts.iter().map(Vec::len).sum();
        let computed = pieces + tails;
        Cost {
            prompt_tokens: computed as u64,
            reused_prompt_tokens: (all - computed) as u64,
            ..Cost::default()
        }
    }

    /// All tokens of the prompt of a tail.
    pub(crate) fn prompt(&self, tail: &Tail) -> &'a [u32] {
        &self.prompts[tail.prompts[0]]
    }

    /// The tokens of a tail.
    pub(crate) fn tokens(&self, tail: &Tail) -> &'a [u32] {
        &self.prompts[tail.prompts[0]][tail.start..]
    }

    /// The beginning of a tail, computed by the first that asks.
    pub(crate) fn prefix(&self, network: &Llama, tail: &Tail) -> Prefix {
        let mut chain: Vec<&Piece> = Vec::new();
        let mut piece = tail.piece;
        while let Some(index) = piece {
            chain.push(&self.pieces[index]);
            piece = self.pieces[index].parent;
        }
        let mut prefix = Prefix::default();
        for Piece { prompt, start, end, cell, .. } in chain.into_iter().rev() {
            let tokens = &self.prompts[*prompt][*start..*end];
            prefix.push(cell.get_or_make(|| network.extend(&prefix, tokens)));
        }
        prefix
    }

    /// Whether the tree keeps anything of a tail.
    pub(crate) fn keeps(tail: &Tail) -> bool {
        tail.left.is_some()
    }

    /// Hands over the keys and values of a tail's tokens.
    pub(crate) fn keep(heads: Heads, tail: &Tail, run: &Run) {
        if let Some((tokens, cell)) = &tail.left {
            cell.get_or_make(|| run.part(heads, 0..*tokens));
        }
    }

    /// Says that a tail is done; what has no users and is not in the tree is dropped.
    pub(crate) fn release(&self, tail: &Tail) {
        let mut piece = tail.piece;
        while let Some(index) = piece {
            let Piece { users, kept, cell, parent, .. } = &self.pieces[index];
            if users.fetch_sub(1, Ordering::AcqRel) == 1 && !kept {
                cell.clear();
            }
            piece = *parent;
        }
    }
}

/// How far the pieces of some prompts go.
#[derive(Clone, Copy, Default)]
struct At {
    piece: Option<usize>,
    end: usize,
    /// Where the last piece would end if the tree were empty. New ones are weighed from there, so that
    /// nothing is computed that an empty tree would have spared.
    shared: usize,
}

/// A plan in the making.
struct Planning<'a, 't> {
    prompts: &'a [Vec<u32>],
    tree: &'t mut Tree,
    pieces: Vec<Piece>,
    tails: Vec<Tail>,
}

impl<'a> Planning<'a, '_> {
    /// Plans the sorted distinct prompts `group`, whose pieces so far end at `at`.
    fn split(&mut self, group: &[Vec<usize>], at: At) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { return };
        let shared = self.common(first[0], last[0], group);
        let mut at = self.follow(group, at, shared);
        if let [one] = group {
            let At { piece, end, .. } = at;
            return self.tails.push(Tail { piece, start: end, prompts: one.clone(), left: None });
        }
        if shared >= at.shared + LEAST {
            if shared > at.end {
                let node = self.tree.promise(self.node(at), &self.prompts[first[0]][at.end..shared]);
                at = self.piece(group, at, shared, node);
            }
            at.shared = shared;
        }
        self.split_children(group, at, shared);
    }

    /// Splits a group that agrees up to `agreed` by the token there; past the limit, one by one.
    fn split_children(&mut self, group: &[Vec<usize>], at: At, agreed: usize) {
        let prompts = self.prompts;
        // The last token is never shared, so two prompts may agree there where one of them ends.
        let key = |same: &Vec<usize>| (prompts[same[0]].len() == agreed + 1, prompts[same[0]][agreed]);
        for child in group.chunk_by(|a, b| agreed < LIMIT && !key(a).0 && key(a) == key(b)) {
            self.split(child, at);
        }
    }

    /// Tokens that all of a sorted group share, at most [`LIMIT`]. Every prompt keeps a token of its
    /// own to compute: the hidden state at its end is what is asked for.
    fn common(&self, first: usize, last: usize, group: &[Vec<usize>]) -> usize {
        let (a, b) = (&self.prompts[first], &self.prompts[last]);
        let agree = a.iter().zip(b).take_while(|(a, b)| a == b).count();
        let shortest = group.iter().map(|same| self.prompts[same[0]].len()).min().unwrap_or(0);
        agree.min(shortest - 1).min(LIMIT)
    }

    /// Makes pieces of the nodes that the tokens up to `shared` lead to.
    fn follow(&mut self, group: &[Vec<usize>], mut at: At, shared: usize) -> At {
        let tokens = &self.prompts[group[0][0]];
        while at.end < shared {
            let found = self.tree.follow(self.node(at), &tokens[at.end..shared]);
            let Some((node, length)) = found else { break };
            at = self.piece(group, at, at.end + length, node);
        }
        at
    }

    /// Makes a piece of a node.
    fn piece(&mut self, group: &[Vec<usize>], at: At, end: usize, node: usize) -> At {
        let cell = self.tree.cell(node);
        self.pieces.push(Piece {
            parent: at.piece,
            prompt: group[0][0],
            start: at.end,
            end,
            users: AtomicUsize::new(group.len()),
            node,
            kept: false,
            known: cell.peek().is_some(),
            cell,
        });
        At { piece: Some(self.pieces.len() - 1), end, ..at }
    }

    fn node(&self, at: At) -> usize {
        at.piece.map_or(ROOT, |piece| self.pieces[piece].node)
    }

    /// Lets tails leave their share in the tree, and sees what of all that the tree keeps.
    fn done(mut self) -> Plan<'a> {
        let share = self.tree.share(self.tails.len());
        let mut left = Vec::new();
        for (at, tail) in self.tails.iter().enumerate() {
            let prompt = &self.prompts[tail.prompts[0]];
            let end = (tail.start + share).min(prompt.len() - 1).min(LIMIT);
            if end >= tail.start + LEAST {
                let node = self.tree.leave(
                    tail.piece.map_or(ROOT, |piece| self.pieces[piece].node),
                    &prompt[tail.start..end],
                );
                left.push((at, node, (end - tail.start, self.tree.cell(node))));
            }
        }
        self.tree.trim();
        for (at, node, tokens) in left {
            self.tails[at].left = self.tree.holds(node).then_some(tokens);
        }
        self.pieces.iter_mut().for_each(|piece| piece.kept = self.tree.holds(piece.node));
        Plan { prompts: self.prompts, pieces: self.pieces, tails: self.tails }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(parts: &[(u32, usize)]) -> Vec<u32> {
        parts.iter().flat_map(|(token, n)| std::iter::repeat_n(*token, *n)).collect()
    }

    fn cost(prompts: &[Vec<u32>]) -> (u64, u64) {
        let cost = Plan::cold(prompts).cost();
        (cost.prompt_tokens, cost.reused_prompt_tokens)
    }

    #[test]
    fn shares_instruction_and_profile() {
        // An instruction of 50, two profiles of 20, tails of 5.
        let prompts: Vec<_> = [(1, 5), (2, 6), (1, 7), (2, 8), (1, 9)]
            .map(|(profile, tail)| prompt(&[(0, 50), (profile, 20), (tail, 5)]))
            .to_vec();
        assert_eq!(cost(&prompts), (50 + 2 * 20 + 5 * 5, 5 * 75 - 115));
    }

    #[test]
    fn short_coincidences_are_recomputed() {
        let prompts = [prompt(&[(1, 30), (2, 8), (3, 4)]), prompt(&[(1, 30), (2, 8), (4, 4)])];
        let other = prompt(&[(1, 30), (5, 4)]);
        let all = [prompts[0].clone(), prompts[1].clone(), other];
        assert_eq!(cost(&all), (30 + 12 + 12 + 4, 60));
    }

    #[test]
    fn equal_prompts_and_prompts_inside_others() {
        assert_eq!(cost(&[vec![7; 20], vec![7; 20]]), (20, 20));
        // The shorter prompt's last token is computed again.
        assert_eq!(cost(&[vec![7; 20], vec![7; 40]]), (19 + 1 + 21, 19));
        assert_eq!(cost(&[vec![7], vec![7, 7], vec![8]]), (4, 0));
        assert_eq!(cost(&[]), (0, 0));
    }

    #[test]
    fn the_cache_is_bounded() {
        let long = |end| prompt(&[(1, LIMIT + 100), (end, 1)]);
        assert_eq!(cost(&[long(2), long(3)]).1, LIMIT as u64);
    }

    #[test]
    fn what_is_known_makes_no_call_dearer() {
        let network = crate::lm::testing::small_network(3);
        let cache = Cache::new(network.sizes(), 1 << 20);
        let first = [prompt(&[(0, 20), (1, 5)]), prompt(&[(0, 20), (2, 5)])];
        let plan = Plan::new(&first, &cache);
        plan.tails.iter().for_each(|tail| assert_eq!(plan.prefix(&network, tail).end(), 20));
        // Eight more shared tokens are few, but without the first call they would be computed once too.
        let second: Vec<_> = (10..17).map(|tail| prompt(&[(0, 20), (3, 8), (tail, 4)])).collect();
        assert_eq!(cost(&second), (20 + 8 + 7 * 4, 6 * 28));
        let warm = Plan::new(&second, &cache).cost();
        assert_eq!((warm.prompt_tokens, warm.reused_prompt_tokens), (8 + 7 * 4, 6 * 28 + 20));
    }

    #[test]
    fn pieces_go_when_their_tails_are_done() {
        let prompts = [prompt(&[(0, 20), (1, 2)]), prompt(&[(0, 20), (2, 2)])];
        let network = crate::lm::testing::small_network(3);
        for (bound, after) in [(0, false), (1 << 20, true)] {
            let plan = Plan::new(&prompts, &Cache::new(network.sizes(), bound));
            plan.tails.iter().for_each(|tail| assert_eq!(plan.prefix(&network, tail).end(), 20));
            let run = plan.pieces[0].cell.peek().unwrap();
            plan.prefix(&network, &plan.tails[1]);
            assert!(Arc::ptr_eq(&run, &plan.pieces[0].cell.peek().unwrap()), "computed once");
            plan.release(&plan.tails[0]);
            assert!(plan.pieces[0].cell.peek().is_some());
            plan.release(&plan.tails[1]);
            assert_eq!(plan.pieces[0].cell.peek().is_some(), after);
        }
    }
}
