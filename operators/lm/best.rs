//! The best labels of a large set, exactly, without looking at all of them.
//!
//! Log-probability only falls on the way down the trie, and what a draw adds to each label is known
//! beforehand. So `ℓ(path)/T + max over the labels below of (draw − prior/T)` bounds everything below
//! a node; the nodes of the highest bounds are forwarded, a batch of them from many prompts at a
//! time, until no bound reaches the worst label that is kept.
//!
//! Decision: how many nodes go into a pass decides what is computed, never what is answered: a label
//! is kept or left out by its exact value, and that has the bits of a pass over the whole trie.

use std::collections::BinaryHeap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use super::batch::{Branch, Grown, Prefix, Sequence};
use super::closed_set::FULL;
use super::forward::Watch;
use super::head::Edge;
use super::llama::Llama;
use super::model::LocalModel;
use super::prefix::{Plan, Tail};
use super::prompts::Prompts;
use super::trie::{LabelTrie, Next, Tree};
use crate::choosing::{Best, Choosing, Kept, Question};
use crate::language_model::Answered;
use crate::shape::Cost;

/// Prompts that share passes. More fill a pass with fewer guesses each, and hold more memory.
const TOGETHER: usize = 16;
/// What a bound is raised by, so that no rounding of the exact value reaches above it.
const SLACK: f64 = 1e-4;

/// The best labels of a trie after each prompt, as `how` values them, best first.
///
/// A question's answer has the same bits as one picked from all of [`score_labels`], in any company.
///
/// [`score_labels`]: super::score_labels
pub fn best_labels(
    model: &LocalModel,
    trie: &LabelTrie,
    how: &Choosing,
    questions: &[Question],
    answered: &mut Answered<'_, Best>,
) -> Cost {
    let prompts: Vec<&str> = questions.iter().map(|question| question.prompt.as_str()).collect();
    let Some(Prompts { ids, places }) = Prompts::fitting(model, trie.depth(), &prompts, answered) else {
        return Cost::default();
    };
    let draws: Vec<&[f64]> = places.iter().map(|at| &questions[*at].draws[..]).collect();
    let plan = Plan::new(&ids, model.cache());
    search(model.network(), trie, how, &plan, &draws, &mut |at, best| answered(places[at], best))
}

/// [`best_labels`] on token ids that are planned, with the draws of each prompt.
pub(super) fn search(
    network: &Llama,
    trie: &LabelTrie,
    how: &Choosing,
    plan: &Plan,
    draws: &[&[f64]],
    answered: &mut Answered<'_, Best>,
) -> Cost {
    let search = Search { network, tree: Tree::new(trie), how, draws, plan };
    let batches: Vec<&[Tail]> = plan.tails.chunks(TOGETHER).collect();
    let next = AtomicUsize::new(0);
    let answered = Mutex::new((answered, false));
    (0..rayon::current_num_threads().min(batches.len())).into_par_iter().for_each(|_| {
        while let Some(tails) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
            let flow = search.batch(tails, &mut |question, best| {
                // Poisoned only by a panic of `answered`, which rayon hands on to the caller.
                let mut guard = answered.lock().unwrap_or_else(PoisonError::into_inner);
                let (answered, stopped) = &mut *guard;
                *stopped = *stopped || answered(question, Ok(best)).is_break();
                if *stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            if flow.is_break() {
                return;
            }
        }
    });
    plan.cost()
}

/// A node to look into: its bound, its log-probability, and where it hangs.
#[derive(PartialEq)]
struct Open {
    bound: f64,
    node: usize,
    logprob: f64,
    /// The branch of the question's grown tree above it.
    parent: Option<usize>,
}

impl Eq for Open {}

impl Ord for Open {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.bound.total_cmp(&other.bound).then(other.node.cmp(&self.node))
    }
}

impl PartialOrd for Open {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// One question under way.
struct Asked {
    question: usize,
    prefix: Prefix,
    grown: Grown,
    open: BinaryHeap<Open>,
    kept: Kept,
    /// By node, the most that draw and prior add to any label below it.
    below: Vec<f64>,
}

impl Asked {
    /// Whether an open node may lead to a label that is to be kept.
    fn may_find_more(&self) -> bool {
        self.open.peek().is_some_and(|open| open.bound >= self.kept.least())
    }
}

struct Search<'a> {
    network: &'a Llama,
    tree: Tree,
    how: &'a Choosing,
    draws: &'a [&'a [f64]],
    plan: &'a Plan<'a>,
}

impl Search<'_> {
    /// Answers the questions of some prompts, those first that are done first.
    fn batch(
        &self,
        tails: &[Tail],
        answered: &mut dyn FnMut(usize, Best) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut asked: Vec<Asked> = tails.iter().flat_map(|tail| self.begin(tail)).collect();
        tails.iter().for_each(|tail| self.plan.release(tail));
        while !asked.is_empty() {
            let (open, done): (Vec<_>, Vec<_>) = asked.into_iter().partition(Asked::may_find_more);
            for done in done {
                answered(done.question, done.kept.best())?;
            }
            asked = open;
            if !asked.is_empty() {
                self.look(&mut asked);
            }
        }
        ControlFlow::Continue(())
    }

    /// Reads a prompt; its questions learn the first tokens of the labels.
    fn begin(&self, tail: &Tail) -> Vec<Asked> {
        let mut prefix = self.plan.prefix(self.network, tail);
        let (run, hidden) = self.network.read(&prefix, self.plan.tokens(tail));
        Plan::keep(self.network.sizes().heads, tail, &run);
        prefix.push(Arc::new(run));
        let found = self.network.head().log_probs(&hidden, &self.edges(0, 0));
        let begin = |question: &usize| {
            let mut asked = Asked {
                question: *question,
                prefix: prefix.clone(),
                grown: Grown::default(),
                open: BinaryHeap::new(),
                kept: Kept::new(self.how.count),
                below: self.below(self.draws[*question]),
            };
            self.take_in(&mut asked, (0, 0.0), None, &found);
            asked
        };
        tail.prompts.iter().map(begin).collect()
    }

    fn below(&self, draws: &[f64]) -> Vec<f64> {
        let mut below = vec![f64::NEG_INFINITY; self.tree.steps.len()];
        for node in (0..below.len()).rev() {
            let additions = self.tree.steps[node].iter().map(|(_, next)| match next {
                Next::Node(child) => below[*child],
                Next::Label(label) => self.how.addition(*label, draws[*label]),
            });
            below[node] = additions.fold(f64::NEG_INFINITY, f64::max);
        }
        below
    }

    fn edges(&self, node: usize, row: usize) -> Vec<Edge> {
        self.tree.steps[node].iter().map(|(token, _)| Edge { row, token: *token }).collect()
    }

    /// Forwards the most promising nodes of each question, as many as fill a pass.
    fn look(&self, asked: &mut [Asked]) {
        let each = FULL.div_ceil(asked.len());
        let pick = |asked: &mut Asked| {
            let mut picked = Vec::new();
            while picked.len() < each && asked.may_find_more() {
                picked.extend(asked.open.pop());
            }
            picked
        };
        let picked: Vec<Vec<Open>> = asked.iter_mut().map(pick).collect();
        let branch = |open: &Open| Branch { token: self.tree.tokens[open.node - 1], parent: open.parent };
        let trees: Vec<Vec<Branch>> = picked.iter().map(|open| open.iter().map(branch).collect()).collect();
        let sequence = |(asked, tree)| {
            let Asked { prefix, grown, .. }: &Asked = asked;
            Sequence { prefix: Some(prefix), tokens: &[], grown, tree }
        };
        let sequences: Vec<Sequence> = asked.iter().zip(trees.iter().map(|t| &t[..])).map(sequence).collect();
        let mut rows = Rows { network: self.network, layers: Vec::new() };
        let hidden = self.network.forward(&sequences, &mut rows);
        let nodes = || picked.iter().flatten().enumerate();
        let edges: Vec<Edge> = nodes().flat_map(|(row, open)| self.edges(open.node, row)).collect();
        let mut found = &self.network.head().log_probs(&hidden, &edges)[..];
        let mut row = 0;
        for (asked, picked) in asked.iter_mut().zip(&picked) {
            for open in picked {
                let (own, rest) = found.split_at(self.tree.steps[open.node].len());
                let branch =
                    self.tree.has_children(open.node).then(|| rows.grow(row, open.parent, &mut asked.grown));
                self.take_in(asked, (open.node, open.logprob), branch, own);
                (found, row) = (rest, row + 1);
            }
        }
    }

    /// Takes in what was found at a node: labels that end there, and nodes to look into later.
    fn take_in(
        &self,
        asked: &mut Asked,
        (node, logprob): (usize, f64),
        branch: Option<usize>,
        found: &[f64],
    ) {
        let draws = self.draws[asked.question];
        for ((_, next), step) in self.tree.steps[node].iter().zip(found) {
            let logprob = logprob + step;
            match *next {
                Next::Node(node) if asked.below[node] > f64::NEG_INFINITY => {
                    let bound = self.how.scale() * (logprob + SLACK) + asked.below[node];
                    asked.open.push(Open { bound, node, logprob, parent: branch });
                }
                Next::Node(_) => {}
                Next::Label(label) => {
                    asked.kept.see(
                        label,
                        logprob as f32,
                        self.how.value(label, logprob as f32, draws[label]),
                    );
                }
            }
        }
    }
}

/// Keeps the rows of a pass, so that branches of them can be handed over.
struct Rows<'a> {
    network: &'a Llama,
    /// By layer, `[key | value]` of all rows.
    layers: Vec<Vec<f32>>,
}

impl Watch for Rows<'_> {
    fn rows(&mut self, _layer: usize, rows: &[f32]) {
        let heads = self.network.sizes().heads;
        let keys_values = rows.chunks_exact(heads.row_width()).flat_map(|row| &row[heads.query_width()..]);
        self.layers.push(keys_values.copied().collect());
    }
}

impl Rows<'_> {
    /// Makes a row a grown branch below `parent`; its number among the grown.
    fn grow(&self, row: usize, parent: Option<usize>, grown: &mut Grown) -> usize {
        let width = 2 * self.network.sizes().heads.key_width();
        for (layer, rows) in self.layers.iter().enumerate() {
            grown.take(layer, &rows[row * width..][..width]);
        }
        grown.push(parent);
        grown.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choosing::pick;
    use crate::language_model::gather;
    use crate::lm::cache::Cache;
    use crate::lm::closed_set::score_tokens;
    use crate::lm::testing::{noise, small_network, tokens};

    const END: u32 = 2;

    /// Distinct labels of one to four tokens out of few, so that they share beginnings.
    fn paths(count: usize) -> Vec<Vec<u32>> {
        let mut paths: Vec<Vec<u32>> = (0..40 * count as u64)
            .map(|seed| {
                let ids = noise(seed, 5);
                let length = 1 + ((ids[4] + 1.0) * 1.99) as usize;
                ids[..length].iter().map(|x| 10 + ((x + 1.0) * 8.0) as u32).collect()
            })
            .collect();
        paths.sort();
        paths.dedup();
        paths.truncate(count);
        paths
    }

    fn draws(seed: u64, count: usize) -> Vec<f64> {
        let mut draws: Vec<f64> = noise(seed, count).iter().map(|x| f64::from(*x) * 3.0).collect();
        draws.iter_mut().step_by(7).for_each(|draw| *draw = f64::NEG_INFINITY);
        draws
    }

    #[test]
    fn the_best_of_few_are_the_best_of_all_to_the_bit() {
        let network = small_network(7);
        for (count, keep, temperature) in
            [(71, 15, 1.0), (594, 15, 0.7), (71, 71, 1.0), (594, 5, 0.0), (5000, 15, 1.0)]
        {
            let paths = paths(count);
            assert_eq!(paths.len(), count);
            let trie = LabelTrie::from_paths(paths, END).unwrap();
            let how = Choosing { prior: noise(5, count), temperature, count: keep };
            let mut prompts: Vec<Vec<u32>> =
                (0..9).map(|i| [tokens(1, 30), tokens(100 + i, 4 + i as usize % 3)].concat()).collect();
            prompts.push(prompts[3].clone());
            let own: Vec<Vec<f64>> = (0..prompts.len() as u64).map(|i| draws(i, count)).collect();
            let drawn: Vec<&[f64]> = own.iter().map(Vec::as_slice).collect();
            let none = Cache::new(network.sizes(), 0);
            let full =
                |answered: &mut Answered<'_, _>| Ok(score_tokens(&network, &none, &trie, &prompts, answered));
            let (full, _) = gather(prompts.len(), full).unwrap();
            let lazy = |prompts: &[Vec<u32>], drawn: &[&[f64]]| {
                let plan = Plan::cold(prompts);
                let ask = |answered: &mut Answered<'_, _>| {
                    Ok(search(&network, &trie, &how, &plan, drawn, answered))
                };
                gather(prompts.len(), ask).unwrap().0
            };
            let found = lazy(&prompts, &drawn);
            for ((full, found), draws) in full.iter().zip(&found).zip(&own) {
                assert_eq!(*found.as_ref().unwrap(), pick(&how, full.as_ref().unwrap(), draws));
            }
            // In other company the same, to the bit.
            assert_eq!(lazy(&prompts[4..6], &drawn[4..6]), found[4..6]);
        }
    }

    #[test]
    fn what_cannot_be_among_the_best_is_not_forwarded() {
        let (network, paths) = (small_network(7), paths(594));
        let trie = LabelTrie::from_paths(paths, END).unwrap();
        let how = Choosing { prior: vec![0.0; 594], temperature: 1.0, count: 5 };
        let (prompts, none) = (vec![tokens(1, 30)], vec![0.0; 594]);
        let plan = Plan::cold(&prompts);
        let search =
            Search { network: &network, tree: Tree::new(&trie), how: &how, draws: &[&none], plan: &plan };
        let mut asked = search.begin(&plan.tails[0]);
        while asked[0].may_find_more() {
            search.look(&mut asked);
        }
        let left = asked[0].open.len();
        assert!(left > trie.nodes() / 4, "{left} of {} nodes are left closed", trie.nodes());
    }
}
