//! How many rows a key has.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    operator::{Described, Inputs, Operator, Problem, Problems},
    row::{Row, Value},
    schema::{Column, Schema, Type},
    shape::{Graph, LeafId},
};

/// Counts the rows of each key of a relation.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Count {
    /// Keys with fewer rows are left out.
    #[serde(default)]
    pub at_least: u64,
}

impl Operator for Count {
    fn output(&self, inputs: &Inputs<'_>) -> Result<Schema, Vec<Problem>> {
        let mut problems = Problems::default();
        problems.take(inputs.at_most(1));
        let input = problems.take(inputs.relation(0, "a relation"));
        let count = Column::new("count", Type::U64);
        problems.finish(input.map(|input| Schema::new(input.schema.key.clone(), [count])))
    }

    fn build(&self, inputs: &Inputs<'_>, graph: &mut Graph) -> LeafId {
        let at_least = self.at_least;
        graph.reduce("", &[inputs.inputs[0].leaf], move |_, rows, out| {
            let count: i64 = rows[0].iter().map(|(_, n)| n).sum();
            if count > 0 && count as u64 >= at_least {
                out.push(Row::from([Value::U64(count as u64)]));
            }
        })
    }
}

impl Described for Count {
    const NAME: &'static str = "count";
    const EXAMPLE: &'static str = include_str!("examples/count.yaml");
}
