//! The watcher: notices what other processes committed to the file, by `PRAGMA data_version`, while anybody here cares.

use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use crate::metrics::METRICS;

/// Between two looks while somebody follows: about 30 µs each, and what a reader in another process waits on average is
/// half of it.
const WHILE_FOLLOWED: Duration = Duration::from_millis(5);
/// Between two looks while runs are executed or awaited here.
const WHILE_WORKING: Duration = Duration::from_millis(25);

pub(super) async fn run(shared: Arc<Shared>) {
    let mut version = None;
    loop {
        let pace = if shared.feed.is_followed() {
            Some(WHILE_FOLLOWED)
        } else {
            shared.worker.initialized().then_some(WHILE_WORKING)
        };
        let wait = async {
            match pace {
                Some(pace) => tokio::time::sleep(pace).await,
                None => shared.feed.wanted.notified().await,
            }
        };
        tokio::select! {
            () = wait => {}
            () = shared.feed.wanted.notified(), if pace == Some(WHILE_WORKING) => {}
            () = shared.closed.cancelled() => return,
        }
        if let Err(error) = look(&shared, &mut version).await {
            METRICS.watches_failed.inc();
            tracing::warn!(%error, "failed to look for changes in the database; trying again");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

async fn look(shared: &Shared, version: &mut Option<i64>) -> Result<(), crate::store::StoreError> {
    let newest = shared.store.data_version().await?;
    if *version == Some(newest) {
        return Ok(());
    }
    shared.feed.look(&shared.store).await?;
    *version = Some(newest);
    if let Some(worker) = shared.worker.get() {
        shared.executing.ready.notify_one();
        if shared.executing.is_busy() {
            super::worker::heed_cancel_requests(shared, worker.key).await;
            shared.executing.look_for_answers();
        }
    }
    Ok(())
}
