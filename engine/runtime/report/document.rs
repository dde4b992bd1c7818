//! The report of an epoch as the document of the contract.
//!
//! Apart from the report itself, because other programs read it: what is renamed in here is broken
//! for them, and what they have no use for may come and go there.

use serde_json::{Map, Value as Json, json};

use super::{NodeReport, Report};
use crate::runtime::epoch::{CallReport, InputReport};

impl Report {
    /// The document of the contract.
    pub fn to_json(&self) -> Json {
        let schema = if self.dry { "coea.plan/1" } else { "coea.run/1" };
        let mut inference = CallReport::default();
        for node in self.nodes.iter().filter(|node| node.language) {
            inference.calls += node.calls.calls;
            inference.memo_hits += node.calls.memo_hits;
            inference.cost += node.calls.cost;
            inference.seconds += node.calls.seconds;
        }
        let mut language = json!({
            "calls": inference.calls,
            "memo_hits": inference.memo_hits,
            "prompt_tokens": inference.cost.prompt_tokens,
            "reused_prompt_tokens": inference.cost.reused_prompt_tokens,
            "completion_tokens": inference.cost.completion_tokens,
            "requests": inference.cost.requests,
            "seconds": round(inference.seconds),
        });
        if let Some((money, currency)) = self.money() {
            language["money"] = json!(money);
            language["currency"] = json!(currency);
        }
        json!({
            "schema": schema,
            "pipeline": self.pipeline,
            "epoch": self.epoch,
            "inputs": self.inputs.iter().map(input_json).collect::<Vec<_>>(),
            "spec_changes": self.spec_changes.iter()
                .map(|(node, kind)| json!({ "node": node, "kind": kind })).collect::<Vec<_>>(),
            "nodes": self.nodes.iter().map(node_json).collect::<Vec<_>>(),
            "inference": language,
            "sinks": self.sinks.iter().map(|(name, at)| self.sink_json(name, *at)).collect::<Vec<_>>(),
            "seconds": round(self.seconds),
        })
    }

    fn sink_json(&self, name: &str, at: usize) -> Json {
        let node = &self.nodes[at];
        json!({
            "sink": name,
            "puts": node.changed - node.gone.min(node.changed),
            "deletes": node.gone,
            "basis": node.changed_basis.word(),
        })
    }
}

fn round(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

fn input_json(input: &InputReport) -> Json {
    let mut object = Map::new();
    object.insert("source".into(), json!(input.source));
    object.insert("rows".into(), json!(input.rows));
    object.insert("retractions".into(), json!(input.retractions));
    object.insert("rejected".into(), json!(input.rejected));
    if let Some(epoch) = input.already_applied {
        object.insert("already_applied".into(), json!(epoch));
    }
    Json::Object(object)
}

fn node_json(node: &NodeReport) -> Json {
    let basis = match node.calls_basis == node.changed_basis {
        true => json!(node.calls_basis.word()),
        false => json!({ "calls": node.calls_basis.word(), "changed": node.changed_basis.word() }),
    };
    let mut report = json!({
        "node": node.node,
        "op": node.op,
        "keys": node.keys,
        "changed": node.changed,
        "calls": node.calls.calls,
        "memo_hits": node.calls.memo_hits,
        "errors": node.calls.errors,
        "backlog": node.backlog,
        "basis": basis,
    });
    if let Some((money, currency)) = &node.money {
        report["money"] = json!(money);
        report["currency"] = json!(currency);
    }
    if let Some((cost, seconds)) = &node.training {
        report["training"] = json!({
            "steps": cost.steps,
            "prompts": cost.prompts,
            "prompt_tokens": cost.prompt_tokens,
            "seconds": round(*seconds),
        });
    }
    report
}
