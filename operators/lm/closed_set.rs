//! Closed-set scoring: the exact log-probability of every label after every prompt.
//!
//! Decision: a call takes all prompts at once and finds the order itself, because the cost lies in
//! what prompts share: beginnings are computed once, by this call or one before it, and tails with
//! their label tries are packed into passes that fill the matrix kernel. Threads (of the current
//! rayon pool) take passes from one list. Neither the packing nor the threads nor what is known from
//! before can change a result: no kernel lets one row see how many others there are, or where the
//! beginning it reads was cut.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::batch::Sequence;
use super::cache::Cache;
use super::head::Edge;
use super::llama::Llama;
use super::model::LocalModel;
use super::prefix::{Plan, Tail};
use super::prompts::Prompts;
use super::tokenizer::LmTokenizer;
use super::trie::LabelTrie;
use crate::language_model::Answered;
use crate::shape::Cost;

/// Rows from which a pass is full: more would not speed up the kernel.
pub(super) const FULL: usize = 192;

/// Scores all labels of a trie after each prompt: answers `log p(label, end | prompt)` of each label,
/// in the order given.
///
/// Prompts are complete chat texts that end with the assistant header; control tokens in them are
/// parsed. A prompt's answer has the same bits whatever other prompts it is scored with, and on any
/// number of threads. One that is empty, or does not fit the model's context with the longest label,
/// or that the model's template refuses, is an error of its own.
pub fn score_labels(
    model: &LocalModel,
    trie: &LabelTrie,
    prompts: &[String],
    answered: &mut Answered<'_, Vec<f32>>,
) -> Cost {
    let Some(Prompts { ids, places }) = Prompts::fitting(model, trie.depth(), prompts, answered) else {
        return Cost::default();
    };
    let (network, cache) = (model.network(), model.cache());
    score_tokens(network, cache, trie, &ids, &mut |at, answer| answered(places[at], answer))
}

/// What [`score_labels`] costs for these prompts, without the model's weights: what it does cost where
/// a model is asked for the first time, and at most this where it knows beginnings of prompts already.
/// Prompts that cannot be asked cost nothing.
pub fn price(tokenizer: &LmTokenizer, prompts: &[String]) -> Cost {
    price_tokens(&Prompts::all(tokenizer, prompts))
}

/// [`price`] on token ids.
pub(super) fn price_tokens(prompts: &[Vec<u32>]) -> Cost {
    Plan::cold(prompts).cost()
}

/// [`score_labels`] on token ids.
pub(super) fn score_tokens(
    network: &Llama,
    cache: &Cache,
    trie: &LabelTrie,
    prompts: &[Vec<u32>],
    answered: &mut Answered<'_, Vec<f32>>,
) -> Cost {
    let plan = Plan::new(prompts, cache);
    let passes = pack(&plan, trie);
    let next = AtomicUsize::new(0);
    let stopped = AtomicBool::new(false);
    let answered = Mutex::new(answered);
    // Passes are taken in order, one at a time, so that neighbours meet in the cache and at most one
    // chain of pieces per thread is alive.
    (0..rayon::current_num_threads().min(passes.len())).into_par_iter().for_each(|_| {
        while let Some(tails) = passes.get(next.fetch_add(1, Ordering::Relaxed)) {
            if stopped.load(Ordering::Relaxed) {
                return;
            }
            let scores = score_pass(network, trie, &plan, tails);
            // Poisoned only by a panic of `answered`, which rayon hands on to the caller.
            let mut answered = answered.lock().unwrap_or_else(PoisonError::into_inner);
            if stopped.load(Ordering::Relaxed) {
                return;
            }
            for (tail, scores) in tails.iter().zip(scores) {
                for prompt in &tail.prompts {
                    if answered(*prompt, Ok(scores.clone())).is_break() {
                        return stopped.store(true, Ordering::Relaxed);
                    }
                }
            }
        }
    });
    plan.cost()
}

/// Cuts the tails into runs of at least [`FULL`] rows.
fn pack<'a>(plan: &'a Plan, trie: &LabelTrie) -> Vec<&'a [Tail]> {
    let mut passes = Vec::new();
    let (mut first, mut rows) = (0, 0);
    for (i, tail) in plan.tails.iter().enumerate() {
        rows += plan.tokens(tail).len() + trie.nodes();
        if rows >= FULL || i + 1 == plan.tails.len() {
            passes.push(&plan.tails[first..=i]);
            (first, rows) = (i + 1, 0);
        }
    }
    passes
}

/// One forward pass: label log-probabilities for each tail.
fn score_pass(network: &Llama, trie: &LabelTrie, plan: &Plan, tails: &[Tail]) -> Vec<Vec<f32>> {
    let prefixes: Vec<_> = tails.iter().map(|tail| plan.prefix(network, tail)).collect();
    let sequences: Vec<_> = tails
        .iter()
        .zip(&prefixes)
        .map(|(tail, prefix)| Sequence::new(Some(prefix), plan.tokens(tail), trie.branches()))
        .collect();
    let hidden = match tails.iter().any(Plan::keeps) {
        false => network.hidden(&sequences),
        true => {
            let (hidden, runs) = network.read_all(&sequences);
            let heads = network.sizes().heads;
            tails.iter().zip(&runs).for_each(|(tail, run)| Plan::keep(heads, tail, run));
            hidden
        }
    };
    let mut edges = Vec::with_capacity(tails.len() * trie.edges().len());
    let mut first = 0;
    for sequence in &sequences {
        // Row 0 of the trie is the last token of the prompt.
        let root = first + sequence.tokens.len() - 1;
        edges.extend(trie.edges().iter().map(|edge| Edge { row: root + edge.row, token: edge.token }));
        first += sequence.rows();
    }
    let found = network.head().log_probs(&hidden, &edges);
    drop(prefixes);
    tails.iter().for_each(|tail| plan.release(tail));
    found.chunks_exact(trie.edges().len()).map(|found| trie.sum(found)).collect()
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::language_model::gather;
    use crate::lm::testing::{small_network, tokens};

    const END: u32 = 2;

    fn trie() -> LabelTrie {
        let paths = vec![vec![5, 6], vec![5], vec![7, 8, 9], vec![7, 8], vec![10], vec![5, 6, 11, 12]];
        LabelTrie::from_paths(paths, END).unwrap()
    }

    /// An instruction, two profiles, many tails; one prompt twice, one a beginning of another.
    fn prompts() -> Vec<Vec<u32>> {
        let mut prompts = Vec::new();
        for profile in 0..2 {
            for tail in 0..5 {
                let parts =
                    [tokens(1, 40), tokens(10 + profile, 17), tokens(20 + tail, 3 + tail as usize * 2)];
                prompts.push(parts.concat());
            }
        }
        prompts.push(prompts[3].clone());
        prompts.push(prompts[4][..50].to_vec());
        prompts
    }

    #[derive(Debug, PartialEq)]
    struct Scores {
        logprobs: Vec<Vec<f32>>,
        cost: Cost,
    }

    /// A cache that keeps nothing.
    fn none(network: &Llama) -> Cache {
        Cache::new(network.sizes(), 0)
    }

    fn score(network: &Llama, trie: &LabelTrie, prompts: &[Vec<u32>]) -> Scores {
        let (answers, cost) = gather(prompts.len(), |answered| {
            Ok(score_tokens(network, &none(network), trie, prompts, answered))
        })
        .unwrap();
        Scores { logprobs: answers.into_iter().collect::<Result<_, _>>().unwrap(), cost }
    }

    #[test]
    fn a_tree_pass_equals_one_pass_per_label() {
        let (network, trie) = (small_network(1), trie());
        let paths = [&[5, 6][..], &[5], &[7, 8, 9], &[7, 8], &[10], &[5, 6, 11, 12]];
        let prompt = tokens(4, 30);
        let found = score(&network, &trie, std::slice::from_ref(&prompt));
        for (path, found) in paths.iter().zip(&found.logprobs[0]) {
            let row: Vec<u32> = prompt.iter().chain(*path).copied().collect();
            let hidden = network.hidden(&[Sequence::new(None, &row, &[])]);
            let answer = path.iter().chain([&END]);
            let edges: Vec<Edge> =
                (29..).zip(answer).map(|(row, token)| Edge { row, token: *token }).collect();
            let exact: f64 = network.head().log_probs(&hidden, &edges).iter().sum();
            assert!((exact - *found as f64).abs() < 1e-4, "{path:?}: {exact} {found}");
        }
    }

    #[test]
    fn a_prompt_is_scored_alone_or_among_others_with_the_same_bits() {
        let (network, trie, prompts) = (small_network(2), trie(), prompts());
        let all = score(&network, &trie, &prompts);
        assert!(all.cost.reused_prompt_tokens > 0);
        for (prompt, expected) in prompts.iter().zip(&all.logprobs) {
            let alone = score(&network, &trie, std::slice::from_ref(prompt));
            assert_eq!(alone.logprobs[0], *expected);
            assert_eq!(alone.cost, Cost { prompt_tokens: prompt.len() as u64, ..Cost::default() });
        }
        for shift in [1, 5, 9] {
            let mut shuffled = prompts.clone();
            shuffled.rotate_left(shift);
            shuffled.swap(0, 3);
            let mut expected = all.logprobs.clone();
            expected.rotate_left(shift);
            expected.swap(0, 3);
            assert_eq!(score(&network, &trie, &shuffled).logprobs, expected);
            // A subset shares less, so beginnings are cut elsewhere.
            assert_eq!(score(&network, &trie, &shuffled[..4]).logprobs, expected[..4]);
        }
    }

    #[test]
    fn threads_change_nothing() {
        let (network, trie, prompts) = (small_network(3), trie(), prompts());
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| score(&network, &trie, &prompts))
        };
        assert_eq!(run(1), run(2));
    }

    #[test]
    fn who_hears_enough_is_told_no_more() {
        let (network, prompts) = (small_network(4), prompts());
        for enough in [1, 3] {
            let mut heard = 0;
            score_tokens(&network, &none(&network), &trie(), &prompts, &mut |_, _| {
                heard += 1;
                if heard < enough { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            assert_eq!(heard, enough);
        }
        assert_eq!(score(&network, &trie(), &[]), Scores { logprobs: vec![], cost: Cost::default() });
    }
}
