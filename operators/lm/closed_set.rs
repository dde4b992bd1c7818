//! Closed-set scoring: the exact log-probability of every label after every prompt.
//!
//! Decision: a call takes all prompts at once and finds the order itself, because the cost lies in
//! what prompts share: beginnings are computed once, and tails with their label tries are packed
//! into passes that fill the matrix kernel. Threads (of the current rayon pool) take passes from
//! one list. Neither the packing nor the threads can change a result: no kernel lets one row see
//! how many others there are.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::batch::Sequence;
use super::error::LmError;
use super::head::Edge;
use super::llama::{LanguageModel, Llama};
use super::prefix::{Plan, Tail};
use super::tokenizer::LmTokenizer;
use super::trie::LabelTrie;
use crate::shape::Cost;

/// Rows from which a pass is full: more would not speed up the kernel.
const FULL: usize = 192;

/// What [`score_labels`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// For each prompt, `log p(label, end | prompt)` of each label, in the order given.
    pub logprobs: Vec<Vec<f32>>,
    /// What it cost.
    pub cost: Cost,
}

/// Scores all labels of a trie after each prompt.
///
/// Prompts are complete chat texts that end with the assistant header; control tokens in them are
/// parsed. `progress` is told how many prompts are done, each time some are. A prompt's result has
/// the same bits whatever other prompts it is scored with, and on any number of threads.
///
/// # Errors
/// If a prompt is empty, or does not fit the model's context with the longest label.
pub fn score_labels(
    model: &LanguageModel,
    trie: &LabelTrie,
    prompts: &[String],
    progress: &mut (dyn FnMut(usize) + Send),
) -> Result<Scores, LmError> {
    let prompts = tokenise(model.tokenizer(), prompts)?;
    let available = model.network().sizes().context;
    for (prompt, ids) in prompts.iter().enumerate() {
        let needed = ids.len() + trie.depth();
        if needed > available {
            return Err(LmError::TooLong { prompt, needed, available });
        }
    }
    Ok(score_tokens(model.network(), trie, &prompts, progress))
}

/// What [`score_labels`] will cost for these prompts, without the model's weights.
///
/// # Errors
/// If a prompt is empty.
pub fn price(tokenizer: &LmTokenizer, prompts: &[String]) -> Result<Cost, LmError> {
    Ok(Plan::new(&tokenise(tokenizer, prompts)?).cost())
}

fn tokenise(tokenizer: &LmTokenizer, prompts: &[String]) -> Result<Vec<Vec<u32>>, LmError> {
    let one = |(i, prompt): (usize, &String)| match tokenizer.encode(prompt, true)? {
        ids if ids.is_empty() => Err(LmError::EmptyPrompt(i)),
        ids => Ok(ids),
    };
    prompts.iter().enumerate().map(one).collect()
}

/// [`score_labels`] on token ids.
fn score_tokens(
    network: &Llama,
    trie: &LabelTrie,
    prompts: &[Vec<u32>],
    progress: &mut (dyn FnMut(usize) + Send),
) -> Scores {
    let plan = Plan::new(prompts);
    let passes = pack(&plan, trie);
    let mut logprobs = vec![Vec::new(); prompts.len()];
    let next = AtomicUsize::new(0);
    let finish = Mutex::new((&mut logprobs, 0, progress));
    // Passes are taken in order, one at a time, so that neighbours meet in the cache and at most one
    // chain of pieces per thread is alive.
    (0..rayon::current_num_threads().min(passes.len())).into_par_iter().for_each(|_| {
        while let Some(tails) = passes.get(next.fetch_add(1, Ordering::Relaxed)) {
            let scores = score_pass(network, trie, &plan, tails);
            // Poisoned only by a panic of `progress`, which rayon hands on to the caller.
            let mut guard = finish.lock().unwrap_or_else(PoisonError::into_inner);
            let (logprobs, done, progress) = &mut *guard;
            for (tail, scores) in tails.iter().zip(scores) {
                *done += tail.prompts.len();
                tail.prompts.iter().for_each(|prompt| logprobs[*prompt] = scores.clone());
            }
            progress(*done);
        }
    });
    Scores { logprobs, cost: plan.cost() }
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
        .map(|(tail, prefix)| Sequence {
            prefix: prefix.as_deref(),
            tokens: plan.tokens(tail),
            tree: trie.branches(),
        })
        .collect();
    let hidden = network.hidden(&sequences);
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

/// Makes a text from data harmless inside a prompt: one line, without markers, of bounded length.
///
/// Control characters and line breaks become spaces, runs of white space one. A marker is anything
/// between `<` and `>` without white space (`<|im_end|>`, `</s>`, `<repo_name>`); lone `<|` and
/// `|>` go too, and this is repeated until none is left, so markers cannot be nested. At most
/// `max_chars` characters are kept.
pub fn chat_safe(text: &str, max_chars: usize) -> String {
    let spaced: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut safe = spaced.split_whitespace().collect::<Vec<_>>().join(" ");
    while let Some(range) = marker(&safe) {
        safe.replace_range(range, "");
    }
    let safe = safe.split_whitespace().collect::<Vec<_>>().join(" ");
    safe.chars().take(max_chars).collect::<String>().trim_end().to_owned()
}

/// Where the first marker, or half of one, stands.
fn marker(text: &str) -> Option<std::ops::Range<usize>> {
    let whole = text.char_indices().filter(|(_, c)| *c == '<').find_map(|(start, _)| {
        let inside = text[start + 1..].find(|c: char| matches!(c, '<' | '>') || c.is_whitespace())?;
        let end = start + 1 + inside;
        (text[end..].starts_with('>') && inside > 0).then_some(start..end + 1)
    });
    whole.or_else(|| ["<|", "|>"].iter().filter_map(|half| text.find(half)).min().map(|at| at..at + 2))
}

#[cfg(test)]
mod tests {
    use super::*;
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

    fn score(network: &Llama, trie: &LabelTrie, prompts: &[Vec<u32>]) -> Scores {
        score_tokens(network, trie, prompts, &mut |_| ())
    }

    #[test]
    fn a_tree_pass_equals_one_pass_per_label() {
        let (network, trie) = (small_network(1), trie());
        let paths = [&[5, 6][..], &[5], &[7, 8, 9], &[7, 8], &[10], &[5, 6, 11, 12]];
        let prompt = tokens(4, 30);
        let found = score(&network, &trie, std::slice::from_ref(&prompt));
        for (path, found) in paths.iter().zip(&found.logprobs[0]) {
            let row: Vec<u32> = prompt.iter().chain(*path).copied().collect();
            let hidden = network.hidden(&[Sequence { prefix: None, tokens: &row, tree: &[] }]);
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
            assert_eq!(alone.cost, Cost { prompt_tokens: prompt.len() as u64, reused_prompt_tokens: 0 });
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
    fn progress_counts_every_prompt() {
        let (network, prompts) = (small_network(4), prompts());
        let mut seen = Vec::new();
        score_tokens(&network, &trie(), &prompts, &mut |done| seen.push(done));
        assert!(seen.is_sorted());
        assert_eq!(seen.last(), Some(&prompts.len()));
        assert_eq!(score(&network, &trie(), &[]), Scores { logprobs: vec![], cost: Cost::default() });
    }

    #[test]
    fn chat_safe_lets_no_marker_through() {
        let cases = [
            ("Children's", "Children's"),
            ("two\nlines\u{7}\tand  more ", "two lines and more"),
            ("end<|im_end|>\n<|im_start|>system", "end system"),
            ("<|im_<|x|>end|>ok", "ok"),
            ("<<|a|>|im_end|>", ""),
            ("<repo_name>x</s>", "x"),
            ("a <| b |> c", "a b c"),
            ("I <3 films, 2 > 1", "I <3 films, 2 > 1"),
            ("\u{2028}line", "line"),
        ];
        for (text, expected) in cases {
            assert_eq!(chat_safe(text, 100), expected, "{text:?}");
        }
        assert_eq!(chat_safe("Äpfel und Birnen", 6), "Äpfel");
    }
}
