//! The network that is tuned, against the network that answers and against differences.
//!
//! Decision: everything is checked on a small network with random weights, whose sizes fill no tile,
//! and end to end: a gradient is right if the loss falls with it as it says. The vectors of another
//! implementation are met with the real model, in `fixtures_tests.rs`.

use super::batch::Batch;
use super::frozen::Frozen;
use super::network::Tuned;
use crate::lm::adapters::{Adapters, LoraSettings};
use crate::lm::cache::Cache;
use crate::lm::closed_set::score_tokens;
use crate::lm::llama::Llama;
use crate::lm::testing::{changed_network, noise, tokens};
use crate::lm::trie::LabelTrie;
use crate::nn::adamw::AdamW;
use crate::tuning::loss::{Pair, Smoothing, cross_entropy, dpo, log_softmax};

const SETTINGS: LoraSettings = LoraSettings { rank: 3, alpha: 6.0, dropout: 0.0, top: None };
const VOCAB: usize = 101;
const END: u32 = 9;

/// Gains large enough that attention is sharp and every part matters.
fn sharpen(name: &str, weights: &mut [f32]) {
    if name.ends_with("_norm.weight") {
        weights.iter_mut().for_each(|w| *w *= 2.0);
    }
}

fn network() -> Llama {
    changed_network(5, VOCAB, true, sharpen)
}

fn trie() -> LabelTrie {
    LabelTrie::from_paths(vec![vec![20, 21], vec![30], vec![20, 22, 23], vec![40, 41]], END).unwrap()
}

/// Prompts of which two begin alike, and one is the beginning of another.
fn prompts() -> Vec<Vec<u32>> {
    let all = tokens(201, 40);
    let forked = [&all[..9], &all[25..40]].concat();
    vec![all[..17].to_vec(), forked, all[..13].to_vec(), tokens(202, 5)]
}

/// A network with adapters and some prompts.
struct Case {
    network: Llama,
    frozen: Frozen,
    adapters: Adapters,
    values: Vec<f32>,
    trie: LabelTrie,
    prompts: Vec<Vec<u32>>,
}

type Loss<'a> = dyn Fn(&[Vec<f64>]) -> (f64, Vec<Vec<f64>>) + 'a;

impl Case {
    /// Adapters as far from their start as training moves them, or further.
    fn new(settings: LoraSettings) -> Self {
        let network = network();
        let adapters = Adapters::new(network.sizes(), settings).unwrap();
        let mut values = adapters.layout().initial(4);
        let moved = noise(203, values.len());
        values.iter_mut().zip(&moved).for_each(|(v, m)| *v += 0.4 * m);
        Self { network, frozen: Frozen::new(1 << 20), adapters, values, trie: trie(), prompts: prompts() }
    }

    fn with<T>(&self, values: &[f32], run: impl FnOnce(&Tuned, &Batch) -> T) -> T {
        let loaded = self.adapters.load(values);
        let asked: Vec<_> = self.prompts.iter().map(|prompt| (&prompt[..], &self.trie)).collect();
        let batch = Batch::new(&self.network, &self.frozen, &self.adapters, &asked);
        run(&Tuned { network: &self.network, adapters: &self.adapters, loaded: &loaded }, &batch)
    }

    fn scores(&self, values: &[f32]) -> Vec<Vec<f64>> {
        self.with(values, |tuned, batch| batch.scores(tuned))
    }

    /// The loss and its gradient.
    fn gradient(&self, values: &[f32], dropout: Option<(u64, u64)>, loss: &Loss) -> (f64, Vec<f32>) {
        let mut value = 0.0;
        let gradient = self.with(values, |tuned, batch| {
            batch.gradient(tuned, dropout, |scores| {
                let (found, slopes) = loss(scores);
                value = found;
                slopes
            })
        });
        (value, gradient)
    }

    /// Compares the gradient of each tensor with differences along itself, along a random direction and
    /// along its largest entries.
    fn check(&self, dropout: Option<(u64, u64)>, loss: &Loss) {
        let (_, gradient) = self.gradient(&self.values, dropout, loss);
        for (i, entry) in self.adapters.layout().entries().iter().enumerate() {
            let own = &gradient[entry.slot.range()];
            let length = own.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            assert!(length > 1e-4, "{}: no gradient", entry.name);
            let mut directions = vec![own.to_vec(), noise(300 + i as u64, own.len())];
            let mut order: Vec<usize> = (0..own.len()).collect();
            order.sort_by(|a, b| own[*b].abs().total_cmp(&own[*a].abs()));
            directions.extend(order[..2].iter().map(|at| {
                let mut one = vec![0.0; own.len()];
                one[*at] = 1.0;
                one
            }));
            for direction in directions {
                let norm = direction.iter().map(|d| f64::from(*d).powi(2)).sum::<f64>().sqrt();
                let along: f64 =
                    own.iter().zip(&direction).map(|(g, d)| f64::from(g * d)).sum::<f64>() / norm;
                let at = |step: f64| {
                    let mut values = self.values.clone();
                    let moved = values[entry.slot.range()].iter_mut().zip(&direction);
                    moved.for_each(|(v, d)| *v += (step * f64::from(*d) / norm) as f32);
                    self.gradient(&values, dropout, loss).0
                };
                // Two steps, so that what is left of the third derivative cancels; the loss moves by about
                // a twentieth, far more than it is rounded by.
                let h = (0.05 / length).min(0.1);
                let slope = |h: f64| (at(h) - at(-h)) / (2.0 * h);
                let expected = (4.0 * slope(h) - slope(2.0 * h)) / 3.0;
                let error = (along - expected).abs();
                assert!(error <= 1e-3 * length, "{}: {along} instead of {expected} of {length}", entry.name);
            }
        }
    }
}

/// Cross-entropy of a label for each prompt.
fn fine_tuning(scores: &[Vec<f64>]) -> (f64, Vec<Vec<f64>>) {
    let one = |(i, scores): (usize, &Vec<f64>)| {
        let mut target = vec![0.0; scores.len()];
        target[i % scores.len()] = 1.0;
        let loss = cross_entropy(&log_softmax(scores, &vec![true; scores.len()]), &target);
        (loss.value, loss.gradient)
    };
    let (values, slopes): (Vec<f64>, _) = scores.iter().enumerate().map(one).unzip();
    (values.iter().sum(), slopes)
}

/// Direct preference of one label over another, by sums of tokens.
fn preference(scores: &[Vec<f64>]) -> (f64, Vec<Vec<f64>>) {
    let one = |scores: &Vec<f64>| {
        let lengths = (1.0, 1.0);
        let (chosen, rejected) = (scores[2], scores[1]);
        let pair = Pair { chosen, rejected, chosen_reference: -9.0, rejected_reference: -8.0, lengths };
        let loss = dpo(&pair, 0.5, Smoothing::Conservative(0.1));
        (loss.value, vec![0.0, loss.rejected, loss.chosen, 0.0])
    };
    let (values, slopes): (Vec<f64>, _) = scores.iter().map(one).unzip();
    (values.iter().sum(), slopes)
}

#[test]
fn gradients_are_those_of_differences() {
    let case = Case::new(SETTINGS);
    case.check(None, &fine_tuning);
    case.check(None, &preference);
}

#[test]
fn gradients_are_those_of_differences_where_inputs_are_left_out() {
    let case = Case::new(LoraSettings { dropout: 0.4, top: Some(2), ..SETTINGS });
    case.check(Some((7, 3)), &fine_tuning);
    let of = |step| case.gradient(&case.values, Some((7, step)), &fine_tuning);
    assert_eq!(of(3), of(3));
    assert_ne!(of(3), of(4));
    // Answers leave nothing out.
    let plain = Case::new(LoraSettings { top: Some(2), ..SETTINGS });
    assert_eq!(case.scores(&case.values), plain.scores(&plain.values));
}

fn close(found: &[Vec<f64>], expected: &[Vec<f32>], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        for (a, b) in found.iter().zip(expected) {
            assert!((a - f64::from(*b)).abs() < tolerance, "{a} instead of {b}");
        }
    }
}

fn answers(network: &Llama, case: &Case) -> Vec<Vec<f32>> {
    let mut answers = vec![Vec::new(); case.prompts.len()];
    score_tokens(network, &Cache::new(network.sizes(), 0), &case.trie, &case.prompts, &mut |at, answer| {
        answers[at] = answer.unwrap();
        std::ops::ControlFlow::Continue(())
    });
    answers
}

#[test]
fn untouched_adapters_change_no_answer() {
    let case = Case::new(SETTINGS);
    let found = case.scores(&case.adapters.layout().initial(4));
    close(&found, &answers(&case.network, &case), 1e-5);
}

#[test]
fn adapters_answer_as_weights_they_are_merged_into() {
    let case = Case::new(SETTINGS);
    let entries = case.adapters.layout().entries();
    let merged = changed_network(5, VOCAB, true, |name, weights| {
        sharpen(name, weights);
        let of = |end| {
            entries.iter().find(|e| {
                Some(e.name.as_str()) == name.strip_suffix("weight").map(|n| format!("{n}{end}")).as_deref()
            })
        };
        let (Some(a), Some(b)) = (of("A"), of("B")) else { return };
        for (o, row) in weights.chunks_exact_mut(a.slot.cols).enumerate() {
            for (j, b) in case.values[b.slot.row(o)].iter().enumerate() {
                let a = &case.values[a.slot.row(j)];
                row.iter_mut().zip(a).for_each(|(w, a)| *w += case.adapters.scale() * b * a);
            }
        }
    });
    let expected = answers(&merged, &case);
    close(&case.scores(&case.values), &expected, 1e-4);
    let moved =
        expected.iter().flatten().zip(answers(&case.network, &case).concat()).map(|(a, b)| (a - b).abs());
    assert!(moved.fold(0.0, f32::max) > 0.1, "the adapters do something");
}

#[test]
fn prompts_that_share_rows_have_the_gradients_they_have_alone() {
    let mut case = Case::new(SETTINGS);
    let (value, together) = case.gradient(&case.values, None, &preference);
    let mut sum = vec![0f64; together.len()];
    let mut values = 0.0;
    for prompt in prompts() {
        case.prompts = vec![prompt];
        let (value, gradient) = case.gradient(&case.values, None, &preference);
        values += value;
        sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += f64::from(g));
    }
    assert!((value - values).abs() < 1e-9, "{value} {values}");
    let largest = sum.iter().fold(0f64, |most, g| most.max(g.abs()));
    for (a, b) in together.iter().zip(&sum) {
        assert!((f64::from(*a) - b).abs() < 1e-5 * largest, "{a} {b}");
    }
    // And are fewer rows.
    case.prompts = prompts();
    let rows = case.with(&case.values, |_, batch| batch.rows());
    let apart: usize = case.prompts.iter().map(|prompt| prompt.len() + case.trie.nodes()).sum();
    assert!(rows < apart - 15, "{rows} of {apart}");
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let mut case = Case::new(LoraSettings { dropout: 0.2, ..SETTINGS });
    case.prompts.extend((0..9).map(|i| tokens(210 + i, 40)));
    let mut all = [1, 2, 3, 5].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (value, gradient) = pool.install(|| case.gradient(&case.values, Some((1, 1)), &fine_tuning));
        (value.to_bits(), gradient.iter().map(|g| g.to_bits()).collect::<Vec<_>>())
    });
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
    all[0].1[0] ^= 1;
    assert_ne!(all[0], all[1]);
}

#[test]
fn the_layers_at_the_top_have_the_gradients_they_have_among_all() {
    let top = Case::new(LoraSettings { top: Some(1), ..SETTINGS });
    let mut all = Case::new(SETTINGS);
    all.values = all.adapters.layout().initial(4);
    let first = all.values.len() - top.values.len();
    all.values[first..].copy_from_slice(&top.values);
    let (_, own) = top.gradient(&top.values, None, &preference);
    let (_, among) = all.gradient(&all.values, None, &preference);
    assert_eq!(own, among[first..]);
}

#[test]
fn every_tensor_has_a_gradient_after_two_steps() {
    let case = Case::new(SETTINGS);
    let layout = case.adapters.layout();
    let (mut values, mut state) = (layout.initial(4), AdamW::new(layout));
    let mut losses = Vec::new();
    for _ in 0..2 {
        let (value, gradient) = case.gradient(&values, None, &fine_tuning);
        losses.push(value);
        state.step(layout, &mut values, &gradient, 1e-3, 0.01);
    }
    let (value, gradient) = case.gradient(&values, None, &fine_tuning);
    losses.push(value);
    assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{losses:?}");
    for entry in layout.entries() {
        assert!(gradient[entry.slot.range()].iter().all(|g| *g != 0.0), "{}", entry.name);
    }
}
