//! What a small delta costs against computing from scratch, on `pipelines/w1.yaml`.
//!
//! `cargo bench --bench incremental [-- EVENTS]`, 1,000,000 unless said. One process, one worker, a
//! state on disk: every figure is from the delta file to the durable commit. Users are drawn by
//! Zipf's law (exponent 1.1, 50,000 users), so that one of them has about 14% of the events, and a
//! tenth of the rows take an earlier one back. At the end the oracle computes all tables anew, so
//! that no figure is of a wrong result.

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]

use std::{
    fmt::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

use coea_engine::{
    oracle::{self, Calls},
    runtime::driver::{Driver, Options},
    testing::Bench,
    verify,
};

const USERS: usize = 50_000;
const ITEMS: u64 = 20_000;
const CATEGORIES: u32 = 594;
/// Events that may be taken back, drawn from all before; no more, so that they are no part of the peak.
const REMEMBERED: usize = 200_000;
const EXPONENT: f64 = 1.1;
/// Rows per delta, and how many such deltas are timed after as many tenths to warm up.
const DELTAS: [(usize, usize); 3] = [(1, 1000), (100, 200), (10_000, 20)];
const SCRATCH: usize = 3;
const HEADER: &str = "user_id,item_id,category,action,timestamp";

/// The events of the workload, the same for the same number of calls.
struct World {
    /// Sums of the users' weights.
    weights: Vec<f64>,
    state: u64,
    clock: u32,
    /// Some events that were written and not taken back.
    written: Vec<(u32, u32, bool, u32)>,
}

impl World {
    fn new() -> Self {
        let mut sum = 0.0;
        let weight = |rank: usize| {
            sum += (rank as f64).powf(-EXPONENT);
            sum
        };
        World {
            weights: (1..=USERS).map(weight).collect(),
            state: 42,
            clock: 1_700_000_000,
            written: Vec::new(),
        }
    }

    /// SplitMix64.
    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn user(&mut self) -> u32 {
        let point = (self.draw() >> 11) as f64 / (1u64 << 53) as f64 * self.weights[USERS - 1];
        self.weights.partition_point(|sum| *sum < point) as u32
    }

    /// One line of a delta file: a new event, or in one of ten cases an old one taken back.
    fn line(&mut self, out: &mut String) {
        let (event, diff) = if self.draw().is_multiple_of(10) && !self.written.is_empty() {
            let at = self.draw() as usize % self.written.len();
            (self.written.swap_remove(at), -1)
        } else {
            self.clock += (self.draw() % 3) as u32;
            let item = (self.draw() % ITEMS) as u32;
            let event = (self.user(), item, !self.draw().is_multiple_of(5), self.clock);
            if self.written.len() == REMEMBERED {
                let at = self.draw() as usize % REMEMBERED;
                self.written.swap_remove(at);
            }
            self.written.push(event);
            (event, 1)
        };
        let (user, item, click, time) = event;
        let (category, action) = (item % CATEGORIES, if click { "click" } else { "view" });
        writeln!(out, "{user},{item},c{category:03},{action},{time},{diff}").unwrap();
    }

    fn delta(&mut self, rows: usize) -> String {
        let mut text = format!("{HEADER},diff\n");
        (0..rows).for_each(|_| self.line(&mut text));
        text
    }
}

/// Time spent in the parts of an epoch.
#[derive(Default)]
struct Parts {
    ingest: Duration,
    settle: Duration,
    changes: Duration,
    commit: Duration,
}

fn epoch(driver: &mut Driver<'_>, parts: &mut Parts) {
    let timed = |spent: &mut Duration, began: Instant| *spent += began.elapsed();
    let began = Instant::now();
    driver.ingest().unwrap();
    timed(&mut parts.ingest, began);
    let began = Instant::now();
    driver.settle().unwrap();
    timed(&mut parts.settle, began);
    let began = Instant::now();
    let changes = driver.changes().unwrap();
    timed(&mut parts.changes, began);
    let began = Instant::now();
    driver.commit(&changes).unwrap();
    timed(&mut parts.commit, began);
}

/// What the system says of this process's memory, in MiB.
fn memory(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(name));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)).and_then(|n| n.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

/// The most memory this process ever had resident, and what it has now: its own, and pages of the
/// files it maps (program and database), which the system may take back.
fn peak() -> String {
    let [most, own, files] = ["VmHWM", "RssAnon", "RssFile"].map(memory);
    format!("peak {most:.0} MiB (now {own:.0} of its own, {files:.0} of mapped files)")
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn at(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

/// Times deltas of some rows on an open driver; says the median in milliseconds.
fn deltas(bench: &Bench, driver: &mut Driver<'_>, world: &mut World, rows: usize, count: usize) -> f64 {
    let mut parts = Parts::default();
    let mut times = Vec::new();
    for turn in 0..count + count / 10 {
        if turn == count / 10 {
            (parts, times) = (Parts::default(), Vec::new());
        }
        let text = world.delta(rows);
        driver.begin(bench.deltas(&[("events", &text)]).unwrap().deltas);
        let began = Instant::now();
        epoch(driver, &mut parts);
        times.push(milliseconds(began.elapsed()));
    }
    times.sort_by(f64::total_cmp);
    let (p50, p99) = (at(&times, 0.5), at(&times, 0.99));
    let mean = |time: Duration| milliseconds(time) / count as f64;
    println!(
        "{rows:>6} rows: p50 {p50:>8.3} ms, p99 {p99:>8.3} ms ({:.1} x), max {:>8.3} ms; mean of ingest {:.3}, \
         settle {:.3}, changes {:.3}, commit {:.3}; {}",
        p99 / p50,
        times[times.len() - 1],
        mean(parts.ingest),
        mean(parts.settle),
        mean(parts.changes),
        mean(parts.commit),
        peak(),
    );
    p50
}

/// Loads everything into a fresh state; says how long that took.
fn scratch(bench: &Bench, name: &str, options: &Options) -> (Driver<'static>, f64) {
    let mut parts = Parts::default();
    let began = Instant::now();
    let mut driver = bench.driver(name, options.clone()).unwrap();
    epoch(&mut driver, &mut parts);
    let time = began.elapsed();
    println!(
        "from scratch: {:.3} s; ingest {:.3}, settle {:.3}, changes {:.3}, commit {:.3}; {}",
        time.as_secs_f64(),
        parts.ingest.as_secs_f64(),
        parts.settle.as_secs_f64(),
        parts.changes.as_secs_f64(),
        parts.commit.as_secs_f64(),
        peak(),
    );
    (driver, milliseconds(time))
}

fn events() -> usize {
    let given = std::env::args().skip(1).find_map(|arg| arg.replace('_', "").parse().ok());
    given.unwrap_or(1_000_000)
}

fn main() {
    let bench = Bench::new(&[
        ("pipeline.yaml", include_str!("../pipelines/w1.yaml")),
        ("w1/events.csv", &format!("{HEADER}\n")),
    ])
    .unwrap();
    let mut world = World::new();
    // By parts, so that the text is no part of the peak.
    let path = bench.path("load.csv");
    write_load(&mut world, &path, events());
    let options = Options { workers: 1, deltas: vec![("events".to_string(), path)], ..Options::default() };
    println!("{} events; {}", events(), peak());
    let (mut driver, first) = scratch(&bench, "state", &options);
    let mut medians = Vec::new();
    for (rows, count) in DELTAS {
        medians.push(deltas(&bench, &mut driver, &mut world, rows, count));
    }
    drop(driver);
    let mut loads = vec![first];
    for turn in 1..SCRATCH {
        loads.push(scratch(&bench, &format!("scratch-{turn}"), &options).1);
    }
    loads.sort_by(f64::total_cmp);
    for ((rows, _), median) in DELTAS.iter().zip(&medians) {
        println!("{rows:>6} rows: {:.0} x faster than from scratch", at(&loads, 0.5) / median);
    }
    let state = bench.state("state").unwrap();
    let fresh = oracle::recompute(&bench.plan, &state, Calls::Memo).unwrap();
    let differences = verify::compare(&bench.plan, &state, &fresh).unwrap();
    assert!(differences.is_empty(), "the tables are not those of a computation from scratch");
    println!("verified against the oracle");
}

fn write_load(world: &mut World, path: &PathBuf, events: usize) {
    use std::io::Write;
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
    writeln!(file, "{HEADER},diff").unwrap();
    let mut line = String::new();
    for _ in 0..events {
        line.clear();
        world.line(&mut line);
        file.write_all(line.as_bytes()).unwrap();
    }
    file.flush().unwrap();
}
