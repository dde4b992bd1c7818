//! Which beginnings of prompts are computed once and read many times.
//!
//! Decision: the plan depends on the token ids of the prompts alone, so pricing a set of prompts
//! and scoring it give the same numbers, on any machine and any number of threads. Sorted prompts
//! that share at least [`LEAST`] further tokens get a common piece; shorter coincidences are cheaper
//! to recompute inside a full batch than to run alone. Pieces end at [`LIMIT`] tokens, which bounds
//! what is cached: the chains in use are at most one per prompt being scored.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::batch::Prefix;
use super::llama::Llama;
use crate::shape::Cost;

/// Shared tokens worth a forward pass of their own.
const LEAST: usize = 12;
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
    cached: Mutex<Option<Arc<Prefix>>>,
}

/// A distinct prompt: its last piece, and the tokens after it to compute.
pub(crate) struct Tail {
    piece: Option<usize>,
    /// First token not in a piece.
    pub(crate) start: usize,
    /// The prompts, all equal, that this tail answers; never empty.
    pub(crate) prompts: Vec<usize>,
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
    pub(crate) fn new(prompts: &'a [Vec<u32>]) -> Self {
        let mut order: Vec<usize> = (0..prompts.len()).collect();
        order.sort_by(|a, b| prompts[*a].cmp(&prompts[*b]).then(a.cmp(b)));
        let mut plan = Self { prompts, pieces: Vec::new(), tails: Vec::new() };
        let mut distinct: Vec<Vec<usize>> = Vec::new();
        for prompt in order {
            match distinct.last_mut() {
                Some(same) if prompts[same[0]] == prompts[prompt] => same.push(prompt),
                _ => distinct.push(vec![prompt]),
            }
        }
        plan.split(&distinct, None, 0);
        plan
    }

    /// Plans the sorted distinct prompts `group`, whose first `start` tokens are in `piece`.
    fn split(&mut self, group: &[Vec<usize>], piece: Option<usize>, start: usize) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { return };
        let shared = self.common(first[0], last[0], group);
        if group.len() > 1 && shared >= start + LEAST {
            let users = AtomicUsize::new(group.len());
            let cached = Mutex::new(None);
            self.pieces.push(Piece { parent: piece, prompt: first[0], start, end: shared, users, cached });
            return self.split_children(group, Some(self.pieces.len() - 1), shared, shared);
        }
        match group {
            [one] => self.tails.push(Tail { piece, start, prompts: one.clone() }),
            _ => self.split_children(group, piece, start, shared),
        }
    }

    /// Splits a group that agrees up to `at` by the token there; past the limit, one by one.
    fn split_children(&mut self, group: &[Vec<usize>], piece: Option<usize>, start: usize, at: usize) {
        let prompts = self.prompts;
        // The last token is never shared, so two prompts may agree at `at` where one of them ends.
        let key = |same: &Vec<usize>| (prompts[same[0]].len() == at + 1, prompts[same[0]][at]);
        for child in group.chunk_by(|a, b| at < LIMIT && !key(a).0 && key(a) == key(b)) {
            self.split(child, piece, start);
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

    /// Tokens computed, and tokens read from a piece or from an equal prompt instead.
    pub(crate) fn cost(&self) -> Cost {
        let pieces: usize = self.pieces.iter().map(|piece| piece.end - piece.start).sum();
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

    /// The cached beginning of a tail, computed by the first that asks.
    pub(crate) fn prefix(&self, network: &Llama, tail: &Tail) -> Option<Arc<Prefix>> {
        tail.piece.map(|piece| self.compute(network, piece))
    }

    fn compute(&self, network: &Llama, piece: usize) -> Arc<Prefix> {
        let Piece { parent, prompt, start, end, cached, .. } = &self.pieces[piece];
        // Others wait here for the first; locks are taken from leaf to root only. A poisoned lock
        // holds no half-made prefix, since one is stored whole.
        let mut cached = cached.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let parent = parent.map(|parent| self.compute(network, parent));
            Arc::new(network.extend(parent, &self.prompts[*prompt][*start..*end]))
        };
        cached.get_or_insert_with(make).clone()
    }

    /// Says that a tail is done; a piece without users is dropped.
    pub(crate) fn release(&self, tail: &Tail) {
        let mut piece = tail.piece;
        while let Some(index) = piece {
            let Piece { users, cached, parent, .. } = &self.pieces[index];
            if users.fetch_sub(1, Ordering::AcqRel) == 1 {
                *cached.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
            piece = *parent;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(parts: &[(u32, usize)]) -> Vec<u32> {
        parts.iter().flat_map(|(token, n)| std::iter::repeat_n(*token, *n)).collect()
    }

    fn cost(prompts: &[Vec<u32>]) -> (u64, u64) {
        let cost = Plan::new(prompts).cost();
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
    fn pieces_go_when_their_tails_are_done() {
        let prompts = [prompt(&[(0, 20), (1, 2)]), prompt(&[(0, 20), (2, 2)])];
        let plan = Plan::new(&prompts);
        let network = crate::lm::testing::small_network(3);
        let prefix = plan.prefix(&network, &plan.tails[0]).unwrap();
        assert!(Arc::ptr_eq(&prefix, &plan.prefix(&network, &plan.tails[1]).unwrap()));
        plan.release(&plan.tails[0]);
        assert_eq!(Arc::strong_count(&prefix), 2);
        plan.release(&plan.tails[1]);
        assert_eq!(Arc::strong_count(&prefix), 1);
    }
}
