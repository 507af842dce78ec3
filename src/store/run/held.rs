//! Leases as seen by other workers, and which of them may be taken over.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::lease::{HeldLease, Lease, WorkerKey};
use crate::store::{Store, StoreError};

/// What a sweep may take over.
#[derive(Debug, Clone, Default)]
pub struct Lost {
    /// Workers that are proven dead: all their runs are lost.
    pub workers: Vec<WorkerKey>,
    /// Leases that ran out. A lease that was renewed in the meantime is not lost.
    pub leases: Vec<HeldLease>,
}

impl Store {
    /// The leases of all running runs. A worker that polls them sees which are no longer renewed.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn held_leases(&self) -> Result<Vec<HeldLease>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT r.key, r.lease_token, r.lease_expires_at AS "expires_at!", w.lease_ms
               FROM runs r INDEXED BY runs_leased JOIN workers w ON w.key = r.lease_worker"#
        );
        let held = rows.fetch_all(&self.readers).await?.into_iter().map(|row| HeldLease {
            lease: Lease { run: row.key, token: row.lease_token },
            expires_at: Timestamp::from_millis(row.expires_at),
            length: Duration::from_millis(row.lease_ms.unsigned_abs()),
        });
        Ok(held.collect())
    }
}
