//! An upgrade: migrating the database of an older build to the schema of this one.
//!
//! Always: no other process has the file open meanwhile, so that no engine uses a schema that it does not know.
//!
//! Proof: the tests below, on a schema with one additional migration.

use std::path::Path;
use std::time::{Duration, Instant};

use refinery_core::Runner;
use sqlx::SqliteConnection;

use super::file_identity::Presence;
use super::migrate::{self, Upgrade};
use super::{IsAlive, StoreError, worker};

/// How long an upgrade waits for other processes to close the file: as long as SQLite waits for a lock.
const EXCLUSIVE_TIMEOUT: Duration = super::connect::BUSY_TIMEOUT;
/// Retry interval of the lock.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(50);

impl Upgrade {
    /// The upgrade that a database with a schema needs, if any.
    pub(super) async fn pending(conn: &mut SqliteConnection, runner: &Runner) -> sqlx::Result<Option<Self>> {
        let from = sqlx::query_scalar("SELECT user_version FROM pragma_user_version").fetch_one(conn).await?;
        let upgrade = Self { from, to: migrate::newest(runner) };
        Ok((0 < upgrade.from && upgrade.from < upgrade.to).then_some(upgrade))
    }

    /// Waits until no other process has the file open and no worker in it is proven alive.
    pub(super) async fn wait_alone(
        self,
        path: &Path,
        presence: &Presence,
        conn: &mut SqliteConnection,
        is_alive: IsAlive,
    ) -> Result<(), StoreError> {
        let give_up = Instant::now() + EXCLUSIVE_TIMEOUT;
        loop {
            let is_alone = presence.try_alone()?;
            let workers = worker::of_any_schema(conn, is_alive).await?;
            if is_alone && workers.is_empty() {
                return Ok(());
            }
            if Instant::now() >= give_up {
                let workers =
                    if workers.is_empty() { "every process that has it open".into() } else { workers.join(", ") };
                return Err(StoreError::InUse { path: path.to_owned(), upgrade: self, workers });
            }
            tokio::time::sleep(LOCK_RETRY_INTERVAL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

    use refinery_core::Migration;
    use sqlx::sqlite::SqliteConnectOptions;
    use sqlx::{ConnectOptions, Connection};

    use super::*;
    use crate::store::{OpenFile, migrations, open_for_writing};

    /// This build's schema, and one later migration.
    fn next_schema() -> Runner {
        let mut all = migrations().get_migrations().clone();
        let version = u32::try_from(migrate::newest(&migrations())).unwrap() + 1;
        let next = Migration::unapplied(&format!("V{version}__next"), "CREATE TABLE next (key INTEGER) STRICT");
        all.push(next.unwrap());
        Runner::new(&all)
    }

    async fn open(path: &Path, schema: &Runner, is_alive: IsAlive) -> Result<OpenFile, StoreError> {
        let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
        open_for_writing(path, options, schema, is_alive).await
    }

    async fn version(path: &Path) -> i64 {
        let mut conn = SqliteConnectOptions::new().filename(path).connect().await.unwrap();
        sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut conn).await.unwrap()
    }

    #[tokio::test]
    async fn upgrade_waits_until_no_process_has_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.db");
        let other = open(&path, &migrations(), |_| false).await.unwrap();
        let (before, schema) = (version(&path).await, next_schema());
        let error = open(&path, &schema, |_| false).await.err().unwrap();
        assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
        assert_eq!(version(&path).await, before);
        drop(other);
        open(&path, &schema, |_| false).await.unwrap();
        assert_eq!(version(&path).await, before + 1);
    }

    #[tokio::test]
    async fn upgrade_waits_for_living_workers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.db");
        let mut file = open(&path, &migrations(), |_| false).await.unwrap();
        let worker = "INSERT INTO workers (id, pid_scope, pid, pid_started_at, hostname, version, capacity, lease_ms, started_at,
                          heartbeat_at) VALUES ('w', 'here', 4711, 1, 'oldhost', '0.0.9', 8, 30000, 0, 0)";
        sqlx::raw_sql(worker).execute(&mut file.conn).await.unwrap();
        file.conn.close().await.unwrap();
        drop(file.presence);
        let (before, schema) = (version(&path).await, next_schema());
        let error = open(&path, &schema, |_| true).await.err().unwrap().to_string();
        assert!(error.contains("pid 4711 on oldhost (version 0.0.9)") && error.contains("stop"), "{error}");
        assert_eq!(version(&path).await, before);
        open(&path, &schema, |_| false).await.unwrap();
        assert_eq!(version(&path).await, before + 1);
    }
}
