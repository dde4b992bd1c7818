//! What moved in a pipeline since the last commit: nodes, their logic, and versions of models.

use crate::runtime::driver::Driver;

impl Driver<'_> {
    /// Nodes that moved, each with how.
    pub(super) fn spec_changes(&self) -> Vec<(String, &'static str)> {
        if self.manifest.epoch == 0 {
            return Vec::new();
        }
        let known = &self.manifest.nodes;
        let mut changes: Vec<(String, &'static str)> = Vec::new();
        for node in &self.plan.nodes {
            match known.get(&node.name) {
                None => changes.push((node.name.clone(), "added")),
                Some(old) if old.logic != node.logic => changes.push((node.name.clone(), "logic")),
                Some(old) if old.lineage != self.plan.lineage[node.leaf] => {
                    changes.push((node.name.clone(), "upstream"));
                }
                Some(_) => {}
            }
            let promoted =
                |leaf: &String| leaf.strip_prefix(&node.name).is_some_and(|rest| rest.starts_with('/'));
            if self.epoch.promoted && self.manifest.wanted.keys().any(promoted) {
                changes.push((node.name.clone(), "version"));
            }
        }
        let gone = known.keys().filter(|name| !name.contains('/') && self.plan.node(name).is_none());
        changes.extend(gone.map(|name| (name.clone(), "removed")));
        changes
    }
}
