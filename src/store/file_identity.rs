//! The place of the database: the file at its path, what lies beside it, and who has it open.
//!
//! Two advisory locks, which the kernel lets go when a process dies and which no child inherits: `<db>-lock` is held while
//! the file is opened, created and migrated; the directory of agents is locked for as long as it is open, shared, or by
//! one alone who migrates. So no schema changes under an engine that does not know it.
//!
//! Always: nothing is acknowledged that would be written to a file which is no longer at its path, where nobody finds it.
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

/// The rights of the owner and of the group. What a database lets all others do is not passed on to what we put beside it.
const OWNER_AND_GROUP: u32 = 0o660;

pub(super) fn not_writable(path: &Path, error: &io::Error) -> StoreError {
    StoreError::NotWritable { path: path.to_owned(), detail: with_owner(path, error) }
}

/// The directory of agents beside a database whose path is resolved.
pub fn agents_dir(path: &Path) -> PathBuf {
    beside(path, "-agents")
}

/// The file beside a database that holds the token which is made where none is named.
///
/// # Errors
/// [`StoreError`] when the path of the database leads nowhere.
pub fn token_file(path: &Path) -> Result<PathBuf, StoreError> {
    Ok(beside(&inspect::resolve(path)?, "-token"))
}

/// Gives a companion the owner, the group and the rights that go with the database: root may be the first to need it and must
/// not lock out the service that owns the database, and a group that may read the database needs its WAL as well. The directory
/// of agents is of no use to others.
///
/// Through a handle of the very file that was looked at, because the owner of the directory may put another one in its place.
/// The handle is for its path only: closing any other descriptor of the index of the WAL would drop the locks that SQLite holds
/// on it.
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
            // Only root gives a file to a group that it is not in.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            given => given?,
        }
    }
    let rights = database.mode() & OWNER_AND_GROUP | 0o600;
    let mode = match made.is_dir() {
        // A reader of a directory has to be able to enter it.
        true => rights | (rights & 0o444) >> 2,
        // What a database lets all others do, SQLite passes on to its own files.
        false => rights | made.mode() & 0o007,
    };
    if made.mode() & 0o777 != mode {
        fs::set_permissions(&by_handle, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// The same for all companions, for what was created or given another owner or mode while no engine looked.
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

/// The file that was at a path when it was opened. While it is open no other file gets its number.
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

/// The directory of agents, and the lock on it that says that the file is open here.
#[derive(Debug)]
pub(super) struct Presence {
    pub agents_dir: PathBuf,
    handle: File,
}

impl Presence {
    /// Creates the directory, or takes the rights of others from one that is there; without a lock yet.
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
    /// Waits until no other process is at it, and creates a missing file. Blocking work.
    pub fn begin(path: &Path) -> Result<Self, StoreError> {
        let lock = lock_file(path)?;
        let is_new = inspect::look(path)? == Found::Nothing;
        if is_new {
            create(path)?;
        }
        Ok(Self { place: Place::of(path).map_err(|error| not_writable(path, &error))?, is_new, _lock: lock })
    }
}

/// The lock of opening, once no other process holds it.
fn lock_file(path: &Path) -> Result<File, StoreError> {
    let file = beside(path, "-lock");
    let failed = |error: io::Error| match (error.kind(), path.parent()) {
        // It is the directory that lets nothing be created in it.
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
            // Without a wait, should it be a pipe by now.
            let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed();
            let lock = OpenOptions::new().append(true).custom_flags(flags).open(&file).map_err(failed)?;
            check_owner(path, &file, &lock.metadata().map_err(failed)?)?;
            lock
        }
        created => {
            let created = created.map_err(failed)?;
            match belong_to(path, &file) {
                // A database is still to be made.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                given => given.map_err(failed)?,
            }
            created
        }
    };
    lock.lock().map_err(failed)?;
    Ok(lock)
}

/// Creates a missing database, readable by its owner only; SQLite gives its companions the same mode. An empty file that is
/// there keeps the mode that its owner gave it.
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

    /// The owner of the directory swaps a companion while root looks at it.
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
