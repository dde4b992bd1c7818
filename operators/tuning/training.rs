//! How an adapter is trained: its size, how long and how fast.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{lm::LoraSettings, nn::random::Stream, operator::Problem, shape::FitCost};

/// How an adapter is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Training {
    /// Rank of the adapters.
    pub rank: usize,
    /// Scale of what adapters add, times the rank.
    pub alpha: f32,
    /// Share of the inputs of adapters that is left out in a step.
    pub dropout: f32,
    /// How many of the layers at the top are adapted; all if absent. What lies below is computed once
    /// per prompt, as far as 512 MiB hold it, and read in later epochs and cycles.
    pub layers: Option<usize>,
    /// Times every example is seen.
    pub epochs: u64,
    /// Steps at most, whatever `epochs` says.
    pub max_steps: Option<u64>,
    /// Prompts that go through the network together.
    pub batch: usize,
    /// Batches whose gradients make one step.
    pub accumulate: usize,
    /// Learning rate at its highest.
    pub learning_rate: f64,
    /// Share of the steps in which the learning rate rises; then it falls in a straight line to zero.
    pub warmup: f64,
    /// Weight decay, per unit of learning rate.
    pub weight_decay: f64,
    /// Euclidean length of a gradient, at most.
    pub clip: f64,
    /// Steps after which what was reached is tried on a half of what is kept out; training ends with the best
    /// of it. The figures `held_out` are then of the other half.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choose_every: Option<u64>,
    /// What computes it.
    pub device: Device,
    /// Seed of how adapters start, of batches and of what is left out.
    pub seed: u64,
}

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// A graphics card; not in this build.
    Cuda,
}

impl Default for Training {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            layers: None,
            epochs: 1,
            max_steps: None,
            batch: 4,
            accumulate: 1,
            learning_rate: 1e-4,
            warmup: 0.1,
            weight_decay: 0.0,
            clip: 1.0,
            choose_every: None,
            device: Device::Cpu,
            seed: 0,
        }
    }
}

impl Training {
    /// What is wrong with it, in the parameter `name`, if so much is kept out.
    pub fn check(&self, name: &str, held_out: f64) -> Vec<Problem> {
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let share = |x: f64| (0.0..1.0).contains(&x);
        let wrong = [
            (self.rank == 0, "rank", "must be at least 1"),
            (!positive(self.alpha.into()), "alpha", "must be a positive number"),
            (!share(self.dropout.into()), "dropout", "must be at least 0 and below 1"),
            (self.layers == Some(0), "layers", "must be at least 1"),
            (self.epochs == 0, "epochs", "must be at least 1"),
            (self.max_steps == Some(0), "max_steps", "must be at least 1"),
            (self.batch == 0, "batch", "must be at least 1"),
            (self.accumulate == 0, "accumulate", "must be at least 1"),
            (!positive(self.learning_rate), "learning_rate", "must be a positive number"),
            (!share(self.warmup), "warmup", "must be at least 0 and below 1"),
            (
                !(self.weight_decay >= 0.0 && self.weight_decay.is_finite()),
                "weight_decay",
                "must be 0 or more",
            ),
            (!positive(self.clip), "clip", "must be a positive number"),
            (self.choose_every == Some(0), "choose_every", "must be at least 1"),
        ];
        let problem = |field: &str, message: String, help: Option<&str>| Problem {
            path: vec!["with".into(), name.into(), field.into()],
            message,
            help: help.map(str::to_string),
        };
        let wrong = wrong.into_iter().filter(|(wrong, ..)| *wrong);
        let mut problems: Vec<Problem> =
            wrong.map(|(_, field, what)| problem(field, format!("`{field}` {what}"), None)).collect();
        if self.choose_every.is_some() && held_out == 0.0 {
            let message = "nothing is kept out to choose by".to_string();
            problems.push(problem("choose_every", message, Some("give a `held_out` above 0")));
        }
        if self.device == Device::Cuda {
            let message = "this build computes on the processor; there is no `cuda` in it".to_string();
            let help = "write `device: cpu`, and `layers: 1` to train the top of the network alone";
            problems.push(problem("device", message, Some(help)));
        }
        problems
    }

    /// The adapters that are trained.
    pub fn lora(&self) -> LoraSettings {
        LoraSettings { rank: self.rank, alpha: self.alpha, dropout: self.dropout, top: self.layers }
    }

    /// Steps of an epoch over so many examples.
    pub(super) fn steps_per_epoch(&self, examples: usize) -> u64 {
        examples.div_ceil(self.batch).div_ceil(self.accumulate) as u64
    }

    /// Steps in all.
    pub fn steps(&self, examples: usize) -> u64 {
        let all = self.epochs * self.steps_per_epoch(examples);
        self.max_steps.map_or(all, |most| all.min(most))
    }

    /// The learning rate of a step, counted from 0.
    pub(super) fn rate(&self, step: u64, steps: u64) -> f64 {
        let done = (step as f64 + 0.5) / steps as f64;
        let rising = if self.warmup > 0.0 { done / self.warmup } else { 1.0 };
        self.learning_rate * rising.min((1.0 - done) / (1.0 - self.warmup)).min(1.0)
    }

    /// The examples of each batch.
    pub(super) fn members(&self, examples: usize) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..examples).collect();
        Stream::new(self.seed, "batches", &[]).shuffle(&mut order);
        order.chunks(self.batch).map(<[usize]>::to_vec).collect()
    }

    /// What training on prompts of so many tokens will take, and trying it on others.
    pub fn cost(&self, tokens: &[u64], tried: &[u64]) -> FitCost {
        let (members, steps) = (self.members(tokens.len()), self.steps(tokens.len()));
        let batches = (0..steps).flat_map(|step| self.batches_of(step, tokens.len()));
        let trained: u64 = batches.flat_map(|place| &members[place]).map(|example| tokens[*example]).sum();
        let trials = self.choose_every.map_or(0, |every| steps.div_ceil(every));
        let prompt_tokens = trained + trials * tried.iter().sum::<u64>();
        FitCost { steps, prompts: tokens.len() as u64, prompt_tokens }
    }

    /// The batches of a step, by their place.
    pub(super) fn batches_of(&self, step: u64, examples: usize) -> Vec<usize> {
        let per_epoch = self.steps_per_epoch(examples);
        let mut order: Vec<usize> = (0..examples.div_ceil(self.batch)).collect();
        Stream::new(self.seed, "order of batches", &[step / per_epoch]).shuffle(&mut order);
        let first = (step % per_epoch) as usize * self.accumulate;
        order[first..order.len().min(first + self.accumulate)].to_vec()
    }
}
