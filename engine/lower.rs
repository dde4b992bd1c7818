//! From the spec to the Plan: names resolved, schemas worked out, the graph built, logic hashed.
//!
//! The only stage that knows the registry. It goes on after a mistake, so that one look at a
//! pipeline tells everything that is wrong with it.

mod models;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use coea_operators::{
    operator::{Input, Inputs, Model, Problem},
    schema::{Column, Schema},
    shape::{Graph, Shape},
};
use petgraph::{algo::tarjan_scc, graph::DiGraph};

use crate::{
    connectors::{SourceConnector, SourceTable},
    diagnostic::{Diagnostic, Diagnostics, SourceText, Span, Spanned, did_you_mean},
    models::ModelProvider,
    plan::{Plan, PlanNode, PlanSink, PlanSource},
    registry::Registry,
    sinks::KvSink,
    spec::{Named, NodeSpec, SourceSpec, Spec, When},
};

/// Characters a name may have.
const NAME_LENGTH: usize = 60;
/// Names of the tables that the engine keeps itself.
const RESERVED: [&str; 4] = ["errors", "unmatched_retractions", "dead_letters", "memo"];

/// Lowers a pipeline.
///
/// # Errors
/// Everything that is wrong with names, edges, parameters and schemas, each with its place.
pub fn lower(
    spec: &Spec,
    folder: &Path,
    registry: &Registry,
    provider: &dyn ModelProvider,
) -> Result<Plan, Diagnostics> {
    let mut lowering = Lowering {
        spec,
        folder,
        registry,
        provider,
        problems: Diagnostics::new(),
        graph: Graph::default(),
        outputs: BTreeMap::new(),
        broken: spec.unread.clone(),
    };
    lowering.check_names();
    let sources = lowering.sources();
    let models = lowering.models();
    let nodes = lowering.nodes(&models);
    let sinks = lowering.sinks(&nodes);
    let Lowering { mut problems, graph, .. } = lowering;
    if problems.has_errors() {
        problems.sort();
        return Err(problems);
    }
    let mut plan = Plan {
        name: spec.name.value.clone(),
        folder: folder.to_path_buf(),
        sources,
        nodes,
        sinks,
        leaves: graph.leaves,
        lineage: Vec::new(),
    };
    plan.lineage = lineage(&plan);
    Ok(plan)
}

/// Hash of named parts, hexadecimal.
fn hash(parts: &[&str]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex()[..32].to_string()
}

/// Per leaf: its node's logic, its role, and the lineage of what it reads.
fn lineage(plan: &Plan) -> Vec<String> {
    let mut lineage: Vec<String> = Vec::with_capacity(plan.leaves.len());
    for (at, leaf) in plan.leaves.iter().enumerate() {
        let logic = match &leaf.shape {
            Shape::Source(source) => plan.sources[*source].logic.as_str(),
            _ => plan.nodes.iter().find(|n| n.name == leaf.node).map_or("", |n| n.logic.as_str()),
        };
        let place = format!("{} {}", at - first_of(plan, at), leaf.role);
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

struct Lowering<'a> {
    spec: &'a Spec,
    folder: &'a Path,
    registry: &'a Registry,
    provider: &'a dyn ModelProvider,
    problems: Diagnostics,
    graph: Graph,
    /// What nodes can read, by name.
    outputs: BTreeMap<String, Input>,
    /// Names whose own entry is wrong: a reference to one is no mistake of its own.
    broken: BTreeSet<String>,
}

impl Lowering<'_> {
    fn file(&self) -> &Arc<SourceText> {
        &self.spec.file
    }

    fn error(&mut self, span: &Span, message: impl Into<String>, help: Option<String>) {
        let problem = Diagnostic::error(self.file(), span.clone(), message.into()).help(help);
        self.problems.push(problem);
    }

    /// Names are state: a node and a source of one name would share tables.
    fn check_names(&mut self) {
        let spec = self.spec;
        let sources = spec.sources.iter().map(|s| &s.name);
        let mut seen: BTreeMap<&str, &Span> = BTreeMap::new();
        for name in sources.chain(spec.nodes.iter().map(|n| &n.name)) {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if name.is_empty() || name.len() > NAME_LENGTH || !name.chars().all(plain) {
                let help = format!("use letters, digits, `_` and `-`, at most {NAME_LENGTH}");
                self.error(
                    &name.span,
                    format!("`{}` is no name for a source or node", name.value),
                    Some(help),
                );
            }
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

    fn sources(&mut self) -> Vec<PlanSource> {
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

    /// The nodes in dependency order; the order of the document breaks ties.
    fn order(&mut self) -> Vec<usize> {
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
            format!("these nodes read each other: {}", names.join(", ")),
            Some(help.to_string()),
        );
    }

    fn nodes(&mut self, models: &BTreeMap<String, Model>) -> Vec<PlanNode> {
        let spec = self.spec;
        let mut lowered = Vec::new();
        for at in self.order() {
            let named = &spec.nodes[at];
            match self.node(named, models) {
                Some(node) => lowered.push(node),
                None => {
                    self.broken.insert(named.name.value.clone());
                }
            }
        }
        lowered
    }

    fn node(&mut self, named: &Named<NodeSpec>, models: &BTreeMap<String, Model>) -> Option<PlanNode> {
        let NodeSpec { op, with, .. } = &named.spec;
        let model = self.model(&named.spec, models);
        let inputs = self.inputs(&named.spec);
        self.unsupported(&named.spec);
        let Some(entry) = self.registry.get(op) else {
            let names: Vec<&str> = self.registry.entries().iter().map(|entry| entry.name).collect();
            let near = did_you_mean(op, names.iter().copied()).map(|near| format!("did you mean `{near}`?"));
            let help = near.unwrap_or_else(|| "`coea-engine operators` lists them".to_string());
            self.error(&op.span, format!("unknown operator `{}`", op.value), Some(help));
            return None;
        };
        let operator = entry.parse(with).map_err(|problems| self.problems.extend(problems)).ok()?;
        let (inputs, model) = (inputs?, model?);
        self.fitting_model(&named.spec, model.as_ref(), operator.model_kinds());
        let files = RefCell::new(BTreeMap::new());
        let given = Inputs {
            node: &named.name,
            inputs: &inputs,
            model: model.as_ref(),
            folder: self.folder,
            files: &files,
        };
        let schema = match operator.output(&given) {
            Ok(schema) => schema,
            Err(problems) => {
                problems.into_iter().for_each(|problem| self.report(named, problem));
                return None;
            }
        };
        self.graph.begin(&named.name);
        let first_leaf = self.graph.leaves.len();
        let leaf = operator.build(&given, &mut self.graph);
        let name = named.name.value.clone();
        let output = Input { name: name.clone(), schema: schema.clone(), events: false, leaf };
        self.outputs.insert(name.clone(), output);
        Some(PlanNode {
            logic: logic_of(&named.spec, model.as_ref(), &files.take()),
            op: op.value.clone(),
            inputs: named.spec.inputs.iter().map(|i| i.value.clone()).collect(),
            model: named.spec.model.as_ref().map(|m| m.value.clone()),
            name,
            schema,
            leaf,
            first_leaf,
        })
    }

    fn inputs(&mut self, node: &NodeSpec) -> Option<Vec<Input>> {
        let mut inputs = Vec::new();
        for name in &node.inputs {
            match self.outputs.get(name.as_str()) {
                Some(input) => inputs.push(input.clone()),
                None if self.broken.contains(name.as_str()) => {}
                None => {
                    let spec = self.spec;
                    let sources = spec.sources.iter().map(|s| s.name.as_str());
                    let known = sources.chain(spec.nodes.iter().map(|n| n.name.as_str())).collect();
                    self.unknown("source or node", name, known);
                }
            }
        }
        (inputs.len() == node.inputs.len()).then_some(inputs)
    }

    fn unknown(&mut self, what: &str, name: &Spanned<String>, known: Vec<&str>) {
        let near = did_you_mean(name, known.iter().copied()).map(|near| format!("did you mean `{near}`?"));
        let help =
            near.or_else(|| (!known.is_empty()).then(|| format!("there are `{}`", known.join("`, `"))));
        self.error(&name.span, format!("unknown {what} `{}`", name.value), help);
    }

    /// What the format knows and this engine does not do yet is refused, never ignored.
    fn unsupported(&mut self, node: &NodeSpec) {
        if let Some(refit) = &node.refit
            && refit.when != When::Once
        {
            let help = Some("write `refit: { when: once }`".to_string());
            self.error(&refit.span, "this refit policy is not built yet", help);
        }
        if let Some(updates) = &node.updates {
            let message = format!("`{}` cannot be updated: no operator trains models yet", updates.value);
            self.error(&updates.span, message, None);
        }
        if !node.limits.is_empty() {
            let help = Some("bound a whole run with --max-calls".to_string());
            self.error(&node.limits.span_of(&[]), "limits of a node are not built yet", help);
        }
    }

    fn report(&mut self, named: &Named<NodeSpec>, problem: Problem) {
        let path: Vec<&str> = problem.path.iter().map(String::as_str).collect();
        let node = &named.spec;
        let span = match path.as_slice() {
            ["with", rest @ ..] => node.with.span_of(rest),
            ["in", at, ..] => at
                .parse::<usize>()
                .ok()
                .and_then(|at| node.inputs.get(at))
                .map_or_else(|| named.name.span.clone(), |input| input.span.clone()),
            ["model"] => node.model.as_ref().map_or_else(|| node.op.span.clone(), |m| m.span.clone()),
            ["op"] => node.op.span.clone(),
            _ => named.name.span.clone(),
        };
        self.error(&span, format!("{}: {}", named.name.value, problem.message), problem.help);
    }

    fn sinks(&mut self, nodes: &[PlanNode]) -> Vec<PlanSink> {
        let spec = self.spec;
        let mut sinks: Vec<PlanSink> = Vec::new();
        for named in &spec.sinks {
            let connector = &named.spec.connector;
            if connector.value != "kv" {
                let help = Some("there is `kv`, the embedded store".to_string());
                self.error(&connector.span, format!("unknown sink connector `{}`", connector.value), help);
                continue;
            }
            let Some(kv) = named.spec.with.parse::<KvSink>("kv").map_err(|p| self.problems.extend(p)).ok()
            else {
                continue;
            };
            let input = &named.spec.input;
            let Some(node) = nodes.iter().position(|node| node.name == input.value) else {
                if !self.broken.contains(input.as_str()) {
                    self.unknown("node", input, nodes.iter().map(|n| n.name.as_str()).collect());
                }
                continue;
            };
            let name = kv.table.clone().unwrap_or_else(|| named.name.value.clone());
            if sinks.iter().any(|sink| sink.name == name) {
                let help = Some("give one of them another `table`".to_string());
                self.error(&named.name.span, format!("two sinks write the table `{name}`"), help);
            }
            sinks.push(PlanSink { name, node, kv });
        }
        sinks
    }
}

/// What a node computes, without its name, its inputs and how its YAML is laid out.
fn logic_of(node: &NodeSpec, model: Option<&Model>, files: &BTreeMap<PathBuf, String>) -> String {
    let digests: Vec<&str> = files.values().map(String::as_str).collect();
    let language = model.and_then(|m| m.language.as_ref()).map(|m| m.digest()).unwrap_or_default();
    let with = node.with.canonical_json().to_string();
    hash(&[&node.op, &with, &language, &digests.join(" ")])
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
