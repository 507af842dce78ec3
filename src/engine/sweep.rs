//! The sweep: once at start and then at every interval, what no running worker will do. Runs of dead or silent workers are
//! settled, or put back when they have said nothing; idle places expire; old rows and dead workers go.
//!
//! Always: each effect is bounded, counted and logged, and two processes may sweep at once. A run is taken over (fenced)
//! first, then what its agent left running is ended and confirmed gone, and only then it is settled: a new attempt never
//! starts while the old agent may live.
//!
//! Proof: `tests/it/sweep.rs`.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::turn::Turn;
use super::worker::Subject;
use super::{EngineError, Shared};
use crate::backend::{process, reap};
use crate::chunk::Chunk;
use crate::lease::{Lease, LeaseLost, WorkerKey};
use crate::run::{Cause, Outcome};
use crate::store::StoreError;
use crate::store::run::Orphan;

/// Most runs that one sweep takes over, and most rows that it expires or purges: a sweep is short, and what is left
/// comes with the next.
const ORPHANS_AT_ONCE: i64 = 256;
const ROWS_AT_ONCE: i64 = 1000;
/// What a dead worker's agent gets between SIGTERM and SIGKILL: nobody listens to it any more.
const ORPHAN_GRACE: Duration = Duration::from_millis(300);
/// A run that takes its worker down each time before it says anything is not tried for ever.
const MAX_ATTEMPTS: i64 = 5;
/// A worker that nobody can prove dead (another host) is forgotten after so many silent leases.
const SILENT_LEASES: u32 = 10;

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SweepReport {
    /// Runs of lost workers that were settled.
    pub runs_settled: u64,
    /// Runs of lost workers that had said nothing and went back to the queue.
    pub runs_put_back: u64,
    /// Processes of lost workers' agents that were ended.
    pub processes_ended: u64,
    /// Idle places that expired.
    pub assignments_expired: u64,
    /// Rows of ended places that were deleted.
    pub assignments_purged: u64,
    /// Dead workers that were removed.
    pub workers_removed: u64,
}

pub(super) async fn run(shared: Arc<Shared>) {
    let mut interval = tokio::time::interval(shared.config.engine.sweep_interval);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = shared.draining.cancelled() => return,
        }
        if let Err(error) = sweep(&shared).await {
            tracing::warn!(%error, "sweep failed; the next one tries again");
        }
    }
}

/// One pass.
pub(super) async fn sweep(shared: &Arc<Shared>) -> Result<SweepReport, EngineError> {
    let worker = shared.worker(0).await?.key;
    let mut report = SweepReport::default();
    let (dead, silent) = lost_workers(shared, worker).await?;
    let own = shared.executing.keys();
    let (lease_end, limit) = (shared.lease_end(), ORPHANS_AT_ONCE);
    let orphans = shared.store.take_over(worker, dead.clone(), own, lease_end, limit).await?;
    let recoveries = orphans.into_iter().map(|orphan| recover(shared, orphan));
    for recovered in futures_util::future::join_all(recoveries).await {
        match recovered {
            Ok(recovered) => {
                report.processes_ended += recovered.processes_ended;
                match recovered.put_back {
                    true => report.runs_put_back += 1,
                    false => report.runs_settled += 1,
                }
            }
            Err(error) => tracing::warn!(%error, "failed to recover a run; the next sweep tries again"),
        }
    }
    let store = &shared.store;
    report.assignments_expired = store.expire_idle(ROWS_AT_ONCE).await?;
    let before = store.clock().now() - shared.config.engine.assignment_retention;
    report.assignments_purged = store.purge_assignments(before, ROWS_AT_ONCE).await?;
    report.workers_removed = store.remove_workers(dead.into_iter().chain(silent).collect()).await?;
    if report != SweepReport::default() {
        tracing::info!(
            runs_settled = report.runs_settled,
            runs_put_back = report.runs_put_back,
            processes_ended = report.processes_ended,
            assignments_expired = report.assignments_expired,
            assignments_purged = report.assignments_purged,
            workers_removed = report.workers_removed,
            "sweep done"
        );
    }
    Ok(report)
}

/// Workers that are proven dead, and those that fell silent long ago where nothing can be proven.
async fn lost_workers(shared: &Shared, own: WorkerKey) -> Result<(Vec<WorkerKey>, Vec<WorkerKey>), EngineError> {
    let silent_since = shared.store.clock().now() - shared.config.engine.lease * SILENT_LEASES;
    let (mut dead, mut silent) = (Vec::new(), Vec::new());
    for worker in shared.store.registered_workers().await? {
        if worker.key == own {
            continue;
        }
        match reap::is_alive(&worker.process) {
            reap::Liveness::Dead => dead.push(worker.key),
            reap::Liveness::Unknown if worker.heartbeat_at < silent_since => silent.push(worker.key),
            reap::Liveness::Unknown | reap::Liveness::Alive => {}
        }
    }
    Ok((dead, silent))
}

struct Recovered {
    put_back: bool,
    processes_ended: u64,
}

async fn recover(shared: &Shared, orphan: Orphan) -> Result<Recovered, StoreError> {
    let ended = reap::end(orphan.run, orphan.process.clone(), ORPHAN_GRACE).await;
    process::remove_temp_dir(orphan.run);
    let processes_ended = u64::try_from(ended.ended).unwrap_or(u64::MAX);
    let (run, session) = (orphan.run, &orphan.session_id);
    let (worker, proven) = (&orphan.worker, orphan.worker_dead);
    let may_run_again = !orphan.said && !orphan.cancel_requested && orphan.attempts < MAX_ATTEMPTS;
    if may_run_again && shared.store.put_back(orphan.lease).await? {
        tracing::warn!(run.id = %run, session.id = %session, worker.id = worker, proven, processes_ended,
            "run of a lost worker put back to the queue");
        return Ok(Recovered { put_back: true, processes_ended });
    }
    let outcome = if orphan.cancel_requested {
        Outcome::cancelled()
    } else {
        Outcome::because(Cause::WorkerLost, "the run was interrupted: the process that executed it was lost")
    };
    let subject = Subject { run: orphan.run, session: orphan.session };
    let settled = settle_from_log(shared, orphan.lease, &subject, outcome).await?;
    tracing::warn!(run.id = %run, session.id = %session, worker.id = worker, proven, processes_ended,
        status = settled.map_or("unknown", |outcome| outcome.status().as_str()), "run of a lost worker settled");
    Ok(Recovered { put_back: false, processes_ended })
}

/// Settles a run whose turn nobody holds in memory: its state is read back from its events.
pub(super) async fn settle_from_log(
    shared: &Shared,
    lease: Lease,
    subject: &Subject,
    outcome: Outcome,
) -> Result<Result<Outcome, LeaseLost>, StoreError> {
    let events = shared.store.run_chunks(lease.run).await?;
    let chunks = events.iter().filter_map(|event| serde_json::from_str::<Chunk>(event).ok());
    let replayed = Turn::replay(chunks);
    let close = |outcome: &Outcome| {
        let mut turn = replayed.clone();
        let events = turn.close(outcome).iter().map(Chunk::to_json).collect();
        let parts = (!turn.fold().is_empty()).then(|| turn.fold().parts_json());
        subject.settle(lease, events, outcome.clone(), parts)
    };
    if shared.store.settle(close(&outcome)).await?.is_ok() {
        return Ok(Ok(outcome));
    }
    // Refused: the lease is lost, or a cancel was stored in the meantime, which decides the outcome.
    let cancelled = Outcome::cancelled();
    Ok(shared.store.settle(close(&cancelled)).await?.map(|_| cancelled))
}
