//! Storage as a power cut may leave it: what was synced, and any part of the rest.
//!
//! The model is harder than a disk: of what no sync has covered any sectors may be there and any
//! missing, in any order. Names (new files and folders, renames) are kept in their order, as a
//! journalling file system does, but are sure only once their folder was synced.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::journal::Act;

/// What a disk writes whole or not at all, in bytes.
const SECTOR: usize = 512;

/// What becomes of all that no sync has covered.
#[derive(Clone, Copy, Debug)]
pub enum Luck {
    /// It is lost.
    None,
    /// It is there: what a killed process would leave.
    All,
    /// Of every sector, length and name, what a draw says.
    Drawn(u64),
}

/// Draws from a seed, each of them by its name.
struct Draw(Luck);

impl Draw {
    /// Whether the thing of a name is there.
    fn keeps(&self, what: &str, at: usize) -> bool {
        match self.0 {
            Luck::None => false,
            Luck::All => true,
            Luck::Drawn(seed) => Self::number(seed, what, at) % 2 == 0,
        }
    }

    fn number(seed: u64, what: &str, at: usize) -> u64 {
        let hash = blake3::hash(format!("{seed} {what} {at}").as_bytes());
        u64::from_le_bytes(std::array::from_fn(|byte| hash.as_bytes()[byte]))
    }
}

/// A file's content.
#[derive(Default)]
struct File {
    /// What a sync has covered.
    sure: Vec<u8>,
    /// Written since, in order: place, bytes, and whether it was written through.
    since: Vec<(usize, Vec<u8>, bool)>,
}

/// Writes a part of a file, making it longer where needed.
fn put(into: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    into.resize(into.len().max(at + bytes.len()), 0);
    into[at..at + bytes.len()].copy_from_slice(bytes);
}

impl File {
    fn sync(&mut self) {
        for (at, bytes, _) in std::mem::take(&mut self.since) {
            put(&mut self.sure, at, &bytes);
        }
    }

    /// What a power cut leaves of it.
    fn left(&self, draw: &Draw) -> Vec<u8> {
        let mut left = self.sure.clone();
        for (write, (at, bytes, through)) in self.since.iter().enumerate() {
            let end = *at + bytes.len();
            if left.len() < end && draw.keeps("length", write) {
                left.resize(end, 0);
            }
            let mut from = *at;
            while from < end {
                let to = end.min((from / SECTOR + 1) * SECTOR);
                if *through || draw.keeps("sector", (write << 32) | (from / SECTOR)) {
                    put(&mut left, from, &bytes[from - at..to - at]);
                }
                from = to;
            }
        }
        left
    }
}

/// A change of names.
enum Naming {
    /// A file of this number, or a folder.
    Made(PathBuf, Option<usize>),
    Moved(PathBuf, PathBuf),
}

impl Naming {
    /// Whether a sync of `folder` makes it sure.
    fn is_in(&self, folder: &Path) -> bool {
        match self {
            Naming::Made(path, _) => path.parent() == Some(folder),
            Naming::Moved(_, to) => to.parent() == Some(folder),
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, Option<usize>>) {
        match self {
            Naming::Made(path, file) => drop(names.insert(path.clone(), *file)),
            Naming::Moved(from, to) => {
                let moved: Vec<PathBuf> =
                    names.keys().filter(|name| name.starts_with(from)).cloned().collect();
                for name in moved {
                    let file = names.remove(&name).flatten();
                    let rest = name.strip_prefix(from).unwrap();
                    // `join` of nothing would end the name in a slash.
                    let new = if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) };
                    names.insert(new, file);
                }
            }
        }
    }
}

/// A folder on storage.
#[derive(Default)]
pub struct Disk {
    files: Vec<File>,
    namings: Vec<Naming>,
    /// How many of them are sure.
    sure: usize,
    /// Names as the running process sees them; folders have no file.
    names: BTreeMap<PathBuf, Option<usize>>,
}

impl Disk {
    /// A call is under way: its effect may be there, and nothing is sure that was not before.
    pub fn begin(&mut self, act: &Act) {
        match act {
            Act::Write { file, at, bytes, .. } => {
                let file = self.file(file);
                self.files[file].since.push((*at as usize, bytes.clone(), false));
            }
            Act::Rename(from, to) => self.name(Naming::Moved(from.clone(), to.clone())),
            Act::Sync(_) => {}
        }
    }

    /// The call that was begun last has returned.
    pub fn end(&mut self, act: &Act) {
        match act {
            Act::Write { file, through, .. } => {
                let file = self.file(file);
                if let Some(write) = self.files[file].since.last_mut() {
                    write.2 = *through;
                }
            }
            Act::Sync(path) => match self.names.get(path).copied().flatten() {
                Some(file) => self.files[file].sync(),
                None => {
                    let last = self.namings.iter().rposition(|naming| naming.is_in(path));
                    self.sure = self.sure.max(last.map_or(0, |last| last + 1));
                }
            },
            Act::Rename(..) => {}
        }
    }

    fn name(&mut self, naming: Naming) {
        naming.apply(&mut self.names);
        self.namings.push(naming);
    }

    /// The number of a file; one that is not known is made, with the folders above it.
    fn file(&mut self, path: &Path) -> usize {
        if let Some(Some(file)) = self.names.get(path) {
            return *file;
        }
        let above: Vec<&Path> = path.ancestors().skip(1).filter(|path| *path != Path::new("")).collect();
        for folder in above.into_iter().rev() {
            if !self.names.contains_key(folder) {
                self.name(Naming::Made(folder.to_path_buf(), None));
            }
        }
        let file = self.files.len();
        self.files.push(File::default());
        self.name(Naming::Made(path.to_path_buf(), Some(file)));
        file
    }

    /// The files that a power cut leaves now.
    pub fn left(&self, luck: Luck) -> BTreeMap<PathBuf, Vec<u8>> {
        let draw = Draw(luck);
        let open = self.namings.len() - self.sure;
        let kept = match luck {
            Luck::None => 0,
            Luck::All => open,
            Luck::Drawn(seed) => (Draw::number(seed, "names", 0) % (open as u64 + 1)) as usize,
        };
        let mut names = BTreeMap::new();
        self.namings[..self.sure + kept].iter().for_each(|naming| naming.apply(&mut names));
        let files = names.into_iter().filter_map(|(name, file)| Some((name, file?)));
        files.map(|(name, file)| (name, self.files[file].left(&draw))).collect()
    }
}

/// Makes a folder hold these files and no others. Files are written over in place: to delete and
/// make anew is what file systems are slow at.
pub fn lay(files: &BTreeMap<PathBuf, Vec<u8>>, folder: &Path) {
    clear(folder, folder, files);
    for (name, bytes) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(path).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
    }
}

/// Removes files of a folder but those that are kept.
fn clear(root: &Path, folder: &Path, kept: &BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => clear(root, &path, kept),
            false if kept.contains_key(path.strip_prefix(root).unwrap()) => {}
            false => fs::remove_file(&path).unwrap(),
        }
    }
}
