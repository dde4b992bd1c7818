//! The durable state of one pipeline: a folder with two embedded databases and a lock.
//!
//! LMDB through `heed`: crash-safe without repair, and other processes read a consistent snapshot
//! while a run writes. What an epoch changes is one transaction of `state.lmdb`; results that were
//! paid for (model answers, finished fits) are in `memo.lmdb`, durable before the epoch is.

pub mod block;
pub mod changes;
mod fits;
mod folder;
pub mod history;
pub mod layered;
pub mod manifest;
pub mod memo;
pub mod tables;

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    rc::Rc,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use heed::{Env, EnvOpenOptions, RoTxn, WithoutTls, types};

use self::layered::{Changes, Layered};

/// A database of bytes to bytes.
pub type Bytes = heed::Database<types::Bytes, types::Bytes>;

/// The databases of `state.lmdb`.
pub const DATABASES: [&str; 7] = ["meta", "history", "index", "counts", "tables", "deltas", "changes"];

/// LMDB's file in a database's folder.
const FILE: &str = "data.mdb";

/// The map is reserved address space, not memory or disk.
const MAP_SIZE: usize = 1 << 38;

/// What can go wrong with the state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The database refused.
    #[error("the state's database failed: {0}")]
    Database(#[from] heed::Error),
    /// A file of the state cannot be used.
    #[error("cannot use {path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Another process runs on this state.
    #[error("the state {0} is locked by another process; wait for it to end, or use another --state")]
    Locked(PathBuf),
    /// What is stored cannot be read.
    #[error("the state holds something unreadable ({0}); restore it from a copy, or start a fresh --state")]
    Corrupt(String),
    /// Written by another version of the engine.
    #[error("the state has format {found}, this engine reads format {expected}; start a fresh --state")]
    Format {
        /// The state's format.
        found: u32,
        /// The format read by this engine.
        expected: u32,
    },
}

/// Names a file in an error.
fn at(path: &Path) -> impl FnOnce(std::io::Error) -> StateError + '_ {
    move |error| StateError::File { path: path.to_path_buf(), error }
}

/// The stores that this process has open.
static OPEN: Mutex<BTreeMap<PathBuf, Weak<Store>>> = Mutex::new(BTreeMap::new());

/// An LMDB environment with named databases of bytes.
pub struct Store {
    env: Env<WithoutTls>,
    databases: BTreeMap<&'static str, Bytes>,
}

impl Store {
    /// Opens or creates the state's database in a folder.
    ///
    /// # Errors
    /// If the folder cannot be written or holds something else.
    pub fn create(dir: &Path) -> Result<Arc<Self>, StateError> {
        Self::open_at(&dir.join("state.lmdb"), &DATABASES)
    }

    /// The database at a path. LMDB allows one handle in a process, so those who ask while it is
    /// open share it.
    fn open_at(path: &Path, names: &[&'static str]) -> Result<Arc<Self>, StateError> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if !path.join(FILE).exists() {
            Self::make(path, names)?;
        }
        let path = path.canonicalize().map_err(at(path))?;
        if let Some(store) = open.get(&path).and_then(Weak::upgrade) {
            return Ok(store);
        }
        if let Some(closing) = heed::env_closing_event(&path) {
            closing.wait();
        }
        let store = Self::open_made(&path, names)?;
        open.retain(|_, store| store.strong_count() > 0);
        open.insert(path, Arc::downgrade(&store));
        Ok(store)
    }

    /// Makes an empty database in a folder inside and moves it to its place once it is on storage:
    /// LMDB writes the first pages of a new file unguarded, and a power cut there would leave a
    /// file that it refuses ever after.
    fn make(path: &Path, names: &[&'static str]) -> Result<(), StateError> {
        let (draft, file) = (path.join("new"), path.join(FILE));
        folder::make(&draft)?;
        let half = draft.join(FILE);
        if half.exists() {
            std::fs::remove_file(&half).map_err(at(&half))?;
        }
        drop(Self::open_made(&draft, names)?);
        std::fs::rename(&half, &file).map_err(at(&file))?;
        folder::sync(path)?;
        std::fs::remove_dir_all(&draft).map_err(at(&draft))
    }

    fn open_made(path: &Path, names: &[&'static str]) -> Result<Arc<Self>, StateError> {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(MAP_SIZE).max_dbs(names.len() as u32).max_readers(1024);
        // SAFETY: the files are only written through LMDB, whose own lock file guards them.
        let env = unsafe { options.open(path)? };
        let databases = match Self::existing(&env, names)? {
            Some(databases) => databases,
            None => {
                let mut txn = env.write_txn()?;
                let mut databases = BTreeMap::new();
                for name in names {
                    databases.insert(*name, env.create_database(&mut txn, Some(name))?);
                }
                txn.commit()?;
                databases
            }
        };
        Ok(Arc::new(Store { env, databases }))
    }

    /// The databases, if all are there: a reader never waits for a run that is writing.
    fn existing(
        env: &Env<WithoutTls>,
        names: &[&'static str],
    ) -> Result<Option<BTreeMap<&'static str, Bytes>>, StateError> {
        let txn = env.read_txn()?;
        let mut databases = BTreeMap::new();
        for name in names {
            match env.open_database(&txn, Some(name))? {
                Some(database) => databases.insert(*name, database),
                None => return Ok(None),
            };
        }
        txn.commit()?;
        Ok(Some(databases))
    }

    /// A consistent view of what is committed now.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn snapshot(self: &Arc<Self>) -> Result<Snapshot, StateError> {
        let txn = self.env.clone().static_read_txn()?;
        Ok(Snapshot { reader: Some(Rc::new(Reader { txn, store: self.clone() })) })
    }

    /// Writes changes of several databases in one transaction.
    ///
    /// # Errors
    /// If the database refuses; then nothing is written.
    pub fn write(&self, changes: Vec<(&'static str, Changes)>) -> Result<(), StateError> {
        let mut txn = self.env.write_txn()?;
        for (name, changes) in changes {
            let db = self.databases[name];
            for (key, change) in changes {
                match change {
                    Some(value) => db.put(&mut txn, &key, &value)?,
                    None => {
                        db.delete(&mut txn, &key)?;
                    }
                }
            }
        }
        Ok(txn.commit()?)
    }

    /// Bytes on disk.
    ///
    /// # Errors
    /// If the file cannot be looked at.
    pub fn disk_bytes(&self) -> Result<u64, StateError> {
        Ok(self.env.real_disk_size()?)
    }
}

/// A read transaction, and the store it must not outlive.
struct Reader {
    txn: RoTxn<'static, WithoutTls>,
    store: Arc<Store>,
}

/// A consistent view of the state's database, or of none.
#[derive(Clone)]
pub struct Snapshot {
    reader: Option<Rc<Reader>>,
}

impl Snapshot {
    /// The view of a state that does not exist yet.
    pub fn empty() -> Self {
        Snapshot { reader: None }
    }

    /// One database with room for changes over it.
    pub fn layered(&self, name: &str) -> Layered {
        Layered::new(self.reader.as_ref().map(|reader| (reader.store.databases[name], reader.clone())))
    }
}

/// A pipeline's state folder.
#[derive(Clone)]
pub struct State {
    /// The folder.
    pub dir: PathBuf,
    /// The epoch's database; absent while nothing was ever committed.
    pub store: Option<Arc<Store>>,
    /// Paid-for results.
    pub memo: memo::Memo,
    _lock: Option<Arc<File>>,
}

impl State {
    /// Opens a state to write: takes the lock and creates what is missing.
    ///
    /// # Errors
    /// [`StateError::Locked`] if another process holds it; else what the file system says.
    pub fn open(dir: &Path) -> Result<Self, StateError> {
        folder::make(dir)?;
        let path = dir.join("lock");
        let options = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = options.map_err(at(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(StateError::Locked(dir.to_path_buf())),
            Err(std::fs::TryLockError::Error(error)) => return Err(at(&path)(error)),
        }
        let memo = memo::Memo::open(dir)?;
        Ok(State {
            dir: dir.to_path_buf(),
            store: Some(Store::create(dir)?),
            memo,
            _lock: Some(Arc::new(file)),
        })
    }

    /// Opens a state to read, without a lock; one that does not exist is empty.
    ///
    /// # Errors
    /// If the database cannot be opened.
    pub fn read(dir: &Path) -> Result<Self, StateError> {
        let exists = dir.join("state.lmdb").join(FILE).is_file();
        let store = exists.then(|| Store::create(dir)).transpose()?;
        let memo = if exists { memo::Memo::open(dir)? } else { memo::Memo::scratch() };
        Ok(State { dir: dir.to_path_buf(), store, memo, _lock: None })
    }

    /// A consistent view of what is committed now.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot, StateError> {
        self.store.as_ref().map_or(Ok(Snapshot::empty()), Store::snapshot)
    }
}
