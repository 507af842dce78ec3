//! Settings of every connection to a database.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, SqliteConnection};

use super::StoreError;

/// How long a statement waits for another process's write lock.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The first SQLite without the WAL-reset bug (<https://sqlite.org/wal.html#walresetbug>).
const MIN_SQLITE: (u32, u32, u32) = (3, 51, 3);

/// The options of every connection.
pub(super) fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true)
        // A claim keeps a statement journal, and a sort may spill: neither may depend on a writable temporary directory.
        .pragma("temp_store", "MEMORY")
        .pragma("trusted_schema", "OFF")
        .disable_statement_logging()
}

/// Fails if SQLite is too old.
pub(super) async fn check_version(conn: &mut SqliteConnection) -> Result<(), StoreError> {
    let version: String = sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&mut *conn).await?;
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    if (next(), next(), next()) < MIN_SQLITE {
        return Err(StoreError::OldSqlite(version));
    }
    Ok(())
}
