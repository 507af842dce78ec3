//! What the holder of a lease does with a run besides speaking: say who holds the agent, let go, put back.

use crate::lease::Lease;
use crate::store::writer::Notice;
use crate::store::{Store, StoreError};
use crate::worker::AgentHost;

impl Store {
    /// Stores which process holds the agent of a run, before anything of the agent runs.
    ///
    /// # Errors
    /// Outside: why it was not stored. Inside: false when the lease is lost.
    pub async fn record_host(&self, lease: Lease, host: AgentHost) -> Result<bool, StoreError> {
        self.write(move |tx| {
            let host = host.clone();
            Box::pin(async move {
                let done = sqlx::query!(
                    "UPDATE runs SET pid = ?3, pid_started_at = ?4, process_host = ?5, host_attempt = ?6, host_secret = ?7
                     WHERE key = ?1 AND lease_token = ?2 AND status = 'running'",
                    lease.run,
                    lease.token,
                    host.process.pid,
                    host.process.started_at_ticks,
                    host.process.host,
                    host.attempt,
                    host.secret
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

    /// Puts a run that has said nothing back to the head of its session's queue.
    ///
    /// # Errors
    /// Outside: why nothing was stored. Inside: false when the lease is lost, or when it has spoken or is to be cancelled.
    pub async fn put_back(&self, lease: Lease) -> Result<bool, StoreError> {
        self.write(move |tx| {
            Box::pin(async move {
                let done = sqlx::query!(
                    "UPDATE runs SET status = 'queued', ready = 1, lease_worker = NULL, lease_expires_at = NULL,
                         slot_key = NULL, pid = NULL, pid_started_at = NULL, process_host = NULL, host_attempt = NULL,
                         host_secret = NULL, source_offset = 0
                     WHERE key = ?1 AND lease_token = ?2 AND status = 'running' AND said = 0
                       AND cancel_requested_at IS NULL",
                    lease.run,
                    lease.token
                );
                let done = done.execute(&mut *tx.conn).await?.rows_affected() == 1;
                tx.notices.push(Notice::Ready);
                Ok(done)
            })
        })
        .await
    }
}
