//! An operator from outside the tree: one type, registered beside the built-in ones.
//!
//! `cargo run --release --example own_operator`. The operator says how much of what a user clicks
//! was clicked before. It declares the items as counted values, so that the engine keeps the counts
//! and a click costs the same in a long history as in a short one.

use std::{error::Error, fs};

use coea_engine::{
    lower::lower,
    models::RealModels,
    oracle::{self, Calls},
    registry::Registry,
    runtime::driver::{Driver, Listener, Options},
    spec,
    state::{State, tables::Tables},
    verify,
};
use coea_operators::{
    operator::{Described, Inputs, Operator, Problem, Problems, Register},
    row::{Row, Value},
    schema::{Column, Schema, Type},
    shape::{Counts, Event, FoldKernel, Graph, LeafId, Walk},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The share of a user's events whose item the user had met before.
///
/// Input: a source of events.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RepeatShare {
    /// The column of the events that names the item.
    column: String,
}

/// Counts the cells of one column of the events.
struct Kernel {
    column: usize,
}

impl FoldKernel for Kernel {
    fn counts(&self) -> bool {
        true
    }

    fn counted(&self, event: &Event<'_>, out: &mut Vec<Value>) {
        out.push(event.row[self.column].clone());
    }

    fn emit(&self, _user: &Row, _walk: &mut Walk<'_>, counts: &Counts, out: &mut Vec<Row>) {
        let events: i64 = counts.values().sum();
        if events > 0 {
            out.push(Row::from([Value::float(1.0 - counts.len() as f64 / events as f64)]));
        }
    }
}

impl RepeatShare {
    fn place(&self, inputs: &Inputs<'_>) -> Result<usize, Vec<Problem>> {
        let mut problems = Problems::default();
        problems.take(inputs.at_most(1));
        let events = problems.take(inputs.events(0));
        let place = events.and_then(|events| problems.take(inputs.column(0, events, &self.column)));
        problems.finish(place)
    }
}

impl Operator for RepeatShare {
    fn output(&self, inputs: &Inputs<'_>) -> Result<Schema, Vec<Problem>> {
        self.place(inputs)?;
        Ok(Schema::new(inputs.inputs[0].schema.key.clone(), [Column::new("share", Type::F64)]))
    }

    fn build(&self, inputs: &Inputs<'_>, graph: &mut Graph) -> LeafId {
        let Ok(column) = self.place(inputs) else { unreachable!("checked by output") };
        graph.fold("", inputs.inputs[0].leaf, None, Kernel { column })
    }
}

impl Described for RepeatShare {
    const NAME: &'static str = "repeat_share";
    const EXAMPLE: &'static str = PIPELINE;
}

const PIPELINE: &str = "\
version: 1
name: repeats
sources:
  clicks:
    connector: files
    with:
      path: clicks.csv
      format: csv
      columns: { user_id: u64, item_id: u64, timestamp: timestamp }
      time: { column: timestamp }
nodes:
  repeats: { op: repeat_share, in: clicks, with: { column: item_id } }
sinks:
  store: { connector: kv, in: repeats }
";

/// Hears nothing.
struct Quiet;

impl Listener for Quiet {
    fn progress(&self, _what: &str, _done: u64, _total: u64, _note: &str) {}
    fn warn(&self, _message: &str) {}
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let pipeline = folder.path().join("pipeline.yaml");
    fs::write(&pipeline, PIPELINE)?;
    let clicks = "user_id,item_id,timestamp\n1,7,1\n1,7,2\n1,8,3\n1,7,4\n2,9,1\n";
    fs::write(folder.path().join("clicks.csv"), clicks)?;

    let mut registry = Registry::built_in();
    registry.operator::<RepeatShare>();
    let spec = spec::load(&pipeline, &[], &|_| None).map_err(|e| e.render(false))?;
    let plan = lower(&spec, folder.path(), &registry, &RealModels::default()).map_err(|e| e.render(false))?;
    let plan = std::sync::Arc::new(plan);

    let state = State::open(&folder.path().join("state"))?;
    let options = Options { workers: 1, ..Options::default() };
    Driver::open(plan.clone(), state.clone(), options, &Quiet)?.run_epoch()?;
    let tables = Tables::new(state.snapshot()?.layered("tables"));
    for ((user, row), _) in tables.rows("repeats")? {
        println!("user {}: {} of the clicks were repeats", user[0], row[0]);
    }
    let fresh = oracle::recompute(&plan, &state, Calls::Memo)?;
    assert!(verify::compare(&plan, &state, &fresh)?.is_empty());
    println!("and so says the oracle");
    Ok(())
}
