//! `status`: what the state holds and what waits.
//!
//! All of it is read from the last commit, so it can be asked while a run is under way.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use coea_operators::{row::Row, shape::Shape};
use serde::Serialize;

use super::{Common, Failure, Format, drift, output, progress::Bars};
use crate::{
    connectors::Offsets,
    runtime::{
        backlog::{self, Clock, NodeBacklog},
        fold::{Update, unknown_pairs},
    },
    serve::View,
    state::StateError,
};

/// Epoch, sizes, backlog and model versions.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
    /// Also how far data have drifted from what encoders and codebooks were fitted on; reads all of that.
    #[arg(long)]
    drift: bool,
}

#[derive(Serialize)]
struct Status {
    schema: &'static str,
    pipeline: String,
    epoch: u64,
    workers: usize,
    nodes: Vec<NodeStatus>,
    sources: Vec<SourceStatus>,
    /// Requests to models that wait for the `after` of their node.
    backlog: u64,
    waiting: Vec<WaitingStatus>,
    errors: u64,
    /// Items with events that no side input knows.
    unknown_items: u64,
    unmatched_retractions: u64,
    dead_letters: u64,
    memo: MemoStatus,
    artifacts: Vec<ArtifactStatus>,
    models: Vec<ModelStatus>,
    bytes_on_disk: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    drift: Option<Vec<drift::DriftStatus>>,
}

#[derive(Serialize)]
struct NodeStatus {
    node: String,
    op: String,
    keys: u64,
}

#[derive(Serialize)]
struct WaitingStatus {
    node: String,
    requests: u64,
    /// The epoch that the oldest began to wait in, and its time in milliseconds since 1970.
    since_epoch: u64,
    at: u64,
    /// Rows taken in and seconds passed since then, beside what it waits for.
    events: u64,
    after_events: Option<u64>,
    seconds: f64,
    after_seconds: Option<f64>,
}

#[derive(Serialize)]
struct SourceStatus {
    source: String,
    rows: i64,
    /// Bytes of records whose end has not been written yet.
    waiting_bytes: u64,
}

#[derive(Default, Serialize)]
struct MemoStatus {
    live: u64,
    unused: u64,
}

#[derive(Serialize)]
struct ArtifactStatus {
    artifact: String,
    digest: String,
    epoch: u64,
}

#[derive(Serialize)]
struct ModelStatus {
    node: String,
    calls: u64,
    seconds: f64,
    calls_per_second: f64,
}

/// Runs the command.
///
/// # Errors
/// If nothing was run yet, or the state cannot be read.
pub fn run(args: &Args) -> Result<(), Failure> {
    let view = output::open(&args.common)?;
    let mut status = status(&view)?;
    if args.drift {
        status.drift = Some(drift::drift(&view, &Bars::new(&args.common))?);
    }
    match args.common.format {
        Format::Json => output::document(&status),
        Format::Text => output::text(&shown(&status)),
    }
}

fn status(view: &View) -> Result<Status, StateError> {
    let manifest = &view.manifest;
    let errors = view.tables.rows("errors")?;
    let waiting = waiting(view)?;
    let mut memo = MemoStatus::default();
    view.memo.for_each(&mut |_, answer| match answer.unused_since {
        None => memo.live += 1,
        Some(_) => memo.unused += 1,
    })?;
    Ok(Status {
        schema: "coea.status/1",
        pipeline: manifest.pipeline.clone(),
        epoch: manifest.epoch,
        workers: manifest.workers,
        nodes: nodes(view),
        sources: sources(view),
        backlog: waiting.iter().map(|node| node.requests).sum(),
        waiting,
        errors: errors.iter().map(|(_, count)| count.max(&0).unsigned_abs()).sum(),
        unknown_items: unknown_items(view, &errors),
        unmatched_retractions: count(view, "unmatched_retractions")?,
        dead_letters: count(view, "dead_letters")?,
        memo,
        artifacts: manifest
            .artifacts
            .iter()
            .map(|(name, fit)| ArtifactStatus {
                artifact: name.clone(),
                digest: fit.digest.clone(),
                epoch: fit.epoch,
            })
            .collect(),
        models: models(view),
        bytes_on_disk: bytes_below(&view.dir),
        drift: None,
    })
}

fn nodes(view: &View) -> Vec<NodeStatus> {
    let known = |name: &str| view.manifest.nodes.get(name).map_or(0, |node| node.keys);
    let status = |node: &crate::plan::PlanNode| NodeStatus {
        node: node.name.clone(),
        op: node.op.clone(),
        keys: known(&node.name),
    };
    view.plan.nodes.iter().map(status).collect()
}

fn sources(view: &View) -> Vec<SourceStatus> {
    let status = |source: &crate::plan::PlanSource| {
        let known = view.manifest.sources.get(&source.name);
        let offsets = known.and_then(|s| serde_json::from_value::<Offsets>(s.offsets.clone()).ok());
        SourceStatus {
            source: source.name.clone(),
            rows: known.map_or(0, |s| s.rows),
            waiting_bytes: offsets.map_or(0, |offsets| offsets.waiting()),
        }
    };
    view.plan.sources.iter().map(status).collect()
}

fn waiting(view: &View) -> Result<Vec<WaitingStatus>, StateError> {
    let now = Clock::System.now();
    let status = |(node, NodeBacklog { requests, since }): (String, NodeBacklog)| {
        let after = view.plan.node(&node).and_then(|node| node.after);
        WaitingStatus {
            requests,
            since_epoch: since.epoch,
            at: since.at,
            events: view.manifest.taken.saturating_sub(since.taken),
            after_events: after.and_then(|after| after.events),
            seconds: now.saturating_sub(since.at) as f64 / 1000.0,
            after_seconds: after.and_then(|after| after.time).map(|time| time.as_secs_f64()),
            node,
        }
    };
    Ok(backlog::by_node(&view.tables)?.into_iter().map(status).collect())
}

fn models(view: &View) -> Vec<ModelStatus> {
    let status = |(node, measured): (&String, &crate::state::manifest::Throughput)| ModelStatus {
        node: node.clone(),
        calls: measured.calls,
        seconds: measured.seconds,
        calls_per_second: if measured.seconds > 0.0 { measured.calls as f64 / measured.seconds } else { 0.0 },
    };
    view.manifest.throughput.iter().map(status).collect()
}

fn count(view: &View, table: &str) -> Result<u64, StateError> {
    let mut n = 0;
    view.tables.for_each(table, &mut |_, rows| {
        n += rows.iter().map(|(_, count)| count.max(&0).unsigned_abs()).sum::<u64>();
    })?;
    Ok(n)
}

/// Distinct items that some fold waits for.
fn unknown_items(view: &View, errors: &[Update]) -> u64 {
    let mut items: BTreeSet<(usize, Row)> = BTreeSet::new();
    let mut widths: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for fold in view.plan.folds() {
        let leaf = &view.plan.leaves[fold];
        let Shape::Fold { source, .. } = leaf.shape else { continue };
        if let Some(known) = view.plan.sources.iter().find(|s| s.leaf == source) {
            widths.insert(&leaf.node, (source, known.key.len()));
        }
    }
    for (node, (source, width)) in widths {
        items.extend(unknown_pairs(node, errors, width).into_iter().map(|(item, _)| (source, item)));
    }
    items.len() as u64
}

/// Bytes of all files below a folder; what cannot be looked at counts nothing.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

fn shown(status: &Status) -> String {
    let mut text = format!(
        "{} at epoch {}, {:.1} MiB on disk\n\n",
        status.pipeline,
        status.epoch,
        status.bytes_on_disk as f64 / f64::from(1 << 20)
    );
    let row = |cells: &[&dyn std::fmt::Display]| cells.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut rows = vec![row(&[&"source", &"rows", &"bytes waiting"])];
    rows.extend(status.sources.iter().map(|s| row(&[&s.source, &s.rows, &s.waiting_bytes])));
    text += &output::columns(&rows);
    let mut rows = vec![row(&[&"node", &"op", &"keys"])];
    rows.extend(status.nodes.iter().map(|n| row(&[&n.node, &n.op, &n.keys])));
    text += &format!("\n{}", output::columns(&rows));
    let mut rows = vec![row(&[&"artifact", &"digest", &"fitted in epoch"])];
    rows.extend(
        status.artifacts.iter().map(|a| row(&[&a.artifact, &&a.digest[..a.digest.len().min(16)], &a.epoch])),
    );
    text += &format!("\n{}", output::columns(&rows));
    if !status.models.is_empty() {
        let mut rows = vec![row(&[&"model calls of", &"calls", &"per second"])];
        let rate = |rate: f64| format!("{rate:.1}");
        rows.extend(status.models.iter().map(|m| row(&[&m.node, &m.calls, &rate(m.calls_per_second)])));
        text += &format!("\n{}", output::columns(&rows));
    }
    if !status.waiting.is_empty() {
        let mut rows = vec![row(&[&"waiting", &"requests", &"since epoch", &"rows since", &"seconds since"])];
        let of = |has: String, of: Option<String>| of.map_or(has.clone(), |of| format!("{has} of {of}"));
        rows.extend(status.waiting.iter().map(|w| {
            let events = of(w.events.to_string(), w.after_events.map(|n| n.to_string()));
            let seconds = of(format!("{:.0}", w.seconds), w.after_seconds.map(|n| n.to_string()));
            row(&[&w.node, &w.requests, &w.since_epoch, &events, &seconds])
        }));
        text += &format!("\n{}", output::columns(&rows));
    }
    text += &status.drift.as_deref().map(drift::shown).unwrap_or_default();
    text += &format!(
        "\nmemo: {} answers in use, {} kept unused\nbacklog {}, errors {}, unknown items {}, unmatched retractions {}, dead letters {}\n",
        status.memo.live,
        status.memo.unused,
        status.backlog,
        status.errors,
        status.unknown_items,
        status.unmatched_retractions,
        status.dead_letters
    );
    text
}
