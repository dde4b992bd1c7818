//! Deals users into groups by a hash: the group identity that needs no model.
//!
//! Useful as a placebo beside the fitted groups, and to measure the engine without a model.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    operator::{Described, Inputs, Operator, Problem, Problems},
    ordered::encode_row,
    row::{Row, Value},
    schema::{Column, Schema, Type},
    shape::{Graph, LeafId},
};

/// One row per (group, category) of each user, the group drawn by a hash of the user.
///
/// Input: a relation with a list of categories per user.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HashGroup {
    /// Number of groups.
    pub groups: u64,
}

impl HashGroup {
    fn column(&self, inputs: &Inputs<'_>) -> Result<usize, Vec<Problem>> {
        let mut problems = Problems::default();
        problems.require(self.groups > 0, || Problem::with("groups", "must be at least 1"));
        problems.take(inputs.at_most(1));
        let input = problems.take(inputs.relation(0, "a relation with categories"));
        let column = input.and_then(|input| problems.take(inputs.column(0, input, "categories")));
        problems.finish(column)
    }
}

/// The group of a key: uniform, and the same on every machine.
fn group_of(key: &Row, groups: u64) -> u64 {
    let hash = blake3::hash(&encode_row(key));
    let (head, _) = hash.as_bytes().split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
    u64::from_le_bytes(*head) % groups
}

impl Operator for HashGroup {
    fn output(&self, inputs: &Inputs<'_>) -> Result<Schema, Vec<Problem>> {
        self.column(inputs)?;
        Ok(Schema::new([Column::new("group", Type::U64), Column::new("category", Type::Text)], []))
    }

    fn build(&self, inputs: &Inputs<'_>, graph: &mut Graph) -> LeafId {
        let Ok(column) = self.column(inputs) else { unreachable!("checked by output") };
        let groups = self.groups;
        graph.map("", inputs.inputs[0].leaf, move |key, row, out| {
            let group = Value::U64(group_of(key, groups));
            let categories = row[column].as_list().unwrap_or_default();
            out.extend(categories.iter().map(|c| (Row::from([group.clone(), c.clone()]), Row::empty())));
            Ok(())
        })
    }
}

impl Described for HashGroup {
    const NAME: &'static str = "hash_group";
    const EXAMPLE: &'static str = include_str!("examples/hash_group.yaml");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_spread_evenly() {
        let mut sizes = [0; 4];
        (0..4000).for_each(|user| sizes[group_of(&Row::from([Value::U64(user)]), 4) as usize] += 1);
        assert!(sizes.iter().all(|size| (900..1100).contains(size)), "{sizes:?}");
    }
}
