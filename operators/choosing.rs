//! Choosing the best of a set of labels: by log-probability, less the prior, plus a draw.
//!
//! With Gumbel draws that is sampling without replacement from `π ∝ exp((ℓ − ℓ₀)/T)`. The value of a
//! label is computed here and nowhere else, so that picking from all labels and finding the best
//! without looking at all of them agree to the last bit.

use serde::{Deserialize, Serialize};

/// Labels by their place, with their log-probabilities, best first.
pub type Best = Vec<(usize, f32)>;

/// How labels are valued, and how many are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choosing {
    /// ℓ₀ per label.
    pub prior: Vec<f32>,
    /// Temperature T; at 0 draws count only where they rule a label out.
    pub temperature: f64,
    /// Labels kept.
    pub count: usize,
}

/// One choice to make.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The prompt.
    pub prompt: String,
    /// What is added to each label; −∞ rules it out.
    pub draws: Vec<f64>,
}

impl Choosing {
    /// The value of a label, which falls with nothing but its log-probability.
    pub fn value(&self, label: usize, logprob: f32, draw: f64) -> f64 {
        let score = f64::from(logprob - self.prior[label]);
        match (draw == f64::NEG_INFINITY, self.temperature == 0.0) {
            (true, _) => f64::NEG_INFINITY,
            (false, true) => score,
            (false, false) => score / self.temperature + draw,
        }
    }

    /// What [`Choosing::value`] adds to [`Choosing::scale`] times the log-probability.
    pub(crate) fn addition(&self, label: usize, draw: f64) -> f64 {
        self.value(label, 0.0, draw)
    }

    /// What a log-probability is multiplied by.
    pub(crate) fn scale(&self) -> f64 {
        if self.temperature == 0.0 { 1.0 } else { 1.0 / self.temperature }
    }
}

/// The best labels seen so far.
pub(crate) struct Kept {
    count: usize,
    /// Value, label and log-probability, best first; of equal values the first label.
    labels: Vec<(f64, usize, f32)>,
}

impl Kept {
    /// Of nothing.
    pub(crate) fn new(count: usize) -> Self {
        Self { count, labels: Vec::new() }
    }

    /// What a label must reach to be kept; −∞ is never kept.
    pub(crate) fn least(&self) -> f64 {
        match self.labels.last() {
            Some((value, ..)) if self.labels.len() >= self.count => *value,
            _ => f64::MIN,
        }
    }

    /// Keeps a label if it is among the best.
    pub(crate) fn see(&mut self, label: usize, logprob: f32, value: f64) {
        if value < self.least() || self.count == 0 {
            return;
        }
        let before =
            |(v, l, _): &(f64, usize, f32)| v.total_cmp(&value).reverse().then(l.cmp(&label)).is_lt();
        self.labels.insert(self.labels.partition_point(before), (value, label, logprob));
        self.labels.truncate(self.count);
    }

    /// The labels, best first.
    pub(crate) fn best(self) -> Best {
        self.labels.into_iter().map(|(_, label, logprob)| (label, logprob)).collect()
    }
}

/// The best labels, given the log-probabilities of all.
pub fn pick(how: &Choosing, logprobs: &[f32], draws: &[f64]) -> Best {
    let mut kept = Kept::new(how.count);
    for (label, (logprob, draw)) in logprobs.iter().zip(draws).enumerate() {
        kept.see(label, *logprob, how.value(label, *logprob, *draw));
    }
    kept.best()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn how(temperature: f64, count: usize) -> Choosing {
        Choosing { prior: vec![-1.0, 0.0, 0.0, 0.0], temperature, count }
    }

    #[test]
    fn the_best_are_kept_in_order() {
        let logprobs = [-2.0, -1.0, -1.0, 0.5];
        assert_eq!(pick(&how(1.0, 3), &logprobs, &[0.0; 4]), [(3, 0.5), (0, -2.0), (1, -1.0)]);
        assert_eq!(pick(&how(1.0, 9), &logprobs, &[0.0; 4]).len(), 4);
        assert_eq!(pick(&how(1.0, 0), &logprobs, &[0.0; 4]), []);
        // A lower temperature makes draws matter less.
        let draws = [0.0, 0.0, 3.0, 0.0];
        assert_eq!(pick(&how(1.0, 1), &logprobs, &draws), [(2, -1.0)]);
        assert_eq!(pick(&how(0.1, 1), &logprobs, &draws), [(3, 0.5)]);
    }

    #[test]
    fn what_is_ruled_out_is_never_kept() {
        let draws = [0.0, f64::NEG_INFINITY, 5.0, f64::NEG_INFINITY];
        for temperature in [0.0, 1.0] {
            assert_eq!(pick(&how(temperature, 4), &[-2.0, -1.0, -1.5, 0.5], &draws).len(), 2);
        }
        assert_eq!(pick(&how(0.0, 1), &[-2.0, -1.0, -1.5, 0.5], &draws), [(0, -2.0)]);
    }
}
