//! Writes of a run, retried until they succeed.

use std::time::Duration;

use tokio::time::Instant;

use super::{Abandoned, Drive};
use crate::metrics::METRICS;
use crate::store::StoreError;

/// Pause between attempts of a write that failed for a transient reason (a full disk, a lock).
const WRITE_AGAIN: Duration = Duration::from_millis(250);
/// How long writes are retried once the process is to end; its runs are then left to the next sweep.
const LAST_TRIES: Duration = Duration::from_secs(10);
/// How long a write is retried that SQLite has no memory for. If there is enough for other writes by then, it counts as too
/// large.
const MEMORY_TRIES: Duration = Duration::from_secs(60);

impl Drive<'_> {
    /// Retries a write until it succeeds or is refused for good. A lost lease ends the retries: the write is lost with it.
    pub(super) async fn retry_write<T, F>(&self, mut write: impl FnMut() -> F) -> Result<T, Abandoned>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let (mut last_try, mut short_since, mut tries) = (None, None, 0_u64);
        loop {
            match write().await {
                Ok(done) => return Ok(done),
                Err(error) if error.is_transient() => {
                    let is_short = matches!(error, StoreError::OutOfMemory);
                    short_since = short_since.filter(|_| is_short).or_else(|| is_short.then(Instant::now));
                    if short_since.is_some_and(|since| since.elapsed() >= MEMORY_TRIES)
                        && self.shared.store.check_writable().await.is_ok()
                    {
                        let refused = StoreError::Refused("there is no memory for a write of this size".to_owned());
                        return Err(Abandoned::Store(refused));
                    }
                    METRICS.writes_retried.inc();
                    tries += 1;
                    // A disk may stay full for days: each line comes after twice as many attempts as the one before.
                    if tries.is_power_of_two() {
                        tracing::warn!(%error, tries, "failed to write; trying again");
                    }
                    let give_up = async {
                        self.shared.ending.cancelled().await;
                        tokio::time::sleep_until(*last_try.get_or_insert_with(|| Instant::now() + LAST_TRIES)).await;
                    };
                    tokio::select! {
                        () = tokio::time::sleep(WRITE_AGAIN) => {}
                        () = self.signals.lost.cancelled() => return Err(Abandoned::LeaseLost),
                        () = self.shared.leaving.cancelled() => return Err(Abandoned::HandedOver),
                        () = give_up => return Err(Abandoned::Store(error)),
                    }
                }
                Err(error) => return Err(Abandoned::Store(error)),
            }
        }
    }
}
