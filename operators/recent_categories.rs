//! The categories of a user's newest clicks (CoEA 4.2.4, C'_short).
//!
//! By default a sorted set, so that users whose recent interests agree share a key whatever the
//! order of their clicks; recency decides which categories are in it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    category_map::domain_of,
    click_filter::item_column,
    operator::{Described, Inputs, Operator, Problem},
    row::{Row, Value},
    schema::{Column, Schema, Type},
    shape::{Counts, Event, FoldKernel, Graph, LeafId, Walk},
};

/// The last distinct categories among a user's newest clicks.
///
/// Inputs: a source of events, and a relation item → categories.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RecentCategories {
    /// Newest events looked at (K).
    pub last: u64,
    /// Distinct categories kept, newest first; within one event the rarest first.
    pub keep: u64,
    /// Keep them in order of recency instead of as a sorted set.
    #[serde(default)]
    pub ordered: bool,
}

impl FoldKernel for RecentCategories {
    fn emit(&self, _key: &Row, walk: &mut Walk<'_>, _counts: &Counts, out: &mut Vec<Row>) {
        let mut left = self.last;
        let mut recent: Vec<Value> = Vec::new();
        walk(&mut |event: &Event<'_>| {
            let categories =
                event.dim.and_then(|dim| dim.first()).and_then(Value::as_list).unwrap_or_default();
            for category in categories {
                if (recent.len() as u64) < self.keep && !recent.contains(category) {
                    recent.push(category.clone());
                }
            }
            left = left.saturating_sub(event.count);
            left > 0 && (recent.len() as u64) < self.keep
        });
        if !self.ordered {
            recent.sort();
        }
        if !recent.is_empty() {
            out.push(Row::from([Value::list(recent)]));
        }
    }
}

impl Operator for RecentCategories {
    fn output(&self, inputs: &Inputs<'_>) -> Result<Schema, Vec<Problem>> {
        item_column(inputs)?;
        if self.last == 0 || self.keep == 0 {
            let parameter = if self.last == 0 { "last" } else { "keep" };
            return Err(vec![Problem::with(parameter, "must be at least 1")]);
        }
        let mut column = Column::new("categories", Type::Text.list());
        column.domain = domain_of(&inputs.inputs[1].schema, "categories");
        Ok(Schema::new(inputs.inputs[0].schema.key.clone(), [column]))
    }

    fn build(&self, inputs: &Inputs<'_>, graph: &mut Graph) -> LeafId {
        let Ok(item) = item_column(inputs) else { unreachable!("checked by output") };
        graph.fold("", inputs.inputs[0].leaf, Some((inputs.inputs[1].leaf, item)), self.clone())
    }
}

impl Described for RecentCategories {
    const NAME: &'static str = "recent_categories";
    const EXAMPLE: &'static str = include_str!("examples/recent_categories.yaml");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fold;

    fn recent(last: u64, keep: u64, ordered: bool, history: &[(i64, u64, u64)]) -> String {
        let rows = fold(&RecentCategories { last, keep, ordered }, history);
        rows.iter().flat_map(|r| r[0].as_list().unwrap()).map(Value::to_string).collect()
    }

    #[test]
    fn takes_the_newest_distinct_ones() {
        let history = &[(1, 9, 1), (2, 31, 1), (3, 2, 1), (4, 2, 1)];
        assert_eq!(recent(10, 2, true, history), "23");
        assert_eq!(recent(10, 3, true, history), "231");
        assert_eq!(recent(10, 3, false, history), "123");
        assert_eq!(recent(2, 3, false, history), "2");
        assert_eq!(recent(10, 9, false, history), "1239");
    }

    #[test]
    fn equal_clicks_count_as_often_as_they_happened() {
        assert_eq!(recent(3, 2, false, &[(1, 1, 1), (2, 2, 3)]), "2");
        assert_eq!(recent(3, 2, false, &[(1, 1, 1), (2, 2, 2)]), "12");
    }
}
