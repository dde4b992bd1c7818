//! Why a model or a data set is not at hand, each with the remedy in its text: what is missing here
//! is brought by a person, who reads nothing else.

use std::{io, path::PathBuf};

/// Why a model or a data set is not at hand.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The name is in no registry and no file has it.
    #[error("there is no {kind} `{name}`{}", did_you_mean(.nearest.as_deref()))]
    Unknown {
        /// `model` or `data set`.
        kind: &'static str,
        /// What was asked for.
        name: String,
        /// The registered name nearest to it.
        nearest: Option<String>,
    },
    /// A file is there and holds other bytes than the registry knows.
    #[error(
        "{} is not the file the registry knows: sha256 {found}, expected {expected}; \
         remove it and run again to fetch it anew",
        .file.display()
    )]
    Checksum {
        /// The file.
        file: PathBuf,
        /// Digest in the registry.
        expected: String,
        /// Digest of the bytes.
        found: String,
    },
    /// No way of fetching worked.
    #[error("`{name}` could not be fetched ({}); {}", .tried.join("; "), place(.missing, .home))]
    Unavailable {
        /// The asset.
        name: String,
        /// What each way said.
        tried: Vec<String>,
        /// The files to bring: where they belong, and their digests.
        missing: Vec<(PathBuf, String)>,
        /// Where a person gets them.
        home: String,
    },
    /// A data set that the user brings was named without its folder.
    #[error(
        "`{name}` is not fetched by itself: download it from {home}, unpack it, and name the folder \
         that holds {} in `path`",
        .files.join(", ")
    )]
    NeedsFolder {
        /// The data set.
        name: String,
        /// The files it consists of.
        files: Vec<String>,
        /// Where a person gets it.
        home: String,
    },
    /// The folder the user named lacks a file.
    #[error("{} is not there; `{name}` needs {} in that folder", .file.display(), .files.join(", "))]
    Incomplete {
        /// The data set or model.
        name: String,
        /// The file that is missing.
        file: PathBuf,
        /// All files it consists of.
        files: Vec<String>,
    },
    /// The file system refused.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl FetchError {
    /// The exit code of the command that met it: 66, a model or data set cannot be read or fetched.
    pub fn exit_code(&self) -> u8 {
        66
    }
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

fn place(missing: &[(PathBuf, String)], home: &str) -> String {
    let files: Vec<String> =
        missing.iter().map(|(path, sha256)| format!("{} (sha256 {sha256})", path.display())).collect();
    format!("get it from {home} and put it at {}", files.join(" and "))
}
