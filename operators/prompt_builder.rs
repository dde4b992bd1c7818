//! One prompt per (group, recent interests): the unit that models are asked about and serving reads.
//!
//! The key hashes exactly what the prompt says, so users whose prompts are equal share one answer.
//! The rungs a lookup falls back to are keys like any other: computed, stored and kept fresh.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    category_map::domain_of,
    chat::{NAME_LIMIT, chat_safe},
    operator::{Described, Inputs, Operator, Problem, Problems},
    ordered::encode_row,
    replay::PromptRecipe,
    row::{Row, Value},
    schema::{Column, Schema, Type},
    shape::{Graph, LeafId},
    template::Template,
};

/// The group of a user of whom nothing is known.
pub const DEFAULT_GROUP: &str = "default";

/// What is asked instead when a key has nothing to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fallback {
    /// The group with one of the recent categories.
    OneRecent,
    /// The group without recent categories.
    Group,
    /// The default group without recent categories.
    Default,
}

/// Writes a prompt for every (group, recent categories) that occurs, and for the fallbacks.
///
/// Inputs: users' groups, the groups' profiles, users' recent categories.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PromptBuilder {
    /// The template file (minijinja), which sees `profile`, `group` and `recent`.
    pub template: PathBuf,
    /// Further keys to compute, for lookups whose own key has nothing to serve.
    #[serde(default = "fallbacks")]
    pub fallbacks: Vec<Fallback>,
}

fn fallbacks() -> Vec<Fallback> {
    vec![Fallback::Group, Fallback::Default]
}

/// Characters of a profile that reach a prompt, at most.
const PROFILE_LIMIT: usize = 2000;

/// Reads a template over a group, its profile and recent categories.
pub(crate) fn read_template(inputs: &Inputs<'_>, parameter: &str, path: &Path) -> Result<Template, Problem> {
    let template = Template::read(inputs, parameter, path)?;
    render(&template, "", "", &[]).map_err(|error| {
        Problem::with(parameter, format!("{}: {error}", path.display()))
            .help("a template sees `group`, `profile` and `recent`")
    })?;
    Ok(template)
}

/// Fills a template; names from data lose chat markers and control characters.
pub(crate) fn render(
    template: &Template,
    group: &str,
    profile: &str,
    recent: &[Value],
) -> Result<String, String> {
    let recent: Vec<String> =
        recent.iter().filter_map(Value::as_text).map(|name| chat_safe(name, NAME_LIMIT)).collect();
    template
        .render(&json!({ "group": chat_safe(group, NAME_LIMIT), "profile": chat_safe(profile, PROFILE_LIMIT), "recent": recent }))
}

/// The store key of a group and its recent categories.
pub fn store_key(group: &Value, recent: &Value) -> Row {
    let hash = blake3::hash(&encode_row(std::slice::from_ref(recent)));
    Row::from([group.clone(), Value::text(&hash.to_hex()[..16])])
}

/// A (group, recent) pair as a key; what is asked of it follows from it.
fn pair(group: &Value, recent: Value) -> (Row, Row) {
    (Row::from([group.clone(), recent]), Row::empty())
}

impl PromptBuilder {
    fn columns(&self, inputs: &Inputs<'_>) -> Result<(usize, usize, usize, Template), Vec<Problem>> {
        let mut problems = Problems::default();
        problems.take(inputs.at_most(3));
        let mut column = |at, what, name| {
            let input = problems.take(inputs.relation(at, what))?;
            problems.take(inputs.column(at, input, name))
        };
        let group = column(0, "users' groups", "group");
        let profile = column(1, "profiles by group", "profile");
        let recent = column(2, "users' recent categories", "categories");
        let template = problems.take(read_template(inputs, "template", &self.template));
        let all = group.zip(profile).zip(recent).zip(template);
        problems.finish(all.map(|(((group, profile), recent), template)| (group, profile, recent, template)))
    }

    /// The keys of one user: their own, and `one_recent` where asked for.
    fn own_keys(&self) -> impl Fn(&Value, &Value) -> Vec<(Row, Row)> + Send + Sync + 'static {
        let single = self.fallbacks.contains(&Fallback::OneRecent);
        move |group, recent| {
            let names = recent.as_list().unwrap_or_default();
            let singles = names.iter().filter(|_| single && names.len() > 1);
            let singles = singles.map(|name| pair(group, Value::list([name.clone()])));
            std::iter::once(pair(group, recent.clone())).chain(singles).collect()
        }
    }
}

impl Operator for PromptBuilder {
    fn output(&self, inputs: &Inputs<'_>) -> Result<Schema, Vec<Problem>> {
        let (.., template) = self.columns(inputs)?;
        let mut recent = Column::new("recent", Type::Text.list());
        recent.domain = domain_of(&inputs.inputs[2].schema, "categories");
        let neutral = render(&template, "", "", &[]).map_err(|e| vec![Problem::with("template", e)])?;
        let names: BTreeMap<_, _> = self.fallbacks.iter().map(|f| (*f, ())).collect();
        let fallbacks = serde_json::to_string(&names.into_keys().collect::<Vec<_>>()).unwrap_or_default();
        let schema = Schema::new(
            [Column::new("group", Type::Text), Column::new("hash", Type::Text)],
            [recent, Column::new("profile", Type::Text), Column::new("prompt", Type::Text)],
        );
        let schema = schema.with_note("neutral_prompt", neutral).with_note("fallbacks", fallbacks);
        let schema = schema.made_of(inputs);
        let passed = ["recents_of", "recents_by"].into_iter();
        let passed = passed.filter_map(|note| Some((note, inputs.inputs[2].schema.notes.get(note)?)));
        Ok(passed.fold(schema, |schema, (note, text)| schema.with_note(note, text)))
    }

    fn build(&self, inputs: &Inputs<'_>, graph: &mut Graph) -> LeafId {
        let Ok((group, profile, recent, template)) = self.columns(inputs) else {
            unreachable!("checked by output")
        };
        let own_keys = self.own_keys();
        let [groups, profiles, recents] = [0, 1, 2].map(|at| inputs.inputs[at].leaf);
        let logic = inputs.files.borrow().get(&self.template).cloned().unwrap_or_default();
        graph.publish_recipe(PromptRecipe {
            logic,
            template: template.clone(),
            groups: (groups, group),
            profiles: (profiles, profile),
            recents: (recents, recent),
        });
        let own = graph.join("own_keys", groups, recents, move |_, left, right, out| {
            out.extend(own_keys(&left[group], &right[recent]));
        });
        let wanted = self.fallbacks.clone();
        let fallback = graph.map("fallback_keys", profiles, move |key, _, out| {
            let is_default = key[0].as_text() == Some(DEFAULT_GROUP);
            let rung = if is_default { Fallback::Default } else { Fallback::Group };
            if wanted.contains(&rung) {
                out.push(pair(&key[0], Value::list([])));
            }
            Ok(())
        });
        let distinct = graph.reduce("keys", &[own, fallback], |_, _, out| out.push(Row::empty()));
        let keys = graph.map("keys_by_group", distinct, |key, _, out| {
            out.push((Row::from([key[0].clone()]), Row::from([key[1].clone()])));
            Ok(())
        });
        let joined = graph.join("with_profile", keys, profiles, move |key, left, right, out| {
            let row = Row::from([left[0].clone(), right[profile].clone()]);
            out.push((store_key(&key[0], &left[0]), row));
        });
        graph.map("", joined, move |key, row, out| {
            let text = |v: &Value| v.as_text().unwrap_or_default().to_string();
            let prompt =
                render(&template, &text(&key[0]), &text(&row[1]), row[0].as_list().unwrap_or_default())?;
            out.push((key.clone(), row.concat(&Row::from([Value::text(prompt)]))));
            Ok(())
        })
    }
}

impl Described for PromptBuilder {
    const NAME: &'static str = "prompt_builder";
    const EXAMPLE: &'static str = include_str!("examples/prompt_builder.yaml");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_hash_what_the_prompt_says() {
        let (group, recent) = (Value::text("g01"), Value::list([Value::text("War"), Value::text("Drama")]));
        let other = Value::list([Value::text("Drama"), Value::text("War")]);
        assert_eq!(store_key(&group, &recent), store_key(&group, &recent.clone()));
        assert_ne!(store_key(&group, &recent), store_key(&group, &other));
        assert_ne!(store_key(&Value::text("g02"), &recent)[0], group);
    }

    #[test]
    fn one_recent_adds_a_key_per_category() {
        let builder = |fallbacks| PromptBuilder { template: PathBuf::new(), fallbacks };
        let recent = Value::list([Value::text("War"), Value::text("Drama")]);
        assert_eq!(builder(vec![]).own_keys()(&Value::text("g"), &recent).len(), 1);
        assert_eq!(builder(vec![Fallback::OneRecent]).own_keys()(&Value::text("g"), &recent).len(), 3);
    }
}
