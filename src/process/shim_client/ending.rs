//! The end of a shim, and of what it held, when it cannot be asked for that any more.

use std::time::Duration;

use tokio::time::timeout;

use crate::process::reap;
use crate::process::shim::wire::Began;
use crate::process::temp_dir::remove_temp_dir;
use crate::run::Attempt;
use crate::worker::ProcessIdentity;

/// A process whose socket was closed because it ended is seen to be gone after a moment.
const DIES_WITHIN: Duration = Duration::from_secs(2);
/// Whether a shim is gone, or about to be.
pub(super) async fn is_dead(process: &ProcessIdentity) -> bool {
    let dead = async {
        // One that cannot be looked at just now (we are out of file descriptors) may live. One of another boot does not.
        while reap::is_here(process) && reap::is_alive(process) != reap::Liveness::Dead {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DIES_WITHIN, dead).await.is_ok()
}

/// Ends a shim and all that descends from it, then what it can no longer be asked for. Answers with how much could not be.
pub(super) async fn end_all(attempt: Attempt, host: ProcessIdentity, agent: Option<Began>, grace: Duration) -> usize {
    let mark = reap::Mark::from(attempt);
    let agent = agent.map(|began| ProcessIdentity {
        host: host.host.clone(),
        pid: began.pid,
        started_at_ticks: began.started_at_ticks,
    });
    let host = reap::end(mark, Some(host), grace).await;
    let rest = reap::end(mark, agent, Duration::ZERO).await;
    // What remained of the first is most likely found again by the second.
    let (ended, remaining) = (host.ended + rest.ended, host.remaining.max(rest.remaining));
    tracing::warn!(run.id = %attempt.run, ended, remaining, "the shim of an agent is lost; what it held was ended");
    // It fails only when the runtime goes down.
    let _ = tokio::task::spawn_blocking(move || remove_temp_dir(attempt)).await;
    remaining
}
