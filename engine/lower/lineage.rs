//! What a leaf computes, with everything it reads: if that moves, its table is computed anew.
//!
//! A hash of hashes, leaf by leaf in dependency order, so that a change is seen in all that follows
//! from it and nowhere else.

use coea_operators::shape::Shape;

use super::hash;
use crate::plan::Plan;

/// Per leaf: its node's logic, its role, and the lineage of what it reads.
pub(super) fn lineage(plan: &Plan) -> Vec<String> {
    let mut lineage: Vec<String> = Vec::with_capacity(plan.leaves.len());
    for (at, leaf) in plan.leaves.iter().enumerate() {
        let logic = match &leaf.shape {
            Shape::Source(source) => plan.sources[*source].logic.as_str(),
            _ => plan.nodes.iter().find(|n| n.name == leaf.node).map_or("", |n| n.logic.as_str()),
        };
        // The first version of a model may stand before all other leaves of its node.
        let place = format!("{} {}", at.saturating_sub(first_of(plan, at)), leaf.role);
        let reads = leaf.shape.reads();
        let mut parts = vec![logic, place.as_str()];
        parts.extend(reads.iter().map(|read| lineage[*read].as_str()));
        lineage.push(hash(&parts));
    }
    lineage
}

/// The first leaf of the node that a leaf belongs to.
fn first_of(plan: &Plan, leaf: usize) -> usize {
    plan.nodes.iter().find(|n| n.name == plan.leaves[leaf].node).map_or(leaf, |n| n.first_leaf)
}
