//! Where a pipeline keeps what a lookup needs, found by what operators are, not by their names.
//!
//! The served sink is the first one whose node lists scored categories. Above that node stands the
//! prompt builder, whose inputs are by definition groups, profiles and recent categories.

use coea_operators::{
    schema::{Column, Type},
    shape::Shape,
};

use super::{lookup::LookupError, view::nodes_above};
use crate::plan::{Plan, PlanNode, PlanSink, PlanSource};

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
    pub groups: (&'a PlanNode, usize),
    /// The place of the code tuple, where groups come from codes.
    pub csid: Option<usize>,
    /// Profiles by group.
    pub profiles: &'a PlanNode,
    /// Recent categories by user, and their place in a row.
    pub recents: (&'a PlanNode, usize),
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
            let node = prompt.inputs.get(at).and_then(|name| plan.node(name))?;
            Some((node, node.schema.column(column)?.0))
        };
        let unfit = || missing(&format!("`{}` reads no groups, profiles and recent categories", prompt.name));
        let groups = input(0, "group").ok_or_else(unfit)?;
        let profiles = input(1, "profile").ok_or_else(unfit)?.0;
        let recents = input(2, "categories").ok_or_else(unfit)?;
        let labels = domain.and_then(|name| plan.node(name));
        let events = events_of(plan, recents.0);
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
    let walked = leaves.filter_map(|leaf| match &plan.leaves[leaf].shape {
        Shape::Fold { source, .. } => Some(*source),
        _ => None,
    });
    let source = walked.last()?;
    plan.sources.iter().find(|candidate| candidate.leaf == source)
}
