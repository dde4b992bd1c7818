//! What a category is: the one definition every consumer of a pipeline shares (CoEA 4.2.4, c(·)).
//!
//! The map is fitted, not hard-wired: how often a category is clicked decides the order within an
//! item (rarest first, never alphabetical) and which combinations are frequent enough to be labels.
//! It is versioned like any model, so a new category waits for the refit instead of moving keys.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    operator::{Described, Inputs, Operator, Problem, Problems},
    row::{Row, Value},
    schema::{Column, Schema, Type},
    shape::{Artifact, Graph, KernelError, LeafId, Snapshot},
};

/// How an item's listed categories become its labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mapping {
    /// Every category is a label.
    All,
    /// Only the first one listed.
    First,
    /// The whole combination is one label; a rare one backs off to its most clicked subset.
    Set,
}

/// Maps each item to its categories, ordered rarest first.
///
/// Inputs: a relation of items with a list of categories, and optionally the source of events
/// whose clicks say how rare a category is.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CategoryMap {
    /// How an item's listed categories become its labels.
    pub mapping: Mapping,
    /// Clicks a label needs; a rarer combination backs off to its most clicked subset that has them.
    #[serde(default)]
    pub min_clicks: u64,
    /// The column of the items that lists the categories.
    #[serde(default = "genres")]
    pub column: String,
}

fn genres() -> String {
    "genres".to_string()
}

/// The fitted map: labels with their clicks, and what each combination backs off to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CategoryTable {
    /// Labels in lexicographic order, with clicks and the categories they are made of.
    pub labels: BTreeMap<String, Label>,
    /// Sorted combination → label, for `set`.
    combinations: BTreeMap<Vec<String>, String>,
}

/// One label of a [`CategoryTable`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Label {
    /// Clicks on items that carry it, counted at the fit.
    pub clicks: u64,
    /// The categories it is made of.
    pub parts: Vec<String>,
}

impl Artifact for CategoryTable {
    fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&(&self.labels, self.combinations.iter().collect::<Vec<_>>())).unwrap_or_default()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, KernelError> {
        let (labels, combinations): (_, Vec<_>) =
            serde_json::from_slice(bytes).map_err(|e| format!("category table: {e}"))?;
        Ok(CategoryTable { labels, combinations: combinations.into_iter().collect() })
    }
}

impl CategoryTable {
    /// The label names, in order.
    pub fn names(&self) -> Vec<String> {
        self.labels.keys().cloned().collect()
    }

    /// The labels of an item that lists these categories, rarest first.
    pub fn labels_of(&self, mapping: Mapping, listed: &[String]) -> Vec<String> {
        let mut labels: Vec<&String> = match mapping {
            Mapping::All => listed.iter().filter(|c| self.labels.contains_key(*c)).collect(),
            Mapping::First => listed.first().into_iter().filter(|c| self.labels.contains_key(*c)).collect(),
            Mapping::Set => self.combinations.get(&combination(listed)).into_iter().collect(),
        };
        labels.sort_by_key(|name| (self.labels.get(*name).map_or(0, |l| l.clicks), *name));
        labels.dedup();
        labels.into_iter().cloned().collect()
    }

    fn fit(mapping: Mapping, min_clicks: u64, items: &[(Vec<String>, u64)]) -> Self {
        let mut table = CategoryTable::default();
        for (listed, clicks) in items {
            let labels: Vec<Vec<String>> = match mapping {
                Mapping::All => combination(listed).into_iter().map(|c| vec![c]).collect(),
                Mapping::First => listed.first().map(|c| vec![c.clone()]).into_iter().collect(),
                Mapping::Set => Some(combination(listed)).filter(|c| !c.is_empty()).into_iter().collect(),
            };
            for parts in labels {
                let label = table.labels.entry(parts.join(" ")).or_insert(Label { clicks: 0, parts });
                label.clicks += clicks;
            }
        }
        let rare = table.drop_rare(min_clicks);
        if mapping == Mapping::Set {
            table.back_off(rare);
        }
        table
    }

    fn drop_rare(&mut self, min_clicks: u64) -> Vec<Vec<String>> {
        let rare = self.labels.values().filter(|l| l.clicks < min_clicks).map(|l| l.parts.clone()).collect();
        self.labels.retain(|_, label| label.clicks >= min_clicks);
        rare
    }

    /// A frequent combination is its own label; a rare one takes its most clicked subset.
    fn back_off(&mut self, rare: Vec<Vec<String>>) {
        let frequent = self.labels.iter().map(|(name, label)| (label.parts.clone(), name.clone()));
        self.combinations = frequent.collect();
        for parts in rare {
            let whole: BTreeSet<&String> = parts.iter().collect();
            let subset = self
                .labels
                .iter()
                .filter(|(_, label)| label.parts.iter().all(|p| whole.contains(p)))
                .max_by_key(|(name, label)| (label.clicks, std::cmp::Reverse(name.as_str())));
            if let Some((name, _)) = subset {
                let name = name.clone();
                self.combinations.insert(parts, name);
            }
        }
    }
}

fn combination(listed: &[String]) -> Vec<String> {
    listed.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect()
}

fn listed(row: &Row, column: usize) -> Vec<String> {
    let cells = row.get(column).and_then(Value::as_list).unwrap_or_default();
    cells.iter().filter_map(|cell| cell.as_text().map(str::to_string)).filter(|c| !c.is_empty()).collect()
}

impl CategoryMap {
    /// The place of the items' list, and of the item in the events where there are events.
    fn columns(&self, inputs: &Inputs<'_>) -> Result<(usize, Option<usize>), Vec<Problem>> {
        let mut problems = Problems::default();
        let items = problems.take(inputs.relation(0, "a relation of items"));
        problems.take(inputs.at_most(2));
        let column = items.and_then(|items| {
            let (at, column) = items.schema.column(&self.column).or_else(|| {
                let names: Vec<_> = items.schema.columns.iter().map(|c| c.name.as_str()).collect();
                let message = format!("`{}` has no column `{}`", items.name, self.column);
                problems.push(Problem::with("column", message).help(format!("it has {}", names.join(", "))));
                None
            })?;
            problems.require(column.ty == Type::Text.list(), || {
                Problem::with("column", format!("`{}` holds {}, not list<text>", self.column, column.ty))
            });
            Some(at)
        });
        let event_item = match inputs.inputs.len() {
            0 | 1 => None,
            _ => problems.take(inputs.events(1)).and_then(|events| {
                let key = items.and_then(|items| items.schema.key.first())?;
                problems.take(inputs.column(1, events, &key.name))
            }),
        };
        problems.finish(column.map(|column| (column, event_item)))
    }
}

impl Operator for CategoryMap {
    fn output(&self, inputs: &Inputs<'_>) -> Result<Schema, Vec<Problem>> {
        self.columns(inputs)?;
        let key = inputs.inputs[0].schema.key.clone();
        Ok(Schema::new(key, [Column::new("categories", Type::Text.list()).of(inputs.node)]))
    }

    fn build(&self, inputs: &Inputs<'_>, graph: &mut Graph) -> LeafId {
        let Ok((column, event_item)) = self.columns(inputs) else { unreachable!("checked by output") };
        let (mapping, min_clicks) = (self.mapping, self.min_clicks);
        let leaves: Vec<LeafId> = inputs.inputs.iter().map(|i| i.leaf).collect();
        let logic = format!("category_map/1 {mapping:?} {min_clicks} {column}");
        let table = graph.fit("labels", &leaves, &[], logic, move |snapshots, _, _| {
            let items = clicked_items(snapshots, column, event_item);
            Ok(CategoryTable::fit(mapping, min_clicks, &items))
        });
        let table = graph.cheap(table);
        graph.publish_labels(table);
        graph.map_with("", inputs.inputs[0].leaf, table, move |table, key, row, out| {
            let labels = table.labels_of(mapping, &listed(row, column));
            out.push((key.clone(), Row::from([Value::list(labels.iter().map(Value::text))])));
            Ok(())
        })
    }
}

/// Listed categories and clicks per item; without events every item counts once.
fn clicked_items(
    snapshots: &[&dyn Snapshot],
    column: usize,
    event_item: Option<usize>,
) -> Vec<(Vec<String>, u64)> {
    let mut clicks: BTreeMap<Value, u64> = BTreeMap::new();
    if let (Some(events), Some(at)) = (snapshots.get(1), event_item) {
        events.for_each(&mut |_, row, count| {
            if let Some(item) = row.get(at) {
                *clicks.entry(item.clone()).or_default() += count.max(0) as u64;
            }
        });
    }
    let mut items = Vec::new();
    snapshots[0].for_each(&mut |key, row, _| {
        let clicks = match event_item {
            None => 1,
            Some(_) => key.first().and_then(|item| clicks.get(item)).copied().unwrap_or(0),
        };
        items.push((listed(row, column), clicks));
    });
    items
}

impl Described for CategoryMap {
    const NAME: &'static str = "category_map";
    const EXAMPLE: &'static str = include_str!("examples/category_map.yaml");
}

/// The labels a column of `schema` holds, by the node that defines them.
pub(crate) fn domain_of(schema: &Schema, column: &str) -> Option<String> {
    schema.column(column).and_then(|(_, c)| c.domain.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items() -> Vec<(Vec<String>, u64)> {
        let item = |names: &str, clicks| (names.split(' ').map(str::to_string).collect(), clicks);
        vec![item("Comedy", 50), item("Romance Comedy", 30), item("Comedy Romance War", 2), item("War", 5)]
    }

    #[test]
    fn all_orders_rarest_first() {
        let table = CategoryTable::fit(Mapping::All, 0, &items());
        let listed = ["Comedy".to_string(), "War".to_string(), "Western".to_string()];
        assert_eq!(table.labels_of(Mapping::All, &listed), ["War", "Comedy"]);
        assert_eq!(table.labels["Comedy"].clicks, 82);
    }

    #[test]
    fn set_backs_off_to_the_most_clicked_subset() {
        let table = CategoryTable::fit(Mapping::Set, 10, &items());
        assert_eq!(table.names(), ["Comedy", "Comedy Romance"]);
        let of = |names: &[&str]| {
            table.labels_of(Mapping::Set, &names.iter().map(|n| n.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(of(&["War", "Romance", "Comedy"]), ["Comedy"]);
        assert_eq!(of(&["Romance", "Comedy"]), ["Comedy Romance"]);
        assert!(of(&["War"]).is_empty());
        assert!(of(&["Western"]).is_empty());
    }

    #[test]
    fn first_takes_the_order_as_listed() {
        let table = CategoryTable::fit(Mapping::First, 0, &items());
        assert_eq!(table.labels["Romance"].clicks, 30);
        assert_eq!(table.labels_of(Mapping::First, &["Romance".into(), "Comedy".into()]), ["Romance"]);
    }

    #[test]
    fn tables_read_back_as_written() {
        let table = CategoryTable::fit(Mapping::Set, 10, &items());
        assert_eq!(CategoryTable::from_bytes(&table.to_bytes()).unwrap(), table);
        assert!(CategoryTable::from_bytes(b"no").is_err());
    }
}
