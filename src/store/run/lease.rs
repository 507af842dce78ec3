//! What the holder of a lease does with a run besides appending events: record the shim, give the lease back, put the run back.

use std::time::Duration;

use sqlx::SqliteConnection;

use crate::lease::{Lease, RunKey, WorkerKey};
use crate::store::text::shown;
use crate::store::tx::{Notice, Tx};
use crate::store::{Store, StoreError};
use crate::worker::Shim;

impl Store {
    /// Stores the shim of a run's agent, and the agent's working directory, before the agent starts.
    ///
    /// # Errors
    /// Outside: why it was not stored. Inside: false when the lease is lost.
    pub async fn record_shim(&self, lease: Lease, host: Shim, dir: String) -> Result<bool, StoreError> {
        self.write(move |tx| {
            let (host, dir) = (host.clone(), dir.clone());
            Box::pin(async move {
                let done = sqlx::query!(
                    "UPDATE runs SET pid = ?3, pid_started_at = ?4, pid_scope = ?5, shim_attempt = ?6, shim_secret = ?7, dir = ?8
                     WHERE key = ?1 AND lease_token = ?2 AND status = 'running'",
                    lease.run,
                    lease.token,
                    host.process.pid,
                    host.process.started_at_ticks,
                    host.process.host,
                    host.attempt,
                    host.secret,
                    dir
                );
                Ok(done.execute(&mut *tx.conn).await?.rows_affected() == 1)
            })
        })
        .await
    }

    /// Gives a lease back, so that the next sweep takes the run over.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn let_expire(&self, lease: Lease) -> Result<(), StoreError> {
        self.write(move |tx| {
            Box::pin(async move {
                let expire = sqlx::query!(
                    "UPDATE runs SET lease_expires_at = 0 WHERE key = ?1 AND lease_token = ?2 AND status = 'running'",
                    lease.run,
                    lease.token
                );
                expire.execute(&mut *tx.conn).await?;
                Ok(())
            })
        })
        .await
    }

    /// Counts the start of an adoption. False when the lease is lost.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn begin_adoption(&self, lease: Lease) -> Result<bool, StoreError> {
        self.write(move |tx| {
            Box::pin(async move {
                let count = sqlx::query!(
                    "UPDATE runs SET failures = failures + 1 WHERE key = ?1 AND lease_token = ?2 AND status = 'running'",
                    lease.run,
                    lease.token
                );
                Ok(count.execute(&mut *tx.conn).await?.rows_affected() == 1)
            })
        })
        .await
    }

    /// Undoes the count of an adoption, so that it is not a failed one. Works without the lease, too: losing the lease is not a
    /// failure of the run, and the count belongs to the run, not to the lease.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn uncount_adoption(&self, run: RunKey) -> Result<(), StoreError> {
        self.write(move |tx| {
            Box::pin(async move {
                let uncount = sqlx::query!(
                    "UPDATE runs SET failures = failures - 1 WHERE key = ?1 AND failures > 0 AND status = 'running'",
                    run
                );
                uncount.execute(&mut *tx.conn).await?;
                Ok(())
            })
        })
        .await
    }

    /// Resets the count of failed adoptions: the worker has read all output that the run had when it was adopted.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn end_adoption(&self, lease: Lease) -> Result<(), StoreError> {
        self.write(move |tx| {
            Box::pin(async move {
                let forget = sqlx::query!(
                    "UPDATE runs SET failures = 0 WHERE key = ?1 AND lease_token = ?2 AND status = 'running'",
                    lease.run,
                    lease.token
                );
                forget.execute(&mut *tx.conn).await?;
                Ok(())
            })
        })
        .await
    }

    /// Puts a run without output back to the head of its session's queue.
    ///
    /// # Errors
    /// Outside: why nothing was stored. Inside: false when the lease is lost, or when the run has output or a cancel request.
    pub async fn put_back(&self, lease: Lease) -> Result<bool, StoreError> {
        self.write(move |tx| Box::pin(async move { put_back(tx, lease).await })).await
    }

    /// Puts a run back because a system resource ran out that its agent's start needs. The run is not claimed before `pause` is
    /// over; other runs are.
    ///
    /// # Errors
    /// As [`Store::put_back`].
    pub async fn put_back_short(&self, lease: Lease, pause: Duration, short_of: String) -> Result<bool, StoreError> {
        self.write(move |tx| {
            let short_of = short_of.clone();
            Box::pin(async move {
                if !put_back(tx, lease).await? {
                    return Ok(false);
                }
                let (not_before, short_of) = ((tx.now + pause).as_millis(), shown(&short_of));
                let wait = sqlx::query!(
                    "UPDATE runs SET not_before = ?2, short_of = ?3, shortages = shortages + 1 WHERE key = ?1",
                    lease.run,
                    not_before,
                    short_of
                );
                wait.execute(&mut *tx.conn).await?;
                Ok(true)
            })
        })
        .await
    }

    /// Puts a run back whose agent exited without output when it was to resume its own session: the next attempt begins a new
    /// one. This happens once per run at most, and only while the agent has not confirmed that it is in that session.
    ///
    /// # Errors
    /// Outside: why nothing was stored. Inside: false when it is not possible, also for the reasons of [`Store::put_back`].
    pub async fn put_back_afresh(&self, lease: Lease) -> Result<bool, StoreError> {
        self.write(move |tx| {
            Box::pin(async move {
                let lost = sqlx::query_scalar!(
                    r#"UPDATE agent_sessions SET lost_in = ?1
                       WHERE key = (SELECT a.key FROM runs r JOIN sessions s ON s.key = r.session_key
                               JOIN agent_sessions a ON a.session_key = s.key AND a.id = s.agent_session
                           WHERE r.key = ?1 AND r.lease_token = ?2 AND r.status = 'running' AND r.said = 0
                             AND r.cancel_requested_at IS NULL AND s.oneshot = 0
                           ORDER BY a.key DESC LIMIT 1)
                         AND run_key <> ?1 AND NOT EXISTS (SELECT 1 FROM agent_sessions WHERE lost_in = ?1)
                       RETURNING session_key AS "session_key!""#,
                    lease.run,
                    lease.token
                );
                let Some(session) = lost.fetch_optional(&mut *tx.conn).await? else { return Ok(false) };
                let forget = sqlx::query!("UPDATE sessions SET agent_session = NULL WHERE key = ?1", session);
                forget.execute(&mut *tx.conn).await?;
                put_back(tx, lease).await
            })
        })
        .await
    }
}

async fn put_back(tx: &mut Tx<'_>, lease: Lease) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "UPDATE runs SET status = 'queued', ready = 1, lease_worker = NULL, lease_expires_at = NULL,
             slot_key = NULL, pid = NULL, pid_started_at = NULL, pid_scope = NULL, shim_attempt = NULL,
             shim_secret = NULL, source_offset = 0, backend_key = NULL, error_class = NULL, retry_at = NULL, failures = 0
         WHERE key = ?1 AND lease_token = ?2 AND status = 'running' AND said = 0
           AND cancel_requested_at IS NULL",
        lease.run,
        lease.token
    );
    let done = done.execute(&mut *tx.conn).await?.rows_affected() == 1;
    tx.notices.extend([Notice::Ready, Notice::Closing]);
    Ok(done)
}

/// Gives back all leases that a process still holds when it exits: the next sweep takes its runs over.
pub async fn expire_leases(conn: &mut SqliteConnection, worker: WorkerKey) -> Result<(), StoreError> {
    sqlx::query!("UPDATE runs SET lease_expires_at = 0 WHERE lease_worker = ?1", worker).execute(conn).await?;
    Ok(())
}
