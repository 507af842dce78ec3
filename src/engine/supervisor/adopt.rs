//! Backends whose worker is gone: supervised from here on if they live, written off if they do not. Nothing is started here: a
//! turn that needs a backend has a new one made.

use std::sync::Arc;
use std::time::Duration;

use super::super::{EngineError, Shared};
use super::backend_task::wipe;
use crate::backend::BackendState;
use crate::lease::WorkerKey;
use crate::metrics::METRICS;
use crate::process::reap::{self, Liveness};
use crate::run::Attempt;
use crate::store::backend::{BackendRow, Move};

/// Time between SIGTERM and SIGKILL for a dead worker's backend.
const GRACE: Duration = Duration::from_millis(300);

/// Takes over the backends of lost workers. Returns their number.
pub(in crate::engine) async fn adopt(shared: &Arc<Shared>, lost: &[WorkerKey]) -> Result<u64, EngineError> {
    let worker = shared.worker(0).await?.key;
    let is_orphan = |row: &BackendRow| row.worker.is_none_or(|watcher| lost.contains(&watcher));
    let mut adopted = 0;
    for row in shared.store.live_backends().await?.into_iter().filter(is_orphan) {
        let lives = lives(shared, &row).await;
        let is_known = shared.drivers.get(&row.agent).is_some_and(|backend| backend.warm().is_some())
            && shared.config.workspaces.contains_key(&row.workspace);
        let tends = is_known && shared.executing.executes() && !shared.draining.is_cancelled();
        // A backend that lives, or may live, is left to a process that can supervise it. If none comes, its shim ends it.
        let is_done = match lives {
            true => tends && shared.store.watch_backend(row.key, row.worker, worker).await?,
            false => write_off(shared, &row).await?,
        };
        if is_done {
            adopted += 1;
            METRICS.backends_adopted.inc();
            tracing::warn!(backend.id = %row.id, agent = %row.agent, lives, "backend of a lost worker taken over");
        }
    }
    Ok(adopted)
}

async fn lives(shared: &Shared, row: &BackendRow) -> bool {
    let Some(host) = &row.host else { return false };
    match reap::is_alive(&host.process) {
        Liveness::Dead => false,
        Liveness::Alive => true,
        // On another boot or in another pid namespace the pid means nothing here, but the lock on the spool does.
        Liveness::Unknown => !shared.shims.is_gone(host.started_for(row.id.into())).await,
    }
}

/// Ends what is left of a backend, and stores that it is stopped. Until then no live worker supervises it, so that none
/// starts it meanwhile. False if it cannot be ended now, or another process was faster.
async fn write_off(shared: &Shared, row: &BackendRow) -> Result<bool, EngineError> {
    let attempt = Attempt { run: row.id.into(), number: row.generation };
    let process = row.host.as_ref().map(|host| host.process.clone());
    let ended = reap::end(reap::Mark::up_to(attempt), process, GRACE).await;
    METRICS.processes_ended.inc_by(u64::try_from(ended.ended).unwrap_or(u64::MAX));
    if !ended.is_certain {
        // The next sweep tries again.
        return Ok(false);
    }
    wipe(shared, attempt).await;
    let stopped = Move {
        worker: row.worker,
        from: row.state,
        generation: row.generation,
        to: BackendState::Stopped,
        to_generation: row.generation,
        reason: "its worker was lost, and its process has ended".to_owned(),
        class: None,
        restarts: row.restarts.clone(),
        not_before: None,
        is_healthy: false,
        unless_busy: false,
        unused_since: None,
    };
    Ok(shared.store.move_backend(row.key, stopped).await?)
}
