//! One group for everybody: keys are recent interests and nothing else.
//!
//! Google-v1 asks about pairs of interests and knows no groups. Its table is the one that every
//! pipeline has, of groups and recent interests, with one group in it: so nothing that writes prompts,
//! serves or trains needs to know of pipelines without groups.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    operator::{Described, Inputs, Operator, Problem, Problems},
    prompt_builder::DEFAULT_GROUP,
    row::{Row, Value},
    schema::{Column, Schema, Type},
    shape::{Graph, LeafId},
};

/// Puts everybody into one group.
///
/// Input: a relation by user, such as recent_categories. The group's profile comes from a source of the
/// pipeline's own, keyed by `group`, with a row for it and one for `default`, which is asked for users who
/// are not in the relation.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OneGroup {
    /// The group's name.
    #[serde(default = "all")]
    pub name: String,
}

fn all() -> String {
    "all".to_string()
}

impl Operator for OneGroup {
    fn output(&self, inputs: &Inputs<'_>) -> Result<Schema, Vec<Problem>> {
        let mut problems = Problems::default();
        problems.take(inputs.at_most(1));
        problems.require(!self.name.is_empty() && self.name != DEFAULT_GROUP, || {
            Problem::with("name", "must say something, and not `default`")
                .help("`default` is the group of users of whom nothing is known")
        });
        let input = problems.take(inputs.relation(0, "a relation by user"));
        let group = Column::new("group", Type::Text);
        problems.finish(input.map(|input| Schema::new(input.schema.key.clone(), [group])))
    }

    fn build(&self, inputs: &Inputs<'_>, graph: &mut Graph) -> LeafId {
        let group = Row::from([Value::text(&self.name)]);
        graph.reduce("", &[inputs.inputs[0].leaf], move |_, _, out| out.push(group.clone()))
    }
}

impl Described for OneGroup {
    const NAME: &'static str = "one_group";
    const EXAMPLE: &'static str = include_str!("examples/one_group.yaml");
}
