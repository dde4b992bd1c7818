//! The versions of the models that a pipeline tunes: a list of them, promotion, return, export.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use coea_operators::{served::ModelVersion, shape::Artifact};
use serde::Serialize;
use serde_json::Value as Json;

use super::{
    super::{Common, Failure, Format, output},
    tuned::{Of, SHORT, Tuned},
};

/// A version that came from nowhere: the model as it is.
const BASE: &str = "base";

/// Arguments of `models versions`.
#[derive(Debug, clap::Args)]
pub struct Versions {
    #[command(flatten)]
    common: Common,
}

/// Arguments of `models promote`.
#[derive(Debug, clap::Args)]
pub struct Promote {
    #[command(flatten)]
    of: Of,
    /// The first digits of a version, a folder of PEFT, or `base` for the model without an adapter.
    version: String,
}

/// Arguments of `models export`.
#[derive(Debug, clap::Args)]
pub struct Export {
    #[command(flatten)]
    of: Of,
    /// The folder to write, which must not be there yet.
    folder: PathBuf,
    /// The first digits of a version [default: the one in use]
    #[arg(long)]
    version: Option<String>,
}

/// A version, as it is listed.
#[derive(Serialize)]
struct Listed {
    model: String,
    version: String,
    /// The epoch in which it came into use; nothing if it did not yet.
    epoch: Option<u64>,
    in_use: bool,
    /// Whether the next run puts it in use.
    wanted: bool,
    /// What it was made by and from, in its trainer's words; nothing of the model as it is.
    lineage: Json,
}

impl Tuned {
    fn listed(&self) -> Result<Vec<Listed>, Failure> {
        let last = self.manifest.versions.get(&self.name());
        let epoch = |digest: &str| last?.iter().rev().find(|v| v.digest == digest).map(|v| v.epoch);
        let wanted = self.manifest.wanted.get(&self.name()).map(String::as_str);
        let list = |digest: String| {
            let adapter = self.version(&digest)?;
            let mut lineage = adapter.adapter().map_or(Json::Null, |adapter| adapter.lineage().clone());
            if let Some(log) = lineage.get_mut("log") {
                // The figures of each step are rows of the node; here the last ones will do.
                *log = log.as_array().and_then(|log| log.last()).cloned().unwrap_or_default();
            }
            Ok(Listed {
                model: self.model.clone(),
                epoch: epoch(&digest),
                in_use: self.in_use() == Some(digest.as_str()),
                wanted: wanted == Some(digest.as_str()),
                lineage,
                version: digest,
            })
        };
        self.known().into_iter().map(list).collect()
    }
}

/// Lists the versions of all models that the pipeline tunes.
///
/// # Errors
/// If nothing was run yet, or the state cannot be read.
pub fn list(args: &Versions) -> Result<(), Failure> {
    // Two nodes may make versions of one model.
    let names: BTreeSet<String> =
        args.common.load()?.plan.nodes.iter().filter_map(|n| n.updates.clone()).collect();
    let mut listed = Vec::new();
    for name in names {
        listed.extend(Of { common: args.common.clone(), name }.open(false)?.listed()?);
    }
    if args.common.format == Format::Text {
        return output::text(&listed.iter().map(shown).collect::<String>());
    }
    let mut out = output::Out::new();
    listed.iter().try_for_each(|version| output::line(&mut out, version))?;
    out.finish()
}

fn shown(version: &Listed) -> String {
    let state = match (version.in_use, version.wanted) {
        (true, _) => "in use",
        (false, true) => "wanted by the next run",
        (false, false) => "",
    };
    let made = version.lineage.get("operator").or(version.lineage.get("from")).and_then(Json::as_str);
    let epoch = version.epoch.map_or("–".to_string(), |epoch| format!("epoch {epoch}"));
    let short = &version.version[..SHORT.min(version.version.len())];
    format!("{}  {short}  {epoch}  {}  {state}", version.model, made.unwrap_or(BASE)).trim_end().to_string()
        + "\n"
}

/// Makes a version the one that the next run puts in use.
///
/// # Errors
/// If there is no such version, or another process has the state.
pub fn promote(args: &Promote) -> Result<(), Failure> {
    let tuned = args.of.open(true)?;
    let folder = Path::new(&args.version);
    let digest = if args.version == BASE {
        keep(&tuned, &ModelVersion::default())?
    } else if folder.is_dir() {
        let (_, network) = tuned.base(&args.of.common)?;
        let wrong = |error| Failure::new(66, format!("error: {}: {error}", folder.display()));
        keep(&tuned, &ModelVersion::of(network.read_adapter(folder).map_err(wrong)?))?
    } else {
        tuned.find(&args.version)?
    };
    tuned.wish(&args.of.common, &digest)
}

fn keep(tuned: &Tuned, version: &ModelVersion) -> Result<String, Failure> {
    let bytes = version.to_bytes();
    tuned.state.memo.keep_artifact(&bytes)?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

/// Makes the version that was in use before the one that the next run puts in use.
///
/// # Errors
/// If there was none before, or another process has the state.
pub fn rollback(args: &Of) -> Result<(), Failure> {
    let tuned = args.open(true)?;
    let known = tuned.manifest.versions.get(&tuned.name());
    let before = known.and_then(|known| known.iter().rev().nth(1)).map(|version| version.digest.clone());
    let before = before.ok_or_else(|| {
        output::failed(format!("`{}` has had one version only; `base` is the model without it", tuned.model))
    })?;
    tuned.wish(&args.common, &before)
}

/// Writes a version in the layout of PEFT.
///
/// # Errors
/// If the folder is there, the version is not, or it has no adapter.
pub fn export(args: &Export) -> Result<(), Failure> {
    let tuned = args.of.open(false)?;
    let folder = &args.folder;
    if folder.exists() {
        return Err(output::usage(format!("{} is already there", folder.display())));
    }
    let digest = match &args.version {
        Some(start) => tuned.find(start)?,
        None => tuned.in_use().unwrap_or_default().to_string(),
    };
    let version = tuned.version(&digest)?;
    let adapter = version.adapter().ok_or_else(|| {
        output::failed(format!(
            "this version of `{}` is the model as it is; there is no adapter",
            tuned.model
        ))
    })?;
    let (base, network) = tuned.base(&args.of.common)?;
    let failed = |error: String| output::failed(format!("{}: {error}", folder.display()));
    std::fs::create_dir_all(folder).map_err(|error| failed(error.to_string()))?;
    network.write_adapter(adapter, &base, folder).map_err(|error| failed(error.to_string()))?;
    if !args.of.common.quiet {
        eprintln!("{} of `{}` is in {}", &digest[..SHORT], tuned.model, folder.display());
    }
    Ok(())
}
