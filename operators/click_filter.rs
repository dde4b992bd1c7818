//! Keeps the clicks that speak for a user's lasting interests (CoEA eq. 3).
//!
//! Counting is by category where a user meets each item once: by item it would keep nothing. The
//! counts are kept up to date by the engine, so a click costs the same in a long history as in a
//! short one.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    operator::{Described, Inputs, Operator, Problem, Problems},
    row::{Row, Value},
    schema::{Column, Schema, Type},
    shape::{Counts, Event, FoldKernel, Graph, LeafId, Walk},
};

/// What is counted to tell lasting interests from passing ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CountBy {
    /// Clicks of the same item: the paper's form.
    Item,
    /// Clicks of any of the item's categories.
    Category,
}

/// Long-term clicks that recur.
///
/// Inputs: a source of events, and a relation item → categories.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClickFilter {
    /// Newest events left to the short term.
    #[serde(default)]
    pub exclude_last: u64,
    /// Clicks an item, or one of its categories, needs to stay (τ).
    pub min_clicks: u64,
    /// What is counted.
    pub count_by: CountBy,
    /// Newest kept clicks that are passed on.
    #[serde(default = "keep_last")]
    pub keep_last: u64,
}

fn keep_last() -> u64 {
    200
}

/// The places of an event's item and of the side input's categories.
struct Kernel {
    filter: ClickFilter,
    item: usize,
}

fn categories<'a>(event: &Event<'a>) -> &'a [Value] {
    event.dim.and_then(|dim| dim.first()).and_then(Value::as_list).unwrap_or_default()
}

impl FoldKernel for Kernel {
    fn counts(&self) -> bool {
        true
    }

    fn counted(&self, event: &Event<'_>, out: &mut Vec<Value>) {
        match self.filter.count_by {
            CountBy::Item => out.extend(event.row.get(self.item).cloned()),
            CountBy::Category => out.extend_from_slice(categories(event)),
        }
    }

    fn emit(&self, _key: &Row, walk: &mut Walk<'_>, counts: &Counts, out: &mut Vec<Row>) {
        let mut short = self.filter.exclude_last;
        let mut newer: BTreeMap<Value, i64> = BTreeMap::new();
        let mut kept: Vec<(Value, Value)> = Vec::new();
        let mut of_event = Vec::new();
        let least = self.filter.min_clicks as i64;
        // How many kept clicks there can be at most, known when the short term has been walked.
        let mut possible: Option<i64> = None;
        walk(&mut |event| {
            of_event.clear();
            self.counted(event, &mut of_event);
            let skipped = event.count.min(short);
            short -= skipped;
            for value in &of_event {
                *newer.entry(value.clone()).or_default() += skipped as i64;
            }
            let long = |value: &Value, newer: &BTreeMap<Value, i64>| {
                counts.get(value).copied().unwrap_or(0) - newer.get(value).copied().unwrap_or(0)
            };
            let rest = event.count - skipped;
            if rest == 0 {
                return true;
            }
            let possible = *possible
                .get_or_insert_with(|| counts.keys().map(|v| long(v, &newer)).filter(|n| *n >= least).sum());
            if least == 0 || of_event.iter().any(|value| long(value, &newer) >= least) {
                let entry = (event.row[self.item].clone(), Value::list(categories(event).iter().cloned()));
                let room = self.filter.keep_last.saturating_sub(kept.len() as u64);
                kept.extend(std::iter::repeat_n(entry, rest.min(room) as usize));
            }
            (kept.len() as u64) < self.filter.keep_last && (least == 0 || (kept.len() as i64) < possible)
        });
        if kept.is_empty() {
            return;
        }
        kept.reverse();
        let (items, categories): (Vec<_>, Vec<_>) = kept.into_iter().unzip();
        out.push(Row::from([Value::list(items), Value::list(categories)]));
    }
}

/// The place of the item in the events, found by the name of the relation's key.
pub(crate) fn item_column(inputs: &Inputs<'_>) -> Result<usize, Vec<Problem>> {
    let place = item_place(inputs);
    match inputs.at_most(2) {
        Ok(()) => place,
        Err(problem) => Err(place.err().into_iter().flatten().chain([problem]).collect()),
    }
}

/// The place in an event of the item under which the second input has its categories.
pub(crate) fn item_place(inputs: &Inputs<'_>) -> Result<usize, Vec<Problem>> {
    let mut problems = Problems::default();
    let events = problems.take(inputs.events(0));
    let items = problems.take(inputs.relation(1, "a relation item → categories"));
    let place = events.zip(items).and_then(|(events, items)| {
        problems.take(inputs.column(1, items, "categories"));
        let key = match items.schema.key.as_slice() {
            [key] => key,
            _ => {
                problems.push(Problem::input(1, format!("`{}` must be keyed by one column", items.name)));
                return None;
            }
        };
        let place = problems.take(inputs.column(0, events, &key.name))?;
        let ours = &events.schema.columns[place].ty;
        problems.require(*ours == key.ty, || {
            let message =
                format!("`{}` is {ours} in `{}` but {} in `{}`", key.name, events.name, key.ty, items.name);
            Problem::input(1, message).help("declare the same type in both sources")
        });
        Some(place)
    });
    problems.finish(place)
}

impl Operator for ClickFilter {
    fn output(&self, inputs: &Inputs<'_>) -> Result<Schema, Vec<Problem>> {
        let item = item_column(inputs)?;
        if self.keep_last == 0 {
            return Err(vec![Problem::with("keep_last", "must keep at least 1 click")]);
        }
        let events = &inputs.inputs[0].schema;
        let mut categories = Column::new("categories", Type::Text.list().list());
        categories.domain = crate::category_map::domain_of(&inputs.inputs[1].schema, "categories");
        let items = Column::new("items", events.columns[item].ty.clone().list());
        let schema = Schema::new(events.key.clone(), [items, categories]);
        Ok(schema.holding_back(&inputs.inputs[0].name, self.exclude_last))
    }

    fn build(&self, inputs: &Inputs<'_>, graph: &mut Graph) -> LeafId {
        let Ok(item) = item_column(inputs) else { unreachable!("checked by output") };
        let kernel = Kernel { filter: self.clone(), item };
        graph.fold("", inputs.inputs[0].leaf, Some((inputs.inputs[1].leaf, item)), kernel)
    }
}

impl Described for ClickFilter {
    const NAME: &'static str = "click_filter";
    const EXAMPLE: &'static str = include_str!("examples/click_filter.yaml");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fold;

    fn filter(exclude_last: u64, min_clicks: u64, count_by: CountBy, keep_last: u64) -> Kernel {
        Kernel { filter: ClickFilter { exclude_last, min_clicks, count_by, keep_last }, item: 1 }
    }

    fn items(rows: &[Row]) -> Vec<u64> {
        rows.iter().flat_map(|r| r[0].as_list().unwrap()).map(|v| v.as_u64().unwrap()).collect()
    }

    /// (time, item, count); item n has the categories named by its decimal digits.
    const HISTORY: &[(i64, u64, u64)] = &[(1, 12, 1), (2, 13, 1), (3, 4, 1), (4, 12, 2), (5, 4, 1)];

    #[test]
    fn counts_by_category_over_the_long_side_only() {
        assert_eq!(items(&fold(&filter(0, 2, CountBy::Category, 9), HISTORY)), [12, 13, 4, 12, 12, 4]);
        assert_eq!(items(&fold(&filter(1, 2, CountBy::Category, 9), HISTORY)), [12, 13, 12, 12]);
        assert_eq!(items(&fold(&filter(2, 2, CountBy::Category, 9), HISTORY)), [12, 13, 12]);
    }

    #[test]
    fn counts_by_item_as_the_paper_does() {
        assert_eq!(items(&fold(&filter(0, 2, CountBy::Item, 9), HISTORY)), [12, 4, 12, 12, 4]);
        assert_eq!(items(&fold(&filter(0, 4, CountBy::Item, 9), HISTORY)), [0u64; 0]);
    }

    #[test]
    fn keeps_the_newest_and_says_nothing_of_an_empty_side() {
        assert_eq!(items(&fold(&filter(0, 1, CountBy::Category, 2), HISTORY)), [12, 4]);
        assert!(fold(&filter(9, 1, CountBy::Category, 2), HISTORY).is_empty());
    }
}
