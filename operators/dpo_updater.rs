//! Moves the novelty model towards what the relevance model prefers (CoEA eq. 15 to 17; SERAL eq. 6 and 7).
//!
//! A cycle's candidate: training starts at the version in use, which is also the reference; the
//! divergence from it is exact over the whole label set, and a second one may hold it near the version the
//! cycles began with, because references drift. What comes out is judged on keys that were not trained
//! on, and a gate decides.
//!
//! Decision: pairs carry the reference's probabilities, so training passes through one network. The same
//! goes for the optimum `π* ∝ π_ref·exp(r/β)`, which a closed label set makes computable: every method
//! tells how far from it it ends, and `exact` is trained towards it.

mod objective;
mod teaching;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::objective::FIGURES;
use crate::{
    llm_sampler::PROPOSED_BY,
    operator::{Described, Inputs, Model, Operator, Problem, Problems},
    preference_pairs::{Pairs, Preference, PreferencePairs, Sample, Weigh},
    schema::Schema,
    sft_trainer::held_out,
    shape::{CallError, FitCost, Graph, LeafId, present},
    tuning::{
        gate::Gate,
        held_out::somebody_judges,
        training::Training,
        version::{Making, figures_of, figures_schema},
    },
};

/// What is made smaller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The better label is to win against the worse one (CoEA eq. 16).
    #[default]
    Dpo,
    /// As dpo, but the difference is to be `1/2β` and no more (SERAL eq. 6).
    Ipo,
    /// Each label is judged for itself against the divergence from the reference.
    Kto,
    /// The better label is to win by `gamma`, whatever the reference.
    Simpo,
    /// Towards the optimum of relevance and divergence, over all labels.
    Exact,
}

/// Tunes a novelty model on pairs of proposals, once in every cycle.
///
/// Inputs: a preference_pairs node; or what one takes, scored candidates and the source of events, and
/// then its parameters `sample`, `min_margin`, `last` and `weigh` as well. The node names the model in
/// `updates`; what it makes is put in use if it passes the gate. Write `refit: { when: cycle }`, and
/// start cycles with `run --cycles`. Its rows are the figures of how the version in use was trained.
/// Verdicts of a relevance model that was never trained lead astray: let a reward_trainer without `refit`
/// train it first. Cycle upon cycle proposals lose their variety, whatever `kl` is: bound `entropy` and
/// `clicked_gain`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DpoUpdater {
    /// What is made smaller.
    #[serde(default)]
    pub loss: Method,
    /// How much relevance is worth against divergence: the smaller, the farther it goes.
    #[serde(default = "beta")]
    pub beta: f64,
    /// Weight of the divergence from the version in use; 0.4 if absent, and 0 for `exact`, whose optimum has
    /// the divergence in it, and `simpo`, which has no reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Weight of the divergence from the version that cycles began with.
    #[serde(default)]
    pub anchor_kl: f64,
    /// Weight of the better label's own log-probability (SERAL's α).
    #[serde(default)]
    pub sft: f64,
    /// Share of the pairs that may be the wrong way round; `loss: dpo` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_smoothing: Option<f64>,
    /// By how much the better label is to win; `loss: simpo` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gamma: Option<f64>,
    /// How many keys are taken: see preference_pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<Sample>,
    /// How much more relevant the better label is, at least: see preference_pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_margin: Option<f64>,
    /// The newest events of each user, whose clicks are new: see preference_pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<u64>,
    /// What a pair counts: see preference_pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weigh: Option<Weigh>,
    /// Share of the pairs that are kept out of training, to judge by; with `choose_every` half of them judge. If
    /// there are so few that none is kept out, those that were trained on judge, and `judged_by_trained` is 1.
    #[serde(default = "held_out")]
    pub held_out: f64,
    /// What a version must keep to be put in use: bounds (`least`, `most`) of its figures `kl`,
    /// `anchor_kl`, `entropy`, `top_share`, `relevance`, `gain`, `accuracy`, `optimum`, `clicked`, `clicked_gain`.
    /// The last two are log-probabilities of new clicks: what the relevance model that is trained towards has no
    /// part in.
    #[serde(default)]
    pub gate: Gate,
    /// How it is trained.
    #[serde(default)]
    pub training: Training,
}

fn beta() -> f64 {
    0.1
}

/// What pairs come out of.
enum From {
    /// A node that makes them.
    Node,
    /// Scored candidates and events; the place of the item in an event.
    Scored(PreferencePairs, usize),
}

impl DpoUpdater {
    /// Weight of the divergence from the version in use.
    fn kl(&self) -> f64 {
        self.kl.unwrap_or(match self.loss {
            Method::Exact | Method::Simpo => 0.0,
            Method::Dpo | Method::Ipo | Method::Kto => 0.4,
        })
    }

    /// The pairs it would make itself.
    fn pairs(&self) -> PreferencePairs {
        PreferencePairs {
            sample: self.sample.unwrap_or_default(),
            min_margin: self.min_margin.unwrap_or_default(),
            last: self.last.unwrap_or(10),
            weigh: self.weigh.unwrap_or_default(),
            seed: self.training.seed,
        }
    }

    fn parts(&self, inputs: &Inputs<'_>) -> Result<From, Vec<Problem>> {
        let mut problems = Problems::default();
        self.training.check("training", self.held_out).into_iter().for_each(|problem| problems.push(problem));
        let gate = self.gate.check_held_out(&FIGURES, self.held_out, true);
        gate.into_iter().for_each(|problem| problems.push(problem));
        self.check_numbers(&mut problems);
        let first = problems.take(inputs.relation(0, "pairs, or scored candidates"));
        let made =
            |schema: &Schema| schema.column("chosen").is_some() && schema.notes.contains_key(PROPOSED_BY);
        let from = first.and_then(|first| match made(&first.schema).then_some(()) {
            None => Some(From::Scored(self.pairs(), self.pairs().parts(inputs, &mut problems)?)),
            Some(_) => {
                problems.take(inputs.at_most(1));
                let own = [
                    (self.sample.is_some(), "sample"),
                    (self.min_margin.is_some(), "min_margin"),
                    (self.last.is_some(), "last"),
                    (self.weigh.is_some(), "weigh"),
                ];
                for (_, name) in own.iter().filter(|(given, _)| *given) {
                    let message = format!("`{}` has made the pairs already", first.name);
                    problems.push(Problem::with(name, message).help(format!("give `{name}` to that node")));
                }
                Some(From::Node)
            }
        });
        problems.take(inputs.updated());
        if let (Some(first), Some(updated)) = (first, inputs.updates) {
            let by = first.schema.notes.get(PROPOSED_BY).map_or("", String::as_str);
            problems.require(by.is_empty() || by == updated.name, || {
                let message = format!("what `{}` prefers was proposed by `{by}`", first.name);
                Problem::field("updates", format!("{message}, not by `{}`", updated.name))
                    .help(format!("write `updates: {by}`"))
            });
            self.check_size(updated, &mut problems);
        }
        problems.finish(from)
    }

    fn check_numbers(&self, problems: &mut Problems) {
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let weight = |x: f64| x >= 0.0 && x.is_finite();
        problems.require(positive(self.beta), || Problem::with("beta", "must be a positive number"));
        for (name, value) in [("kl", self.kl()), ("anchor_kl", self.anchor_kl), ("sft", self.sft)] {
            problems.require(weight(value), || Problem::with(name, "must be a finite number from 0 up"));
        }
        problems.require((0.0..1.0).contains(&self.held_out), || {
            Problem::with("held_out", "must be at least 0 and below 1")
        });
        if let Some(share) = self.label_smoothing {
            problems.require((0.0..0.5).contains(&share), || {
                Problem::with("label_smoothing", "must be at least 0 and below 0.5")
            });
            problems.require(self.loss == Method::Dpo, || {
                Problem::with("label_smoothing", "goes with `loss: dpo` only").help("remove it")
            });
        }
        if let Some(gamma) = self.gamma {
            problems.require(weight(gamma), || Problem::with("gamma", "must be a finite number from 0 up"));
            problems.require(self.loss == Method::Simpo, || {
                Problem::with("gamma", "goes with `loss: simpo` only").help("remove it")
            });
        }
    }

    /// A version goes on from the one before, so their adapters are of one size.
    fn check_size(&self, updated: &Model, problems: &mut Problems) {
        let Some((_, theirs)) = updated.parent else { return };
        let ours = self.training.lora();
        let same = (theirs.rank, theirs.alpha, theirs.top) == (ours.rank, ours.alpha, ours.top);
        problems.require(same, || {
            let layers = theirs.top.map_or("all layers".to_string(), |top| format!("`layers: {top}`"));
            let size = format!("`rank: {}`, `alpha: {}` and {layers}", theirs.rank, theirs.alpha);
            let message = format!("the version of `{}` that this begins with has another size", updated.name);
            Problem::with("training", message).help(format!("write {size}, as where it is trained first"))
        });
    }
}

impl Operator for DpoUpdater {
    fn output(&self, inputs: &Inputs<'_>) -> Result<Schema, Vec<Problem>> {
        self.parts(inputs)?;
        Ok(figures_schema())
    }

    fn updated_kinds(&self) -> &'static [&'static str] {
        &["language_model"]
    }

    fn between_epochs(&self) -> bool {
        true
    }

    fn build(&self, inputs: &Inputs<'_>, graph: &mut Graph) -> LeafId {
        let (Ok(from), Ok(model), Some(updated)) = (self.parts(inputs), inputs.updated(), inputs.updates)
        else {
            unreachable!("checked by output")
        };
        let pairs = match from {
            From::Node => graph.pairs_of(&inputs.inputs[0].name),
            From::Scored(pairs, item) => Some(pairs.fit(item, inputs, graph)),
        };
        let (Some(pairs), Some(version)) = (pairs, updated.version) else {
            unreachable!("pairs are made by the node that has them, and the model has a first version")
        };
        let parameters = serde_json::to_string(self).unwrap_or_default();
        let logic = format!("dpo_updater/2 {} {parameters}", model.digest());
        let artifacts: Vec<LeafId> =
            [pairs.leaf(), version.leaf()].into_iter().chain(updated.parent.map(|(p, _)| p.leaf())).collect();
        let (updater, used) = (self.clone(), model.clone());
        let parameters = serde_json::to_value(self).unwrap_or_default();
        let made = graph.long_fit("candidate", &[], &artifacts, logic, move |_, read, watch| {
            let network = used.network()?;
            let (model, training) = (&used, &updater.training);
            let (operator, network, parameters) = (DpoUpdater::NAME, &network, &parameters);
            let making = Making { operator, model, network, training, parameters };
            updater.train(&making, read, watch)
        });
        let (updater, priced) = (self.clone(), model.clone());
        graph.priced(made, move |_, read| {
            let parts = updater.parted(present::<Pairs>(read.first())?);
            let tokens = |of: &[&Preference]| -> Result<Vec<u64>, CallError> {
                of.iter()
                    .map(|pair| Ok(priced.price(std::slice::from_ref(&pair.prompt))?.prompt_tokens))
                    .collect()
            };
            match somebody_judges(&updater.training, &parts, Vec::is_empty) {
                Ok(()) => Ok(updater.training.cost(&tokens(&parts[0])?, &tokens(&parts[2])?)),
                Err(_) => Ok(FitCost::default()),
            }
        });
        graph.between(made, version);
        figures_of(graph, version)
    }
}

impl Described for DpoUpdater {
    const NAME: &'static str = "dpo_updater";
    const EXAMPLE: &'static str = include_str!("examples/dpo_updater.yaml");
}
