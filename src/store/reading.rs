//! A database that is only read, to be checked or copied, whether a daemon is running or not.
//!
//! Always: the file is not changed, migrated or created, and no file is created beside it. It has its own connection, so that a
//! long check delays no other reader.

use std::collections::HashMap;
use std::path::Path;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};

use super::read_only::ReadOnly;
use super::worker::{self, Registered};
use super::{StoreError, migrate, migrate::MigrateError, migrations};
use crate::clock::Timestamp;
use crate::id::{AgentName, RunId, WorkspaceName};
use crate::lease::WorkerKey;

/// An open database that is only read.
#[derive(Debug)]
pub struct Reading {
    pub(super) conn: SqliteConnection,
    access: ReadOnly,
}

/// A running run and its lease.
#[derive(Debug, Clone)]
pub struct Held {
    /// The run.
    pub run: RunId,
    /// The worker that holds the lease.
    pub worker: WorkerKey,
    /// When the lease ends unless it is renewed, by the clock of its holder; zero when it was given back.
    pub expires_at: Timestamp,
}

/// A ready run that could be claimed, according to the file.
#[derive(Debug, Clone)]
pub struct Claimable {
    /// The run.
    pub id: RunId,
    /// Its agent.
    pub agent: AgentName,
    /// Its workspace.
    pub workspace: WorkspaceName,
    /// Runs of that agent that are running.
    pub agent_running: i64,
}

const SCHEMA: &str = "SELECT type || ' ' || name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY type, name";

/// Attempts to open a file while other processes open or close it.
const OPENS_AT_MOST: usize = 5;

/// Maximum number of ready runs that are read; a report names a few of them.
const CLAIMABLE_AT_ONCE: i64 = 1000;

/// A run or backend that is named by something on this machine (such as a process), as stored in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Whether it may have processes: the run is running, the backend is not stopped.
    pub is_live: bool,
    /// What it is, for people: `run …, which is completed`.
    pub what: String,
    /// The newest token of its lease; for a backend, its generation.
    pub token: i64,
}

impl Reading {
    /// Opens the database at `path`.
    ///
    /// # Errors
    /// [`StoreError::Absent`]; [`StoreError::NotReadable`] when it cannot be opened, [`StoreError::NotOurs`] when it is another
    /// program's, [`StoreError::OldSqlite`].
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let mut tries = 1;
        loop {
            match Self::try_open(path).await {
                // The last process closed the file, or the first one opened it, between the check and the open.
                Err(StoreError::Changed(_)) if tries < OPENS_AT_MOST => tries += 1,
                opened => return opened,
            }
        }
    }

    async fn try_open(path: &Path) -> Result<Self, StoreError> {
        let access = ReadOnly::of(path)?;
        let opened = async {
            let conn = access.options.connect().await;
            let mut conn = conn.map_err(|error| StoreError::at_open_to_read(&access.path, error))?;
            access.check(&mut conn).await?;
            Ok::<_, StoreError>(conn)
        };
        match opened.await {
            Err(_) if access.is_passed() => Err(StoreError::Changed(access.path)),
            opened => Ok(Self { conn: opened?, access }),
        }
    }

    /// The path of the database, symlinks resolved.
    pub fn path(&self) -> &Path {
        &self.access.path
    }

    /// Whether reads so far may be torn, because the file was written to while it was read without its WAL.
    pub fn is_outdated(&self) -> bool {
        self.access.is_outdated()
    }

    /// The mismatch, if an earlier build created the file with other migrations under the same versions.
    pub async fn other_build(&mut self) -> Option<MigrateError> {
        match migrate::check_applied(&mut self.conn, &migrations()).await {
            Err(error @ MigrateError::Divergent(_)) => Some(error),
            _ => None,
        }
    }

    /// The version of SQLite.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn sqlite_version(&mut self) -> Result<String, StoreError> {
        Ok(sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&mut self.conn).await?)
    }

    /// The version of its schema.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn schema_version(&mut self) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut self.conn).await?)
    }

    /// The tables, indexes, triggers and views that differ from those that the migrations of this build create. Additional ones
    /// are ignored.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn altered_schema(&mut self) -> Result<Vec<String>, StoreError> {
        let wanted = self.fresh_schema().await?;
        let found: Vec<(String, String)> = sqlx::query_as(SCHEMA).fetch_all(&mut self.conn).await?;
        let found: HashMap<_, _> = found.into_iter().collect();
        Ok(wanted.into_iter().filter(|(name, sql)| found.get(name) != Some(sql)).map(|(name, _)| name).collect())
    }

    /// The schema that the migrations of this build create: each object by kind and name, with its SQL.
    pub(super) async fn fresh_schema(&self) -> Result<Vec<(String, String)>, StoreError> {
        let mut fresh = SqliteConnectOptions::new().in_memory(true).pragma("temp_store", "MEMORY").connect().await?;
        let migrated = migrate::migrate(&mut fresh, &migrations()).await;
        migrated.map_err(|source| StoreError::Schema { path: self.access.path.clone(), source })?;
        let made = sqlx::query_as(SCHEMA).fetch_all(&mut fresh).await?;
        fresh.close().await?;
        Ok(made)
    }

    /// All registered workers.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn workers(&mut self) -> Result<Vec<Registered>, StoreError> {
        worker::registered(&mut self.conn).await
    }

    /// The running runs.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn held(&mut self) -> Result<Vec<Held>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT id, lease_worker AS "worker!", lease_expires_at AS "expires_at!" FROM runs INDEXED BY runs_leased
               WHERE lease_worker IS NOT NULL"#
        );
        let held = rows.fetch_all(&mut self.conn).await?.into_iter().map(|row| {
            let expires_at = Timestamp::from_millis(row.expires_at);
            Ok(Held { run: row.id.parse()?, worker: row.worker, expires_at })
        });
        held.collect()
    }

    /// The ready runs that could be claimed, in claim order; 1000 at most.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn claimable(&mut self, now: Timestamp) -> Result<Vec<Claimable>, StoreError> {
        let now = now.as_millis();
        let rows = sqlx::query!(
            r#"SELECT r.id AS "id!", c.agent AS "agent!", c.workspace AS "workspace!", c.agent_running AS "agent_running!: i64"
               FROM claimable_runs c JOIN runs r ON r.key = c.key
               WHERE c.not_before IS NULL OR c.not_before <= ?1
                   OR (c.short_of IS NOT NULL AND c.not_before > ?1 + 30000) ORDER BY c.priority DESC, c.key LIMIT ?2 + 0"#,
            now,
            CLAIMABLE_AT_ONCE
        );
        let claimable = rows.fetch_all(&mut self.conn).await?.into_iter().map(|row| {
            let (agent, workspace) = (row.agent.parse()?, row.workspace.parse()?);
            Ok(Claimable { id: row.id.parse()?, agent, workspace, agent_running: row.agent_running })
        });
        claimable.collect()
    }

    /// The runs, among the given ids, that are in this file; also backends, which have processes under their own ids in the same
    /// way.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn known_among(&mut self, runs: &[RunId]) -> Result<HashMap<RunId, Known>, StoreError> {
        let ids = serde_json::to_string(runs).map_err(|error| StoreError::Invalid(error.to_string()))?;
        let rows = sqlx::query!(
            r#"SELECT id AS "id!", status AS "status!", lease_token AS "token!", status = 'running' AS "is_live!: bool",
                   'run' AS "kind!: String" FROM runs WHERE id IN (SELECT value FROM json_each(?1))
               UNION ALL SELECT id, state, generation, state <> 'stopped', 'backend' FROM backends
                   WHERE id IN (SELECT value FROM json_each(?1))"#,
            ids
        );
        let known = rows.fetch_all(&mut self.conn).await?.into_iter().map(|row| {
            let what = format!("{} {}, which is {}", row.kind, row.id, row.status);
            Ok((row.id.parse()?, Known { is_live: row.is_live, what, token: row.token }))
        });
        known.collect()
    }

    /// Closes the file.
    pub async fn close(self) {
        if let Err(error) = self.conn.close().await {
            tracing::debug!(%error, "failed to close a connection that only read");
        }
    }
}
