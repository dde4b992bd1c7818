//! `graph`: the pipeline as a picture; no state is needed.

use std::path::PathBuf;

use clap::ValueEnum;

use super::{Common, Failure, output};
use crate::plan::Plan;

/// How the graph is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Drawing {
    /// A list in order of dependency.
    #[default]
    Text,
    /// A Mermaid flowchart.
    Mermaid,
    /// Graphviz.
    Dot,
}

/// The pipeline's graph. `--format` has values of its own here, so the common flags are not all here.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The pipeline's YAML file.
    pub pipeline: PathBuf,
    /// How it is drawn.
    #[arg(long, value_enum, default_value_t)]
    pub format: Drawing,
    /// Overrides a value of the pipeline: `params.groups=6`.
    #[arg(long, value_name = "PATH=VALUE")]
    pub set: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// If the pipeline is wrong.
pub fn run(args: &Args) -> Result<(), Failure> {
    let common = Common {
        pipeline: args.pipeline.clone(),
        flags: super::Flags {
            state: None,
            format: super::Format::Text,
            set: args.set.clone(),
            quiet: false,
            verbose: 0,
        },
    };
    let plan = common.load()?.plan;
    let drawing = match args.format {
        Drawing::Text => listed(&plan),
        Drawing::Mermaid => mermaid(&Picture::of(&plan)),
        Drawing::Dot => dot(&Picture::of(&plan)),
    };
    output::text(&drawing)
}

fn listed(plan: &Plan) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for source in &plan.sources {
        let kind = if source.events { "events" } else { "relation" };
        rows.push(vec![source.name.clone(), kind.to_string(), String::new(), source.schema.to_string()]);
    }
    for node in &plan.nodes {
        let model = node.model.as_ref().map(|m| format!(" ({m})")).unwrap_or_default();
        let inputs = format!("← {}", node.inputs.join(", "));
        rows.push(vec![node.name.clone(), format!("{}{model}", node.op), inputs, node.schema.to_string()]);
    }
    for sink in &plan.sinks {
        let inputs = format!("← {}", plan.nodes[sink.node].name);
        rows.push(vec![sink.name.clone(), "kv".to_string(), inputs, String::new()]);
    }
    output::columns(&rows)
}

/// What is drawn: boxes by kind, and arrows between them.
#[derive(Debug, Default)]
struct Picture {
    /// Identity, lines of text, and kind.
    boxes: Vec<(String, Vec<String>, Kind)>,
    arrows: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Source,
    Node,
    Sink,
}

impl Picture {
    /// Sinks are numbered, because one may have the name of a node.
    fn of(plan: &Plan) -> Self {
        let mut picture = Picture::default();
        let id = |kind: &str, at: usize| format!("{kind}{at}");
        let of_name = |name: &str| {
            let node = plan.nodes.iter().position(|n| n.name == name).map(|at| id("n", at));
            node.or_else(|| plan.sources.iter().position(|s| s.name == name).map(|at| id("s", at)))
        };
        for (at, source) in plan.sources.iter().enumerate() {
            picture.boxes.push((id("s", at), vec![source.name.clone()], Kind::Source));
        }
        for (at, node) in plan.nodes.iter().enumerate() {
            let mut lines = vec![node.name.clone(), node.op.clone()];
            lines.extend(node.model.as_ref().map(|model| format!("model {model}")));
            picture.boxes.push((id("n", at), lines, Kind::Node));
            let from = node.inputs.iter().filter_map(|input| of_name(input));
            picture.arrows.extend(from.map(|from| (from, id("n", at))));
        }
        for (at, sink) in plan.sinks.iter().enumerate() {
            picture.boxes.push((id("k", at), vec![sink.name.clone()], Kind::Sink));
            picture.arrows.push((id("n", sink.node), id("k", at)));
        }
        picture
    }
}

fn mermaid(picture: &Picture) -> String {
    let mut text = String::from("flowchart LR\n");
    for (id, lines, kind) in &picture.boxes {
        let label = lines.join("<br/>").replace('"', "#quot;");
        let shape = match kind {
            Kind::Source => format!("[(\"{label}\")]"),
            Kind::Node => format!("[\"{label}\"]"),
            Kind::Sink => format!("([\"{label}\"])"),
        };
        text += &format!("  {id}{shape}\n");
    }
    for (from, to) in &picture.arrows {
        text += &format!("  {from} --> {to}\n");
    }
    text
}

fn dot(picture: &Picture) -> String {
    let mut text = String::from("digraph pipeline {\n  rankdir=LR;\n  node [fontname=\"sans-serif\"];\n");
    for (id, lines, kind) in &picture.boxes {
        let label = lines.join("\n").replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let shape = match kind {
            Kind::Source => "cylinder",
            Kind::Node => "box",
            Kind::Sink => "oval",
        };
        text += &format!("  {id} [label=\"{label}\", shape={shape}];\n");
    }
    for (from, to) in &picture.arrows {
        text += &format!("  {from} -> {to};\n");
    }
    text + "}\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Picture {
        Picture {
            boxes: vec![
                ("s0".into(), vec!["events".into()], Kind::Source),
                ("n0".into(), vec!["a \"b\"".into(), "count".into()], Kind::Node),
                ("k0".into(), vec!["store".into()], Kind::Sink),
            ],
            arrows: vec![("s0".into(), "n0".into()), ("n0".into(), "k0".into())],
        }
    }

    #[test]
    fn mermaid_quotes_labels() {
        let text = mermaid(&picture());
        assert_eq!(
            text,
            "flowchart LR\n  s0[(\"events\")]\n  n0[\"a #quot;b#quot;<br/>count\"]\n  k0([\"store\"])\n  \
             s0 --> n0\n  n0 --> k0\n"
        );
    }

    #[test]
    fn dot_escapes_labels() {
        let text = dot(&picture());
        assert!(text.contains(r#"n0 [label="a \"b\"\ncount", shape=box];"#), "{text}");
        assert!(text.contains("n0 -> k0;") && text.ends_with("}\n"), "{text}");
    }
}
