//! Failures of the database file, by kind.

use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::companion::denied;
use super::migrate::{MigrateError, Upgrade};

/// A failure of the store. The texts read after "failed to …:".
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file is another program's, or no database at all.
    #[error("{0} is not a mainstay database: choose another path with --db")]
    NotOurs(PathBuf),
    /// Something other than a regular file is at the path.
    #[error("{path} is {kind}, and not a mainstay database: choose another path with --db")]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What is there instead.
        kind: &'static str,
    },
    /// There is no database, or one in which nothing was stored yet.
    #[error("there is no database {0}: name one with --db")]
    Absent(PathBuf),
    /// The directory of the database does not exist.
    #[error("the directory {0} is not there: create it, or choose another path with --db")]
    NoDirectory(PathBuf),
    /// The file has several hard links. Each name has its own lock and WAL, so engines would overwrite each other's commits.
    #[error(
        "{path} has {names} names (hard links), each of which would get a lock and a WAL of its own: remove the others, \
         which `find DIRECTORY -xdev -samefile {path}` lists, or use a copy that has one name"
    )]
    HardLinked {
        /// The path.
        path: PathBuf,
        /// How many hard links it has.
        names: u64,
    },
    /// A file beside the database was not put there by a user who may write to it.
    #[error(
        "{path} {detail}, so that another user could read or change what is stored: move it away, or choose another path with --db"
    )]
    Foreign {
        /// What lies there.
        path: PathBuf,
        /// Its owner, or what it is.
        detail: String,
    },
    /// The file is a mount point: other processes see its companions in another directory.
    #[error(
        "{0} is a mount point, so that its lock and its WAL would not be those that other processes see: mount the \
         directory that holds it instead of the file"
    )]
    MountPoint(PathBuf),
    /// The WAL holds commits and cannot be read without its index; creating the index would be a write.
    #[error(
        "{path} cannot be read: {what}. Start the daemon, or run `mainstay sweep` as a user who may write there, which \
         brings the file in order"
    )]
    NeedsRecovery {
        /// The database.
        path: PathBuf,
        /// What prevents the read: a WAL without its index, or a hot journal.
        what: String,
    },
    /// The file was read without a lock while a process began to write to it: what was read may be torn.
    #[error("{0} was written to while it was read: try again")]
    Changed(PathBuf),
    /// A row was rewritten or removed while it was read in pieces.
    #[error("it was rewritten while it was read: try again")]
    Rewritten,
    /// A write to a store that was opened read-only.
    #[error("{0} was opened to be read only")]
    ReadOnly(PathBuf),
    /// The file is damaged.
    #[error("{path} is damaged ({detail}): restore a backup, or move the file away to begin anew")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// SQLite's error message.
        detail: String,
    },
    /// The schema does not fit this build.
    #[error("{path} cannot be used: {source}")]
    Schema {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        source: MigrateError,
    },
    /// The schema has to be upgraded to that of this build, which needs exclusive use of the file.
    #[error("{path} is open elsewhere and has to be brought {upgrade} first: stop {workers}, then try again")]
    InUse {
        /// The file.
        path: PathBuf,
        /// From which schema to which.
        upgrade: Upgrade,
        /// The processes that have it open, as far as known.
        workers: String,
    },
    /// The open file is no longer at its path, so it is not written any more; nothing was stored.
    #[error(
        "{0} was deleted or replaced while it was open: put the same file back, or stop this process and start it again"
    )]
    Gone(PathBuf),
    /// It cannot be determined whether the open file is still at its path, so it is not written; nothing was stored.
    #[error("{path} cannot be looked at ({detail}): let this process look into its directory again")]
    Hidden {
        /// The file.
        path: PathBuf,
        /// The error message of the system.
        detail: String,
    },
    /// The file or its directory cannot be opened for writing.
    #[error("{path} cannot be opened for writing ({detail}): the file and its directory must be writable")]
    NotWritable {
        /// The file.
        path: PathBuf,
        /// The error message of the system.
        detail: String,
    },
    /// The file does not exist or cannot be opened.
    #[error("{path} cannot be read ({detail})")]
    NotReadable {
        /// The file.
        path: PathBuf,
        /// The error message of the system.
        detail: String,
    },
    /// The target of a copy exists; a copy never overwrites anything.
    #[error("{0} is there already: choose another path")]
    Exists(PathBuf),
    /// A copy could not be written or failed its check; it was removed.
    #[error("{path} cannot be written ({detail})")]
    NotCopied {
        /// The target of the copy.
        path: PathBuf,
        /// What went wrong.
        detail: String,
    },
    /// SQLite is too old to be trusted with a WAL that several connections use.
    #[error("SQLite {0} can corrupt the database: 3.51.3 or later is needed")]
    OldSqlite(String),
    /// No space left; nothing was stored.
    #[error("the disk is full")]
    DiskFull,
    /// The disk failed to read, write or sync; nothing was stored. If this process ends before the next commit, the failed
    /// transaction may appear after all, as a whole: its bytes may be in the WAL although they could not be synced.
    #[error("the disk failed ({0})")]
    DiskFailed(String),
    /// Another process held the write lock for longer than the busy timeout; nothing was stored.
    #[error("the database is locked by another process")]
    Busy,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// A stored value is not what the schema promises.
    #[error("the database holds {0}")]
    Invalid(String),
    /// A copy of an error without its kind, for another caller that is affected by it.
    #[error("{0}")]
    Same(String),
    /// SQLite refuses the value, permanently: it is too large, or the schema does not allow it.
    #[error("the database refuses it: {0}")]
    Refused(String),
    /// The write contradicts stored rows: a key is taken or names no row, or a trigger refuses it. Always a bug, whatever the
    /// input was.
    #[error("it contradicts what is stored: {0}")]
    Contradiction(String),
    /// SQLite ran out of memory; nothing was stored.
    #[error("the database has not enough memory")]
    OutOfMemory,
    /// Any other failure of the database.
    #[error(transparent)]
    Sql(sqlx::Error),
}

impl StoreError {
    /// Whether the same operation may succeed later, once the environment of the database is repaired.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::DiskFull | Self::DiskFailed(_) | Self::Busy | Self::OutOfMemory | Self::Gone(_) | Self::Hidden { .. }
        )
    }

    pub(super) fn foreign(path: &Path, detail: impl Into<String>) -> Self {
        Self::Foreign { path: path.to_owned(), detail: detail.into() }
    }

    /// Whether the same operation would always fail, because of the value to be stored.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Contradiction(_))
    }

    /// Whether one of several writes in the transaction may have caused it: then they are retried one by one.
    pub(super) fn may_be_of_one_write(&self) -> bool {
        // A large write may run out of memory where others do not.
        !self.is_transient() || matches!(self, Self::OutOfMemory)
    }

    /// A copy of this error for another caller that is affected by it.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::DiskFull => Self::DiskFull,
            Self::DiskFailed(detail) => Self::DiskFailed(detail.clone()),
            Self::Busy => Self::Busy,
            Self::Gone(path) => Self::Gone(path.clone()),
            Self::Hidden { path, detail } => Self::Hidden { path: path.clone(), detail: detail.clone() },
            Self::Closed => Self::Closed,
            Self::Refused(detail) => Self::Refused(detail.clone()),
            Self::Contradiction(detail) => Self::Contradiction(detail.clone()),
            Self::OutOfMemory => Self::OutOfMemory,
            other => Self::Same(other.to_string()),
        }
    }

    /// As `at_open`, for a file at `path` that was being opened read-only.
    pub(super) fn at_open_to_read(path: &Path, error: sqlx::Error) -> Self {
        match Self::at_open(path, error) {
            Self::NotWritable { path: file, detail } => {
                let (path, detail) = denied(path, Access::READ_OK).unwrap_or((file, detail));
                Self::NotReadable { path, detail }
            }
            other => other,
        }
    }

    /// The error for a failure to open the file at `path`.
    pub(super) fn at_open(path: &Path, error: sqlx::Error) -> Self {
        let path = path.to_owned();
        let detail = error.to_string();
        match primary_code(&error) {
            Some(SQLITE_NOTADB) => Self::NotOurs(path),
            // The statements executed at open are correct, so even the generic error (of a format that never existed) comes from
            // the file.
            Some(SQLITE_CORRUPT | SQLITE_ERROR) => Self::Damaged { path, detail },
            Some(SQLITE_READONLY | SQLITE_CANTOPEN | SQLITE_PERM) => {
                let denied = denied(&path, Access::READ_OK | Access::WRITE_OK);
                let (path, detail) = denied.unwrap_or((path, detail));
                Self::NotWritable { path, detail }
            }
            _ => error.into(),
        }
    }
}

const SQLITE_ERROR: i32 = 1;
const SQLITE_PERM: i32 = 3;
const SQLITE_BUSY: i32 = 5;
const SQLITE_LOCKED: i32 = 6;
const SQLITE_NOMEM: i32 = 7;
const SQLITE_READONLY: i32 = 8;
const SQLITE_IOERR: i32 = 10;
const SQLITE_CORRUPT: i32 = 11;
const SQLITE_FULL: i32 = 13;
const SQLITE_CANTOPEN: i32 = 14;
const SQLITE_PROTOCOL: i32 = 15;
const SQLITE_TOOBIG: i32 = 18;
const SQLITE_CONSTRAINT: i32 = 19;
const SQLITE_NOTADB: i32 = 26;
/// The index of the WAL, a file beside the database, could not grow; only a full disk causes that.
const SQLITE_IOERR_SHMSIZE: i32 = SQLITE_IOERR | (19 << 8);
const SQLITE_IOERR_NOMEM: i32 = SQLITE_IOERR | (12 << 8);
// The constraints that a value can violate by itself. All others concern other rows, or a missing one; and the triggers guard
// against errors of the engine itself.
const SQLITE_CONSTRAINT_CHECK: i32 = SQLITE_CONSTRAINT | (1 << 8);
const SQLITE_CONSTRAINT_DATATYPE: i32 = SQLITE_CONSTRAINT | (12 << 8);

fn extended_code(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}

/// SQLite's primary result code; the low byte of the extended one.
fn primary_code(error: &sqlx::Error) -> Option<i32> {
    extended_code(error).map(|code| code & 0xff)
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        extended_code(&error).and_then(|code| by_code(code, &error)).unwrap_or(Self::Sql(error))
    }
}

/// The error for an extended result code of SQLite once the file is open; none if the code has no kind of its own.
fn by_code(code: i32, error: &dyn std::fmt::Display) -> Option<StoreError> {
    Some(match (code, code & 0xff) {
        (SQLITE_IOERR_SHMSIZE, _) | (_, SQLITE_FULL) => StoreError::DiskFull,
        (SQLITE_IOERR_NOMEM, _) | (_, SQLITE_NOMEM) => StoreError::OutOfMemory,
        // Another file, or another connection, could not be opened: most likely out of file descriptors.
        (_, SQLITE_IOERR | SQLITE_CANTOPEN) => StoreError::DiskFailed(error.to_string()),
        (_, SQLITE_BUSY | SQLITE_LOCKED | SQLITE_PROTOCOL) => StoreError::Busy,
        (SQLITE_CONSTRAINT_CHECK | SQLITE_CONSTRAINT_DATATYPE, _) | (_, SQLITE_TOOBIG) => {
            StoreError::Refused(error.to_string())
        }
        (_, SQLITE_CONSTRAINT) => StoreError::Contradiction(error.to_string()),
        _ => return None,
    })
}

impl From<crate::id::InvalidId> for StoreError {
    fn from(error: crate::id::InvalidId) -> Self {
        Self::Invalid(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(code: i32) -> &'static str {
        match by_code(code, &"detail") {
            None => "other",
            Some(StoreError::DiskFull) => "full",
            Some(StoreError::DiskFailed(_)) => "failed",
            Some(StoreError::OutOfMemory) => "memory",
            Some(StoreError::Busy) => "busy",
            Some(StoreError::Refused(_)) => "refused",
            Some(StoreError::Contradiction(_)) => "contradiction",
            Some(error) => panic!("{code}: {error:?}"),
        }
    }

    /// Each code of <https://sqlite.org/rescode.html> that an open file can meet.
    #[test]
    fn every_result_code_has_its_kind() {
        let extended = |primary: i32, numbers: &[i32]| -> Vec<i32> {
            [primary].into_iter().chain(numbers.iter().map(|number| primary | (number << 8))).collect()
        };
        let all = |numbers: std::ops::RangeInclusive<i32>| numbers.collect::<Vec<_>>();
        let without = |numbers: std::ops::RangeInclusive<i32>, other: &[i32]| {
            numbers.filter(|number| !other.contains(number)).collect::<Vec<_>>()
        };
        for (codes, expected) in [
            (extended(13, &[]), "full"),                           // FULL
            (vec![10 | (19 << 8)], "full"),                        // IOERR_SHMSIZE
            (extended(7, &[]), "memory"),                          // NOMEM
            (vec![10 | (12 << 8)], "memory"),                      // IOERR_NOMEM
            (extended(10, &without(1..=34, &[12, 19])), "failed"), // IOERR_READ to IOERR_IN_PAGE
            (extended(14, &all(1..=6)), "failed"),                 // CANTOPEN_NOTEMPDIR to CANTOPEN_SYMLINK
            (extended(5, &all(1..=3)), "busy"),                    // BUSY_RECOVERY, BUSY_SNAPSHOT, BUSY_TIMEOUT
            (extended(6, &all(1..=2)), "busy"),                    // LOCKED_SHAREDCACHE, LOCKED_VTAB
            (extended(15, &[]), "busy"),                           // PROTOCOL: the locks of the WAL
            (extended(18, &[]), "refused"),                        // TOOBIG
            (vec![275, 3091], "refused"),                          // CONSTRAINT_CHECK, _DATATYPE
            // CONSTRAINT, _COMMITHOOK, _FOREIGNKEY, _FUNCTION, _NOTNULL, _PRIMARYKEY, _TRIGGER, _UNIQUE, _VTAB, _ROWID, _PINNED
            (vec![19, 531, 787, 1043, 1299, 1555, 1811, 2067, 2323, 2579, 2835], "contradiction"),
            (extended(1, &all(1..=3)), "other"), // ERROR_MISSING_COLLSEQ, ERROR_RETRY, ERROR_SNAPSHOT
            (vec![2, 3, 12, 16, 17, 20, 21, 22, 23, 24, 25, 26], "other"), // INTERNAL, PERM, NOTFOUND … NOTADB
            (extended(4, &[2]), "other"),        // ABORT_ROLLBACK
            (extended(8, &all(1..=6)), "other"), // READONLY_RECOVERY to READONLY_DIRECTORY
            (extended(9, &[]), "other"),         // INTERRUPT
            (extended(11, &all(1..=3)), "other"), // CORRUPT_VTAB, CORRUPT_SEQUENCE, CORRUPT_INDEX
        ] {
            for code in codes {
                assert_eq!(kind(code), expected, "{code}");
            }
        }
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        for code in [5, 7, 10, 13, 14, 10 | (12 << 8), 10 | (19 << 8)] {
            let error = by_code(code, &"detail").unwrap();
            assert!(error.is_transient() && !error.is_permanent() && error.again().is_transient(), "{code}");
        }
        for code in [18, 275, 1299, 1555, 1811, 2067, 787] {
            let error = by_code(code, &"detail").unwrap();
            assert!(error.is_permanent() && !error.is_transient() && error.again().is_permanent(), "{code}");
        }
    }
}
