//! What sets a group apart, as figures and in fixed wording.
//!
//! Lift alone would name what hardly anybody clicks, share alone what everybody does: a favourite is
//! ranked by their product, the group's part of the divergence from the population.

use std::collections::BTreeMap;

use crate::row::{Row, Value};

/// Clicks per category.
pub(crate) type Clicks = BTreeMap<String, u64>;

/// The clicks in a column that holds the labels of each click.
pub(crate) fn clicks_of(row: &Row, column: usize) -> Clicks {
    let mut clicks = Clicks::new();
    for labels in row[column].as_list().unwrap_or_default() {
        for label in labels.as_list().unwrap_or_default().iter().filter_map(Value::as_text) {
            *clicks.entry(label.to_string()).or_default() += 1;
        }
    }
    clicks
}

/// Adds clicks to others.
pub(crate) fn add(into: &mut Clicks, from: &Clicks) {
    from.iter().for_each(|(name, n)| *into.entry(name.clone()).or_default() += n);
}

/// The figures of a group.
#[derive(Debug, PartialEq)]
pub(crate) struct Facts {
    /// Members at the fit.
    pub(crate) members: u64,
    /// What sets the group apart, most of all first.
    pub(crate) favourites: Vec<Favourite>,
}

/// A category that sets a group apart.
#[derive(Debug, PartialEq)]
pub(crate) struct Favourite {
    /// Its name.
    pub(crate) name: String,
    /// Percent of the group's clicks.
    pub(crate) percent: u64,
    /// Percent of everybody's clicks.
    pub(crate) usual: u64,
}

/// The categories a group clicks beyond the population's share, by lift weighted with share: what
/// sets the group apart, not what everybody clicks. Of the population itself, the most clicked.
fn favourites<'a>(group: &'a Clicks, population: &Clicks, n: usize) -> Vec<(&'a str, f64)> {
    let total = |clicks: &Clicks| clicks.values().sum::<u64>().max(1) as f64;
    let (mine, all) = (total(group), total(population));
    let whole = group == population;
    let mut ranked: Vec<(f64, &str, f64)> = group
        .iter()
        .map(|(name, clicks)| {
            let share = *clicks as f64 / mine;
            let expected = population.get(name).copied().unwrap_or(0).max(1) as f64 / all;
            let apart = if whole { share } else { share * (share / expected).ln() };
            (apart, name.as_str(), share)
        })
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    ranked.into_iter().take(n).map(|(_, name, share)| (name, share)).collect()
}

fn write(named: &[(&str, f64)]) -> String {
    if named.is_empty() {
        return "viewers of whom little is known".to_string();
    }
    let named: Vec<String> =
        named.iter().map(|(name, share)| format!("{name} {:.0}%", share * 100.0)).collect();
    format!("long-term favourites {}", named.join(", "))
}

/// What a portrait is written from.
pub(crate) fn facts(group: &Clicks, population: &Clicks, n: usize, members: u64) -> (String, Facts) {
    let named = favourites(group, population, n);
    let all = population.values().sum::<u64>().max(1) as f64;
    let percent = |share: f64| (share * 100.0).round() as u64;
    let favourite = |(name, share): &(&str, f64)| Favourite {
        name: name.to_string(),
        percent: percent(*share),
        usual: percent(population.get(*name).copied().unwrap_or(0) as f64 / all),
    };
    (write(&named), Facts { members, favourites: named.iter().map(favourite).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clicks(pairs: &[(&str, u64)]) -> Clicks {
        pairs.iter().map(|(name, n)| (name.to_string(), *n)).collect()
    }

    #[test]
    fn favourites_are_what_sets_a_group_apart() {
        let population = clicks(&[("Drama", 500), ("War", 20), ("Western", 10)]);
        let group = clicks(&[("Drama", 50), ("War", 20)]);
        assert_eq!(favourites(&group, &population, 1)[0].0, "War");
        let (text, told) = facts(&group, &population, 1, 5);
        assert_eq!(text, "long-term favourites War 29%");
        let war = Favourite { name: "War".to_string(), percent: 29, usual: 4 };
        assert_eq!(told, Facts { members: 5, favourites: vec![war] });
        assert_eq!(facts(&Clicks::new(), &population, 3, 0).0, "viewers of whom little is known");
    }
}
