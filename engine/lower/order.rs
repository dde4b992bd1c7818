//! The order of the nodes, and the cycles that have none.
//!
//! The order of the document breaks ties, so that plans and reports read as the pipeline does.

use std::collections::BTreeSet;

use petgraph::{algo::tarjan_scc, graph::DiGraph};

use super::Lowering;
use crate::spec::NodeSpec;

impl Lowering<'_> {
    /// The nodes in dependency order; the order of the document breaks ties.
    pub(super) fn order(&mut self) -> Vec<usize> {
        let spec = self.spec;
        let mut graph = DiGraph::<usize, ()>::new();
        let indices: Vec<_> = (0..spec.nodes.len()).map(|at| graph.add_node(at)).collect();
        let place = |name: &str| spec.nodes.iter().position(|node| node.name.value == name);
        let mut waits: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); spec.nodes.len()];
        for (at, node) in spec.nodes.iter().enumerate() {
            for from in node.spec.inputs.iter().filter_map(|input| place(input)) {
                graph.add_edge(indices[from], indices[at], ());
                waits[at].insert(from);
            }
            // Who asks a model, or makes its later versions, waits for the node that makes the first.
            let late = self.between(&node.spec);
            let wants = if late { &node.spec.updates } else { &node.spec.model };
            let makes = |other: &NodeSpec| {
                let made = other.updates.as_ref().map(|model| &model.value);
                let wanted = wants.as_ref().map(|model| &model.value);
                made.is_some() && made == wanted && !self.between(other)
            };
            for from in (0..spec.nodes.len()).filter(|from| makes(&spec.nodes[*from].spec)) {
                graph.add_edge(indices[from], indices[at], ());
                waits[at].insert(from);
            }
        }
        for cycle in tarjan_scc(&graph) {
            let looped = cycle.len() > 1 || cycle.iter().any(|n| graph.contains_edge(*n, *n));
            if looped {
                self.cycle(&cycle.iter().map(|n| graph[*n]).collect::<BTreeSet<_>>());
            }
        }
        let mut order: Vec<usize> = Vec::new();
        while let Some(next) = (0..spec.nodes.len())
            .find(|at| !order.contains(at) && waits[*at].iter().all(|from| order.contains(from)))
        {
            order.push(next);
        }
        order
    }

    fn cycle(&mut self, members: &BTreeSet<usize>) {
        let names: Vec<&str> = members.iter().map(|at| self.spec.nodes[*at].name.as_str()).collect();
        for at in members {
            self.broken.insert(self.spec.nodes[*at].name.value.clone());
        }
        let Some(first) = members.first() else { return };
        let span = self.spec.nodes[*first].name.span.clone();
        let help = "the only way back is a model: name it in `updates`, and it takes effect a cycle later";
        self.error(
            &span,
            format!("these nodes wait for each other: {}", names.join(", ")),
            Some(help.to_string()),
        );
    }
}
