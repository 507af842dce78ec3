//! How a database is opened read-only.
//!
//! Always: nothing is created, written, synced or given another mode, so this works on a read-only mount, for a user who may
//! only read, and for root before the first start of the service. If there is a WAL, SQLite needs its index (`-shm`). If there
//! is none, the file alone is the database and is opened as immutable, without locks. A writer may then open it, so what was
//! read is valid only if the file is unchanged afterwards.
//!
//! Proof: `tests/faults/reading.rs`.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use rustix::fs::{Access, AtFlags, CWD};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteConnectOptions;

use super::companion::{beside, with_owner};
use super::connect::{check_version, options};
use super::inspect::{self, Found, length, not_readable};
use super::{StoreError, migrate};

/// Characters with a special meaning in the path of a `file:` URI.
const NOT_PLAIN: &AsciiSet = &CONTROLS.add(b'%').add(b'?').add(b'#');

/// How long to wait for a process that is closing the file: it removes the index of the WAL and then, at once, the WAL.
const CLOSING_LASTS: Duration = Duration::from_millis(20);

/// A way to read a database.
#[derive(Debug, Clone)]
pub(super) struct ReadOnly {
    /// The resolved path of the database.
    pub path: PathBuf,
    /// The options of a connection.
    pub options: SqliteConnectOptions,
    /// What must stay unchanged while the file is read without a WAL.
    unchanged: Option<Stamp>,
}

/// Metadata that every write to a file changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::symlink_metadata(path)?;
        let modified = (meta.mtime(), meta.mtime_nsec());
        Ok(Self { device: meta.dev(), inode: meta.ino(), bytes: meta.len(), modified })
    }
}

impl ReadOnly {
    /// Determines how the database at `path` can be read now.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::NotReadable`], [`StoreError::NeedsRecovery`], or why it is not a database of ours.
    pub(super) fn of(path: &Path) -> Result<Self, StoreError> {
        let path = match inspect::resolve(path) {
            Err(StoreError::NoDirectory(_)) => return Err(StoreError::Absent(path.to_owned())),
            resolved => resolved?,
        };
        if inspect::look(&path)? == Found::Nothing {
            return Err(StoreError::Absent(path));
        }
        may_read(&path)?;
        let [wal, index, journal] = ["-wal", "-shm", "-journal"].map(|suffix| beside(&path, suffix));
        let needs_recovery = |what: String| Err(StoreError::NeedsRecovery { path: path.clone(), what });
        if length(&journal)? > 0 {
            return needs_recovery(format!("{} holds a change that was broken off", journal.display()));
        }
        let plain = options(&path).read_only(true);
        match (is_there(&wal)?, is_there(&index)?) {
            (true, true) => {
                may_read(&wal)?;
                may_read(&index)?;
                let name = path.to_str().map(|path| utf8_percent_encode(path, NOT_PLAIN).to_string());
                let options = match name {
                    Some(name) => plain.filename(format!("file:{name}?readonly_shm=1")),
                    // SQLite accepts no other path and reports that itself.
                    None => plain,
                };
                Ok(Self { path, options, unchanged: None })
            }
            (true, false) if length(&wal)? > 0 => {
                // The last process to close the file removes the index first.
                std::thread::sleep(CLOSING_LASTS);
                if !is_there(&wal)? || is_there(&index)? {
                    return Err(StoreError::Changed(path));
                }
                let (wal, index) = (wal.display(), index.display());
                needs_recovery(format!(
                    "{wal} holds commits, and its index {index}, without which it is unreadable, is not there"
                ))
            }
            _ => {
                let stamp = Stamp::of(&path).map_err(|error| not_readable(&path, &error))?;
                Ok(Self { path, options: plain.immutable(true), unchanged: Some(stamp) })
            }
        }
    }

    /// Whether reads since it was opened may be torn or stale. Impossible if the WAL is read, too.
    pub(super) fn is_outdated(&self) -> bool {
        let Some(stamp) = self.unchanged else { return false };
        // The WAL is checked first: a writer fills it before it changes the file.
        !length(&beside(&self.path, "-wal")).is_ok_and(|bytes| bytes == 0)
            || !Stamp::of(&self.path).is_ok_and(|now| now == stamp)
    }

    /// Whether the file can no longer be opened in this way: a process has begun to write, or the last one has closed it and
    /// removed the WAL and its index.
    pub(super) fn is_passed(&self) -> bool {
        let has_companions = || ["-wal", "-shm"].iter().all(|suffix| beside(&self.path, suffix).exists());
        self.is_outdated() || (self.unchanged.is_none() && !has_companions())
    }

    /// Checks a new connection: that SQLite is recent enough, and that the database is ours.
    pub(super) async fn check(&self, conn: &mut SqliteConnection) -> Result<(), StoreError> {
        let failed = |error| StoreError::at_open_to_read(&self.path, error);
        let id: i32 = sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut *conn).await.map_err(failed)?;
        let tables: i64 =
            sqlx::query_scalar("SELECT count(*) FROM sqlite_schema").fetch_one(&mut *conn).await.map_err(failed)?;
        match id {
            migrate::APPLICATION_ID => check_version(conn).await,
            0 if tables == 0 => Err(StoreError::Absent(self.path.clone())),
            _ => Err(StoreError::NotOurs(self.path.clone())),
        }
    }
}

fn is_there(companion: &Path) -> Result<bool, StoreError> {
    match fs::metadata(companion) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(not_readable(companion, &error)),
    }
}

/// Checked before SQLite opens the files, because SQLite does not report which file failed.
fn may_read(file: &Path) -> Result<(), StoreError> {
    match rustix::fs::accessat(CWD, file, Access::READ_OK, AtFlags::EACCESS) {
        Err(error @ (rustix::io::Errno::ACCESS | rustix::io::Errno::PERM)) => {
            let detail = with_owner(file, &error.into());
            Err(StoreError::NotReadable { path: file.to_owned(), detail })
        }
        // Any other problem shows when the file itself is opened.
        _ => Ok(()),
    }
}
