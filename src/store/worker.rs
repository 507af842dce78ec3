//! The table `workers`: the processes that may execute runs, and the proof that one is dead.

use std::time::Duration;

use sqlx::SqliteConnection;

use super::tx::Tx;
use super::{IsAlive, Store, StoreError};
use crate::clock::{Timestamp, millis};
use crate::id::WorkerId;
use crate::lease::WorkerKey;
use crate::worker::{ProcessIdentity, Worker};

/// The registration of a worker.
#[derive(Debug, Clone)]
pub struct Registration {
    /// Its id.
    pub id: WorkerId,
    /// Its process.
    pub process: ProcessIdentity,
    /// The machine's name, for people.
    pub hostname: String,
    /// Runs it executes at once.
    pub capacity: u32,
    /// How long its leases last unless it renews them.
    pub lease: Duration,
}

/// A registered worker, as a sweep sees it.
#[derive(Debug, Clone)]
pub struct Registered {
    /// Its row.
    pub key: WorkerKey,
    /// Its id.
    pub id: String,
    /// Its process.
    pub process: ProcessIdentity,
    /// Runs it executes at once.
    pub capacity: i64,
    /// When it last renewed its leases.
    pub heartbeat_at: Timestamp,
    /// How long its leases last.
    pub lease: Duration,
}

impl Store {
    /// Registers a worker.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn register_worker(&self, registration: Registration) -> Result<WorkerKey, StoreError> {
        self.write(move |tx| {
            let registration = registration.clone();
            Box::pin(async move { insert(tx, None, &registration).await })
        })
        .await
    }

    /// Removes a worker that exits; the leases that it still holds expire at once.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn deregister_worker(&self, worker: WorkerKey) -> Result<(), StoreError> {
        self.write(move |tx| {
            Box::pin(async move {
                super::run::expire_leases(tx.conn, worker).await?;
                remove(tx.conn, worker).await?;
                Ok(())
            })
        })
        .await
    }

    /// Announces that a worker claims no more runs: other processes must not count on it.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn retire_worker(&self, worker: WorkerKey) -> Result<(), StoreError> {
        self.write(move |tx| {
            Box::pin(async move {
                let retire = sqlx::query!("UPDATE workers SET capacity = 0 WHERE key = ?1", worker);
                retire.execute(&mut *tx.conn).await?;
                Ok(())
            })
        })
        .await
    }

    /// Removes workers that hold no lease any more. Returns their number.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn remove_workers(&self, workers: Vec<WorkerKey>) -> Result<u64, StoreError> {
        self.write(move |tx| {
            let workers = workers.clone();
            Box::pin(async move {
                let mut removed = 0;
                for worker in workers {
                    removed += remove(tx.conn, worker).await?;
                }
                Ok(removed)
            })
        })
        .await
    }

    /// All registered workers.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn registered_workers(&self) -> Result<Vec<Registered>, StoreError> {
        registered(&self.readers).await
    }

    /// All registered workers, for people.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn list_workers(&self) -> Result<Vec<Worker>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT id, hostname, pid, capacity, version, started_at, heartbeat_at,
                   (SELECT count(*) FROM runs WHERE lease_worker = workers.key) AS "running!: i64"
               FROM workers ORDER BY key"#
        )
        .fetch_all(&self.readers)
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(Worker {
                    id: row.id.parse()?,
                    hostname: row.hostname,
                    pid: row.pid,
                    capacity: row.capacity,
                    running: row.running,
                    version: row.version,
                    started_at: Timestamp::from_millis(row.started_at),
                    heartbeat_at: Timestamp::from_millis(row.heartbeat_at),
                })
            })
            .collect()
    }
}

/// Live workers, for people, in a file that may still have the schema of an older build. Only a query that is not checked
/// against the newest schema can read that.
pub(super) async fn of_any_schema(conn: &mut SqliteConnection, is_alive: IsAlive) -> Result<Vec<String>, StoreError> {
    let rows: Vec<(String, i32, i64, String, String)> =
        sqlx::query_as("SELECT pid_scope, pid, pid_started_at, version, hostname FROM workers ORDER BY key")
            .fetch_all(conn)
            .await?;
    let named = rows.into_iter().filter_map(|(host, pid, started_at_ticks, version, hostname)| {
        is_alive(&ProcessIdentity { host, pid, started_at_ticks })
            .then(|| format!("the worker with pid {pid} on {hostname} (version {version})"))
    });
    Ok(named.collect())
}

/// All registered workers.
pub(super) async fn registered<'e>(executor: impl sqlx::SqliteExecutor<'e>) -> Result<Vec<Registered>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT key AS "key!", id, pid_scope, pid, pid_started_at, capacity, heartbeat_at, lease_ms FROM workers ORDER BY key"#
    );
    let rows = rows.fetch_all(executor).await?;
    let registered = rows.into_iter().map(|row| Registered {
        key: row.key,
        id: row.id,
        process: ProcessIdentity {
            host: row.pid_scope,
            pid: i32::try_from(row.pid).unwrap_or_default(),
            started_at_ticks: row.pid_started_at,
        },
        capacity: row.capacity,
        heartbeat_at: Timestamp::from_millis(row.heartbeat_at),
        lease: Duration::from_millis(row.lease_ms.unsigned_abs()),
    });
    Ok(registered.collect())
}

async fn remove(conn: &mut SqliteConnection, worker: WorkerKey) -> Result<u64, StoreError> {
    // The next sweep assigns its backends to another supervisor.
    let leave = sqlx::query!(
        "UPDATE backends SET worker_key = NULL WHERE worker_key = ?1
           AND NOT EXISTS (SELECT 1 FROM runs WHERE lease_worker = ?1)",
        worker
    );
    leave.execute(&mut *conn).await?;
    let removed = sqlx::query!(
        "DELETE FROM workers WHERE key = ?1 AND NOT EXISTS (SELECT 1 FROM runs WHERE lease_worker = ?1)",
        worker
    );
    Ok(removed.execute(conn).await?.rows_affected())
}

/// Stores a heartbeat. A worker whose row was removed is registered again, under the key that its leases name.
pub async fn beat(tx: &mut Tx<'_>, worker: WorkerKey, registration: &Registration) -> Result<(), StoreError> {
    let now = tx.now.as_millis();
    let beat = sqlx::query!("UPDATE workers SET heartbeat_at = ?2 WHERE key = ?1", worker, now);
    if beat.execute(&mut *tx.conn).await?.rows_affected() == 0 {
        insert(tx, Some(worker), registration).await?;
    }
    Ok(())
}

async fn insert(tx: &mut Tx<'_>, key: Option<WorkerKey>, registration: &Registration) -> Result<WorkerKey, StoreError> {
    let (id, process, now) = (registration.id.to_string(), &registration.process, tx.now.as_millis());
    let (version, lease_ms) = (env!("CARGO_PKG_VERSION"), millis(registration.lease));
    let inserted = sqlx::query!(
        "INSERT INTO workers (key, id, pid_scope, hostname, pid, pid_started_at, capacity, version, started_at, heartbeat_at,
             lease_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9, ?10)",
        key,
        id,
        process.host,
        registration.hostname,
        process.pid,
        process.started_at_ticks,
        registration.capacity,
        version,
        now,
        lease_ms
    );
    Ok(inserted.execute(&mut *tx.conn).await?.last_insert_rowid())
}
