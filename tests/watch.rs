//! `watch` as a user meets it: rows are appended while it runs, other processes read beside it,
//! and a signal ends it with everything committed.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

const BINARY: &str = env!("CARGO_BIN_EXE_coea-engine");

const PIPELINE: &str = "\
version: 1
name: watched
sources:
  events:
    connector: files
    with:
      path: clicks.csv
      format: csv
      columns: { user_id: u64, category: text, timestamp: timestamp }
      time: { column: timestamp }
nodes:
  recent: { op: recent_categories, in: events, with: { last: 5, keep: 2, column: category } }
sinks:
  store: { connector: kv, in: recent }
";

struct Watched {
    dir: tempfile::TempDir,
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Watched {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("pipeline.yaml"), PIPELINE).unwrap();
        fs::write(dir.path().join("clicks.csv"), "user_id,category,timestamp\n1,a,1\n2,b,1\n").unwrap();
        Watched::on(dir, "20ms")
    }

    /// Watches the pipeline of a folder.
    fn on(dir: tempfile::TempDir, interval: &str) -> Self {
        let mut child = command(dir.path(), "watch")
            .args(["--interval", interval, "--format", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Watched { dir, child, lines }
    }

    fn clicks(&self) -> PathBuf {
        self.dir.path().join("clicks.csv")
    }

    /// The report of the next epoch.
    fn next(&mut self) -> serde_json::Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn append(&self, text: &str) {
        use std::io::Write;
        let mut file = fs::OpenOptions::new().append(true).open(self.clicks()).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    fn dump(&self) -> String {
        let output = command(self.dir.path(), "dump").args(["--table", "recent"]).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // A test that failed leaves nobody watching.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(dir: &Path, name: &str) -> Command {
    let mut command = Command::new(BINARY);
    command.arg(name).arg(dir.join("pipeline.yaml")).arg("--state").arg(dir.join("state"));
    command.stdin(Stdio::null());
    command
}

#[test]
fn what_is_appended_is_applied_until_a_signal_ends_it() {
    for signal in ["-TERM", "-INT"] {
        let mut watched = Watched::start();
        let first = watched.next();
        assert_eq!((&first["epoch"], &first["inputs"][0]["rows"]), (&1.into(), &2.into()));
        // A line that is not whole yet waits for its end.
        watched.append("1,c,2\n9,d,");
        let second = watched.next();
        assert_eq!((&second["epoch"], &second["inputs"][0]["rows"]), (&2.into(), &1.into()));
        assert!(watched.dump().contains("[\"a\",\"c\"]"), "{}", watched.dump());
        watched.append("3\n");
        assert_eq!(watched.next()["nodes"][0]["changed"], 1);
        watched.append("10,e,4\nbroken\n");
        assert_eq!(watched.next()["inputs"][0]["rejected"], 1);
        watched.signal(signal);
        assert_eq!(watched.child.wait().unwrap().code(), Some(0));
        let mut rest = String::new();
        watched.lines.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
        assert_eq!(watched.dump().lines().count(), 4);
        assert!(command(watched.dir.path(), "verify").output().unwrap().status.success());
    }
}

#[test]
fn only_one_process_writes_and_an_unusable_source_ends_it() {
    let mut watched = Watched::start();
    watched.next();
    let second = command(watched.dir.path(), "watch").output().unwrap();
    assert_eq!(second.status.code(), Some(75));
    fs::write(watched.clicks(), "user_id,category,timestamp\n7,x,1\n2,b,1\n").unwrap();
    assert_eq!(watched.child.wait().unwrap().code(), Some(66));
    assert_eq!(watched.dump().lines().count(), 2);
}

#[test]
fn what_waits_for_its_time_is_asked_when_that_is_over() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("operators/examples");
    let dir = tempfile::tempdir().unwrap();
    for name in ["events.csv", "items.csv", "users.csv"] {
        fs::create_dir_all(dir.path().join("data")).unwrap();
        fs::copy(examples.join("data").join(name), dir.path().join("data").join(name)).unwrap();
    }
    let pipeline = fs::read_to_string(examples.join("csa_encoder.yaml")).unwrap();
    let waiting = pipeline.replacen("op: csa_encoder,", "op: csa_encoder, after: { time: 200ms },", 1);
    fs::write(dir.path().join("pipeline.yaml"), waiting).unwrap();
    let mut watched = Watched::on(dir, "2s");
    let of = |report: &serde_json::Value| {
        let node =
            report["nodes"].as_array().unwrap().iter().find(|node| node["node"] == "embedding").unwrap();
        (node["calls"].as_u64().unwrap(), node["backlog"].as_u64().unwrap())
    };
    assert_eq!(of(&watched.next()).1, 0);
    let clicks: String = (0..5).map(|at| format!("1,2,5,99000000{at}\n")).collect();
    let path = watched.dir.path().join("data/events.csv");
    fs::write(&path, fs::read_to_string(&path).unwrap() + &clicks).unwrap();
    assert_eq!(of(&watched.next()), (0, 1));
    let held = Instant::now();
    assert_eq!(of(&watched.next()), (1, 0));
    assert!(held.elapsed() < Duration::from_millis(1_500), "only the next look at the sources came");
    watched.signal("-TERM");
    assert_eq!(watched.child.wait().unwrap().code(), Some(0));
    assert!(command(watched.dir.path(), "verify").output().unwrap().status.success());
}
