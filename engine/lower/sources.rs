//! Sources: their connectors, and their columns in the order the graph wants.
//!
//! Key, then time, event id, and the rest: the order in which rows of a key sort is then the order
//! of its history, and no later stage looks for a column by name.

use coea_operators::{
    operator::Input,
    schema::{Column, Schema},
    shape::Shape,
};

use super::{Lowering, hash};
use crate::{
    connectors::{SourceConnector, SourceTable},
    diagnostic::did_you_mean,
    plan::PlanSource,
    spec::{Named, SourceSpec},
};

impl Lowering<'_> {
    /// The sources; a name whose entry is wrong is noted as broken.
    pub(super) fn sources(&mut self) -> Vec<PlanSource> {
        let spec = self.spec;
        let lowered: Vec<_> = spec.sources.iter().map(|named| (named, self.source(named))).collect();
        for (named, source) in &lowered {
            if source.is_none() {
                self.broken.insert(named.name.value.clone());
            }
        }
        lowered.into_iter().filter_map(|(_, source)| source).collect()
    }

    fn source(&mut self, named: &Named<SourceSpec>) -> Option<PlanSource> {
        let SourceSpec { connector, with } = &named.spec;
        let parsed = match connector.as_str() {
            "dataset" => with.parse("dataset").map(SourceConnector::Dataset),
            "files" => with.parse("files").map(SourceConnector::Files),
            other => {
                let near =
                    did_you_mean(other, SourceConnector::NAMES).map(|near| format!("did you mean `{near}`?"));
                let known = || format!("there are `{}`", SourceConnector::NAMES.join("`, `"));
                self.error(
                    &connector.span,
                    format!("unknown connector `{other}`"),
                    near.or_else(|| Some(known())),
                );
                return None;
            }
        };
        let connector = parsed.map_err(|problems| self.problems.extend(problems)).ok()?;
        let table = match connector.table() {
            Ok(table) => table,
            Err(mistakes) => {
                for mistake in mistakes {
                    let path: Vec<&str> = mistake.at.split('.').collect();
                    self.error(&with.span_of(&path), mistake.message, None);
                }
                return None;
            }
        };
        let leaf = self.graph.leaves.len();
        let place = self.outputs.len();
        self.graph.begin(&named.name);
        self.graph.add("", Shape::Source(place));
        let source = arrange(&named.name, connector, table, leaf, with.canonical_json().to_string());
        let (schema, events) = (source.schema.clone(), source.events);
        let input = Input { name: named.name.value.clone(), schema, events, leaf };
        self.outputs.insert(named.name.value.clone(), input);
        Some(source)
    }
}

/// Orders a source's columns as the graph wants them: key, then time, event id, and the rest.
fn arrange(
    name: &str,
    connector: SourceConnector,
    table: SourceTable,
    leaf: usize,
    with: String,
) -> PlanSource {
    let place = |name: &String| table.position(name);
    let key: Vec<usize> = table.key.iter().filter_map(place).collect();
    let mut rest: Vec<usize> = table.time.iter().chain(&table.event_id).filter_map(place).collect();
    let others = (0..table.schema.len()).filter(|at| !key.contains(at) && !rest.contains(at));
    rest.extend(others.collect::<Vec<_>>());
    let columns =
        |places: &[usize]| places.iter().map(|at| table.schema[*at].clone()).collect::<Vec<Column>>();
    let kind = match &connector {
        SourceConnector::Dataset(_) => "dataset",
        SourceConnector::Files(_) => "files",
    };
    PlanSource {
        name: name.to_string(),
        schema: Schema::new(columns(&key), columns(&rest)),
        events: table.time.is_some(),
        logic: hash(&[kind, &with]),
        connector,
        table,
        leaf,
        key,
        rest,
    }
}
