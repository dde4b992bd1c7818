//! The categories of a user's newest clicks (CoEA 4.2.4, C'_short).
//!
//! By default a sorted set, so that users whose recent interests agree share a key whatever the
//! order of their clicks; recency decides which categories are in it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    category_map::domain_of,
    click_filter::item_column,
    operator::{Described, Inputs, Operator, Problem, Problems},
    row::{Row, Value},
    schema::{Column, Schema, Type},
    shape::{Counts, Event, FoldKernel, Graph, LeafId, Walk},
};

/// The last distinct categories among a user's newest clicks.
///
/// Inputs: a source of events, and a relation item → categories; or, with `column`, the events
/// alone.
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
    /// The column of the events that holds an event's category, or a list of them, where events
    /// carry their categories themselves and no second input is given.
    #[serde(default)]
    pub column: Option<String>,
}

/// The parameters, with the place of `column` in the events.
struct Kernel {
    params: RecentCategories,
    column: Option<usize>,
}

impl Kernel {
    fn categories<'a>(&self, event: &Event<'a>) -> &'a [Value] {
        let cell = match self.column {
            Some(at) => event.row.get(at),
            None => event.dim.and_then(|dim| dim.first()),
        };
        match cell {
            Some(Value::List(list)) => list,
            Some(category @ Value::Text(_)) => std::slice::from_ref(category),
            _ => &[],
        }
    }
}

impl FoldKernel for Kernel {
    fn emit(&self, _key: &Row, walk: &mut Walk<'_>, _counts: &Counts, out: &mut Vec<Row>) {
        let RecentCategories { last, keep, ordered, .. } = self.params;
        let mut left = last;
        let mut recent: Vec<Value> = Vec::new();
        walk(&mut |event: &Event<'_>| {
            for category in self.categories(event) {
                if (recent.len() as u64) < keep && !recent.contains(category) {
                    recent.push(category.clone());
                }
            }
            left = left.saturating_sub(event.count);
            left > 0 && (recent.len() as u64) < keep
        });
        if !ordered {
            recent.sort();
        }
        if !recent.is_empty() {
            out.push(Row::from([Value::list(recent)]));
        }
    }
}

impl Operator for RecentCategories {
    fn output(&self, inputs: &Inputs<'_>) -> Result<Schema, Vec<Problem>> {
        let domain = match self.place(inputs)? {
            Place::Event(_) => None,
            Place::Item(_) => domain_of(&inputs.inputs[1].schema, "categories"),
        };
        if self.last == 0 || self.keep == 0 {
            let parameter = if self.last == 0 { "last" } else { "keep" };
            return Err(vec![Problem::with(parameter, "must be at least 1")]);
        }
        let mut column = Column::new("categories", Type::Text.list());
        column.domain = domain;
        let schema = Schema::new(inputs.inputs[0].schema.key.clone(), [column]);
        // A plain struct of numbers and names always has a JSON form.
        let parameters = serde_json::to_string(self).unwrap_or_default();
        let time = inputs.inputs[0].schema.columns.first().map(|time| time.ty.to_string());
        let schema = schema.with_note("recents_time", time.unwrap_or_default());
        Ok(schema.with_note("recents_of", &inputs.inputs[0].name).with_note("recents_by", parameters))
    }

    fn build(&self, inputs: &Inputs<'_>, graph: &mut Graph) -> LeafId {
        let (column, dim) = match self.place(inputs) {
            Ok(Place::Event(column)) => (Some(column), None),
            Ok(Place::Item(item)) => (None, Some((inputs.inputs[1].leaf, item))),
            Err(_) => unreachable!("checked by output"),
        };
        graph.fold("", inputs.inputs[0].leaf, dim, Kernel { params: self.clone(), column })
    }
}

/// Where an event's categories are found.
enum Place {
    /// In a column of the event.
    Event(usize),
    /// In the relation, under the item that a column of the event names.
    Item(usize),
}

impl RecentCategories {
    fn place(&self, inputs: &Inputs<'_>) -> Result<Place, Vec<Problem>> {
        let Some(name) = &self.column else { return item_column(inputs).map(Place::Item) };
        let mut problems = Problems::default();
        if inputs.inputs.len() > 1 {
            problems.push(
                Problem::with(
                    "column",
                    "categories come from the second input, or from a column of the events",
                )
                .help("leave one of the two out"),
            );
        }
        let events = problems.take(inputs.events(0));
        let place = events.and_then(|events| {
            let place = problems.take(inputs.column(0, events, name))?;
            let ty = &events.schema.columns[place].ty;
            problems.require([Type::Text, Type::Text.list()].contains(ty), || {
                Problem::with("column", format!("`{name}` is {ty}; a category is text, or a list of text"))
            });
            Some(place)
        });
        problems.finish(place).map(Place::Event)
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
        let params = RecentCategories { last, keep, ordered, column: None };
        let rows = fold(&Kernel { params, column: None }, history);
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

    #[test]
    fn events_may_carry_their_categories() {
        let kernel = |column| Kernel {
            params: RecentCategories { last: 2, keep: 9, ordered: false, column: Some("c".to_string()) },
            column: Some(column),
        };
        let list = Value::list([Value::text("b"), Value::text("a")]);
        let event = Row::from([Value::I64(1), Value::text("c"), list, Value::Null]);
        let emit = |column| {
            let mut out = Vec::new();
            let mut walk = |visit: &mut dyn FnMut(&Event<'_>) -> bool| {
                visit(&Event { row: &event, count: 1, dim: None });
            };
            kernel(column).emit(&Row::empty(), &mut walk, &Counts::new(), &mut out);
            out.first().map(|row| row[0].to_string())
        };
        assert_eq!(emit(1).as_deref(), Some(r#"["c"]"#));
        assert_eq!(emit(2).as_deref(), Some(r#"["a","b"]"#));
        assert_eq!(emit(3), None);
    }
}
