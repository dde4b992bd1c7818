//! Figures that are told example by example.

use std::collections::BTreeMap;

/// Figures of a step, by name.
pub type Figures = BTreeMap<String, f64>;

/// Weighted means of figures, as they are told.
#[derive(Default)]
pub struct Told {
    weight: f64,
    sums: BTreeMap<&'static str, (f64, f64)>,
}

impl Told {
    /// Tells a figure of the example at hand.
    pub fn tell(&mut self, name: &'static str, value: f64) {
        let (sum, weight) = self.sums.entry(name).or_default();
        *sum += self.weight * value;
        *weight += self.weight;
    }

    /// What the example at hand counts.
    pub fn weigh(&mut self, weight: f64) {
        self.weight = weight;
    }

    /// The mean of a figure that was told.
    pub fn mean(&self, name: &str) -> Option<f64> {
        self.sums.get(name).map(|(sum, weight)| sum / weight)
    }

    /// All of them.
    pub(super) fn means(self) -> impl Iterator<Item = (String, f64)> {
        self.sums.into_iter().map(|(name, (sum, weight))| (name.to_string(), sum / weight))
    }
}
