//! `kill -9` at moments spread over a run: the next run ends where an undisturbed one ends, byte
//! for byte, and pays for nothing twice.
//!
//! The process that is killed is this test binary itself, started once more: a language model that
//! costs nothing is reachable from Rust only, and it has to take its time to be met at its calls.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use coea_engine::{runtime::driver::Options, testing::Bench};

use common::{Content, calls, content, delta, first};

const USERS: u64 = 240;
const KILLS: u32 = 10;
const SEED: u64 = 20_260_301;
/// What a prompt takes in the process that is killed.
const PER_PROMPT: Duration = Duration::from_millis(4);

/// Where the process that is killed finds its folder, the state's name, and what it is to do.
const FOLDER: &str = "CRASH_FOLDER";
const STATE: &str = "CRASH_STATE";
const WORK: &str = "CRASH_WORK";

/// What is disturbed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    /// The first run of all.
    Cold,
    /// A delta to a state.
    Delta,
    /// The same delta, given again.
    Again,
}

impl Work {
    fn options(self, bench: &Bench) -> Options {
        match self {
            Work::Cold => first(),
            Work::Delta | Work::Again => delta(bench, USERS),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Work::Cold => "cold",
            Work::Delta => "delta",
            Work::Again => "again",
        }
    }

    /// Begins a state as the work finds it.
    fn prepare(self, bench: &Bench, state: &str) {
        let from = bench.path("before");
        if self != Work::Cold && !from.exists() {
            bench.epoch("before", first()).unwrap();
            if self == Work::Again {
                bench.epoch("before", delta(bench, USERS)).unwrap();
            }
        }
        for database in ["state.lmdb", "memo.lmdb"].into_iter().filter(|_| self != Work::Cold) {
            let to = bench.path(state).join(database);
            fs::create_dir_all(&to).unwrap();
            fs::copy(from.join(database).join("data.mdb"), to.join("data.mdb")).unwrap();
        }
    }

    /// Starts a process that does it, at the pace of a model.
    fn start(self, bench: &Bench, state: &str) -> Child {
        let mut process = Command::new(std::env::current_exe().unwrap());
        process.args(["--exact", "a_process_for_the_others_to_kill", "--ignored", "--nocapture"]);
        process.env(FOLDER, bench.path("")).env(STATE, state).env(WORK, self.word());
        process.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }
}

#[test]
#[ignore = "does nothing by itself"]
fn a_process_for_the_others_to_kill() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let (state, work) = (std::env::var(STATE).unwrap(), std::env::var(WORK).unwrap());
    let work = [Work::Cold, Work::Delta, Work::Again].into_iter().find(|w| w.word() == work).unwrap();
    let bench = Bench::at(Path::new(&folder)).unwrap();
    bench.models.take(PER_PROMPT);
    bench.epoch(&state, work.options(&bench)).unwrap();
}

/// A part of 1 that is the same in every run of the test.
fn jitter(kill: u32) -> f64 {
    let hash = blake3::hash(&[SEED.to_le_bytes(), u64::from(kill).to_le_bytes()].concat());
    f64::from(hash.as_bytes()[0]) / 256.0
}

/// Kills the work at moments spread over its time, and has it done again after each.
fn drill(work: Work) {
    let bench = common::bench(USERS);
    work.prepare(&bench, "undisturbed");
    bench.epoch("undisturbed", work.options(&bench)).unwrap();
    let expected = content(&bench, "undisturbed");
    work.prepare(&bench, "timed");
    let began = Instant::now();
    assert!(work.start(&bench, "timed").wait().unwrap().success());
    let time = began.elapsed();
    content(&bench, "timed").assert_is(&expected, "in a process of its own");

    let before = content(&bench, "before").memo.len();
    let (mut amid, mut told) = (0, String::new());
    for kill in 0..KILLS {
        let state = format!("killed-{kill}");
        work.prepare(&bench, &state);
        let moment = time.mul_f64((f64::from(kill) + jitter(kill)) / f64::from(KILLS));
        let mut process = work.start(&bench, &state);
        std::thread::sleep(moment);
        process.kill().unwrap();
        process.wait().unwrap();
        let left = content(&bench, &state);
        let when = format!(
            "killed after {moment:?} of {time:?}, with {} answers and {} fits in epoch {}",
            left.memo.len(),
            left.fits,
            left.manifest.epoch
        );
        amid += u32::from(left.manifest.epoch < expected.manifest.epoch && left.memo.len() > before);
        told += &format!("{when}\n");
        rerun(work, &bench, &state, &left, &expected, &when);
    }
    assert!(work == Work::Again || amid > 0, "no kill met the run at its calls:\n{told}");
    println!("{told}");
}

/// Does the work on what a kill has left: nothing is lost, nothing is done twice.
fn rerun(work: Work, bench: &Bench, state: &str, left: &Content, expected: &Content, when: &str) {
    let begun = bench.fits();
    let report = bench.epoch(state, work.options(bench)).unwrap();
    content(bench, state).assert_is(expected, when);
    assert_eq!(left.memo.len() as u64 + calls(&report), expected.memo.len() as u64, "calls, {when}");
    assert_eq!(left.fits + bench.fits() - begun, expected.fits, "fits, {when}");
    let applied = report.inputs.iter().map(|input| input.already_applied);
    if work != Work::Cold {
        let by_the_kill = (left.manifest.epoch == 2).then_some(2);
        assert_eq!(applied.collect::<Vec<_>>(), [by_the_kill; 3], "{when}");
    }
    let third = bench.epoch(state, work.options(bench)).unwrap();
    assert_eq!((calls(&third), bench.fits() - begun), (0, expected.fits - left.fits), "again, {when}");
    content(bench, state).assert_is(expected, when);
}

#[test]
fn a_killed_first_run_is_taken_up_where_it_was() {
    drill(Work::Cold);
}

#[test]
fn a_killed_delta_is_applied_exactly_once() {
    drill(Work::Delta);
}

#[test]
fn a_delta_given_again_and_killed_changes_nothing() {
    drill(Work::Again);
}
