//! Closing a session with a long queue: its runs are cancelled in batches, so that other writes get in between.
//!
//! Always: what is to be done is in the database, so that it continues after a crash, whichever process closed the session.
//! Proof: `tests/it/cancel.rs`.

use std::sync::Arc;
use std::time::Duration;

use super::health::ROUND_LIMIT;
use super::{Engine, EngineError, Shared};

/// Poll interval for what other processes do: they may close a session, or end the running run of one.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Cancels the remaining runs of closed sessions until the engine closes.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        let round = shared.health.begin_round("closing", ROUND_LIMIT);
        let more = match shared.store.go_on_closing().await {
            Ok(more) => more,
            Err(error) => {
                tracing::warn!(%error, "failed to go on with cancelling the runs of a closed session; trying again");
                false
            }
        };
        drop(round);
        if more && !shared.closed.is_cancelled() {
            continue;
        }
        tokio::select! {
            () = shared.executing.closing.notified() => {}
            () = tokio::time::sleep(POLL_INTERVAL) => {}
            () = shared.closed.cancelled() => return,
        }
    }
}

impl Engine {
    /// Cancels what closed sessions still have in their queues: for a program without a daemon.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn finish_closing(&self) -> Result<(), EngineError> {
        while self.shared.store.go_on_closing().await? {}
        Ok(())
    }
}
