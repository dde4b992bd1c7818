//! `pipelines/schema.json` is what `coea-engine schema` prints. `UPDATE=1 cargo test` rewrites it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{path::Path, process::Command};

#[test]
fn the_schema_in_the_repository_is_the_one_that_is_printed() {
    let printed = Command::new(env!("CARGO_BIN_EXE_coea-engine")).arg("schema").output().unwrap();
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let printed = String::from_utf8(printed.stdout).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/schema.json");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &printed).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == printed,
        "pipelines/schema.json is stale; refresh it with UPDATE=1 cargo test --test schema"
    );
}
