//! How pairs are made of what a cycle finds.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use serde::{Deserialize, Serialize};

use super::{PreferencePairs, Weigh};
use crate::{
    asked::Examples,
    label_policy::LabelPrior,
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
    /// Share of the new clicks that were on prompts which are asked now. The others' keys are gone, or have
    /// no answers, and they teach nothing; nothing if there are no new clicks.
    pub met: Option<f64>,
    /// One pair per prompt, in the order of keys.
    pub pairs: Vec<Preference>,
}

/// What a key prefers to what. Labels are named by their place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preference {
    /// The key; of several with the same prompt the first.
    pub key: Row,
    /// Its prompt.
    pub prompt: String,
    /// Of every label the log-probability under the model that proposed.
    pub reference: Vec<f32>,
    /// Of every label the relevance.
    pub relevance: Vec<f32>,
    /// Of every label the new clicks; empty if there are none.
    pub clicked: Vec<f64>,
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
    /// The place of the prompt in a row of prompts.
    pub(super) prompt: usize,
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
    let mut found = Found::default();
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
        let prompt = row[wiring.prompt].as_text().unwrap_or_default().to_string();
        let clicks = clicked.get(&prompt).map(|asked| asked.clicked.clone()).unwrap_or_default();
        let proposed = scored[wiring.scored].as_list().unwrap_or_default().iter().filter_map(cell);
        let proposed = proposed.filter_map(|(name, _)| places.get(name).copied());
        found.add(how, (key.clone(), prompt, clicks), proposed, (reference, relevance));
    }
    let all: f64 = clicked.values().flat_map(|asked| &asked.clicked).sum();
    let met = (all > 0.0).then(|| found.clicks / all);
    let mut pairs: Vec<Preference> = found.pairs.into_values().collect();
    pairs.sort_by_cached_key(|pair| draw(how.seed, version, &pair.key));
    pairs.truncate(how.sample.of(pairs.len()));
    pairs.sort_by(|a, b| a.key.cmp(&b.key));
    let (labels, prior) = (prior.labels.clone(), prior.prior.clone());
    Ok(Pairs { labels, prior, temperature: wiring.temperature, met, pairs })
}

/// What was found so far.
#[derive(Default)]
struct Found {
    /// By prompt and labels: keys with the same prompt are one example.
    pairs: BTreeMap<(String, usize, usize), Preference>,
    /// Prompts that have been met.
    met: BTreeSet<String>,
    /// New clicks on them.
    clicks: f64,
}

impl Found {
    /// Adds a key with its prompt and new clicks, what was `proposed` to it, and of every label the
    /// log-probability and the relevance.
    fn add(
        &mut self,
        how: &PreferencePairs,
        (key, prompt, clicked): (Row, String, Vec<f64>),
        proposed: impl Iterator<Item = usize>,
        (reference, relevance): (Vec<f32>, Vec<f32>),
    ) {
        let clicks: f64 = clicked.iter().sum();
        if self.met.insert(prompt.clone()) {
            self.clicks += clicks;
        }
        let new = (0..clicked.len()).filter(|at| clicked[*at] > 0.0);
        let pool: BTreeSet<usize> = proposed.chain(new).collect();
        let Some((chosen, rejected)) = extremes(&pool, &relevance) else { return };
        let weight = match how.weigh {
            Weigh::Even => 1.0,
            Weigh::Clicks => clicks.max(1.0),
        };
        let example = (prompt.clone(), chosen, rejected);
        let pair = Preference { key, prompt, reference, relevance, clicked, chosen, rejected, weight };
        if pair.margin() <= 0.0 || pair.margin() < how.min_margin {
            return;
        }
        match self.pairs.entry(example) {
            Entry::Vacant(place) => drop(place.insert(pair)),
            // Clicks are the prompt's and count once; where all keys count alike, each of them does.
            Entry::Occupied(mut same) if how.weigh == Weigh::Even => same.get_mut().weight += 1.0,
            Entry::Occupied(_) => (),
        }
    }
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

    /// Keys by number with their prompts, and the clicks of a prompt; `0` and `1` are proposed to each.
    fn add(weigh: &str, keys: &[(u64, &str)], clicked: &[f64], min_margin: f64) -> Found {
        let how = format!(r#"{{ "weigh": "{weigh}", "min_margin": {min_margin} }}"#);
        let (how, mut found) = (serde_json::from_str(&how).unwrap(), Found::default());
        for (key, prompt) in keys {
            let of = (Row::from([Value::U64(*key)]), (*prompt).to_string(), clicked.to_vec());
            let verdicts = (vec![-1.0; 4], vec![0.4, 0.5, 0.9, 0.1]);
            found.add(&how, of, [0, 1].into_iter(), verdicts);
        }
        found
    }

    fn pairs(found: &Found) -> Vec<(usize, usize, f64)> {
        found.pairs.values().map(|pair| (pair.chosen, pair.rejected, pair.weight)).collect()
    }

    #[test]
    fn what_was_clicked_is_among_what_was_proposed() {
        let found = |clicked: &[f64]| pairs(&add("clicks", &[(1, "p")], clicked, 0.0));
        assert_eq!(found(&[]), [(1, 0, 1.0)]);
        assert_eq!(found(&[0.0, 0.0, 3.0, 0.0]), [(2, 0, 3.0)], "the better one");
        assert_eq!(found(&[1.0, 0.0, 0.0, 1.0]), [(1, 3, 2.0)], "the worse one");
        assert_eq!(pairs(&add("clicks", &[(1, "p")], &[], 0.2)), [], "a margin of 0.1");
    }

    #[test]
    fn keys_with_the_same_prompt_are_one_example() {
        let (same, clicked) = ([(1, "p"), (2, "p"), (3, "q")], [0.0, 0.0, 3.0, 2.0]);
        let of = |weigh| add(weigh, &same, &clicked, 0.0);
        assert_eq!(pairs(&of("clicks")), [(2, 3, 5.0), (2, 3, 5.0)], "clicks of a prompt count once");
        assert_eq!(pairs(&of("even")), [(2, 3, 2.0), (2, 3, 1.0)]);
        let found = of("clicks");
        assert_eq!(found.clicks.to_string(), "10", "five on either prompt");
        let keys: Vec<&Row> = found.pairs.values().map(|pair| &pair.key).collect();
        assert_eq!(keys, [&Row::from([Value::U64(1)]), &Row::from([Value::U64(3)])]);
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
