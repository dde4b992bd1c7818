//! Keeps the candidates the relevance model vouches for (CoEA eq. 14).

use std::cmp::Reverse;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    category_map::domain_of,
    operator::{Described, Inputs, Operator, Problem, Problems},
    row::{Row, Value},
    schema::{Column, Schema, Type},
    shape::{Graph, LeafId},
};

/// Candidates whose relevance exceeds a threshold, best first.
///
/// Input: scored candidates by key.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Align {
    /// The score a candidate must exceed (τ_align).
    pub threshold: f64,
    /// Candidates kept at most; all that pass if absent.
    #[serde(default)]
    pub keep: Option<u64>,
}

/// Column type of a list of (category, score).
pub(crate) fn scored_categories() -> Type {
    Type::Tuple(vec![Type::Text, Type::F64]).list()
}

/// One (category, score) cell.
pub(crate) fn scored(category: Value, score: f64) -> Value {
    Value::list([category, Value::float(score)])
}

fn score_of(cell: &Value) -> f64 {
    cell.as_list().and_then(|pair| pair.get(1)).and_then(Value::as_f64).unwrap_or(f64::NEG_INFINITY)
}

/// Passing cells, best first; equal scores by name.
fn align(cells: &[Value], threshold: f64, keep: usize) -> Vec<Value> {
    let mut passing: Vec<&Value> = cells.iter().filter(|cell| score_of(cell) > threshold).collect();
    passing.sort_by_key(|cell| (Reverse(crate::row::Float::new(score_of(cell))), (*cell).clone()));
    passing.into_iter().take(keep).cloned().collect()
}

impl Align {
    fn columns(&self, inputs: &Inputs<'_>) -> Result<(usize, usize), Vec<Problem>> {
        let mut problems = Problems::default();
        problems.take(inputs.at_most(1));
        problems
            .require(self.threshold.is_finite(), || Problem::with("threshold", "must be a finite number"));
        let input = problems.take(inputs.relation(0, "scored candidates"));
        let columns = input.and_then(|input| {
            let recent = problems.take(inputs.column(0, input, "recent"))?;
            Some((recent, problems.take(inputs.column(0, input, "scored"))?))
        });
        problems.finish(columns)
    }
}

impl Operator for Align {
    fn output(&self, inputs: &Inputs<'_>) -> Result<Schema, Vec<Problem>> {
        let (recent, _) = self.columns(inputs)?;
        let input = &inputs.inputs[0].schema;
        let mut categories = Column::new("categories", scored_categories());
        categories.domain = domain_of(input, "scored");
        Ok(Schema::new(input.key.clone(), [input.columns[recent].clone(), categories]))
    }

    fn build(&self, inputs: &Inputs<'_>, graph: &mut Graph) -> LeafId {
        let Ok((recent, scores)) = self.columns(inputs) else { unreachable!("checked by output") };
        let (threshold, keep) = (self.threshold, self.keep.map_or(usize::MAX, |k| k as usize));
        graph.map("", inputs.inputs[0].leaf, move |key, row, out| {
            let passing = align(row[scores].as_list().unwrap_or_default(), threshold, keep);
            out.push((key.clone(), Row::from([row[recent].clone(), Value::list(passing)])));
            Ok(())
        })
    }
}

impl Described for Align {
    const NAME: &'static str = "align";
    const EXAMPLE: &'static str = include_str!("examples/align.yaml");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_pass_in_order_and_the_threshold_does_not() {
        let cell = |name: &str, score| scored(Value::text(name), score);
        let cells = [cell("b", 0.5), cell("d", 0.7), cell("c", 0.9), cell("a", 0.7)];
        assert_eq!(align(&cells, 0.5, 9), [cell("c", 0.9), cell("a", 0.7), cell("d", 0.7)]);
        assert_eq!(align(&cells, 0.5, 1), [cell("c", 0.9)]);
        assert!(align(&cells, 0.9, 9).is_empty());
    }
}
