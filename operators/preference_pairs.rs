//! Pairs of a better and a worse proposal, by the verdicts of the relevance model (CoEA 4.3.3).
//!
//! Decision: pairs are a snapshot, made between epochs. A round of training is about what was
//! proposed and how it was judged at one time, and that must not move while it runs. Each pair carries
//! the probability of every label under the model that proposed and the relevance of every label, both of
//! which epochs have computed already: training needs no pass of a reference model, and knows the
//! optimum it ends short of.

mod making;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::making::{Pairs, Preference};
use self::making::{Wiring, make};
use crate::{
    label_policy::LabelPrior,
    llm_sampler::{PROPOSED_BY, PROPOSED_OF},
    next_clicks::{Targets, Which, Wired, wire},
    operator::{Described, Inputs, Operator, Problem, Problems},
    row::{Row, Value},
    schema::{Column, Schema, Type},
    scorer::CANDIDATES,
    served::ModelVersion,
    shape::{Fitted, Graph, LeafId, present},
    tuning::held_out::HeldOut,
};

/// Makes pairs of what was proposed to a key: the most and the least relevant.
///
/// Inputs: scored candidates, and the source of events. A key's new clicks are among its proposals;
/// without them a loop feeds on itself. Keys with the same prompt are one. Works in cycles: write `refit: { when: cycle }`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PreferencePairs {
    /// How many of the keys that have a pair are taken.
    #[serde(default)]
    pub sample: Sample,
    /// How much more relevant the better one is, at least.
    #[serde(default)]
    pub min_margin: f64,
    /// The newest events of each user, whose clicks are new.
    #[serde(default = "last")]
    pub last: u64,
    /// What a pair counts.
    #[serde(default)]
    pub weigh: Weigh,
    /// Names which keys are taken.
    #[serde(default)]
    pub seed: u64,
}

/// How many keys are taken: a share of them, and no fewer than a number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sample {
    /// Share of the keys.
    pub fraction: f64,
    /// Pairs at least, as far as there are so many.
    pub min_pairs: u64,
}

impl Default for Sample {
    fn default() -> Self {
        Self { fraction: 0.01, min_pairs: 512 }
    }
}

impl Sample {
    /// How many of so many are taken.
    fn of(self, all: usize) -> usize {
        let share = (all as f64 * self.fraction).ceil() as usize;
        share.max(usize::try_from(self.min_pairs).unwrap_or(usize::MAX)).min(all)
    }
}

/// What a pair counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Weigh {
    /// As much as its key has new clicks, and once at least.
    #[default]
    Clicks,
    /// Once.
    Even,
}

fn last() -> u64 {
    10
}

impl PreferencePairs {
    /// Checks the parameters and the inputs; gives the place of the item in an event.
    pub(crate) fn parts(&self, inputs: &Inputs<'_>, problems: &mut Problems) -> Option<usize> {
        problems.take(inputs.at_most(2));
        let Sample { fraction, min_pairs } = self.sample;
        problems.require((0.0..=1.0).contains(&fraction), || {
            Problem::with("sample", "`fraction` must be from 0 to 1")
        });
        problems.require(fraction > 0.0 || min_pairs > 0, || Problem::with("sample", "takes no pair at all"));
        problems.require(self.min_margin >= 0.0 && self.min_margin.is_finite(), || {
            Problem::with("min_margin", "must be a finite number from 0 up")
        });
        problems.require(self.last > 0, || Problem::with("last", "must be at least 1"));
        let scored = problems.take(inputs.relation(0, "scored candidates"))?;
        problems.take(inputs.column(0, scored, "scored"));
        let notes = &scored.schema.notes;
        let told = notes.contains_key(CANDIDATES) && notes.contains_key(PROPOSED_BY);
        problems.require(told, || {
            Problem::input(0, format!("`{}` does not tell the relevance of every label", scored.name)).help(
                "name a scorer `against: labels` or `clicked`, of candidates of an llm_sampler with `decoding: full`",
            )
        });
        let events = problems.take(inputs.events(1))?;
        problems.require(!told || notes.get("recents_of") == Some(&events.name), || {
            let (events, scored) = (&events.name, &scored.name);
            Problem::input(1, format!("the prompts behind `{scored}` are not written from `{events}`"))
                .help("name the events that recent_categories folds")
        });
        problems.take(inputs.column(1, events, notes.get(PROPOSED_OF)?))
    }

    /// Adds the fit that makes the pairs, of inputs that [`PreferencePairs::parts`] accepted.
    pub(crate) fn fit(&self, item: usize, inputs: &Inputs<'_>, graph: &mut Graph) -> Fitted<Pairs> {
        let [scored, events] = [0, 1].map(|at| &inputs.inputs[at]);
        let novel = scored.schema.notes.get(CANDIDATES).map_or("", String::as_str);
        let (Some(proposals), Some(rates)) =
            (graph.proposals_of(novel).cloned(), graph.rates_of(&scored.name))
        else {
            unreachable!("the notes of the input say so")
        };
        let which = Which {
            targets: Targets::All,
            last: self.last,
            min_history: 0,
            masked: true,
            held_out: HeldOut::nobody(),
        };
        let given = [events, &proposals.labels, &proposals.prompts];
        let Wired { clicks, mut relations, logic, .. } = wire(which, item, given, graph, |_| ());
        let of_clicks = relations.len();
        relations.extend([proposals.prompts.leaf, scored.leaf, rates, proposals.answers]);
        let column = |of: &Schema, name: &str| of.column(name).map_or(0, |(place, _)| place);
        let wiring = Wiring {
            clicks,
            of_clicks,
            prompt: column(&proposals.prompts.schema, "prompt"),
            scored: column(&scored.schema, "scored"),
            temperature: proposals.temperature,
        };
        let parameters = serde_json::to_string(self).unwrap_or_default();
        let logic = format!("preference_pairs/2 {parameters} {} {logic}", proposals.temperature);
        let artifacts: Vec<LeafId> =
            std::iter::once(proposals.prior.leaf()).chain(proposals.version.map(Fitted::leaf)).collect();
        let how = self.clone();
        let pairs = graph.fit("pairs", &relations, &artifacts, logic, move |inputs, read, _| {
            let prior = present::<LabelPrior>(read.first())?;
            let version = read.get(1).map(|version| present::<ModelVersion>(Some(version))).transpose()?;
            Ok(make(&how, &wiring, inputs, prior, version.map(ModelVersion::digest).as_deref())?)
        });
        graph.between(pairs, pairs);
        graph.cheap(pairs)
    }
}

impl Operator for PreferencePairs {
    fn output(&self, inputs: &Inputs<'_>) -> Result<Schema, Vec<Problem>> {
        let mut problems = Problems::default();
        let item = self.parts(inputs, &mut problems);
        problems.finish(item)?;
        let scored = &inputs.inputs[0].schema;
        let label = |name| Column::new(name, Type::Text);
        let number = |name| Column::new(name, Type::F64);
        let columns = [label("chosen"), label("rejected"), number("margin"), number("weight")];
        let proposed_by = scored.notes.get(PROPOSED_BY).cloned().unwrap_or_default();
        Ok(Schema::new(scored.key.clone(), columns).with_note(PROPOSED_BY, proposed_by))
    }

    fn between_epochs(&self) -> bool {
        true
    }

    fn build(&self, inputs: &Inputs<'_>, graph: &mut Graph) -> LeafId {
        let Some(item) = self.parts(inputs, &mut Problems::default()) else {
            unreachable!("checked by output")
        };
        let pairs = self.fit(item, inputs, graph);
        graph.publish_pairs(pairs);
        graph.map_with("", pairs.leaf(), pairs, |pairs: &Pairs, _, _, out| {
            out.extend(pairs.pairs.iter().map(|pair| {
                let [chosen, rejected] =
                    [pair.chosen, pair.rejected].map(|at| Value::text(&pairs.labels[at]));
                let [margin, weight] = [pair.margin(), pair.weight].map(Value::float);
                (pair.key.clone(), Row::from([chosen, rejected, margin, weight]))
            }));
            Ok(())
        })
    }
}

impl Described for PreferencePairs {
    const NAME: &'static str = "preference_pairs";
    const EXAMPLE: &'static str = include_str!("examples/preference_pairs.yaml");
}
