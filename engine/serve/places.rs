//! Where a pipeline keeps what a lookup needs, found by what operators are, not by their names.
//!
//! The served sink is the first one whose node lists scored categories. Above that node stands the
//! prompt builder, whose inputs are by definition groups, profiles and recent categories.

use coea_operators::{
    schema::{Column, Schema, Type},
    shape::Shape,
};

use super::{lookup::LookupError, view::nodes_above};
use crate::{
    plan::{Plan, PlanNode, PlanSink, PlanSource},
    runtime::driver::source_table,
};

/// A relation that is kept as a table: a node's output, or a source of the user's own.
#[derive(Clone)]
pub struct Table<'a> {
    /// The name the state knows it by.
    pub name: String,
    /// Its columns.
    pub schema: &'a Schema,
    /// The node whose output it is.
    pub node: Option<&'a PlanNode>,
}

impl<'a> Table<'a> {
    /// The table of a node or of a relation source.
    pub fn find(plan: &'a Plan, name: &str) -> Option<Self> {
        let node = plan.node(name);
        let of_node =
            node.map(|node| Table { name: node.name.clone(), schema: &node.schema, node: Some(node) });
        let relation = || plan.source(name).filter(|source| !source.events);
        let of_source =
            |source: &'a PlanSource| Table { name: source_table(name), schema: &source.schema, node: None };
        of_node.or_else(|| relation().map(of_source))
    }
}

/// The parts of a pipeline that serve a user.
pub struct Places<'a> {
    /// The store.
    pub sink: &'a PlanSink,
    /// The node it keeps: (group, hash) → categories.
    pub entries: &'a PlanNode,
    /// The place of the scored categories in its rows.
    pub categories: usize,
    /// The node whose labels the categories are: item → categories.
    pub labels: Option<&'a PlanNode>,
    /// Prompts by key.
    pub prompt: &'a PlanNode,
    /// Groups by user, and the place of the group in a row.
    pub groups: (Table<'a>, usize),
    /// The place of the code tuple, where groups come from codes.
    pub csid: Option<usize>,
    /// Profiles by group.
    pub profiles: Table<'a>,
    /// Recent categories by user, and their place in a row.
    pub recents: (Table<'a>, usize),
    /// The histories of the users.
    pub events: Option<&'a PlanSource>,
    /// The place of the item in an event.
    pub item: Option<usize>,
}

/// The place of a column of (category, score) pairs.
pub fn scored_column(node: &PlanNode) -> Option<(usize, &Column)> {
    let scored = Type::Tuple(vec![Type::Text, Type::F64]).list();
    node.schema.column("categories").filter(|(_, column)| column.ty == scored)
}

impl<'a> Places<'a> {
    /// Finds them.
    ///
    /// # Errors
    /// [`LookupError::NothingServed`], with what is missing.
    pub fn find(plan: &'a Plan) -> Result<Self, LookupError> {
        let missing = |what: &str| LookupError::NothingServed(what.to_string());
        let served = |sink: &'a PlanSink| {
            let node = &plan.nodes[sink.node];
            scored_column(node).map(|(at, column)| (sink, node, at, column.domain.as_deref()))
        };
        let (sink, entries, categories, domain) = plan
            .sinks
            .iter()
            .find_map(served)
            .ok_or_else(|| missing("no sink writes a node with scored `categories`, such as align's"))?;
        let prompt = nodes_above(plan, entries)
            .into_iter()
            .rfind(|node| node.op == "prompt_builder")
            .ok_or_else(|| missing(&format!("no prompt_builder stands above `{}`", entries.name)))?;
        let input = |at: usize, column: &str| {
            let table = prompt.inputs.get(at).and_then(|name| Table::find(plan, name))?;
            let place = table.schema.column(column)?.0;
            Some((table, place))
        };
        let unfit = || missing(&format!("`{}` reads no groups, profiles and recent categories", prompt.name));
        let groups = input(0, "group").ok_or_else(unfit)?;
        let profiles = input(1, "profile").ok_or_else(unfit)?.0;
        let recents = input(2, "categories").ok_or_else(unfit)?;
        let labels = domain.and_then(|name| plan.node(name));
        let events = recents.0.node.and_then(|node| events_of(plan, node));
        let item = labels.zip(events).and_then(|(labels, events)| {
            events.schema.column(&labels.schema.key.first()?.name).map(|(at, _)| at)
        });
        let csid = groups.0.schema.column("csid").map(|(at, _)| at);
        Ok(Places {
            sink,
            entries,
            categories,
            labels,
            prompt,
            groups,
            csid,
            profiles,
            recents,
            events,
            item,
        })
    }
}

/// The event source that a node's nearest fold walks.
fn events_of<'a>(plan: &'a Plan, node: &PlanNode) -> Option<&'a PlanSource> {
    let leaves = plan.upstream(node.leaf).into_iter().chain([node.leaf]);
    let mut walked = leaves.filter_map(|leaf| match &plan.leaves[leaf].shape {
        Shape::Fold { source, .. } => Some(*source),
        _ => None,
    });
    let source = walked.next_back()?;
    plan.sources.iter().find(|candidate| candidate.leaf == source)
}
