//! What the supervisor of a backend stores: its process, its state changes, and which worker supervises it.

use crate::backend::BackendState;
use crate::clock::Timestamp;
use crate::failure::ErrorClass;
use crate::lease::{BackendKey, WorkerKey};
use crate::store::tx::Notice;
use crate::store::{Store, StoreError};
use crate::text::heard_text;
use crate::worker::Shim;

use super::{BackendRow, Row, json_of};

/// A state change, conditional on the state that the supervisor saw.
#[derive(Debug, Clone)]
pub struct Move {
    /// The worker that supervises it, if any.
    pub worker: Option<WorkerKey>,
    /// The state that the supervisor saw.
    pub from: BackendState,
    /// The generation that the supervisor saw.
    pub generation: i64,
    /// The new state.
    pub to: BackendState,
    /// The new generation.
    pub to_generation: i64,
    /// Why, for people.
    pub reason: String,
    /// The class of the failure for which it was given up.
    pub class: Option<ErrorClass>,
    /// When it was restarted recently.
    pub restarts: Vec<Timestamp>,
    /// When it may be started again.
    pub not_before: Option<Timestamp>,
    /// Whether it has answered.
    pub is_healthy: bool,
    /// Only when no turn is on it.
    pub unless_busy: bool,
    /// Only when no turn began or ended on it since.
    pub unused_since: Option<Timestamp>,
}

impl Store {
    /// Changes the state of a backend. False when its state, generation or supervisor is no longer the one that was seen, or
    /// when `unless_busy` or `unused_since` rules it out.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn move_backend(&self, key: BackendKey, change: Move) -> Result<bool, StoreError> {
        self.write(move |tx| {
            let change = change.clone();
            Box::pin(async move {
                let (from, to, class) =
                    (change.from.as_str(), change.to.as_str(), change.class.map(ErrorClass::as_str));
                let (restarts, now) = (json_of(&change.restarts), tx.now.as_millis());
                let not_before = change.not_before.map(Timestamp::as_millis);
                let reason = heard_text(&change.reason);
                let unused_since = change.unused_since.map(Timestamp::as_millis);
                let no_process = change.to_generation != change.generation
                    || matches!(change.to, BackendState::Stopped | BackendState::Restarting);
                let moved = sqlx::query!(
                    "UPDATE backends SET state = ?5, generation = ?6, reason = iif(state = ?5, reason, ?7),
                         error_class = ?8, restarts = ?9, not_before = ?10,
                         healthy_at = iif(?11, ?12, healthy_at),
                         used_at = iif(state = 'starting' AND ?5 = 'running', ?12, used_at),
                         started_at = iif(generation = ?6, started_at, ?12),
                         stopped_at = iif(?5 = 'stopped', ?12, NULL),
                         pid_scope = iif(?13, NULL, pid_scope), pid = iif(?13, NULL, pid),
                         pid_started_at = iif(?13, NULL, pid_started_at), shim_secret = iif(?13, NULL, shim_secret),
                         endpoint = iif(?13, NULL, endpoint)
                     WHERE key = ?1 AND worker_key IS ?2 AND state = ?3 AND generation = ?4
                       AND (?14 IS NULL OR used_at <= ?14)
                       AND NOT (?15 AND EXISTS (SELECT 1 FROM runs WHERE backend_key = ?1 AND status = 'running'))",
                    key,
                    change.worker,
                    from,
                    change.generation,
                    to,
                    change.to_generation,
                    reason,
                    class,
                    restarts,
                    not_before,
                    change.is_healthy,
                    now,
                    no_process,
                    unused_since,
                    change.unless_busy
                );
                let moved = moved.execute(&mut *tx.conn).await?.rows_affected() == 1;
                tx.notices.push(Notice::Backends);
                Ok(moved)
            })
        })
        .await
    }

    /// Stores the shim and the endpoint of a backend before it starts. False when it is not to be started any more.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn record_backend(
        &self,
        key: BackendKey,
        worker: WorkerKey,
        generation: i64,
        host: Option<Shim>,
        endpoint: String,
    ) -> Result<bool, StoreError> {
        self.write(move |tx| {
            let (host, endpoint) = (host.clone(), endpoint.clone());
            Box::pin(async move {
                let (process, secret) = host.map(|host| (host.process, host.secret)).unzip();
                let pid = process.as_ref().map(|process| process.pid);
                let started_at = process.as_ref().map(|process| process.started_at_ticks);
                let pid_scope = process.map(|process| process.host);
                let recorded = sqlx::query!(
                    "UPDATE backends SET pid = ?4, pid_started_at = ?5, pid_scope = ?6, shim_secret = ?7, endpoint = ?8
                     WHERE key = ?1 AND worker_key = ?2 AND generation = ?3 AND state = 'starting'",
                    key,
                    worker,
                    generation,
                    pid,
                    started_at,
                    pid_scope,
                    secret,
                    endpoint
                );
                Ok(recorded.execute(&mut *tx.conn).await?.rows_affected() == 1)
            })
        })
        .await
    }

    /// All live backends, of every supervisor.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn live_backends(&self) -> Result<Vec<BackendRow>, StoreError> {
        self.watched(None).await
    }

    /// A backend, if it is live.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn live_backend(&self, key: BackendKey) -> Result<Option<BackendRow>, StoreError> {
        Ok(self.watched(Some(key)).await?.pop())
    }

    async fn watched(&self, only: Option<BackendKey>) -> Result<Vec<BackendRow>, StoreError> {
        let rows = sqlx::query_as!(
            Row,
            r#"SELECT b.key, b.id, b.agent, b.workspace, s.id AS "session?", b.state, b.reason, b.generation, b.worker_key AS worker,
                   b.pid_scope, b.pid, b.pid_started_at, b.shim_secret, b.endpoint,
                   EXISTS (SELECT 1 FROM runs r WHERE r.backend_key = b.key AND r.status = 'running') AS "is_busy!: bool",
                   b.close_when_idle AS "close_when_idle: bool", b.restarts, b.healthy_at IS NOT NULL AS "was_well!: bool",
                   b.not_before, b.used_at
               FROM backends b INDEXED BY backends_live LEFT JOIN sessions s ON s.key = b.session_key
               WHERE b.state <> 'stopped' AND (?1 IS NULL OR b.key = ?1) ORDER BY b.used_at"#,
            only
        );
        rows.fetch_all(&self.readers).await?.into_iter().map(BackendRow::try_from).collect()
    }

    /// Makes `worker` the supervisor of a backend if its supervisor is still `before` (none: no worker). False otherwise.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn watch_backend(
        &self,
        key: BackendKey,
        before: Option<WorkerKey>,
        worker: WorkerKey,
    ) -> Result<bool, StoreError> {
        self.write(move |tx| {
            Box::pin(async move {
                let watch = sqlx::query!(
                    "UPDATE backends SET worker_key = ?3 WHERE key = ?1 AND worker_key IS ?2 AND state <> 'stopped'",
                    key,
                    before,
                    worker
                );
                tx.notices.push(Notice::Backends);
                Ok(watch.execute(&mut *tx.conn).await?.rows_affected() == 1)
            })
        })
        .await
    }

    /// Gives up the supervision of a backend by this worker; the next sweep assigns another supervisor.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn leave_backend(&self, key: BackendKey, worker: WorkerKey) -> Result<(), StoreError> {
        self.write(move |tx| {
            Box::pin(async move {
                let leave = sqlx::query!(
                    "UPDATE backends SET worker_key = NULL WHERE key = ?1 AND worker_key = ?2",
                    key,
                    worker
                );
                leave.execute(&mut *tx.conn).await?;
                Ok(())
            })
        })
        .await
    }

    /// Whether a backend is still running in this generation.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn is_backend_running(&self, key: BackendKey, generation: i64) -> Result<bool, StoreError> {
        let runs = sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT 1 FROM backends WHERE key = ?1 AND generation = ?2 AND state = 'running') AS "runs!: bool""#,
            key,
            generation
        );
        Ok(runs.fetch_one(&self.readers).await?)
    }
}
