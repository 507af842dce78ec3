//! Ends a shim that no longer responds, and everything that it held.

use std::time::Duration;

use tokio::time::timeout;

use crate::process::reap;
use crate::process::shim::wire::Began;
use crate::process::temp_dir::remove_temp_dir;
use crate::run::Attempt;
use crate::worker::ProcessIdentity;

/// How long a process may take to vanish after its socket was closed because it ended.
const DIES_WITHIN: Duration = Duration::from_secs(2);
/// Whether a shim is gone or about to be.
pub(super) async fn is_dead(process: &ProcessIdentity) -> bool {
    let dead = async {
        // A process that cannot be looked up just now (no file descriptors left) may be alive. One of another boot
        // is not.
        while reap::is_here(process) && reap::is_alive(process) != reap::Liveness::Dead {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DIES_WITHIN, dead).await.is_ok()
}

/// Ends a shim and its descendants, then the agent. Returns how many processes could not be ended.
pub(super) async fn end_all(attempt: Attempt, host: ProcessIdentity, agent: Option<Began>, grace: Duration) -> usize {
    let mark = reap::Mark::from(attempt);
    let agent = agent.map(|began| ProcessIdentity {
        host: host.host.clone(),
        pid: began.pid,
        started_at_ticks: began.started_at_ticks,
    });
    let host = reap::end(mark, Some(host), grace).await;
    let rest = reap::end(mark, agent, Duration::ZERO).await;
    // Processes that survive the first pass are most likely found again by the second.
    let (ended, remaining) = (host.ended + rest.ended, host.remaining.max(rest.remaining));
    tracing::warn!(run.id = %attempt.run, ended, remaining, "the shim of an agent is lost; what it held was ended");
    // Fails only when the runtime shuts down.
    let _ = tokio::task::spawn_blocking(move || remove_temp_dir(attempt)).await;
    remaining
}
