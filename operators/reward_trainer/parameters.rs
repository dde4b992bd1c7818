//! What the parameters of a relevance trainer mean together.
//!
//! Decision: a parameter that the objective does not read is a mistake, not a default. Somebody who
//! writes `last` beside `pointwise` expects clicks to be learnt from, and none are.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Aim, RewardTrainer, pairwise, pointwise};
use crate::{
    label_policy::LabelPrior,
    next_clicks::Targets,
    operator::{Problem, Problems},
};

/// What a clicked label is compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Negatives {
    /// Labels in proportion to their clicks: what is liked by everybody is no better than the rest. Scores
    /// that are meant so say `against: clicked`.
    #[default]
    Clicks,
    /// All labels alike: what is clicked more has a higher reward. Scores that are meant so say `against: labels`.
    Labels,
    /// Labels that were shown after the same recent interests and not clicked, in proportion; where there
    /// are none, what was shown after any interests and not clicked.
    Exposures,
}

/// What a pair of interests and candidate counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// As many as it was shown: the loss is that of every exposure.
    #[default]
    Exposures,
    /// As much as any other.
    Even,
}

impl RewardTrainer {
    /// Whether there is a fourth input to learn from.
    pub(super) fn reads_feedback(&self) -> bool {
        self.objective == Aim::Pointwise || self.negatives == Some(Negatives::Exposures)
    }

    /// The figures that a gate may bound.
    pub(super) fn gated(&self) -> Vec<String> {
        match self.objective {
            Aim::Pairwise => pairwise::gated(),
            Aim::Pointwise => pointwise::gated(),
        }
    }

    /// Notes parameters that are missing, and those that nothing reads.
    pub(super) fn check_parameters(&self, problems: &mut Problems) {
        let pairs = [
            ("targets", self.targets.is_some()),
            ("last", self.last.is_some()),
            ("min_history", self.min_history.is_some()),
            ("negatives", self.negatives.is_some()),
        ];
        let points = [("weights", self.weights.is_some()), ("serve", self.serve.is_some())];
        let (given, other): (&[(&str, bool)], _) = match self.objective {
            Aim::Pairwise => (&points, "pointwise"),
            Aim::Pointwise => (&pairs, "pairwise"),
        };
        for (name, _) in given.iter().filter(|(_, given)| *given) {
            problems.push(
                Problem::with(name, format!("only `objective: {other}` reads this"))
                    .help(format!("say `objective: {other}`, or remove it")),
            );
        }
        problems.require(self.objective == Aim::Pointwise || self.last.is_some(), || {
            Problem::with("last", "is missing: how many of each user's newest events are learnt from")
                .help("no more than the `exclude_last` of the long-term side")
        });
        problems.require(self.serve != Some(0), || Problem::with("serve", "must be at least 1"));
        let novel = self.targets == Some(Targets::Novel) && self.negatives == Some(Negatives::Exposures);
        problems.require(!novel, || {
            Problem::with("negatives", "exposures are of labels a user has met as well as of novel ones")
                .help("say `targets: all`, or leave `negatives` out")
        });
    }
}

impl Negatives {
    /// How often each label is what a click is compared with, where nothing else is known, against the others.
    pub(super) fn shares(self, prior: &LabelPrior) -> Vec<f64> {
        match self {
            Negatives::Clicks | Negatives::Exposures => prior.shares(),
            Negatives::Labels => vec![1.0; prior.clicks.len()],
        }
    }
}

impl Weights {
    /// What so many exposures count.
    pub(super) fn of(self) -> fn(f64) -> f64 {
        match self {
            Weights::Exposures => |exposures| exposures,
            Weights::Even => |_| 1.0,
        }
    }
}
