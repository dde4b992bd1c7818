//! Policies of a node: what is not built yet, and what has nothing to act on.
//!
//! Both are refused, because a policy that is silently ignored is believed in.

use coea_operators::shape::{LeafId, Shape};

use super::Lowering;
use crate::spec::{NodeSpec, When};

impl Lowering<'_> {
    /// What the format knows and this engine does not do yet is refused, never ignored.
    pub(super) fn unsupported(&mut self, node: &NodeSpec) {
        if let Some(refit) = &node.refit
            && refit.when != When::Once
        {
            let help = Some("write `refit: { when: once }`".to_string());
            self.error(&refit.span, "this refit policy is not built yet", help);
        }
    }

    /// A policy for something that is not there would only look as if it did something.
    pub(super) fn useless_policies(&mut self, node: &NodeSpec, first_leaf: LeafId) {
        let shapes = || self.graph.leaves[first_leaf..].iter().map(|leaf| &leaf.shape);
        let fits = shapes().any(|shape| matches!(shape, Shape::Fit { .. }));
        let asks = shapes().any(|shape| matches!(shape, Shape::Infer { .. }));
        let op = &node.op.value;
        if let Some(refit) = node.refit.as_ref().filter(|refit| refit.when == When::Once && !fits) {
            let message = format!("{op} fits nothing, so there is nothing to refit");
            self.error(&refit.span, message, Some("remove `refit`".to_string()));
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
