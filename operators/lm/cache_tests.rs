//! What a call answers and costs, whatever the calls before it left in the tree.
//!
//! Decision: a model without any cache is the reference, bit for bit; calls, prompts and bounds are
//! drawn at random, with bounds so tight that beginnings go while they are in use.

use std::thread;

use proptest::prelude::*;

use super::best::search;
use super::cache::Cache;
use super::closed_set::{price_tokens, score_tokens};
use super::generate::{tests::greedy, tests::letters, write_tokens};
use super::llama::Llama;
use super::prefix::Plan;
use super::testing::{noise, small_network, tokens};
use super::trie::LabelTrie;
use crate::choosing::{Best, Choosing};
use crate::language_model::{Answered, Written, gather};
use crate::shape::{Cost, KernelError};

fn trie() -> LabelTrie {
    let paths = vec![vec![5, 6], vec![5], vec![7, 8, 9], vec![7, 8], vec![10], vec![5, 6, 11, 12]];
    LabelTrie::from_paths(paths, 2).unwrap()
}

/// The three ways in which prompts are read.
#[derive(Clone, Copy, Debug)]
enum Way {
    Score,
    Choose,
    Write,
}

#[derive(Debug, PartialEq)]
enum Answers {
    Score(Vec<Result<Vec<f32>, KernelError>>),
    Choose(Vec<Result<Best, KernelError>>),
    Write(Vec<Result<Written, KernelError>>),
}

/// One call, and what it came to.
fn ask(network: &Llama, cache: &Cache, way: Way, prompts: &[Vec<u32>]) -> (Answers, Cost) {
    let n = prompts.len();
    match way {
        Way::Score => {
            let ask =
                |answered: &mut Answered<'_, _>| Ok(score_tokens(network, cache, &trie(), prompts, answered));
            let (answers, cost) = gather(n, ask).unwrap();
            (Answers::Score(answers), cost)
        }
        Way::Choose => {
            let how = Choosing { prior: noise(5, 6), temperature: 1.0, count: 3 };
            let draws = noise(6, 6).iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
            let draws: Vec<&[f64]> = prompts.iter().map(|_| &draws[..]).collect();
            let plan = Plan::new(prompts, cache);
            let ask =
                |answered: &mut Answered<'_, _>| Ok(search(network, &trie(), &how, &plan, &draws, answered));
            let (answers, cost) = gather(n, ask).unwrap();
            (Answers::Choose(answers), cost)
        }
        Way::Write => {
            let vocabulary = letters(101);
            let ask = |answered: &mut Answered<'_, _>| {
                Ok(write_tokens(network, cache, &vocabulary, &greedy(3), prompts, answered).unwrap())
            };
            let (answers, cost) = gather(n, ask).unwrap();
            (Answers::Write(answers), Cost { completion_tokens: 0, ..cost })
        }
    }
}

/// Instruction, profile, rest: which of few each is, and how long.
fn prompt() -> impl Strategy<Value = Vec<u32>> {
    let part = |seeds: u64, most: usize| (0..seeds, 1..=most);
    (part(2, 40), part(3, 30), part(5, 20)).prop_map(|(a, b, c)| {
        // Lengths vary, so that prompts also end inside others.
        [tokens(a.0, a.1 / 10 * 10 + 1), tokens(10 + b.0, b.1 / 7 * 7), tokens(20 + c.0, c.1)].concat()
    })
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![4 => Just(Way::Score), 1 => Just(Way::Choose), 1 => Just(Way::Write)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn any_state_of_the_cache_gives_the_same_bytes(
        calls in prop::collection::vec((way(), prop::collection::vec(prompt(), 1..8)), 1..8),
        bound in prop_oneof![Just(0), 1usize << 12..1 << 18, Just(1 << 24)],
        threads in 1usize..=2,
    ) {
        let network = small_network(31);
        let cache = Cache::new(network.sizes(), bound);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for (way, prompts) in &calls {
            let none = Cache::new(network.sizes(), 0);
            let expected = ask(&network, &none, *way, prompts);
            let found = pool.install(|| ask(&network, &cache, *way, prompts));
            prop_assert_eq!(&found.0, &expected.0);
            let total = |cost: &Cost| cost.prompt_tokens + cost.reused_prompt_tokens;
            prop_assert_eq!(total(&found.1), total(&expected.1));
            prop_assert!(found.1.prompt_tokens <= expected.1.prompt_tokens);
            prop_assert_eq!(expected.1, price_tokens(prompts));
            let (promised, computed) = cache.tree().sizes();
            prop_assert!(promised <= bound);
            // Every promise of a call that ran to its end was kept.
            prop_assert_eq!(computed, promised);
        }
    }
}

#[test]
fn costs_and_what_is_kept_do_not_depend_on_threads() {
    let network = small_network(32);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let cache = Cache::new(network.sizes(), 100_000);
        let call = |i: u64| {
            let prompt =
                |j: u64| [tokens(1, 30), tokens(2 + (i * j) % 5, 20), tokens(20 + i + j, 15)].concat();
            let prompts: Vec<Vec<u32>> = (0..1 + i * 7 % 20).map(prompt).collect();
            (ask(&network, &cache, Way::Score, &prompts), cache.tree().sizes())
        };
        pool.install(|| (0..12).map(call).collect::<Vec<_>>())
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn calls_side_by_side_share_a_cache_and_no_bits() {
    let network = small_network(33);
    let cache = Cache::new(network.sizes(), 60_000);
    let prompt = |i: u64| [tokens(1, 30), tokens(2 + i % 5, 20), tokens(20 + i, 15)].concat();
    let (network, cache, prompt) = (&network, &cache, &prompt);
    thread::scope(|scope| {
        for caller in 0..4 {
            scope.spawn(move || {
                for i in 0..15 {
                    let prompts: Vec<Vec<u32>> = (0..3).map(|j| prompt(i * (caller + 1) + j)).collect();
                    let none = Cache::new(network.sizes(), 0);
                    let expected = ask(network, &none, Way::Score, &prompts).0;
                    assert_eq!(ask(network, cache, Way::Score, &prompts).0, expected);
                    assert!(cache.tree().sizes().0 <= 60_000);
                }
            });
        }
    });
}

#[test]
fn one_prompt_at_a_time_finds_what_those_before_it_share() {
    let network = small_network(34);
    let cache = Cache::new(network.sizes(), 1 << 24);
    let prompt = |profile: u64, rest: u64| [tokens(1, 40), tokens(10 + profile, 25), tokens(90 + rest, 9)];
    let computed = |profile, rest| {
        let prompts = [prompt(profile, rest).concat()];
        ask(&network, &cache, Way::Score, &prompts).1.prompt_tokens
    };
    assert_eq!(computed(0, 0), 74, "all of the first");
    assert_eq!(computed(1, 1), 34, "instruction known");
    assert_eq!(computed(0, 2), 9, "instruction and profile known");
    assert_eq!(computed(1, 3), 9);
    assert_eq!(computed(1, 3), 9, "nine tokens are not worth a node of their own");
    assert_eq!(computed(0, 0), 1, "the first prompt is still there, but for the end of it");
}

#[test]
fn a_call_that_was_given_up_leaves_promises_that_the_next_one_pays_for() {
    let network = small_network(35);
    let cache = Cache::new(network.sizes(), 1 << 24);
    let prompts: Vec<Vec<u32>> =
        (0..40).map(|i| [tokens(1, 40), tokens(10 + i / 10, 30), tokens(50 + i, 20)].concat()).collect();
    score_tokens(&network, &cache, &trie(), &prompts, &mut |_, _| std::ops::ControlFlow::Break(()));
    let (promised, computed) = cache.tree().sizes();
    assert!(0 < computed && computed < promised);
    let unpaid = ask(&network, &cache, Way::Score, &prompts).1.prompt_tokens;
    let paid = ask(&network, &cache, Way::Score, &prompts).1.prompt_tokens;
    assert_eq!(paid, 40, "the last token of each");
    assert!(paid < unpaid && unpaid < 40 + 4 * 30 + 40 * 20, "{unpaid}");
    let (promised, computed) = cache.tree().sizes();
    assert_eq!(promised, computed);
}
