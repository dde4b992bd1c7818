//! How pairs are made of what a cycle finds.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{PreferencePairs, Weigh};
use crate::{
    asked::Examples,
    label_policy::{LabelPrior, allowed},
    next_clicks::NextClicks,
    ordered::encode_row,
    replay::table,
    row::{Row, Value},
    shape::{Artifact, KernelError, Snapshot},
};

/// Pairs, and the labels they are of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pairs {
    /// The labels.
    pub labels: Vec<String>,
    /// ℓ₀ of each, in natural logarithms.
    pub prior: Vec<f32>,
    /// Temperature at which candidates were drawn.
    pub temperature: f64,
    /// One pair per key, in the order of keys.
    pub pairs: Vec<Preference>,
}

/// What a key prefers to what. Labels are named by their place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preference {
    /// The key.
    pub key: Row,
    /// Its prompt.
    pub prompt: String,
    /// Of every label the log-probability under the model that proposed.
    pub reference: Vec<f32>,
    /// Of every label the relevance.
    pub relevance: Vec<f32>,
    /// The labels that serving may propose.
    pub allowed: Vec<bool>,
    /// The most relevant of those proposed or clicked.
    pub chosen: usize,
    /// The least relevant of them.
    pub rejected: usize,
    /// What it counts.
    pub weight: f64,
}

impl Preference {
    /// How much more relevant the better one is.
    pub fn margin(&self) -> f64 {
        f64::from(self.relevance[self.chosen]) - f64::from(self.relevance[self.rejected])
    }
}

impl Artifact for Pairs {
    fn to_bytes(&self) -> Vec<u8> {
        postcard::to_allocvec(self).unwrap_or_default()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, KernelError> {
        postcard::from_bytes(bytes).map_err(|error| format!("pairs: {error}"))
    }
}

/// What pairs are made with.
pub(super) struct Wiring {
    pub(super) clicks: NextClicks,
    /// How many of the inputs are what new clicks are found in.
    pub(super) of_clicks: usize,
    /// The place of the prompt in a row of prompts, and that of recent interests.
    pub(super) prompt: usize,
    pub(super) recent: usize,
    /// The place of the scored candidates in a row of theirs.
    pub(super) scored: usize,
    /// At which candidates are drawn.
    pub(super) temperature: f64,
}

/// The name in a cell of name and number, and the number.
fn cell(cell: &Value) -> Option<(&str, f64)> {
    let pair = cell.as_list()?;
    Some((pair.first()?.as_text()?, pair.get(1)?.as_f64()?))
}

/// The pairs of a cycle; `version` names the model that proposed, so that each draws other keys.
pub(super) fn make(
    how: &PreferencePairs,
    wiring: &Wiring,
    inputs: &[&dyn Snapshot],
    prior: &LabelPrior,
    version: Option<&str>,
) -> Result<Pairs, KernelError> {
    let (of_clicks, rest) = inputs.split_at(wiring.of_clicks);
    let [clicked, ..] = wiring.clicks.examples(of_clicks, prior)?;
    let [prompts, scored, rates, answers] = [0, 1, 2, 3].map(|at| table(rest[at]));
    let places: BTreeMap<&str, usize> =
        prior.labels.iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect();
    let mut pairs: Vec<([u8; 32], Preference)> = Vec::new();
    for (key, row) in &prompts {
        let of_key = scored.get(key).zip(rates.get(key)).zip(answers.get(key));
        // A key whose answers failed, or wait, has no verdict.
        let Some(((scored, rates), answers)) = of_key else { continue };
        let reference = answers[0].as_floats().ok_or("an answer is not a vector")?;
        if reference.len() != prior.labels.len() {
            return Err("answers and labels are of different label sets".to_string());
        }
        let rates: Vec<(&str, f64)> =
            rates[0].as_list().unwrap_or_default().iter().filter_map(cell).collect();
        let mut relevance = vec![0.0; prior.labels.len()];
        for (name, rate) in rates {
            let place = places.get(name).ok_or_else(|| format!("`{name}` is no label"))?;
            relevance[*place] = rate as f32;
        }
        let prompt = row[wiring.prompt].as_text().unwrap_or_default();
        let clicks: Option<&Vec<f64>> = clicked.get(prompt).map(|asked| &asked.clicked);
        let proposed = scored[wiring.scored].as_list().unwrap_or_default().iter().filter_map(cell);
        let proposed = proposed.filter_map(|(name, _)| places.get(name).copied());
        let new = clicks.into_iter().flat_map(|clicks| (0..clicks.len()).filter(|at| clicks[*at] > 0.0));
        let pool: BTreeSet<usize> = proposed.chain(new).collect();
        let Some((chosen, rejected)) = extremes(&pool, &relevance) else { continue };
        let weight = match how.weigh {
            Weigh::Even => 1.0,
            Weigh::Clicks => clicks.map_or(0.0, |clicks| clicks.iter().sum::<f64>()).max(1.0),
        };
        let allowed = allowed(prior, row[wiring.recent].as_list().unwrap_or_default());
        let (key, prompt) = (key.clone(), prompt.to_string());
        let pair = Preference { key, prompt, reference, relevance, allowed, chosen, rejected, weight };
        if pair.margin() > 0.0 && pair.margin() >= how.min_margin {
            pairs.push((draw(how.seed, version, &pair.key), pair));
        }
    }
    pairs.sort_by_key(|(draw, _)| *draw);
    pairs.truncate(how.sample.of(pairs.len()));
    let mut pairs: Vec<Preference> = pairs.into_iter().map(|(_, pair)| pair).collect();
    pairs.sort_by(|a, b| a.key.cmp(&b.key));
    let (labels, prior) = (prior.labels.clone(), prior.prior.clone());
    Ok(Pairs { labels, prior, temperature: wiring.temperature, pairs })
}

/// The most and the least relevant of some labels; nothing if they are fewer than two.
fn extremes(pool: &BTreeSet<usize>, relevance: &[f32]) -> Option<(usize, usize)> {
    let by = |a: &usize, b: &usize| relevance[*a].total_cmp(&relevance[*b]).then(b.cmp(a));
    let (best, worst) = (pool.iter().copied().max_by(by)?, pool.iter().copied().min_by(by)?);
    (best != worst).then_some((best, worst))
}

/// Orders keys at random, each version of the model in another way.
fn draw(seed: u64, version: Option<&str>, key: &Row) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(version.unwrap_or_default().as_bytes());
    hasher.update(&encode_row(key));
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preference_pairs::Sample;

    fn found(pool: &[usize], relevance: &[f32]) -> Option<(usize, usize)> {
        extremes(&pool.iter().copied().collect(), relevance)
    }

    #[test]
    fn the_better_one_is_the_most_relevant_and_of_equal_ones_the_first() {
        let relevance = [0.2, 0.9, 0.9, 0.1, 0.1];
        assert_eq!(found(&[0, 1, 2, 3, 4], &relevance), Some((1, 4)));
        assert_eq!(found(&[0, 3], &relevance), Some((0, 3)));
        assert_eq!(found(&[1, 2], &relevance), Some((1, 2)), "two, though they are equal");
        assert_eq!(found(&[3], &relevance), None);
        assert_eq!(found(&[], &relevance), None);
    }

    #[test]
    fn a_sample_is_a_share_and_no_fewer_than_a_number() {
        let of = |fraction, min_pairs, all| Sample { fraction, min_pairs }.of(all);
        assert_eq!((of(0.01, 512, 100), of(0.01, 512, 1_000), of(0.01, 512, 100_000)), (100, 512, 1_000));
        assert_eq!((of(0.001, 0, 10), of(0.0, 3, 10), of(1.0, 0, 10)), (1, 3, 10));
    }

    #[test]
    fn other_versions_draw_other_keys() {
        let drawn = |version: &str| {
            let mut keys: Vec<u64> = (0..50).collect();
            keys.sort_by_key(|key| draw(7, Some(version), &Row::from([Value::U64(*key)])));
            keys
        };
        assert_eq!(drawn("a"), drawn("a"));
        assert_ne!(drawn("a"), drawn("b"));
    }
}
