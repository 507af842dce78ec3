//! What can go wrong with the database file, told apart by kind.

use std::path::{Path, PathBuf};

use super::migrate::MigrateError;

/// A failure of the store. The texts read after "failed to …:".
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file is another program's, or no database at all.
    #[error("{0} is not a mainstay database: choose another path with --db")]
    NotOurs(PathBuf),
    /// The file is damaged.
    #[error("{path} is damaged ({detail}): restore a backup, or move the file away to begin anew")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
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
    /// The file or its directory cannot be opened for writing.
    #[error("{path} cannot be opened for writing ({detail}): the file and its directory must be writable")]
    NotWritable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// The file is not there, or cannot be opened.
    #[error("{path} cannot be read ({detail})")]
    NotReadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// A copy is never written over something else.
    #[error("{0} is there already: choose another path")]
    Exists(PathBuf),
    /// A copy could not be written, or is not what it should be; nothing is left of it.
    #[error("{path} cannot be written ({detail})")]
    NotCopied {
        /// Where the copy was to be.
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
    /// Another process held the write lock for longer than the busy timeout; nothing was stored.
    #[error("the database is locked by another process")]
    Busy,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// A stored value is not what the schema promises.
    #[error("the database holds {0}")]
    Invalid(String),
    /// Any other failure of the database.
    #[error(transparent)]
    Sql(sqlx::Error),
}

impl StoreError {
    /// Whether the same operation may succeed later without anybody changing it.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::DiskFull | Self::Busy)
    }

    /// The same, for an error met while the file at `path` was being opened.
    pub(super) fn at_open(path: &Path, error: sqlx::Error) -> Self {
        let path = path.to_owned();
        let detail = error.to_string();
        match primary_code(&error) {
            Some(SQLITE_NOTADB) => Self::NotOurs(path),
            Some(SQLITE_CORRUPT) => Self::Damaged { path, detail },
            Some(SQLITE_READONLY | SQLITE_CANTOPEN | SQLITE_PERM) => Self::NotWritable { path, detail },
            _ => error.into(),
        }
    }
}

const SQLITE_PERM: i32 = 3;
const SQLITE_BUSY: i32 = 5;
const SQLITE_LOCKED: i32 = 6;
const SQLITE_READONLY: i32 = 8;
const SQLITE_CORRUPT: i32 = 11;
const SQLITE_FULL: i32 = 13;
const SQLITE_CANTOPEN: i32 = 14;
const SQLITE_NOTADB: i32 = 26;

/// SQLite's primary result code; the low byte of the extended one.
fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let code = error.as_database_error()?.code()?;
    code.parse::<i32>().ok().map(|code| code & 0xff)
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match primary_code(&error) {
            Some(SQLITE_FULL) => Self::DiskFull,
            Some(SQLITE_BUSY | SQLITE_LOCKED) => Self::Busy,
            _ => Self::Sql(error),
        }
    }
}

impl From<crate::id::InvalidId> for StoreError {
    fn from(error: crate::id::InvalidId) -> Self {
        Self::Invalid(error.to_string())
    }
}
