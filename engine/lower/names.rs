//! What may be a name: names are folders and tables of the state.

use std::collections::BTreeMap;

use super::Lowering;
use crate::diagnostic::{Span, Spanned};

/// Characters a name may have.
const LENGTH: usize = 60;
/// Names of the tables that the engine keeps itself.
const RESERVED: [&str; 7] =
    ["errors", "backlog", "unmatched_retractions", "dead_letters", "memo", "cycles", "training"];

impl Lowering<'_> {
    /// The pipeline's name is the folder of its state, so nothing in it may lead elsewhere. A node
    /// and a source of one name would share tables.
    pub(super) fn check_names(&mut self) {
        let spec = self.spec;
        self.check_name(&spec.name, "a pipeline");
        let sources = spec.sources.iter().map(|s| &s.name);
        let mut seen: BTreeMap<&str, &Span> = BTreeMap::new();
        for name in sources.chain(spec.nodes.iter().map(|n| &n.name)) {
            self.check_name(name, "a source or node");
            if RESERVED.contains(&name.as_str()) {
                let help = Some("choose another name".to_string());
                self.error(&name.span, format!("`{}` is a table of the engine's own", name.value), help);
            }
            if seen.insert(name, &name.span).is_some() {
                let message = format!("`{}` is the name of a source and of a node", name.value);
                self.error(&name.span, message, Some("rename one of them".to_string()));
            }
        }
    }

    fn check_name(&mut self, name: &Spanned<String>, of: &str) {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() || name.len() > LENGTH || !name.chars().all(plain) {
            let help = format!("use letters, digits, `_` and `-`, at most {LENGTH}");
            self.error(&name.span, format!("`{}` is no name for {of}", name.value), Some(help));
        }
    }
}
