//! The identity of the database file: whether it is still the one at its path, its companions, and which processes have it open.
//!
//! Two advisory locks, which the kernel releases when a process dies and which no child inherits: `<db>-lock` is held while the
//! file is opened, created and migrated. The directory of agents is locked as long as the file is open: shared, or exclusively
//! by a process that migrates. So the schema never changes under an engine that does not know it.
//!
//! Always: no write is acknowledged if the file is no longer at its path, where no process would find the write.
//!
//! Proof: `tests/it/store/file.rs`, `tests/faults/place.rs`.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use sqlx::SqliteConnection;

use super::StoreError;
use super::companion::{beside, with_owner};
use super::inspect::{self, Found, check_owner};
use crate::file_access::kind_of;

/// The permissions of owner and group. The database's permissions for others are not applied to the files that we create beside
/// it.
const OWNER_AND_GROUP: u32 = 0o660;

pub(super) fn not_writable(path: &Path, error: &io::Error) -> StoreError {
    StoreError::NotWritable { path: path.to_owned(), detail: with_owner(path, error) }
}

/// The directory of agents beside the database at a resolved path.
pub fn agents_dir(path: &Path) -> PathBuf {
    beside(path, "-agents")
}

/// The file beside a database that holds the generated token, used if none is configured.
///
/// # Errors
/// [`StoreError`] when the path of the database cannot be resolved.
pub fn token_file(path: &Path) -> Result<PathBuf, StoreError> {
    Ok(beside(&inspect::resolve(path)?, "-token"))
}

/// Gives a companion the owner, group and permissions that match the database: root may be the first to create it and must not
/// lock out the service that owns the database, and a group that may read the database needs its WAL as well. The directory of
/// agents gives no permissions to others.
///
/// It works on a handle of the file that was checked, because the owner of the directory may replace the file. The handle is an
/// O_PATH one: closing any other descriptor of the WAL index would drop the locks that SQLite holds on it.
pub(super) fn belong_to(database: &Path, companion: &Path) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = File::from(rustix::fs::open(companion, flags, Mode::empty())?);
    let (database, made) = (fs::symlink_metadata(database)?, handle.metadata()?);
    if !made.is_file() && !made.is_dir() {
        return Err(io::Error::other(format!("it is {}", kind_of(made.file_type()))));
    }
    let process = rustix::process::geteuid();
    if !process.is_root() && made.uid() != process.as_raw() {
        return Ok(());
    }
    let by_handle = format!("/proc/self/fd/{}", handle.as_raw_fd());
    if process.is_root() && made.uid() != database.uid() {
        if made.is_file() && made.nlink() > 1 {
            let names = made.nlink();
            return Err(io::Error::other(format!("it has {names} names (hard links), so that it may be another file")));
        }
        chown(&by_handle, Some(database.uid()), None)?;
    }
    if made.gid() != database.gid() {
        match chown(&by_handle, None, Some(database.gid())) {
            // Only root can give a file to a group that it is not a member of.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            given => given?,
        }
    }
    let rights = database.mode() & OWNER_AND_GROUP | 0o600;
    let mode = match made.is_dir() {
        // A reader of a directory must also be able to enter it.
        true => rights | (rights & 0o444) >> 2,
        // SQLite applies the database's permissions for others to its own files.
        false => rights | made.mode() & 0o007,
    };
    if made.mode() & 0o777 != mode {
        fs::set_permissions(&by_handle, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// The same for all companions, in case one was created or changed owner or mode while no engine was running.
pub(super) fn align_companions(path: &Path) {
    for companion in ["-wal", "-shm", "-lock", "-agents"].map(|suffix| beside(path, suffix)) {
        match belong_to(path, &companion) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %companion.display(), "companion not aligned with its database");
            }
            _ => {}
        }
    }
}

/// The file that was at a path when it was opened. While it is open, no other file can get its inode number.
#[derive(Debug, Clone)]
pub(super) struct Place {
    path: Arc<Path>,
    device: u64,
    inode: u64,
}

impl Place {
    pub fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        Ok(Self { path: path.into(), device: meta.dev(), inode: meta.ino() })
    }

    /// Whether the file is still there: one `stat`, about a microsecond.
    ///
    /// # Errors
    /// [`StoreError::Gone`], [`StoreError::Hidden`].
    pub fn check(&self) -> Result<(), StoreError> {
        match Self::of(&self.path) {
            Ok(found) if (found.device, found.inode) == (self.device, self.inode) => Ok(()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::Hidden { path: self.path.to_path_buf(), detail: error.to_string() })
            }
            Ok(_) | Err(_) => Err(StoreError::Gone(self.path.to_path_buf())),
        }
    }
}

/// The directory of agents, and the lock on it that marks the file as open in this process.
#[derive(Debug)]
pub(super) struct Presence {
    pub agents_dir: PathBuf,
    handle: File,
}

impl Presence {
    /// Creates the directory, or removes the permissions of others from an existing one. Does not lock it yet.
    pub fn beside(path: &Path) -> Result<Self, StoreError> {
        let agents_dir = agents_dir(path);
        let failed = |error: io::Error| not_writable(&agents_dir, &error);
        match DirBuilder::new().mode(0o700).create(&agents_dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => created.map_err(failed)?,
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = match rustix::fs::open(&agents_dir, flags, Mode::empty()) {
            Ok(handle) => File::from(handle),
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(StoreError::foreign(&agents_dir, "is no directory")),
            Err(error) => return Err(failed(error.into())),
        };
        check_owner(path, &agents_dir, &handle.metadata().map_err(failed)?)?;
        belong_to(path, &agents_dir).map_err(failed)?;
        let mode = handle.metadata().map_err(failed)?.mode() & 0o777;
        if mode & 0o002 != 0 {
            return Err(StoreError::foreign(&agents_dir, format!("may be written to by every user (mode {mode:o})")));
        }
        Ok(Self { agents_dir, handle })
    }

    /// Locks the directory exclusively; false if another process has the file open. No other process can open it while the
    /// opening lock is held.
    pub fn try_alone(&self) -> Result<bool, StoreError> {
        self.took(self.handle.try_lock())
    }

    /// Locks the directory shared: other processes may have the file open, too.
    pub fn share(&self) -> Result<(), StoreError> {
        // No process can hold it exclusively now: it would also hold the opening lock, which we hold.
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

/// The database, open for writing.
pub(super) struct OpenFile {
    pub conn: SqliteConnection,
    pub place: Place,
    /// Dropped last, after the connection is closed.
    pub presence: Presence,
}

/// The opening lock: one process at a time opens a database.
pub(super) struct Opening {
    pub place: Place,
    /// Whether the database did not exist before.
    pub is_new: bool,
    _lock: File,
}

impl Opening {
    /// Waits until no other process is opening the database, and creates a missing file. Blocking work.
    pub fn begin(path: &Path) -> Result<Self, StoreError> {
        let lock = lock_file(path)?;
        let is_new = inspect::look(path)? == Found::Nothing;
        if is_new {
            create(path)?;
        }
        Ok(Self { place: Place::of(path).map_err(|error| not_writable(path, &error))?, is_new, _lock: lock })
    }
}

/// Takes the opening lock; waits until no other process holds it.
fn lock_file(path: &Path) -> Result<File, StoreError> {
    let file = beside(path, "-lock");
    let failed = |error: io::Error| match (error.kind(), path.parent()) {
        // The directory does not permit creating a file.
        (io::ErrorKind::PermissionDenied, Some(dir)) if fs::symlink_metadata(&file).is_err() => {
            not_writable(dir, &error)
        }
        _ => not_writable(&file, &error),
    };
    let lock = match OpenOptions::new().create_new(true).append(true).mode(0o600).open(&file) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let meta = fs::symlink_metadata(&file).map_err(failed)?;
            if !meta.is_file() {
                return Err(StoreError::foreign(&file, format!("is {}", kind_of(meta.file_type()))));
            }
            // Non-blocking, in case it has become a pipe.
            let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed();
            let lock = OpenOptions::new().append(true).custom_flags(flags).open(&file).map_err(failed)?;
            check_owner(path, &file, &lock.metadata().map_err(failed)?)?;
            lock
        }
        created => {
            let created = created.map_err(failed)?;
            match belong_to(path, &file) {
                // The database is yet to be created.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                given => given.map_err(failed)?,
            }
            created
        }
    };
    lock.lock().map_err(failed)?;
    Ok(lock)
}

/// Creates a missing database, readable by its owner only; SQLite gives its companions the same mode. An existing empty file
/// keeps its mode.
fn create(path: &Path) -> Result<(), StoreError> {
    match OpenOptions::new().create_new(true).write(true).mode(0o600).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        created => created.map(drop).map_err(|error| not_writable(path, &error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// The owner of the directory swaps a companion while root checks it.
    #[test]
    fn companion_that_is_another_file_is_left_alone() {
        const SERVICE: u32 = 64_331;
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("m.db"), "").unwrap();
        fs::write(path("precious"), "").unwrap();
        fs::set_permissions(path("precious"), fs::Permissions::from_mode(0o604)).unwrap();
        let before = fs::metadata(path("precious")).unwrap();
        let is_unchanged = || {
            let now = fs::metadata(path("precious")).unwrap();
            (now.uid(), now.gid(), now.mode()) == (before.uid(), before.gid(), before.mode())
        };
        symlink(path("precious"), path("m.db-lock")).unwrap();
        let error = belong_to(&path("m.db"), &path("m.db-lock")).unwrap_err();
        assert_eq!(error.to_string(), "it is a symbolic link");
        assert!(is_unchanged());
        if chown(path("m.db"), Some(SERVICE), Some(SERVICE)).is_err() {
            return;
        }
        assert!(belong_to(&path("m.db"), &path("m.db-lock")).is_err() && is_unchanged());
        fs::hard_link(path("precious"), path("m.db-wal")).unwrap();
        let error = belong_to(&path("m.db"), &path("m.db-wal")).unwrap_err();
        assert!(error.to_string().contains("2 names (hard links)"), "{error}");
        assert!(is_unchanged());
    }
}
