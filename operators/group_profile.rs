//! A portrait of each group, written when groups are fitted (CoEA 4.2.3, eq. 7).
//!
//! A portrait stands at the front of every prompt of its group. If it followed each click, one
//! click would change the prompts of a whole group; so it is fitted, frozen, and rewritten by the
//! refit policy.

use std::{collections::BTreeMap, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    operator::{Described, Inputs, Operator, Problem, Problems},
    portrait::{Format, PortraitWriter},
    prompt_builder::DEFAULT_GROUP,
    row::{Row, Value},
    schema::{Column, Schema, Type},
    shape::{Artifact, Graph, KernelError, LeafId, Snapshot},
    taste::{Clicks, Facts, add, clicks_of, facts},
    writing::WritingParameters,
};

/// Who writes the portrait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Writer {
    /// Fixed wording around the group's favourite categories.
    Template,
    /// A language model, from the figures of those categories; the node names the model.
    Llm,
}

/// Describes each group by its most central users.
///
/// Inputs: groups by user, vectors by user, filtered clicks by user.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupProfile {
    /// Users nearest to the group's centre whose clicks are described (k).
    #[serde(default = "representatives")]
    pub representatives: usize,
    /// Who writes the portrait.
    pub writer: Writer,
    /// Categories named in a portrait, or told to the model.
    #[serde(default = "categories")]
    pub categories: usize,
    /// The prompt of `writer: llm` (minijinja), which sees `group`, `members` and `favourites`: a list
    /// with `name`, `percent` of the group's clicks and the `usual` percent of everybody's.
    #[serde(default = "template")]
    pub template: PathBuf,
    /// What the model writes.
    #[serde(default)]
    pub format: Format,
    /// How the model writes it.
    #[serde(default)]
    pub writing: WritingParameters,
}

fn template() -> PathBuf {
    PathBuf::from("prompts/profile.jinja")
}

fn representatives() -> usize {
    8
}
fn categories() -> usize {
    4
}

/// The portraits by group, the default one included.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Portraits(BTreeMap<String, Portrait>);

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Portrait {
    text: String,
    /// Members at the fit.
    members: u64,
    /// The users described.
    representatives: Vec<Value>,
}

impl Artifact for Portraits {
    fn to_bytes(&self) -> Vec<u8> {
        postcard::to_allocvec(self).unwrap_or_default()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, KernelError> {
        postcard::from_bytes(bytes).map_err(|e| format!("portraits: {e}"))
    }
}

/// The places of the columns read.
#[derive(Clone, Copy)]
struct Columns {
    group: usize,
    embedding: usize,
    categories: usize,
}

/// Squared distance of two vectors.
fn distance(a: &[f32], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (f64::from(*x) - y).powi(2)).sum()
}

fn mean(vectors: &[&Vec<f32>]) -> Vec<f64> {
    let width = vectors.first().map_or(0, |v| v.len());
    let sum = |at: usize| vectors.iter().map(|v| f64::from(v[at])).sum::<f64>();
    (0..width).map(|at| sum(at) / vectors.len() as f64).collect()
}

/// What is known of the members of one group.
#[derive(Default)]
struct Members<'a> {
    users: Vec<(&'a Row, &'a Vec<f32>)>,
}

impl GroupProfile {
    /// The portraits in fixed wording, with what they are written from.
    fn fit(&self, at: Columns, inputs: &[&dyn Snapshot]) -> BTreeMap<String, (Portrait, Facts)> {
        let mut vectors: BTreeMap<Row, Vec<f32>> = BTreeMap::new();
        inputs[1].for_each(&mut |key, row, _| {
            row[at.embedding].as_floats().map(|vector| vectors.insert(key.clone(), vector));
        });
        let mut clicks: BTreeMap<Row, Clicks> = BTreeMap::new();
        inputs[2].for_each(&mut |key, row, _| {
            clicks.insert(key.clone(), clicks_of(row, at.categories));
        });
        let mut groups: Vec<(Row, String)> = Vec::new();
        inputs[0].for_each(&mut |key, row, _| {
            groups.push((key.clone(), row[at.group].as_text().unwrap_or_default().to_string()));
        });
        let mut members: BTreeMap<&str, Members<'_>> = BTreeMap::new();
        for (user, group) in &groups {
            if let Some(vector) = vectors.get(user) {
                members.entry(group).or_default().users.push((user, vector));
            }
        }
        let mut population = Clicks::new();
        clicks.values().for_each(|c| add(&mut population, c));
        let mut portraits: BTreeMap<String, (Portrait, Facts)> = members
            .iter()
            .map(|(group, members)| (group.to_string(), self.portrait(members, &clicks, &population)))
            .collect();
        let (text, facts) = facts(&population, &population, self.categories, 0);
        let default = Portrait { text, members: 0, representatives: vec![] };
        portraits.insert(DEFAULT_GROUP.to_string(), (default, facts));
        portraits
    }

    fn portrait(
        &self,
        members: &Members<'_>,
        clicks: &BTreeMap<Row, Clicks>,
        population: &Clicks,
    ) -> (Portrait, Facts) {
        let vectors: Vec<&Vec<f32>> = members.users.iter().map(|(_, vector)| *vector).collect();
        let centre = mean(&vectors);
        let mut nearest: Vec<(f64, &Row)> =
            members.users.iter().map(|(user, vector)| (distance(vector, &centre), *user)).collect();
        nearest.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(b.1)));
        nearest.truncate(self.representatives);
        let mut theirs = Clicks::new();
        nearest.iter().filter_map(|(_, user)| clicks.get(*user)).for_each(|c| add(&mut theirs, c));
        let size = members.users.len() as u64;
        let (text, facts) = facts(&theirs, population, self.categories, size);
        let representatives = nearest.iter().filter_map(|(_, user)| user.first().cloned()).collect();
        (Portrait { text, members: size, representatives }, facts)
    }

    /// What is said to a model where none writes: it would change nothing.
    fn unread(&self, inputs: &Inputs<'_>) -> Vec<Problem> {
        let given = [
            ("template", self.template != template()),
            ("format", self.format != Format::default()),
            ("writing", self.writing != WritingParameters::default()),
        ];
        let parameter = |(name, _)| Problem::with(name, "only `writer: llm` reads this");
        let mut problems: Vec<Problem> =
            given.into_iter().filter(|(_, given)| *given).map(parameter).collect();
        if inputs.model.is_some() {
            problems.push(Problem::field("model", "only `writer: llm` asks a model"));
        }
        problems.into_iter().map(|problem| problem.help("say `writer: llm`, or remove it")).collect()
    }

    /// The columns read, and the language model with all it needs where it writes.
    fn parts(&self, inputs: &Inputs<'_>) -> Result<(Columns, Option<PortraitWriter>), Vec<Problem>> {
        let mut problems = Problems::default();
        let writer = match self.writer {
            Writer::Template => {
                self.unread(inputs).into_iter().for_each(|problem| problems.push(problem));
                Some(None)
            }
            Writer::Llm => {
                let model = problems.take(inputs.served());
                let prepared = problems.take(PortraitWriter::prepare(
                    inputs,
                    &self.template,
                    self.format,
                    &self.writing,
                ));
                model.zip(prepared).map(|(model, writer)| Some(writer(model)))
            }
        };
        problems.take(inputs.at_most(3));
        problems.require(self.representatives > 0, || Problem::with("representatives", "must be at least 1"));
        let mut column = |at, what, name| {
            let input = problems.take(inputs.relation(at, what))?;
            problems.take(inputs.column(at, input, name))
        };
        let group = column(0, "groups by user", "group");
        let embedding = column(1, "vectors by user", "embedding");
        let categories = column(2, "filtered clicks by user", "categories");
        let all = group.zip(embedding).zip(categories).zip(writer);
        problems.finish(all.map(|(((group, embedding), categories), writer)| {
            (Columns { group, embedding, categories }, writer)
        }))
    }
}

impl Operator for GroupProfile {
    fn output(&self, inputs: &Inputs<'_>) -> Result<Schema, Vec<Problem>> {
        self.parts(inputs)?;
        let user = inputs.inputs[0].schema.key.first().map_or(Type::Text, |c| c.ty.clone());
        let schema = Schema::new(
            [Column::new("group", Type::Text)],
            [
                Column::new("profile", Type::Text),
                Column::new("members", Type::U64),
                Column::new("representatives", user.list()),
            ],
        );
        Ok(schema.made_of(inputs))
    }

    fn model_kinds(&self) -> &'static [&'static str] {
        match self.writer {
            Writer::Template => &[],
            Writer::Llm => &["language_model"],
        }
    }

    fn renews(&self) -> bool {
        true
    }

    fn build(&self, inputs: &Inputs<'_>, graph: &mut Graph) -> LeafId {
        let Ok((columns, writer)) = self.parts(inputs) else { unreachable!("checked by output") };
        let leaves: Vec<LeafId> = inputs.inputs.iter().map(|i| i.leaf).collect();
        let operator = self.clone();
        let GroupProfile { representatives, categories, .. } = self;
        let writing = writer.as_ref().map_or("template".to_string(), PortraitWriter::logic);
        let logic = format!("group_profile/2 {representatives} {categories} {writing}");
        let artifacts = writer.as_ref().map(PortraitWriter::artifacts).unwrap_or_default();
        let fitted =
            graph.fit("portraits", &leaves, &artifacts, logic, move |inputs, artifacts, progress| {
                let mut portraits = operator.fit(columns, inputs);
                if let Some(writer) = &writer {
                    let facts: Vec<_> =
                        portraits.iter().map(|(group, (_, facts))| (group.as_str(), facts)).collect();
                    let texts = writer.write(artifacts, &facts, progress)?;
                    for ((portrait, _), text) in portraits.values_mut().zip(texts) {
                        portrait.text = text.unwrap_or(std::mem::take(&mut portrait.text));
                    }
                }
                Ok(Portraits(portraits.into_iter().map(|(group, (portrait, _))| (group, portrait)).collect()))
            });
        if self.writer == Writer::Llm {
            graph.asks(fitted);
        }
        graph.map_with("", fitted.leaf(), fitted, |portraits: &Portraits, _, _, out| {
            out.extend(portraits.0.iter().map(|(group, portrait)| {
                let representatives = Value::list(portrait.representatives.iter().cloned());
                let row = [Value::text(&portrait.text), Value::U64(portrait.members), representatives];
                (Row::from([Value::text(group)]), Row::from(row))
            }));
            Ok(())
        })
    }
}

impl Described for GroupProfile {
    const NAME: &'static str = "group_profile";
    const EXAMPLE: &'static str = include_str!("examples/group_profile.yaml");
}
