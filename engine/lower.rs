//! From the spec to the Plan: names resolved, schemas worked out, the graph built, logic hashed.
//!
//! The only stage that knows the registry. It goes on after a mistake, so that one look at a
//! pipeline tells everything that is wrong with it.

mod lineage;
mod models;
mod names;
mod order;
mod policies;
mod sources;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use coea_operators::{
    operator::{Input, Inputs, Model, Problem},
    shape::Graph,
};

use crate::{
    diagnostic::{Diagnostic, Diagnostics, SourceText, Span, Spanned, did_you_mean},
    models::ModelProvider,
    plan::{Debounce, Plan, PlanNode, PlanSink},
    price::Price,
    registry::Registry,
    sinks::KvSink,
    spec::{Named, NodeSpec, Spec},
};

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
        prices: BTreeMap::new(),
        updaters: BTreeMap::new(),
    };
    lowering.check_names();
    let sources = lowering.sources();
    let models = lowering.models();
    let nodes = lowering.nodes(&models);
    let sinks = lowering.sinks(&nodes);
    let Lowering { mut problems, graph, prices, .. } = lowering;
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
        prices,
        lineage: Vec::new(),
    };
    plan.lineage = lineage::lineage(&plan);
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

/// The nodes that make versions of a model.
#[derive(Default)]
struct Updaters {
    /// In an epoch, before it is asked.
    before: Option<String>,
    /// In cycles.
    between: Option<String>,
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
    /// What models cost, by name.
    prices: BTreeMap<String, Price>,
    /// The nodes that make versions of models, by the model's name.
    updaters: BTreeMap<String, Updaters>,
}

impl Lowering<'_> {
    fn file(&self) -> &Arc<SourceText> {
        &self.spec.file
    }

    fn error(&mut self, span: &Span, message: impl Into<String>, help: Option<String>) {
        let problem = Diagnostic::error(self.file(), span.clone(), message.into()).help(help);
        self.problems.push(problem);
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
        let model = self.model(named.spec.model.as_ref(), models);
        let updates = self.updated(named, models);
        let inputs = self.inputs(&named.spec);
        let Some(entry) = self.registry.get(op) else {
            let names: Vec<&str> = self.registry.entries().iter().map(|entry| entry.name).collect();
            let near = did_you_mean(op, names.iter().copied()).map(|near| format!("did you mean `{near}`?"));
            let help = near.unwrap_or_else(|| "`coea-engine operators` lists them".to_string());
            self.error(&op.span, format!("unknown operator `{}`", op.value), Some(help));
            return None;
        };
        let operator = entry.parse(with).map_err(|problems| self.problems.extend(problems)).ok()?;
        let (inputs, model, updates) = (inputs?, model?, updates?);
        self.fitting_model(op, named.spec.model.as_ref(), model.as_ref(), ("model", operator.model_kinds()));
        let updated = ("updates", operator.updated_kinds());
        self.fitting_model(op, named.spec.updates.as_ref(), updates.as_ref(), updated);
        self.only_updater(named);
        self.policies(&named.spec, operator.as_ref());
        let files = RefCell::new(BTreeMap::new());
        let given = Inputs {
            node: &named.name,
            inputs: &inputs,
            model: model.as_ref(),
            updates: updates.as_ref(),
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
        self.useless_policies(&named.spec, first_leaf);
        let cycles = named.spec.refit.as_ref().is_some_and(|refit| refit.when.in_cycles());
        if cycles && operator.refits() {
            self.graph.every_cycle(first_leaf);
        }
        if cycles && operator.renews() {
            self.graph.renewed(first_leaf);
        }
        self.once_of_cycles(named, first_leaf);
        let name = named.name.value.clone();
        let output = Input { name: name.clone(), schema: schema.clone(), events: false, leaf };
        self.outputs.insert(name.clone(), output);
        Some(PlanNode {
            logic: logic_of(&named.spec, model.as_ref().or(updates.as_ref()), &files.take()),
            op: op.value.clone(),
            inputs: named.spec.inputs.iter().map(|i| i.value.clone()).collect(),
            model: named.spec.model.as_ref().map(|m| m.value.clone()),
            updates: named.spec.updates.as_ref().map(|m| m.value.clone()),
            between: self.between(&named.spec),
            name,
            schema,
            leaf,
            first_leaf,
            after: named.spec.after.as_ref().map(|after| Debounce { events: after.events, time: after.time }),
            max_calls: named.spec.limits.as_ref().map(|limits| limits.calls),
            due: policies::due(named.spec.refit.as_ref()),
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
            ["updates"] => node.updates.as_ref().map_or_else(|| node.op.span.clone(), |m| m.span.clone()),
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
    let temperature = model.map_or(1.0, |model| model.temperature);
    let scaled = if temperature == 1.0 { String::new() } else { format!(" at {temperature}") };
    hash(&[&node.op, &with, &format!("{language}{scaled}"), &digests.join(" ")])
}
