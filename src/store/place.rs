//! The place of the database: the file at its path, what lies beside it, and who has it open.
//!
//! Two advisory locks, which the kernel lets go when a process dies and which no child inherits: `<db>-lock` is held while
//! the file is opened, created and migrated; the directory of agents is locked for as long as it is open, shared, or by
//! one alone who migrates. So no schema changes under an engine that does not know it.
//!
//! Always: nothing is acknowledged that would be written to a file which is no longer at its path, where nobody finds it.
//!
//! Proof: `tests/store.rs`, `tests/faults/place.rs`.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sqlx::SqliteConnection;

use super::StoreError;

/// What every database begins with.
const HEADER_BYTES: u64 = 100;

/// A companion of the database file.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

pub(super) fn not_writable(path: &Path, error: &io::Error) -> StoreError {
    StoreError::NotWritable { path: path.to_owned(), detail: error.to_string() }
}

/// The directory of agents beside a database. By its real name, so that every process finds the same one.
pub fn agents_dir(path: &Path) -> PathBuf {
    beside(&fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()), "-agents")
}

/// The file that was at a path when it was opened. While it is open no other file gets its number.
#[derive(Debug, Clone)]
pub(super) struct Place {
    path: Arc<Path>,
    device: u64,
    inode: u64,
}

impl Place {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        Ok(Self { path: path.into(), device: meta.dev(), inode: meta.ino() })
    }

    /// Whether the file is still there: one `stat`, about a microsecond.
    ///
    /// # Errors
    /// [`StoreError::Gone`].
    pub fn check(&self) -> Result<(), StoreError> {
        match Self::of(&self.path) {
            Ok(found) if (found.device, found.inode) == (self.device, self.inode) => Ok(()),
            // Whatever hides it from us hides it from the next process too.
            Ok(_) | Err(_) => Err(StoreError::Gone(self.path.to_path_buf())),
        }
    }
}

/// The directory of agents, and the lock on it that says that the file is open here.
#[derive(Debug)]
pub(super) struct Presence {
    pub agents_dir: PathBuf,
    handle: File,
}

impl Presence {
    /// Creates the directory, without a lock yet.
    pub fn beside(path: &Path) -> Result<Self, StoreError> {
        let failed = |error: io::Error| not_writable(path, &error);
        let agents_dir = agents_dir(path);
        DirBuilder::new().recursive(true).mode(0o700).create(&agents_dir).map_err(failed)?;
        let handle = File::open(&agents_dir).map_err(failed)?;
        Ok(Self { agents_dir, handle })
    }

    /// Whether nobody else has the file open. Nobody comes to it then, while the lock of opening is held.
    pub fn try_alone(&self) -> Result<bool, StoreError> {
        self.took(self.handle.try_lock())
    }

    /// It is open here, and may be elsewhere.
    pub fn share(&self) -> Result<(), StoreError> {
        // Whoever wants to be alone holds the lock of opening, as we do.
        if self.took(self.handle.try_lock_shared())? { Ok(()) } else { Err(StoreError::Busy) }
    }

    fn took(&self, taken: Result<(), TryLockError>) -> Result<bool, StoreError> {
        match taken {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(not_writable(&self.agents_dir, &error)),
        }
    }
}

/// The file, open to be written.
pub(super) struct OpenFile {
    pub conn: SqliteConnection,
    pub place: Place,
    /// The last to go: the connection is closed before.
    pub presence: Presence,
}

/// The opening of a file, by one process at a time.
pub(super) struct Opening {
    pub place: Place,
    /// There was no database before.
    pub is_new: bool,
    _lock: File,
}

impl Opening {
    /// Waits until nobody else is at it, and creates a missing file. Blocking work.
    pub fn begin(path: &Path) -> Result<Self, StoreError> {
        let failed = |error: io::Error| not_writable(path, &error);
        let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(beside(path, "-lock"));
        let lock = lock.map_err(failed)?;
        lock.lock().map_err(failed)?;
        let is_new = prepare(path)?;
        Ok(Self { place: Place::of(path).map_err(failed)?, is_new, _lock: lock })
    }
}

/// Creates a missing database, readable by its owner only; SQLite gives its companions the same mode. Answers whether it is
/// new.
fn prepare(path: &Path) -> Result<bool, StoreError> {
    let has_wal = || fs::metadata(beside(path, "-wal")).is_ok_and(|wal| wal.len() > 0);
    let damaged = |detail: &str| Err(StoreError::Damaged { path: path.to_owned(), detail: detail.to_owned() });
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Err(not_writable(path, &io::Error::from(io::ErrorKind::IsADirectory))),
        Ok(meta) if meta.len() == 0 && has_wal() => damaged("it is empty but its WAL is not"),
        // SQLite takes a file of a few bytes for an empty one.
        Ok(meta) if (1..HEADER_BYTES).contains(&meta.len()) => Err(StoreError::NotOurs(path.to_owned())),
        Ok(meta) => {
            if meta.permissions().mode() & 0o077 != 0 {
                for file in [path.to_owned(), beside(path, "-wal"), beside(path, "-shm")] {
                    // The conversation is nobody else's; a file of another owner stays as its owner wants it.
                    let _ = fs::set_permissions(file, fs::Permissions::from_mode(0o600));
                }
            }
            Ok(meta.len() == 0)
        }
        // SQLite would remove it, and with it what may be the only trace of a file that was moved away.
        Err(error) if error.kind() == io::ErrorKind::NotFound && has_wal() => {
            damaged("it is gone, but its WAL is there")
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let created = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
            created.map_err(|error| not_writable(path, &error))?;
            Ok(true)
        }
        Err(error) => Err(not_writable(path, &error)),
    }
}
