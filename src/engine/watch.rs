//! The watcher: notices what other processes committed to the file, by `PRAGMA data_version`, while this process needs to
//! know.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::health::ROUND_LIMIT;
use crate::metrics::METRICS;

/// Poll interval while a reader follows: a poll takes about 30 µs, and a reader waits for a commit of another process for half
/// the interval on average.
const WHILE_FOLLOWED: Duration = Duration::from_millis(5);
/// Poll interval while runs are executed or awaited here.
const WHILE_WORKING: Duration = Duration::from_millis(25);

/// How often to check that the file is still at its path: a `stat`.
const PRESENCE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The result of the last check.
struct Presence {
    checked_at: Instant,
    is_there: bool,
}

impl Presence {
    /// Logs once that the file is gone, or that it is back: without a write that fails, nothing else would report it.
    fn check(&mut self, shared: &Shared) {
        if self.checked_at.elapsed() < PRESENCE_CHECK_INTERVAL {
            return;
        }
        self.checked_at = Instant::now();
        match (shared.store.check_place(), self.is_there) {
            (Err(error), true) => {
                tracing::error!(%error, "the database file is gone: nothing is taken until it is back")
            }
            (Ok(()), false) => tracing::info!("the database file is back"),
            (Err(_), false) | (Ok(()), true) => return,
        }
        self.is_there = !self.is_there;
    }
}

pub(super) async fn run(shared: Arc<Shared>) {
    let mut version = None;
    let mut presence = Presence { checked_at: Instant::now(), is_there: true };
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
        let _round = shared.health.begin_round("watcher", ROUND_LIMIT);
        presence.check(&shared);
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
            super::executing::heed_cancel_requests(shared, worker.key).await;
            shared.executing.look_for_answers();
        }
    }
    Ok(())
}
