//! What a tuned model has to beat: counting.
//!
//! Decision: the baselines are given what the model is given (the same examples, the same labels ruled
//! out) and the smoothing that suits them best, found by leaving each click out of its own counts.
//! A language model that does not beat them is not worth its price, and its trainer says so.

use std::collections::BTreeMap;

/// A click: who asked, after what, and which labels could be and were the answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Click<'a> {
    /// The group that was asked for.
    pub group: &'a str,
    /// Its recent interests.
    pub recent: &'a [String],
    /// The labels that are not ruled out.
    pub allowed: &'a [bool],
    /// Clicks on each label.
    pub clicked: &'a [f64],
}

impl Click<'_> {
    /// The labels that were clicked, and how often.
    fn counts(&self) -> impl Iterator<Item = (usize, f64)> {
        self.clicked.iter().copied().enumerate().filter(|(_, count)| *count > 0.0)
    }
}

/// Numbers of imagined clicks that smoothing is tried with.
const STRENGTHS: [f64; 7] = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0];

/// Clicks by label under some condition.
type Counts = Vec<f64>;

/// Counts of clicks under ever closer conditions.
pub struct Baseline {
    kind: Kind,
    strength: f64,
    /// All clicks.
    all: Counts,
    /// Clicks of each group, or after each interest, or after each set of interests.
    under: BTreeMap<Condition, Counts>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Condition {
    Group(String),
    After(String),
    AfterAll(Vec<String>),
}

/// What a click is predicted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What the group clicks.
    GroupPopularity,
    /// What is clicked after the same recent interests, backed off to each of them, and to all.
    Markov,
}

impl Baseline {
    /// Counts the clicks, and finds the smoothing under which each is most probable given the others.
    pub fn fit(kind: Kind, clicks: &[Click<'_>]) -> Self {
        let labels = clicks.first().map_or(0, |click| click.clicked.len());
        let mut baseline =
            Self { kind, strength: STRENGTHS[0], all: vec![0.0; labels], under: BTreeMap::new() };
        for click in clicks {
            add(&mut baseline.all, click.clicked);
            for condition in baseline.conditions(click) {
                add(baseline.under.entry(condition).or_insert_with(|| vec![0.0; labels]), click.clicked);
            }
        }
        let best = STRENGTHS.into_iter().max_by(|a, b| {
            let likelihood = |strength: f64| baseline.likelihood(clicks, strength, true).unwrap_or(0.0);
            likelihood(*a).total_cmp(&likelihood(*b))
        });
        baseline.strength = best.unwrap_or(STRENGTHS[0]);
        baseline
    }

    /// The mean log-probability of clicks; nothing where there are none.
    pub fn log_likelihood(&self, clicks: &[Click<'_>]) -> Option<f64> {
        self.likelihood(clicks, self.strength, false)
    }

    /// The probability of each label, over those that are allowed.
    pub fn chances(&self, click: &Click<'_>) -> Vec<f64> {
        self.smoothed(click, self.strength, None)
    }

    /// The probability of each label whoever asks after whatever.
    fn everybody(&self) -> Vec<f64> {
        self.all(self.strength, None)
    }

    fn all(&self, strength: f64, own: Option<usize>) -> Vec<f64> {
        let even = vec![1.0 / self.all.len() as f64; self.all.len()];
        smoothed(Some(&self.all), &even, strength, own)
    }

    fn conditions(&self, click: &Click<'_>) -> Vec<Condition> {
        match self.kind {
            Kind::GroupPopularity => vec![Condition::Group(click.group.to_string())],
            Kind::Markov => {
                let singles = click.recent.iter().map(|interest| Condition::After(interest.clone()));
                singles.chain([Condition::AfterAll(click.recent.to_vec())]).collect()
            }
        }
    }

    /// `out`: each click is left out of the counts it is judged by.
    fn likelihood(&self, clicks: &[Click<'_>], strength: f64, out: bool) -> Option<f64> {
        mean_log(clicks.iter().flat_map(|click| {
            let chance = move |label: usize| self.smoothed(click, strength, out.then_some(label))[label];
            click.counts().map(move |(label, count)| (count, chance(label)))
        }))
    }

    /// As [`Baseline::chances`], under some smoothing; `own` is a click that does not count.
    fn smoothed(&self, click: &Click<'_>, strength: f64, own: Option<usize>) -> Vec<f64> {
        let all = self.all(strength, own);
        let under =
            |condition: &Condition, prior: &[f64]| smoothed(self.under.get(condition), prior, strength, own);
        let conditions = self.conditions(click);
        let chances = match conditions.split_last() {
            None => all,
            Some((closest, [])) => under(closest, &all),
            Some((closest, singles)) => {
                let each: Vec<Vec<f64>> = singles.iter().map(|single| under(single, &all)).collect();
                let mean = |label: usize| each.iter().map(|e| e[label]).sum::<f64>() / each.len() as f64;
                under(closest, &(0..all.len()).map(mean).collect::<Vec<_>>())
            }
        };
        let open = |(_, allowed): &(&f64, &bool)| **allowed;
        let mass: f64 = chances.iter().zip(click.allowed).filter(open).map(|(chance, _)| chance).sum();
        let of = |(chance, allowed): (&f64, &bool)| if *allowed { chance / mass } else { 0.0 };
        chances.iter().zip(click.allowed).map(of).collect()
    }
}

/// What is clicked by a group and after its recent interests, as if one told nothing of the other (naive Bayes):
/// the product of both chances over that of the label itself.
pub struct NaiveBayes {
    group: Baseline,
    recent: Baseline,
}

impl NaiveBayes {
    /// Counts the clicks, and finds the smoothing of each side for itself.
    pub fn fit(clicks: &[Click<'_>]) -> Self {
        let [group, recent] = [Kind::GroupPopularity, Kind::Markov].map(|kind| Baseline::fit(kind, clicks));
        Self { group, recent }
    }

    /// The probability of each label, over those that are allowed.
    pub fn chances(&self, click: &Click<'_>) -> Vec<f64> {
        let (group, recent, all) =
            (self.group.chances(click), self.recent.chances(click), self.recent.everybody());
        let chances: Vec<f64> =
            (0..all.len()).map(|label| group[label] * recent[label] / all[label]).collect();
        let mass: f64 = chances.iter().sum();
        chances.into_iter().map(|chance| chance / mass).collect()
    }

    /// The mean log-probability of clicks; nothing where there are none.
    pub fn log_likelihood(&self, clicks: &[Click<'_>]) -> Option<f64> {
        mean_log(clicks.iter().flat_map(|click| {
            let chances = self.chances(click);
            click.counts().map(move |(label, count)| (count, chances[label]))
        }))
    }
}

/// The mean logarithm of chances, each with how much it counts; nothing where there are none.
fn mean_log(chances: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let add = |(sum, weight), (count, chance): (f64, f64)| (sum + count * chance.ln(), weight + count);
    let (sum, weight) = chances.fold((0.0, 0.0), add);
    (weight > 0.0).then(|| sum / weight)
}

fn add(counts: &mut [f64], clicks: &[f64]) {
    counts.iter_mut().zip(clicks).for_each(|(sum, n)| *sum += n);
}

/// Counts with `strength` imagined clicks spread as `prior` (a Dirichlet prior's mean).
fn smoothed(counts: Option<&Counts>, prior: &[f64], strength: f64, own: Option<usize>) -> Vec<f64> {
    let Some(counts) = counts else { return prior.to_vec() };
    let left = |label: usize| counts[label] - f64::from(u8::from(own == Some(label)));
    let total: f64 = (0..counts.len()).map(left).sum::<f64>() + strength;
    (0..counts.len()).map(|label| (left(label) + strength * prior[label]) / total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: [bool; 3] = [true; 3];

    fn click<'a>(group: &'a str, recent: &'a [String], clicked: &'a [f64]) -> Click<'a> {
        Click { group, recent, allowed: &OPEN, clicked }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn smoothing_is_a_weighted_mean_of_counts_and_what_lies_behind() {
        let counts = vec![6.0, 2.0, 0.0];
        let found = smoothed(Some(&counts), &[0.5, 0.25, 0.25], 8.0, None);
        assert_eq!(found, [10.0 / 16.0, 4.0 / 16.0, 2.0 / 16.0]);
        assert_eq!(smoothed(Some(&counts), &[0.5, 0.25, 0.25], 8.0, Some(0))[0], 9.0 / 15.0);
        assert_eq!(smoothed(None, &[0.5, 0.25, 0.25], 8.0, Some(0)), [0.5, 0.25, 0.25]);
    }

    #[test]
    fn each_predicts_from_what_it_is_to_see() {
        let (war, drama) = (names(&["War"]), names(&["Drama"]));
        let rows = [[9.0, 0.0, 1.0], [0.0, 9.0, 1.0]];
        let by_group = [click("a", &war, &rows[0]), click("b", &war, &rows[1])];
        let by_recent = [click("a", &war, &rows[0]), click("a", &drama, &rows[1])];
        let chance = |kind, train: &[Click<'_>], of: &Click<'_>| {
            let fitted = Baseline::fit(kind, train);
            fitted.chances(of)[0]
        };
        assert!(chance(Kind::GroupPopularity, &by_group, &by_group[0]) > 0.7);
        assert!(chance(Kind::GroupPopularity, &by_group, &by_group[1]) < 0.2);
        assert!((chance(Kind::Markov, &by_group, &by_group[0]) - 0.45).abs() < 0.1);
        assert!(chance(Kind::Markov, &by_recent, &by_recent[0]) > 0.7);
        assert!(chance(Kind::Markov, &by_recent, &by_recent[1]) < 0.2);
        // A set that was never seen backs off to its interests.
        let both = names(&["Drama", "War"]);
        let unseen = chance(Kind::Markov, &by_recent, &click("c", &both, &rows[0]));
        assert!((unseen - 0.45).abs() < 0.1, "{unseen}");
    }

    #[test]
    fn group_and_interests_tell_more_together() {
        let (war, drama) = (names(&["War"]), names(&["Drama"]));
        // Group a clicks label 0 twice as often as b, and so does who saw War: four times in all.
        let rows = [[800.0, 200.0, 9.0], [400.0, 200.0, 9.0], [400.0, 200.0, 9.0], [200.0, 200.0, 9.0]];
        let clicks = [
            click("a", &war, &rows[0]),
            click("a", &drama, &rows[1]),
            click("b", &war, &rows[2]),
            click("b", &drama, &rows[3]),
        ];
        let odds = |chances: Vec<f64>| chances[0] / chances[1];
        let both = NaiveBayes::fit(&clicks);
        let (least, most) = (odds(both.chances(&clicks[3])), odds(both.chances(&clicks[0])));
        assert!((least - 1.0).abs() < 0.2 && (most - 4.0).abs() < 0.4, "{least} {most}");
        let group = Baseline::fit(Kind::GroupPopularity, &clicks);
        assert!(both.log_likelihood(&clicks) > group.log_likelihood(&clicks));
        assert_eq!(both.log_likelihood(&[]), None);
        let open = [true, false, true];
        let chances = both.chances(&Click { allowed: &open, ..click("a", &war, &rows[0]) });
        assert!(chances[1] == 0.0 && (chances.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn labels_that_are_ruled_out_have_no_mass() {
        let war = names(&["War"]);
        let rows = [[3.0, 4.0, 1.0]];
        let fitted = Baseline::fit(Kind::Markov, &[click("a", &war, &rows[0])]);
        let allowed = [true, false, true];
        let chances = fitted.chances(&Click { allowed: &allowed, ..click("a", &war, &rows[0]) });
        assert_eq!(chances[1], 0.0);
        assert!((chances.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn noise_is_smoothed_away_and_signal_is_not() {
        // Ten groups: each clicks one label of its own, or all of them anything.
        let (war, groups) = (names(&["War"]), (0..10).map(|n| format!("g{n}")).collect::<Vec<_>>());
        let strength = |clicked: &dyn Fn(usize) -> [f64; 3]| {
            let rows: Vec<[f64; 3]> = (0..10).map(clicked).collect();
            let clicks: Vec<Click<'_>> =
                groups.iter().zip(&rows).map(|(group, row)| click(group, &war, row)).collect();
            Baseline::fit(Kind::GroupPopularity, &clicks).strength
        };
        let signal = strength(&|n| std::array::from_fn(|label| if label == n % 3 { 30.0 } else { 0.0 }));
        let noise = strength(&|n| std::array::from_fn(|label| if label == n % 3 { 3.0 } else { 2.0 }));
        assert!(signal < noise, "{signal} {noise}");
    }
}
