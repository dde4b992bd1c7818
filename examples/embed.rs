//! A program that keeps a pipeline up to date by itself: no command line, no second process.
//!
//! `cargo run --release --example embed`. Lowers a pipeline, opens a driver on a state, runs the
//! first epoch, applies a delta, and reads what was committed.

use std::{error::Error, fs, path::Path, sync::Arc};

use coea_engine::{
    lower::lower,
    models::RealModels,
    registry::Registry,
    runtime::driver::{Driver, Listener, Options},
    spec,
    state::{State, tables::Tables},
};

const PIPELINE: &str = "\
version: 1
name: embedded
sources:
  clicks:
    connector: files
    with:
      path: clicks.csv
      format: csv
      columns: { user_id: u64, category: text, timestamp: timestamp }
      time: { column: timestamp }
nodes:
  recent: { op: recent_categories, in: clicks, with: { last: 5, keep: 2, column: category } }
sinks:
  store: { connector: kv, in: recent }
";

/// Long work tells how far it is; this program has none.
struct Quiet;

impl Listener for Quiet {
    fn progress(&self, _what: &str, _done: u64, _total: u64, _note: &str) {}

    fn warn(&self, message: &str) {
        eprintln!("{message}");
    }
}

fn print(state: &State) -> Result<(), Box<dyn Error>> {
    let tables = Tables::new(state.snapshot()?.layered("tables"));
    for ((user, row), _) in tables.rows("recent")? {
        println!("  user {}: {}", user[0], row[0]);
    }
    Ok(())
}

fn run(folder: &Path) -> Result<(), Box<dyn Error>> {
    let pipeline = folder.join("pipeline.yaml");
    fs::write(&pipeline, PIPELINE)?;
    fs::write(folder.join("clicks.csv"), "user_id,category,timestamp\n1,jazz,1\n2,opera,1\n")?;
    let spec = spec::load(&pipeline, &[], &|name| std::env::var(name).ok()).map_err(|e| e.render(false))?;
    let plan =
        lower(&spec, folder, &Registry::built_in(), &RealModels::default()).map_err(|e| e.render(false))?;

    let state = State::open(&folder.join("state"))?;
    let options = Options { workers: 1, ..Options::default() };
    let mut driver = Driver::open(Arc::new(plan), state.clone(), options, &Quiet)?;
    println!("epoch {}", driver.run_epoch()?.epoch);
    print(&state)?;

    let delta = folder.join("delta.csv");
    fs::write(&delta, "user_id,category,timestamp,diff\n1,blues,2,1\n2,opera,1,-1\n3,folk,2,1\n")?;
    driver.begin(vec![("clicks".to_string(), delta)]);
    println!("epoch {}", driver.run_epoch()?.epoch);
    print(&state)
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    run(folder.path())
}
