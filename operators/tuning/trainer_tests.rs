//! Training on a small random model: it learns, it repeats, and it goes on where it was stopped.
//!
//! Decision: the model is one of the folders that other implementations are compared on, tokenizer
//! and all, so that nothing between a prompt's text and a gradient is left out.

use std::{cell::RefCell, path::PathBuf};

use super::{
    loss::{Loss, cross_entropy, log_softmax},
    trainer::{Objective, Told, Trainer},
    training::{Device, Training},
};
use crate::{
    lm::{LabelTrie, LocalModel},
    shape::{CallError, Progress, Watch},
};

const LABELS: [&str; 5] = ["Drama", "War", "Sci-Fi", "Film-Noir", "1984"];

fn model() -> LocalModel {
    LocalModel::open(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("lm/fixtures/llama")).unwrap()
}

/// Prompts, each with one label that is right.
struct Right {
    trie: LabelTrie,
    examples: Vec<(String, f64)>,
}

impl Right {
    fn new(model: &LocalModel, examples: impl IntoIterator<Item = (String, f64)>) -> Self {
        let labels = LABELS.map(str::to_string);
        Self {
            trie: LabelTrie::new(model.tokenizer(), &labels).unwrap(),
            examples: examples.into_iter().collect(),
        }
    }

    /// The label of a prompt follows from its first digit.
    fn label(&self, example: usize) -> usize {
        self.examples[example].0.bytes().filter(u8::is_ascii_digit).map(usize::from).sum::<usize>()
            % LABELS.len()
    }
}

impl Objective for Right {
    fn labels(&self) -> &LabelTrie {
        &self.trie
    }

    fn examples(&self) -> &[(String, f64)] {
        &self.examples
    }

    fn named(&self, _: usize) -> Vec<f64> {
        Vec::new()
    }

    fn loss(&self, example: usize, scores: &[f64], told: &mut Told) -> Loss {
        let policy = log_softmax(scores, &[true; LABELS.len()]);
        let best = (0..policy.len()).max_by(|a, b| policy[*a].total_cmp(&policy[*b]));
        told.tell("accuracy", f64::from(u8::from(best == Some(self.label(example)))));
        let target: Vec<f64> =
            (0..LABELS.len()).map(|label| f64::from(u8::from(label == self.label(example)))).collect();
        cross_entropy(&policy, &target)
    }
}

fn prompts(count: usize) -> Vec<(String, f64)> {
    let words = ["the year", "films of", "they'll see", "which film in"];
    (0..count).map(|n| (format!("{} {}?", words[n % 4], 1000 + 37 * n), 1.0)).collect()
}

const FAST: Training = Training {
    device: Device::Cpu,
    rank: 4,
    alpha: 8.0,
    dropout: 0.1,
    layers: None,
    epochs: 3,
    max_steps: None,
    batch: 3,
    accumulate: 2,
    learning_rate: 0.01,
    warmup: 0.1,
    weight_decay: 0.01,
    clip: 1.0,
    choose_every: None,
    seed: 5,
};

/// Keeps everything, and stops when so much was kept.
#[derive(Default)]
struct Keeper {
    kept: RefCell<Vec<Vec<u8>>>,
    stop: Option<usize>,
    heard: Vec<u64>,
}

impl Watch for Keeper {
    fn progress(&mut self, progress: Progress<'_>) {
        assert!(progress.done <= progress.total && progress.note.starts_with("loss "));
        self.heard.push(progress.done);
    }

    fn keep(&mut self, state: &dyn Fn() -> Vec<u8>) -> Result<(), CallError> {
        self.kept.borrow_mut().push(state());
        match self.stop == Some(self.kept.borrow().len()) {
            true => Err("stopped".into()),
            false => Ok(()),
        }
    }
}

#[test]
fn distinct_prompts_are_learnt_by_heart() {
    let model = model();
    let right = Right::new(&model, prompts(32));
    let training =
        Training { rank: 8, epochs: 120, dropout: 0.0, batch: 8, accumulate: 1, weight_decay: 0.0, ..FAST };
    let mut trainer = Trainer::new(&training, &right, &model, None, None).unwrap();
    trainer.run(&mut Keeper::default()).unwrap();
    let log = &trainer.checkpoint().log;
    let epoch = |log: &[super::trainer::Figures], name: &str| log.iter().map(|f| f[name]).sum::<f64>() / 4.0;
    let (first, last) = (&log[..4], &log[log.len() - 4..]);
    assert!(epoch(first, "accuracy") < 0.6, "{first:?}");
    assert!(epoch(last, "accuracy") >= 0.99, "{last:?}");
    assert!(epoch(last, "loss") < 0.1 * epoch(first, "loss"), "{last:?}");
}

#[test]
fn training_that_was_stopped_goes_on_as_if_it_had_not_been() {
    let model = model();
    let right = Right::new(&model, prompts(17));
    let fast = Training { choose_every: Some(2), ..FAST };
    // They like best what is reached early, so that a checkpoint has to hold it.
    let others = Reluctant(Right::new(&model, prompts(17)));
    fn trainer<'a>(
        (model, training): (&LocalModel, &'a Training),
        (right, others): (&'a Right, &'a Reluctant),
        checkpoint: Option<&[u8]>,
    ) -> Trainer<'a> {
        Trainer::new(training, right, model, None, checkpoint).unwrap().choosing_by(others)
    }
    let (how, of) = ((&model, &fast), (&right, &others));
    let mut straight = trainer(how, of, None);
    let mut keeper = Keeper::default();
    straight.run(&mut keeper).unwrap();
    // Six batches, two a step, three times.
    assert_eq!(keeper.heard, (1..=9).collect::<Vec<_>>());
    assert!(straight.chosen().1 < 8, "{}", straight.chosen().1);
    for stop in [1, 4, 8] {
        let mut killed = Keeper { stop: Some(stop), ..Keeper::default() };
        assert!(trainer(how, of, None).run(&mut killed).is_err());
        let kept = killed.kept.borrow().last().cloned().unwrap();
        let mut resumed = trainer(how, of, Some(&kept));
        let mut rest = Keeper::default();
        resumed.run(&mut rest).unwrap();
        assert_eq!(rest.heard.len(), 9 - stop);
        assert_eq!(resumed.chosen(), straight.chosen());
        assert_eq!(rest.kept.borrow().last(), keeper.kept.borrow().last(), "stopped at {stop}");
    }
    // Another seed, other numbers; a checkpoint of something else is none.
    let other = Training { seed: 6, ..FAST.clone() };
    let mut other = Trainer::new(&other, &right, &model, None, Some(b"not one")).unwrap();
    other.run(&mut Keeper::default()).unwrap();
    assert_ne!(other.checkpoint().values, straight.checkpoint().values);
}

/// The same prompts, and the less is learnt the better.
struct Reluctant(Right);

impl Objective for Reluctant {
    fn labels(&self) -> &LabelTrie {
        self.0.labels()
    }

    fn examples(&self) -> &[(String, f64)] {
        self.0.examples()
    }

    fn named(&self, example: usize) -> Vec<f64> {
        self.0.named(example)
    }

    /// What is learnt is the loss: how probable the right label is.
    fn loss(&self, example: usize, scores: &[f64], _: &mut Told) -> Loss {
        let value = log_softmax(scores, &[true; LABELS.len()])[self.0.label(example)].exp();
        Loss { value, gradient: vec![] }
    }
}

#[test]
fn training_ends_with_the_best_of_what_was_tried() {
    let model = model();
    let right = Right::new(&model, prompts(12));
    let training =
        Training { epochs: 6, batch: 4, accumulate: 1, dropout: 0.0, choose_every: Some(4), ..FAST };
    let chosen_by = |by: &dyn Objective| {
        let mut trainer = Trainer::new(&training, &right, &model, None, None).unwrap().choosing_by(by);
        let mut reached = Vec::new();
        while trainer.step().unwrap().is_some() {
            reached.push(trainer.checkpoint().values.clone());
        }
        let (values, step) = trainer.chosen();
        assert_eq!(values, reached[step as usize - 1]);
        let tried: Vec<(u64, f64)> = (1..)
            .zip(&trainer.checkpoint().log)
            .filter_map(|(step, figures)| Some((step, *figures.get("choosing_loss")?)))
            .collect();
        assert_eq!(tried.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [4, 8, 12, 16, 18]);
        assert_eq!(tried.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0, step);
        // What is told is the loss of what was reached.
        let prompts: Vec<&str> = by.examples().iter().map(|(prompt, _)| prompt.as_str()).collect();
        let [scores] = trainer.scores([values], &prompts).unwrap();
        let each = scores.iter().enumerate().map(|(at, s)| by.loss(at, s, &mut Told::default()).value);
        let mean = each.sum::<f64>() / prompts.len() as f64;
        let told = tried.iter().find(|(tried, _)| *tried == step).unwrap().1;
        assert!((told - mean).abs() < 1e-6, "{told} {mean}");
        step
    };
    let (wrong, right) = (chosen_by(&Reluctant(Right::new(&model, prompts(12)))), chosen_by(&right));
    assert!(wrong < right, "{wrong} {right}");
}

#[test]
fn what_occurs_twice_counts_twice() {
    let model = model();
    let training = Training { epochs: 1, batch: 8, accumulate: 1, dropout: 0.0, ..FAST };
    let step = |examples: Vec<(String, f64)>| {
        let right = Right::new(&model, examples);
        let mut trainer = Trainer::new(&training, &right, &model, None, None).unwrap();
        trainer.step().unwrap().unwrap().clone()
    };
    let [a, b, c] = [0, 1, 2].map(|at| prompts(3)[at].0.clone());
    let twice = step(vec![(a.clone(), 1.0), (b.clone(), 1.0), (b.clone(), 1.0), (c.clone(), 1.0)]);
    let weighted = step(vec![(a.clone(), 1.0), (b.clone(), 2.0), (c.clone(), 1.0)]);
    let even = step(vec![(a, 1.0), (b, 1.0), (c, 1.0)]);
    for figure in ["loss", "gradient", "accuracy"] {
        let close = |x: f64, y: f64| (x - y).abs() < 1e-5 * y.abs().max(1.0);
        assert!(close(twice[figure], weighted[figure]), "{figure}: {twice:?} {weighted:?}");
    }
    assert!((even["loss"] - weighted["loss"]).abs() > 1e-3, "{even:?} {weighted:?}");
}

#[test]
fn the_rate_rises_and_falls_to_nothing() {
    let model = model();
    let right = Right::new(&model, prompts(17));
    let training = Training { epochs: 5, warmup: 0.2, ..FAST };
    let mut trainer = Trainer::new(&training, &right, &model, None, None).unwrap();
    trainer.run(&mut Keeper::default()).unwrap();
    let rates: Vec<f64> = trainer.checkpoint().log.iter().map(|figures| figures["learning_rate"]).collect();
    assert_eq!(rates.len(), 15);
    let top = rates.iter().copied().fold(0.0, f64::max);
    assert!(top <= 0.01 && top > 0.009, "{rates:?}");
    assert!(rates[..3].is_sorted() && rates[3..].iter().rev().is_sorted(), "{rates:?}");
    assert!(rates[0] < 0.2 * top && rates[14] < 0.1 * top, "{rates:?}");
    let few = Training { max_steps: Some(4), ..training };
    assert_eq!(Trainer::new(&few, &right, &model, None, None).unwrap().steps(), 4);
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let model = model();
    let refused = |training: &Training, examples| {
        let right = Right::new(&model, examples);
        Trainer::new(training, &right, &model, None, None).err().unwrap().to_string()
    };
    assert!(refused(&FAST, vec![]).contains("nothing to train on"));
    assert!(refused(&Training { layers: Some(3), ..FAST }, prompts(3)).contains("2 layers"));
    let wild = Training { learning_rate: 1e30, clip: 1e30, ..FAST };
    let right = Right::new(&model, prompts(6));
    let mut trainer = Trainer::new(&wild, &right, &model, None, None).unwrap();
    let error = trainer.run(&mut Keeper::default()).unwrap_err().to_string();
    assert!(error.contains("learning_rate"), "{error}");
    let wrong = Training { rank: 0, warmup: 1.0, clip: f64::NAN, ..FAST }.check("training", 0.0);
    let paths: Vec<String> = wrong.iter().map(|problem| problem.path.join(".")).collect();
    assert_eq!(paths, ["with.training.rank", "with.training.warmup", "with.training.clip"]);
    let chosen = |choose_every, held_out| {
        let wrong = Training { choose_every: Some(choose_every), ..FAST }.check("training", held_out);
        wrong.into_iter().map(|problem| problem.message).collect::<Vec<_>>()
    };
    assert_eq!(chosen(0, 0.1), ["`choose_every` must be at least 1"]);
    assert_eq!(chosen(1, 0.0), ["nothing is kept out to choose by"]);
    assert!(chosen(1, 0.1).is_empty());
}
