//! The steps of training, from where they were left.
//!
//! Decision: everything random follows from the seed and the step, and a checkpoint holds all that the
//! next step reads: training that was killed goes on as if it had not been.

use serde::{Deserialize, Serialize};

pub use super::told::{Figures, Told};
use super::{loss::Loss, training::Training};
use crate::{
    lm::{Batch, LabelTrie, LmError, LocalModel, Tuner},
    nn::adamw::{AdamW, clip},
    shape::{CallError, Progress, Watch},
};

/// The figures of a step that are told while training runs, of those there are.
const SHOWN: [&str; 5] = ["loss", "reward_margin", "reward_accuracy", "step_kl", "step_entropy"];

/// What an adapter is trained towards: a loss for each of some prompts.
pub trait Objective {
    /// The labels after every prompt.
    fn labels(&self) -> &LabelTrie;

    /// The prompts, and how much each counts; of a prompt that occurs twice, twice as much.
    fn examples(&self) -> &[(String, f64)];

    /// Numbers that tell apart what is wanted after an example: other examples have another digest.
    fn named(&self, example: usize) -> Vec<f64>;

    /// The loss of an example, and how it moves with the log-probability of each label; says what
    /// else a person wants to know.
    fn loss(&self, example: usize, scores: &[f64], told: &mut Told) -> Loss;
}

/// Where training stands: all that the next step reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The adapters' numbers.
    pub values: Vec<f32>,
    optimiser: AdamW,
    /// Of each step that was taken its figures.
    pub log: Vec<Figures>,
    best: Option<Best>,
}

/// The best of what was tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Best {
    loss: f64,
    /// After how many steps.
    step: u64,
    values: Vec<f32>,
}

/// Training under way.
pub struct Trainer<'a> {
    training: &'a Training,
    objective: &'a dyn Objective,
    tuner: Tuner,
    /// The examples of each batch.
    batches: Vec<Vec<usize>>,
    mean_weight: f64,
    /// By what the best of what was tried is chosen.
    choosing: Option<&'a dyn Objective>,
    at: Checkpoint,
}

impl<'a> Trainer<'a> {
    /// Begins, at adapters of the numbers `start` if there are some, or goes on where a checkpoint was taken.
    ///
    /// # Errors
    /// If the settings do not fit the model, or there is no example.
    pub fn new(
        training: &'a Training,
        objective: &'a dyn Objective,
        model: &LocalModel,
        start: Option<&[f32]>,
        checkpoint: Option<&[u8]>,
    ) -> Result<Self, LmError> {
        let tuner = Tuner::new(model, training.lora())?;
        let examples = objective.examples();
        if examples.is_empty() {
            let reason = "there is nothing to train on".to_string();
            return Err(LmError::Tuning { parameter: "examples".to_string(), reason });
        }
        let begin = || Checkpoint {
            values: start.map_or_else(|| tuner.layout().initial(training.seed), <[f32]>::to_vec),
            optimiser: AdamW::new(tuner.layout()),
            log: Vec::new(),
            best: None,
        };
        // What cannot be read was written by another version of this code: training begins anew.
        let at = checkpoint.and_then(|bytes| postcard::from_bytes(bytes).ok());
        let at = at.filter(|at: &Checkpoint| at.values.len() == tuner.layout().len()).unwrap_or_else(begin);
        let mean_weight = examples.iter().map(|(_, weight)| weight).sum::<f64>() / examples.len() as f64;
        let batches = training.members(examples.len());
        Ok(Self { training, objective, tuner, batches, mean_weight, choosing: None, at })
    }

    /// Tries what was reached by the loss on other examples, as often as `choose_every` says.
    #[must_use]
    pub fn choosing_by(self, objective: &'a dyn Objective) -> Self {
        Self { choosing: Some(objective), ..self }
    }

    /// Steps in all.
    pub fn steps(&self) -> u64 {
        self.training.steps(self.objective.examples().len())
    }

    /// Where it stands.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.at
    }

    /// The adapters' numbers that training ends with, and after how many steps they were reached: the last
    /// ones, or the best of what was tried.
    pub fn chosen(&self) -> (&[f32], u64) {
        match &self.at.best {
            Some(best) => (&best.values, best.step),
            None => (&self.at.values, self.at.log.len() as u64),
        }
    }

    /// Takes all steps that are left; `watch` keeps where training stands.
    ///
    /// # Errors
    /// As [`Trainer::step`], and if where it stands cannot be kept.
    pub fn run(&mut self, watch: &mut dyn Watch) -> Result<(), CallError> {
        let total = self.steps();
        while let Some(figures) = self.step().map_err(|error| CallError::Failed(error.to_string()))? {
            let note = note(figures);
            watch.progress(Progress { done: self.at.log.len() as u64, total, note: &note });
            watch.keep(&|| postcard::to_allocvec(&self.at).unwrap_or_default())?;
        }
        Ok(())
    }

    /// Takes a step, if one is left; its figures.
    ///
    /// # Errors
    /// If a prompt cannot be asked, or the numbers left the finite.
    pub fn step(&mut self) -> Result<Option<&Figures>, LmError> {
        let (step, steps) = (self.at.log.len() as u64, self.steps());
        if step >= steps {
            return Ok(None);
        }
        let places = self.training.batches_of(step, self.objective.examples().len());
        let size: usize = places.iter().map(|place| self.batches[*place].len()).sum();
        let scale = 1.0 / (self.mean_weight * size as f64);
        let mut told = Told::default();
        let mut gradient = vec![0.0; self.tuner.layout().len()];
        for (part, place) in (0..).zip(places) {
            // Each batch of a step leaves out inputs of its own.
            let position = step * self.training.accumulate as u64 + part;
            let by_batch = self.gradient(place, position, scale, &mut told)?;
            gradient.iter_mut().zip(by_batch).for_each(|(sum, g)| *sum += g);
        }
        let length = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        clip(&mut gradient, self.training.clip as f32);
        let rate = self.training.rate(step, steps);
        let Checkpoint { values, optimiser, .. } = &mut self.at;
        let decay = self.training.weight_decay as f32;
        optimiser.step(self.tuner.layout(), values, &gradient, rate as f32, decay);
        let mut figures: Figures = told.means().collect();
        if !figures.get("loss").is_some_and(|loss| loss.is_finite()) || !length.is_finite() {
            let reason = format!("the loss left the finite numbers at step {}; lower it", step + 1);
            return Err(LmError::Tuning { parameter: "learning_rate".to_string(), reason });
        }
        figures.extend([("gradient".to_string(), length), ("learning_rate".to_string(), rate)]);
        figures.extend(self.tried(step + 1)?.map(|loss| ("choosing_loss".to_string(), loss)));
        self.at.log.push(figures);
        Ok(self.at.log.last())
    }

    fn gradient(
        &self,
        place: usize,
        position: u64,
        scale: f64,
        told: &mut Told,
    ) -> Result<Vec<f32>, LmError> {
        let (objective, members) = (self.objective, &self.batches[place]);
        let batch = batch(&self.tuner, objective, members)?;
        let dropout = Some((self.training.seed, position));
        Ok(self.tuner.gradient(&self.at.values, &batch, dropout, |scores| {
            let each = members.iter().zip(scores).map(|(example, scores)| {
                let weight = objective.examples()[*example].1;
                told.weigh(weight);
                let loss = objective.loss(*example, scores, told);
                told.tell("loss", loss.value);
                loss.gradient.into_iter().map(|slope| slope * weight * scale).collect()
            });
            each.collect()
        }))
    }

    /// Tries what so many steps have reached, if it is time to; what is better than all before is kept.
    fn tried(&mut self, step: u64) -> Result<Option<f64>, LmError> {
        let due = |every: u64| step.is_multiple_of(every) || step == self.steps();
        if !self.training.choose_every.is_some_and(due) {
            return Ok(None);
        }
        let Some(objective) = self.choosing else { return Ok(None) };
        let (values, mut told) = (&self.at.values, Told::default());
        for members in self.training.members(objective.examples().len()) {
            let scores = self.tuner.scores(values, &batch(&self.tuner, objective, &members)?);
            for (example, scores) in members.iter().zip(scores) {
                told.weigh(objective.examples()[*example].1);
                let loss = objective.loss(*example, &scores, &mut Told::default());
                told.tell("loss", loss.value);
            }
        }
        let Some(loss) = told.mean("loss") else { return Ok(None) };
        if self.at.best.as_ref().is_none_or(|best| loss < best.loss) {
            self.at.best = Some(Best { loss, step, values: self.at.values.clone() });
        }
        Ok(Some(loss))
    }

    /// The numbers adapters start with, which add nothing to the model.
    pub fn untuned(&self) -> Vec<f32> {
        self.tuner.layout().initial(self.training.seed)
    }

    /// Of some prompts the log-probability of each label, under each of some adapters by their numbers.
    ///
    /// # Errors
    /// If a prompt cannot be asked.
    pub fn scores<const N: usize>(
        &self,
        values: [&[f32]; N],
        prompts: &[&str],
    ) -> Result<[Vec<Vec<f64>>; N], LmError> {
        scores(&self.tuner, values, self.objective.labels(), prompts, self.training.batch)
    }
}

/// The prompts of some examples, each with the labels below it.
fn batch<'a>(tuner: &Tuner, objective: &'a dyn Objective, members: &[usize]) -> Result<Batch<'a>, LmError> {
    let (examples, labels) = (objective.examples(), objective.labels());
    let prompts: Vec<_> = members.iter().map(|example| (examples[*example].0.as_str(), labels)).collect();
    tuner.batch(&prompts)
}

/// Of some prompts the log-probability of each label, under each of some adapters by their numbers; so many
/// prompts go through the network together.
///
/// # Errors
/// If a prompt cannot be asked.
pub fn scores<const N: usize>(
    tuner: &Tuner,
    values: [&[f32]; N],
    labels: &LabelTrie,
    prompts: &[&str],
    together: usize,
) -> Result<[Vec<Vec<f64>>; N], LmError> {
    let mut scores = [(); N].map(|()| Vec::with_capacity(prompts.len()));
    for prompts in prompts.chunks(together) {
        let asked: Vec<_> = prompts.iter().map(|prompt| (*prompt, labels)).collect();
        let batch = tuner.batch(&asked)?;
        scores
            .iter_mut()
            .zip(values)
            .for_each(|(scores, values)| scores.extend(tuner.scores(values, &batch)));
    }
    Ok(scores)
}

/// What is told of a step while training runs.
fn note(figures: &Figures) -> String {
    let told = SHOWN.iter().filter_map(|name| {
        let value = figures.get(*name)?;
        Some(format!("{} {value:.4}", name.replace('_', " ")))
    });
    told.collect::<Vec<_>>().join(", ")
}
