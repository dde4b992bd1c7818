//! What making a planted world takes in memory, whatever the length of its log.
//!
//! A program of its own: a process is charged with the memory that its parent had when it began, so
//! tests beside this one would be measured too.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::Command;

const BINARY: &str = env!("CARGO_BIN_EXE_coea-engine");

/// The most memory that the command had at once, in KiB.
#[expect(clippy::zombie_processes, reason = "it is waited for, by the call that tells its memory")]
fn peak(interactions: &str) -> i64 {
    let folder = tempfile::tempdir().unwrap();
    let world = folder.path().join("world");
    let mut command = Command::new(BINARY);
    command.args(["data", "generate", "--quiet", "--threads", "1", "--days", "1", "--set", "unrest=0"]);
    command.args(["--interactions", interactions]).arg(world);
    let child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    // SAFETY: a struct of numbers, for which zeroes are a value; the call fills it in. The child is
    // waited for here and nowhere else.
    let (usage, waited) = unsafe {
        let (mut usage, mut status) = (std::mem::zeroed::<libc::rusage>(), 0);
        let waited = libc::wait4(child.id() as libc::pid_t, &mut status, 0, &mut usage);
        assert_eq!(status, 0);
        (usage, waited)
    };
    assert_eq!(waited as u32, child.id());
    usage.ru_maxrss
}

#[test]
fn memory_does_not_grow_with_the_log() {
    let (short, long) = (peak("300000"), peak("1800000"));
    assert!(10 * long < 13 * short, "{short} KiB for a log of 300000, {long} KiB for one six times as long");
}
