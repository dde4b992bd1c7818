//! Bounds that a version must keep before it is put in use.
//!
//! Decision: a gate knows figures by name and nothing of what they mean, so that whatever a trainer
//! tells of a version can be bounded, and a person reads one list of names.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::trainer::Figures;
use crate::operator::Problem;

/// From where to where a figure may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Bounds {
    /// The least that passes.
    pub least: Option<f64>,
    /// The most that passes.
    pub most: Option<f64>,
}

/// Bounds by figure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Gate(BTreeMap<String, Bounds>);

impl Gate {
    /// What is wrong with it, in the parameter `gate`, if these are the figures there are.
    pub fn check<Name: AsRef<str>>(&self, figures: &[Name]) -> Vec<Problem> {
        let figures: Vec<&str> = figures.iter().map(AsRef::as_ref).collect();
        let mut problems = Vec::new();
        for (name, Bounds { least, most }) in &self.0 {
            let mut problem = |message: String, help: String| {
                let path = ["with", "gate", name].map(String::from).to_vec();
                problems.push(Problem { path, message, help: Some(help) });
            };
            if !figures.contains(&name.as_str()) {
                problem(
                    format!("there is no figure `{name}`"),
                    format!("there are `{}`", figures.join("`, `")),
                );
            } else if least.is_none() && most.is_none() {
                problem(format!("`{name}` has no bound"), "write `least`, `most`, or both".to_string());
            } else if least.zip(*most).is_some_and(|(least, most)| least > most) {
                problem(
                    format!("nothing is within the bounds of `{name}`"),
                    "`least` is above `most`".into(),
                );
            }
        }
        problems
    }

    /// Whether nothing is bounded.
    pub fn is_open(&self) -> bool {
        self.0.is_empty()
    }

    /// What is wrong with the gate of a trainer that judges by users who are kept out, in a node that makes
    /// versions in cycles or does not.
    pub(crate) fn check_held_out<Name: AsRef<str>>(
        &self,
        figures: &[Name],
        held_out: f64,
        cycles: bool,
    ) -> Vec<Problem> {
        let mut problems = self.check(figures);
        if !self.is_open() && !cycles {
            problems.push(
                Problem::with("gate", "goes with `refit: { when: cycle }` only").help(
                    "a gate keeps the version before in use, and what is fitted once has none before it",
                ),
            );
        } else if !self.is_open() && held_out == 0.0 {
            problems.push(
                Problem::with("gate", "bounds what is known of nobody").help("give a `held_out` above 0"),
            );
        }
        problems
    }

    /// What speaks against a version with these figures. A figure that is missing, or no number, keeps no
    /// bound.
    pub fn refuses(&self, figures: &Figures) -> Vec<String> {
        let judge = |(name, bounds): (&String, &Bounds)| {
            let Some(figure) = figures.get(name) else { return Some(format!("{name} is not known")) };
            let below = bounds.least.filter(|least| figure.is_nan() || figure < least);
            let above = bounds.most.filter(|most| figure.is_nan() || figure > most);
            match (below, above) {
                (Some(least), _) => Some(format!("{name} is {figure:.4}, below {least}")),
                (None, Some(most)) => Some(format!("{name} is {figure:.4}, above {most}")),
                (None, None) => None,
            }
        };
        self.0.iter().filter_map(judge).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(json: &str) -> Gate {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn what_leaves_its_bounds_is_refused_with_the_figure() {
        let gate = gate(r#"{ "kl": { "most": 0.5 }, "entropy": { "least": 1.0, "most": 4.0 } }"#);
        let of = |kl, entropy| Figures::from([("kl".into(), kl), ("entropy".into(), entropy)]);
        assert!(gate.refuses(&of(0.5, 1.0)).is_empty());
        assert_eq!(gate.refuses(&of(0.81, 2.0)), ["kl is 0.8100, above 0.5"]);
        assert_eq!(gate.refuses(&of(0.1, 0.25)), ["entropy is 0.2500, below 1"]);
        assert_eq!(gate.refuses(&of(f64::NAN, 5.0)).len(), 2);
        assert_eq!(gate.refuses(&Figures::new()), ["entropy is not known", "kl is not known"]);
    }

    #[test]
    fn a_gate_of_users_kept_out_needs_some_and_a_version_before() {
        let bounded = gate(r#"{ "held_out": { "least": 0.5 } }"#);
        let wrong = |gate: &Gate, held_out: f64, cycles: bool| -> Vec<String> {
            let problems = gate.check_held_out(&["held_out"], held_out, cycles);
            problems.into_iter().map(|problem| problem.message).collect()
        };
        assert!(wrong(&bounded, 0.1, true).is_empty());
        assert_eq!(wrong(&bounded, 0.0, true), ["bounds what is known of nobody"]);
        assert_eq!(wrong(&bounded, 0.1, false), ["goes with `refit: { when: cycle }` only"]);
        assert!(wrong(&Gate::default(), 0.0, false).is_empty());
    }

    #[test]
    fn a_gate_that_cannot_be_meant_is_refused() {
        let wrong = |json| gate(json).check(&["kl", "entropy"])[0].message.clone();
        assert_eq!(wrong(r#"{ "kk": { "most": 1 } }"#), "there is no figure `kk`");
        assert_eq!(wrong(r#"{ "kl": {} }"#), "`kl` has no bound");
        assert_eq!(wrong(r#"{ "kl": { "least": 2, "most": 1 } }"#), "nothing is within the bounds of `kl`");
        assert!(gate(r#"{ "kl": { "most": 1 } }"#).check(&["kl"]).is_empty());
    }
}
