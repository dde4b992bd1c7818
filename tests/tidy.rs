//! The rules of this tree that no compiler checks: who may know what, how long things may get, and
//! what must not be in it.
//!
//! Rules are tables at the top; the code below only walks. Lengths are a ratchet: what is too long
//! today is listed with its length and may only shrink. `UPDATE=1` records what shrank; growth is
//! written by hand, where a reviewer sees it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Lines a function may have.
const FUNCTION_LINES: usize = 70;
/// Lines a file may have without its tests.
const FILE_LINES: usize = 300;

/// Who alone may name something, by the beginning of the path: (word, in the tree, only there).
const ONLY: [(&str, &str, &[&str]); 9] = [
    ("timely", "engine/", &["engine/runtime/render.rs", "engine/runtime/worker"]),
    ("differential_dataflow", "engine/", &["engine/runtime/render.rs", "engine/runtime/worker"]),
    ("timely", "operators/", &[]),
    ("differential_dataflow", "operators/", &[]),
    ("heed", "", &["engine/state/"]),
    ("candle_core", "", &["operators/lm/", "operators/nn/"]),
    ("Registry", "engine/", &["engine/registry.rs", "engine/lower.rs", "engine/cli/", "engine/testing.rs"]),
    ("saphyr_parser", "", &["engine/spec/"]),
    ("minijinja", "", &["operators/template.rs", "operators/lm/"]),
];

/// Hosts that an address in this tree may name.
const HOSTS: [&str; 13] = [
    "arxiv.org",
    "choosealicense.com",
    "doc.rust-lang.org",
    "docs.rs",
    "github.com",
    "grouplens.org",
    "huggingface.co",
    "json-schema.org",
    "keepachangelog.com",
    "semver.org",
    "www.apache.org",
    "www.w3.org",
    "x",
];

/// What belongs to a machine or to unfinished work. In two parts, so that this file may stay.
const FORBIDDEN: [(&str, &str); 8] = [
    ("/wo", "rk/"),
    ("/ro", "ot/"),
    ("/ho", "me/"),
    ("/Us", "ers/"),
    ("to", "do!("),
    ("db", "g!("),
    ("unimple", "mented!("),
    ("FIX", "ME"),
];

/// Files whose text is checked, by what their names end in.
const TEXTS: [&str; 9] = [".rs", ".md", ".toml", ".yaml", ".jinja", ".stderr", ".html", ".js", "/run"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A text file, by its path from the root with `/` in between.
struct File {
    path: String,
    text: String,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// The lines before the unit tests.
    fn code(&self) -> impl Iterator<Item = &str> {
        let (code, _) = self.text.split_once("#[cfg(test)]\nmod tests {").unwrap_or((&self.text, ""));
        code.lines()
    }

    /// Whether it is all tests.
    fn is_test(&self) -> bool {
        let stem = self.path.trim_end_matches(".rs");
        self.path.starts_with("tests/") || stem.ends_with("tests") || stem.ends_with("testing")
    }
}

fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let skipped = ["target", ".git", ".coea", "__pycache__"].contains(&name.as_str());
        match path.is_dir() {
            true if !skipped => walk(&path, into),
            false => into.push(path),
            true => {}
        }
    }
}

/// The text files of the tree, in order.
fn files() -> Vec<File> {
    let mut paths = Vec::new();
    walk(root(), &mut paths);
    let name = |path: &Path| {
        path.strip_prefix(root()).unwrap().to_string_lossy().replace(std::path::MAIN_SEPARATOR, "/")
    };
    let mut files: Vec<File> = paths
        .iter()
        .map(|path| (name(path), path))
        .filter(|(name, _)| TEXTS.iter().any(|end| name.ends_with(end)))
        .map(|(path, full)| File { path, text: fs::read_to_string(full).unwrap_or_default() })
        .collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(files.len() > 100, "the tree was not found");
    files
}

fn rust() -> Vec<File> {
    files().into_iter().filter(File::is_rust).collect()
}

/// Whether a line of code names a word as a path, comments aside.
fn names(line: &str, word: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        let after = &code[at + word.len()..];
        let whole = !code[..at].ends_with(part) && !after.starts_with(part);
        whole && (after.starts_with("::") || after.starts_with(['{', ';', ',', '>', ')', ' ', '}']))
    })
}

/// Fails with all lines at once.
fn none(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn only_those_who_may_know_a_crate_name_it() {
    let mut found = Vec::new();
    for file in rust().iter().filter(|file| !file.path.starts_with("tests/")) {
        for (word, tree, only) in ONLY {
            let may = !file.path.starts_with(tree) || only.iter().any(|may| file.path.starts_with(may));
            let naming = file.code().position(|line| names(line, word));
            if let Some(line) = naming.filter(|_| !may) {
                found.push(format!("{}:{} names {word}", file.path, line + 1));
            }
        }
    }
    none("a layer knows more than it may (ARCHITECTURE.md, invariant 6)", found);
}

/// The rule above would pass on an empty tree; so each word is found where it belongs.
#[test]
fn the_words_are_still_in_use() {
    let rust = rust();
    for (word, _, only) in ONLY {
        let used = |file: &&File| only.iter().any(|may| file.path.starts_with(may));
        let lines = rust.iter().filter(used).any(|file| file.code().any(|line| names(line, word)));
        assert!(only.is_empty() || lines, "nobody names {word} any more: strike it from the rules");
    }
    assert!(names("use timely::Config;", "timely") && names("use heed::{Env};", "heed"));
    assert!(!names("// timely::x", "timely") && !names("let untimely = 1;", "timely"));
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent = rust().into_iter().filter(|file| !file.text.starts_with("//!"));
    none("a file opens with a `//!` header", silent.map(|file| file.path).collect());
}

/// Functions as (line, name, lines): from `fn` to the closing brace of the same indentation.
fn functions(text: &str) -> Vec<(usize, String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = line.len() - line.trim_start().len();
        let closing = format!("{}}}", " ".repeat(indent));
        let one_line = line.ends_with('}') || line.ends_with(';');
        let length = lines[at..].iter().position(|line| *line == closing).map_or(1, |n| n + 1);
        found.push((at + 1, name, if one_line { 1 } else { length }));
    }
    found
}

fn function_name(line: &str) -> Option<String> {
    let mut rest = line.trim_start();
    if rest.starts_with("//") {
        return None;
    }
    for word in ["pub ", "pub(crate) ", "pub(super) ", "const ", "async ", "unsafe "] {
        rest = rest.strip_prefix(word).unwrap_or(rest);
    }
    let rest = rest.strip_prefix("fn ")?;
    Some(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
}

#[test]
fn functions_are_measured_from_fn_to_brace() {
    let text = "impl X {\n    pub fn a() {\n        b();\n    }\n    fn c() -> u8;\n}\nfn d() {}\n";
    let found: Vec<_> = functions(text).into_iter().map(|(_, name, lines)| (name, lines)).collect();
    assert_eq!(found, [("a".to_string(), 3), ("c".to_string(), 1), ("d".to_string(), 1)]);
}

#[test]
fn functions_fit_a_screen() {
    let mut long = BTreeMap::new();
    for file in rust() {
        for (_, name, lines) in functions(&file.text) {
            if lines > FUNCTION_LINES {
                long.insert(format!("{}:{name}", file.path), lines);
            }
        }
    }
    ratchet("tests/tidy/long_functions.txt", long);
}

#[test]
fn files_have_one_subject() {
    let measured = rust().into_iter().filter(|file| !file.is_test());
    let lengths = measured.map(|file| (file.path.clone(), file.code().count()));
    ratchet("tests/tidy/long_files.txt", lengths.filter(|(_, lines)| *lines > FILE_LINES).collect());
}

/// Compares lengths with the recorded ones, which may only shrink.
fn ratchet(record: &str, now: BTreeMap<String, usize>) {
    let path = root().join(record);
    let text = fs::read_to_string(&path).unwrap_or_default();
    let entry = |line: &str| {
        let (lines, name) = line.split_once(' ').expect("a line of the record is `LINES NAME`");
        (name.to_string(), lines.parse::<usize>().expect("a line of the record starts with a number"))
    };
    let allowed: BTreeMap<String, usize> = text.lines().map(entry).collect();
    if std::env::var_os("UPDATE").is_some() {
        let kept = allowed.iter().filter_map(|(name, old)| Some((name, (*now.get(name)?).min(*old))));
        let text: String = kept.map(|(name, lines)| format!("{lines} {name}\n")).collect();
        fs::write(&path, text).unwrap();
    }
    let grown = now.iter().filter(|(name, lines)| allowed.get(*name).is_none_or(|most| *lines > most));
    none(
        &format!("longer than {record} allows; split it"),
        grown.map(|(name, lines)| format!("{lines} {name}")).collect(),
    );
    let stale = allowed.keys().filter(|name| !now.contains_key(*name)).cloned();
    none(&format!("{record} lists what is short by now; UPDATE=1 strikes it"), stale.collect());
}

#[test]
fn every_operator_is_registered() {
    let registry = fs::read_to_string(root().join("operators/lib.rs")).unwrap();
    let mut operators = 0;
    for file in rust().iter().filter(|file| file.path.starts_with("operators/")) {
        if file.code().any(|line| line.starts_with("impl Described for ")) {
            operators += 1;
            let module =
                file.path.trim_start_matches("operators/").trim_end_matches(".rs").replace('/', "::");
            let entry = format!("all.operator::<{module}::");
            assert!(registry.contains(&entry), "{} is not in the registry of operators/lib.rs", file.path);
        }
    }
    assert_eq!(operators, registry.matches("all.operator::<").count());
}

/// The subcommands: variants of `enum Command` as clap names them.
fn subcommands(cli: &str) -> Vec<String> {
    let body = cli.split_once("enum Command {").map_or("", |(_, rest)| rest);
    let body = body.split_once("\n}").map_or("", |(body, _)| body);
    let variants = body.lines().filter_map(|line| line.strip_prefix("    "));
    let variants = variants.filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()));
    variants.map(|line| line.split(['(', ',', ' ']).next().unwrap_or_default().to_lowercase()).collect()
}

#[test]
fn the_readme_names_every_command() {
    let cli = fs::read_to_string(root().join("engine/cli/mod.rs")).unwrap();
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let rows: Vec<&str> = readme.lines().filter_map(|line| line.strip_prefix("| `")).collect();
    let listed: Vec<&str> = rows.iter().filter_map(|row| row.split([' ', '`']).next()).collect();
    let commands = subcommands(&cli);
    assert!(commands.contains(&"run".to_string()), "the subcommands were not found");
    let missing = commands.iter().filter(|command| !listed.contains(&command.as_str()));
    none("the README's table lacks a command", missing.cloned().collect());
}

#[test]
fn the_readme_s_commands_are_those_that_are_run() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let ci = fs::read_to_string(root().join(".ci/run")).unwrap();
    let commands: Vec<&str> = readme.lines().filter(|line| line.starts_with("cargo ")).collect();
    assert!(commands.len() >= 2, "{commands:?}");
    for command in &commands[..2] {
        let run = ci.lines().any(|line| line == *command || line.starts_with(&format!("{command} \"$")));
        assert!(run, ".ci/run does not run `{command}`");
    }
}

#[test]
fn nothing_belongs_to_one_machine_or_is_unfinished() {
    let words: Vec<String> = FORBIDDEN.iter().map(|(a, b)| format!("{a}{b}")).collect();
    let mut found = Vec::new();
    for file in files().iter() {
        for (at, line) in file.text.lines().enumerate() {
            if let Some(word) = words.iter().find(|word| line.contains(word.as_str())) {
                found.push(format!("{}:{}: {word}", file.path, at + 1));
            }
            for address in line.match_indices("://").map(|(at, _)| at) {
                let scheme = &line[..address];
                let rest = &line[address + 3..];
                let host: String =
                    rest.chars().take_while(|c| c.is_ascii_alphanumeric() || ".-".contains(*c)).collect();
                let web = scheme.ends_with("http") || scheme.ends_with("https");
                let local = host.is_empty() || host.starts_with("127.") || host == "localhost";
                if web && !local && !HOSTS.contains(&host.trim_end_matches('.')) {
                    found.push(format!("{}:{}: host {host}", file.path, at + 1));
                }
            }
        }
    }
    none("these do not belong here", found);
}
