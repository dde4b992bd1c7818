//! Policies of a node: what is not built yet, and what has nothing to act on.
//!
//! Both are refused, because a policy that is silently ignored is believed in.

use coea_operators::{
    operator::Operator,
    shape::{LeafId, Refit, Shape},
};

use super::Lowering;
use crate::{
    plan::Due,
    spec::{self, Named, NodeSpec, When},
};

/// In which cycles a node works.
pub(super) fn due(refit: Option<&spec::Refit>) -> Due {
    match refit.map(|refit| refit.when) {
        Some(When::Every { epochs }) => Due::After { epochs },
        Some(When::Drift { above }) => Due::Drifted { above },
        _ => Due::EachCycle,
    }
}

impl Lowering<'_> {
    /// Whether a node works between epochs: because it cannot do otherwise, or because it is told to make
    /// versions of a model there. Of what cannot be read, it does not.
    pub(super) fn between(&self, node: &NodeSpec) -> bool {
        if node.updates.is_some() && node.refit.as_ref().is_some_and(|refit| refit.when.in_cycles()) {
            return true;
        }
        let operator = self.registry.get(&node.op).and_then(|entry| entry.parse(&node.with).ok());
        operator.is_some_and(|operator| operator.between_epochs())
    }

    /// What the format knows and this engine does not do yet is refused, never ignored; and so is a policy
    /// that says something else than what happens.
    pub(super) fn policies(&mut self, node: &NodeSpec, operator: &dyn Operator) {
        let between = operator.between_epochs();
        let anew = between || node.updates.is_some() || operator.refits() || operator.renews();
        let op = &node.op;
        let help = Some("write `refit: { when: cycle }`, and `run --cycles N`".to_string());
        match &node.refit {
            None if between => self.error(&op.span, format!("{} works in cycles", op.value), help),
            Some(refit) if between && refit.when == When::Once => {
                self.error(&refit.span, format!("{} works in cycles, not once", op.value), help);
            }
            Some(refit) if refit.when == When::Changed => {
                let help = Some("write `refit: { when: once }` or `refit: { when: cycle }`".to_string());
                self.error(&refit.span, "this refit policy is not built yet", help);
            }
            Some(refit) if refit.when.in_cycles() && !anew => {
                let message = format!("{} cannot be fitted anew in cycles", op.value);
                self.error(&refit.span, message, Some("write `refit: { when: once }`".to_string()));
            }
            _ => {}
        }
    }

    /// Refuses a fit that is done once of something that only cycles make: it would learn from nothing, or
    /// wait for what waits for it.
    pub(super) fn once_of_cycles(&mut self, named: &Named<NodeSpec>, first_leaf: LeafId) {
        let leaves = &self.graph.leaves;
        let mut of_cycles: Vec<Option<LeafId>> = Vec::with_capacity(leaves.len());
        for (at, leaf) in leaves.iter().enumerate() {
            let own = match leaf.shape {
                Shape::Fit { refit: Refit::Between(of), .. } => of == at,
                Shape::Fit { refit: Refit::Again, .. } => true,
                _ => false,
            };
            let above = || leaf.shape.reads().into_iter().find_map(|above| of_cycles[above]);
            of_cycles.push(if own { Some(at) } else { above() });
        }
        let once = |at: &LeafId| matches!(leaves[*at].shape, Shape::Fit { refit: Refit::Once, .. });
        let found = (first_leaf..leaves.len()).filter(once).find_map(|at| of_cycles[at]);
        if let Some(node) = found.map(|at| leaves[at].node.clone()) {
            let message = format!("`{}` is fitted once, on what `{node}` makes in cycles", named.name.value);
            let help = "write `refit: { when: cycle }` here too".to_string();
            self.error(&named.name.span, message, Some(help));
        }
    }

    /// A policy for something that is not there would only look as if it did something.
    pub(super) fn useless_policies(&mut self, node: &NodeSpec, first_leaf: LeafId) {
        let shapes = || self.graph.leaves[first_leaf..].iter().map(|leaf| &leaf.shape);
        let fits = shapes().any(|shape| matches!(shape, Shape::Fit { .. }));
        let asks = shapes().any(|shape| matches!(shape, Shape::Infer { .. }));
        let drifts = shapes().any(|shape| matches!(shape, Shape::Fit { drift: Some(_), .. }));
        let op = &node.op.value;
        if let Some(refit) = node.refit.as_ref().filter(|_| !fits) {
            let message = format!("{op} fits nothing, so there is nothing to refit");
            self.error(&refit.span, message, Some("remove `refit`".to_string()));
        }
        let of_drift = |refit: &&spec::Refit| matches!(refit.when, When::Drift { .. });
        if let Some(refit) = node.refit.as_ref().filter(of_drift).filter(|_| fits && !drifts) {
            let message = format!("{op} does not tell how far its data have drifted");
            let help = "write `refit: { when: cycle }` or `refit: { when: every, epochs: 10 }`";
            self.error(&refit.span, message, Some(help.to_string()));
        }
        if let Some(after) = node.after.as_ref().filter(|_| !asks) {
            let help = "remove `after`, or give it to the node that asks".to_string();
            self.error(&after.span, format!("{op} asks no model, so nothing can wait"), Some(help));
        }
        if let Some(limits) = node.limits.as_ref().filter(|_| !asks) {
            let help = "remove `limits`, or give it to the node that asks".to_string();
            self.error(&limits.span, format!("{op} asks no model, so nothing is spent on it"), Some(help));
        }
    }
}
