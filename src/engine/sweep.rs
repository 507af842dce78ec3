//! The sweep recovers what no running worker will do: at start, at every interval, and as soon as the failure detector reports
//! a loss. Runs of dead or silent workers are adopted if their agent lives; otherwise they are settled, or put back into the
//! queue if they have said nothing. Idle assignments expire; old rows, dead workers and the leftovers of ended agents are
//! removed.
//!
//! Always: each effect is bounded, counted and logged, and two processes may sweep at once. A run is taken over (fenced)
//! first. If it is not adopted, what its agent left running is ended and confirmed gone, and only then is the run settled: a
//! new attempt never starts while the old agent may live.
//!
//! Proof: `tests/it/sweep.rs`, `tests/it/adopt/`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use serde::Serialize;

use super::drive::Driven;
use super::failure_detector::{self, Observation};
use super::health::SWEEP_LIMIT;
use super::leased_run::LeasedRun;
use super::unstorable::{MAX_FAILED_ADOPTIONS, settle_from_log};
use super::{EngineError, Shared, drive, supervisor};
use crate::lease::WorkerKey;
use crate::metrics::METRICS;
use crate::process::reap;
use crate::process::temp_dir::remove_temp_dir;
use crate::run::{Attempt, Cause, Outcome};
use crate::store::run::Orphan;
use crate::store::{StoreError, backup_note};

/// Most runs that one sweep takes over, and most rows that it expires or purges: a sweep is short, and the next one takes the
/// rest.
const ORPHANS_AT_ONCE: i64 = 256;
const ROWS_AT_ONCE: i64 = 1000;
/// Most directories of agents that one sweep examines.
const HOMES_AT_ONCE: usize = 4096;
/// Time between SIGTERM and SIGKILL for a dead worker's agent: no engine reads its output any more.
const ORPHAN_GRACE: Duration = Duration::from_millis(300);
/// Concurrent recoveries: each reads all of `/proc`, and perhaps a whole run.
const RECOVERIES_AT_ONCE: usize = 16;
/// Most attempts at a run: one that takes its worker down each time, before it says anything, is not retried for ever.
const MAX_ATTEMPTS: i64 = 3;
/// After this many recoveries a run is settled even if something of its agent cannot be ended.
const MAX_RECOVERIES: i64 = 10;

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SweepReport {
    /// Runs of lost workers that this process adopted.
    pub runs_adopted: u64,
    /// Runs of lost workers whose agents run on until a daemon adopts them.
    pub runs_left: u64,
    /// Runs of lost workers that were settled.
    pub runs_settled: u64,
    /// Runs of lost workers that had said nothing and went back to the queue.
    pub runs_put_back: u64,
    /// Runs of lost workers that are left to the next sweep: their agent may still live.
    pub runs_postponed: u64,
    /// Processes that were ended: of lost workers' agents, and of runs that are not running.
    pub processes_ended: u64,
    /// Directories of ended agents that were removed.
    pub homes_removed: u64,
    /// Unfinished copies of backups that were killed.
    pub copies_removed: u64,
    /// Backends of lost workers that this process supervises from now on, or that have ended.
    pub backends_taken_over: u64,
    /// Idle assignments that expired.
    pub assignments_expired: u64,
    /// Ended assignments whose rows were deleted.
    pub assignments_purged: u64,
    /// Dead workers that were removed.
    pub workers_removed: u64,
}

pub(super) async fn run(shared: Arc<Shared>) {
    let mut interval = tokio::time::interval(shared.config.engine.sweep_interval);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looks = tokio::time::interval(failure_detector::interval(&shared.config.engine));
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut before = Observation::default();
    loop {
        let is_due = tokio::select! {
            _ = interval.tick() => true,
            _ = looks.tick() => false,
            () = shared.draining.cancelled() => return,
        };
        let _round = shared.health.begin_round("sweep", SWEEP_LIMIT);
        match look_and_sweep(&shared, &before, is_due).await {
            Ok(seen) => before = seen,
            Err(error) => {
                METRICS.sweeps_failed.inc();
                tracing::warn!(%error, "sweep failed; the next one tries again");
            }
        }
    }
}

/// Only what is newly lost is swept at once. What a sweep could not recover waits for the next interval.
async fn look_and_sweep(shared: &Arc<Shared>, before: &Observation, is_due: bool) -> Result<Observation, EngineError> {
    let seen = failure_detector::look(shared).await?;
    if is_due || seen.has_news_since(before) {
        sweep_away(shared, &seen).await?;
    }
    Ok(seen)
}

/// One pass.
pub(super) async fn sweep(shared: &Arc<Shared>) -> Result<SweepReport, EngineError> {
    let seen = failure_detector::look(shared).await?;
    sweep_away(shared, &seen).await
}

async fn sweep_away(shared: &Arc<Shared>, seen: &Observation) -> Result<SweepReport, EngineError> {
    let worker = shared.worker(0).await?.key;
    let mut report = SweepReport::default();
    let (own, lease) = (shared.executing.keys(), shared.config.engine.lease);
    // First, so that a turn need not be ended in a backend that is known to be dead.
    match supervisor::adopt(shared, &seen.lost.workers).await {
        Ok(count) => report.backends_taken_over = count,
        Err(error) => tracing::warn!(%error, "failed to look after the backends of lost workers"),
    }
    let good_until = Instant::now() + lease;
    let orphans = shared.store.take_over(worker, seen.lost.clone(), own, lease, ORPHANS_AT_ONCE).await?;
    let recoveries = stream::iter(orphans).map(|orphan| recover(shared, worker, orphan, good_until));
    let mut recoveries = recoveries.buffer_unordered(RECOVERIES_AT_ONCE);
    while let Some(recovered) = recoveries.next().await {
        report.processes_ended += recovered.processes_ended;
        let (counter, count) = match recovered.end {
            RecoveryEnd::Adopted => (&METRICS.lost_runs_adopted, &mut report.runs_adopted),
            RecoveryEnd::Left => (&METRICS.lost_runs_left, &mut report.runs_left),
            RecoveryEnd::PutBack => (&METRICS.lost_runs_put_back, &mut report.runs_put_back),
            RecoveryEnd::Settled => (&METRICS.lost_runs_settled, &mut report.runs_settled),
            RecoveryEnd::Postponed => (&METRICS.lost_runs_postponed, &mut report.runs_postponed),
        };
        counter.inc();
        *count += 1;
    }
    if report.runs_adopted > 0 {
        // A cancel that was stored between the take-over and this line could not be signalled: the run was not registered here
        // yet.
        super::executing::heed_cancel_requests(shared, worker).await;
    }
    let tidied = tidy_homes(shared, &mut report).await;
    // Counted before the error is returned: these processes have ended in any case.
    METRICS.processes_ended.inc_by(report.processes_ended);
    tidied?;
    report.copies_removed = remove_unfinished_copies(shared).await;
    let store = &shared.store;
    report.assignments_expired = store.expire_idle(ROWS_AT_ONCE).await?;
    METRICS.assignments_expired.inc_by(report.assignments_expired);
    let before = store.clock().now() - shared.config.engine.assignment_retention;
    report.assignments_purged = store.purge_assignments(before, ROWS_AT_ONCE).await?;
    report.workers_removed = store.remove_workers([&seen.lost.workers[..], &seen.silent].concat()).await?;
    METRICS.workers_removed.inc_by(report.workers_removed);
    METRICS.sweeps.inc();
    if report != SweepReport::default() {
        tracing::info!(
            runs_adopted = report.runs_adopted,
            runs_left = report.runs_left,
            runs_settled = report.runs_settled,
            runs_put_back = report.runs_put_back,
            runs_postponed = report.runs_postponed,
            processes_ended = report.processes_ended,
            homes_removed = report.homes_removed,
            copies_removed = report.copies_removed,
            backends_taken_over = report.backends_taken_over,
            assignments_expired = report.assignments_expired,
            assignments_purged = report.assignments_purged,
            workers_removed = report.workers_removed,
            "sweep done"
        );
    }
    Ok(report)
}

struct Recovered {
    end: RecoveryEnd,
    processes_ended: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RecoveryEnd {
    Adopted,
    Left,
    PutBack,
    Settled,
    Postponed,
}

async fn recover(shared: &Arc<Shared>, worker: WorkerKey, orphan: Orphan, good_until: Instant) -> Recovered {
    let can_go_on = shared.config.agents.contains_key(&orphan.agent);
    let adopts = shared.executing.adopts(orphan.session) && !shared.draining.is_cancelled();
    let is_here = orphan.host.as_ref().is_some_and(|host| reap::is_here(&host.process));
    let mut liveness = orphan.host.as_ref().map(|host| reap::is_alive(&host.process));
    // On another boot or in another pid namespace the pid means nothing here, but the lock on the spool does.
    if let Some(host) = orphan.host.as_ref().filter(|_| !is_here)
        && shared.shims.is_gone(host.started_for(orphan.run)).await
    {
        liveness = Some(reap::Liveness::Dead);
    }
    let recovered = match liveness {
        _ if orphan.failures >= MAX_FAILED_ADOPTIONS => end_and_conclude(shared, &orphan).await,
        Some(reap::Liveness::Alive) if can_go_on && adopts => {
            shared.executing.adopt(orphan.clone(), good_until);
            Recovered { end: RecoveryEnd::Adopted, processes_ended: 0 }
        }
        // Left to a process that knows the agent and executes runs. Until one comes, the shim ends the agent at the limit of
        // its turn.
        Some(reap::Liveness::Alive) if !orphan.cancel_requested => {
            give_back(shared, &orphan).await;
            Recovered { end: RecoveryEnd::Left, processes_ended: 0 }
        }
        // The spool holds all that the agent said, and perhaps how it ended; or the run is to be cancelled.
        Some(reap::Liveness::Dead | reap::Liveness::Alive) if can_go_on => {
            let signals = shared.executing.add(orphan.lease, good_until);
            if orphan.cancel_requested {
                signals.cancel.cancel();
            }
            let driven = drive::adopt(shared.clone(), worker, orphan.clone(), signals).await;
            shared.executing.remove(orphan.lease);
            let end = match driven {
                Driven::Settled => RecoveryEnd::Settled,
                Driven::PutBack => RecoveryEnd::PutBack,
                // Not given back: another worker would fail at once in the same way.
                Driven::Left => RecoveryEnd::Postponed,
            };
            Recovered { end, processes_ended: 0 }
        }
        // Its liveness cannot be checked just now: most likely this process is out of file descriptors.
        Some(reap::Liveness::Unknown) if is_here => {
            give_back(shared, &orphan).await;
            Recovered { end: RecoveryEnd::Postponed, processes_ended: 0 }
        }
        Some(_) | None => end_and_conclude(shared, &orphan).await,
    };
    let (worker, proven) = (&orphan.worker, orphan.worker_dead);
    tracing::warn!(run.id = %orphan.run, session.id = %orphan.session_id, worker.id = worker, proven,
        processes_ended = recovered.processes_ended, end = ?recovered.end, "run of a lost worker recovered");
    recovered
}

/// Ends a run that this process cannot adopt: without a shim, on another machine, of an agent that has ended or is to end and
/// is not configured here, or whose adoption failed too often.
async fn end_and_conclude(shared: &Shared, orphan: &Orphan) -> Recovered {
    let attempt = orphan.attempt();
    let process = orphan.host.as_ref().map(|host| host.process.clone());
    let ended = reap::end(reap::Mark::before(attempt), process, ORPHAN_GRACE).await;
    let earlier = attempt.origin() + 1..attempt.number;
    let temp_dirs = move || earlier.map(|number| Attempt { number, ..attempt }).for_each(remove_temp_dir);
    // It fails only when the runtime goes down.
    let _ = tokio::task::spawn_blocking(temp_dirs).await;
    let processes_ended = u64::try_from(ended.ended).unwrap_or(u64::MAX);
    let end = match conclude(shared, orphan, ended.is_certain).await {
        Ok(end) => end,
        Err(error) => {
            tracing::warn!(run.id = %orphan.run, session.id = %orphan.session_id, %error,
                "failed to recover a run; the next sweep tries again");
            RecoveryEnd::Postponed
        }
    };
    if end == RecoveryEnd::Postponed {
        give_back(shared, orphan).await;
    }
    Recovered { end, processes_ended }
}

/// Makes the lease of an orphan expire at once, so that the next sweep, here or elsewhere, takes the run over.
async fn give_back(shared: &Shared, orphan: &Orphan) {
    if let Err(error) = shared.store.let_expire(orphan.lease).await {
        let (run, session) = (orphan.run, &orphan.session_id);
        tracing::warn!(run.id = %run, session.id = %session, %error, "failed to give a lease back; it has to run out");
    }
}

/// Ends the shims of runs that are not running (another process settled them) and of stopped backends, and removes what ended
/// agents left.
async fn tidy_homes(shared: &Shared, report: &mut SweepReport) -> Result<(), EngineError> {
    let shims = shared.shims.clone();
    let attempts = match tokio::task::spawn_blocking(move || shims.attempts(HOMES_AT_ONCE)).await {
        Ok(Ok(attempts)) => attempts,
        Ok(Err(error)) => {
            tracing::warn!(%error, path = %shared.store.agents_dir().display(), "directory of agents unreadable");
            Vec::new()
        }
        // The task fails only when the runtime goes down.
        Err(_) => Vec::new(),
    };
    // Queried after the directory was listed: a run that was claimed in between is running by now.
    let running = shared.store.running_among(attempts.iter().map(|attempt| attempt.run).collect()).await?;
    for attempt in attempts.into_iter().filter(|attempt| !running.contains(&attempt.run)) {
        let found = match shared.shims.find(attempt).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(run.id = %attempt.run, %error, "failed to look for the agent of a run; the next sweep tries again");
                continue;
            }
        };
        if let Some(process) = found {
            let ended = reap::end(attempt.into(), Some(process), ORPHAN_GRACE).await;
            tracing::warn!(run.id = %attempt.run, processes_ended = ended.ended, "ended the agent of a run that is not running");
            report.processes_ended += u64::try_from(ended.ended).unwrap_or(u64::MAX);
        }
        // The shim may have been killed before it could remove the directory.
        let _ = tokio::task::spawn_blocking(move || remove_temp_dir(attempt)).await;
        report.homes_removed += u64::from(shared.shims.forget(attempt).await);
    }
    Ok(())
}

/// Removes the unfinished copies of backups that were killed, as far as they are visible from here.
async fn remove_unfinished_copies(shared: &Shared) -> u64 {
    let agents_dir = shared.store.agents_dir().to_owned();
    let removed = tokio::task::spawn_blocking(move || {
        let removed = backup_note::unfinished(&agents_dir).into_iter().filter(|unfinished| {
            let removed = unfinished.remove();
            if let (Err(error), Some(copy)) = (&removed, &unfinished.copy) {
                tracing::warn!(%error, path = %copy.display(), "failed to remove the unfinished copy of a backup");
            }
            removed.unwrap_or_default()
        });
        u64::try_from(removed.count()).unwrap_or(u64::MAX)
    });
    // It fails only when the runtime goes down.
    removed.await.unwrap_or_default()
}

/// Settles or puts back a run whose worker is lost. `is_certain`: nothing of its agent is left.
async fn conclude(shared: &Shared, orphan: &Orphan, is_certain: bool) -> Result<RecoveryEnd, StoreError> {
    let here = orphan.host.as_ref().is_none_or(|host| reap::is_here(&host.process));
    if here && !is_certain && orphan.recoveries < MAX_RECOVERIES {
        return Ok(RecoveryEnd::Postponed);
    }
    // On another machine nothing can be ended and nothing confirmed: the run ends, and is not retried.
    let takes_workers_down = orphan.failures >= MAX_FAILED_ADOPTIONS;
    let may_run_again = !takes_workers_down
        && here
        && is_certain
        && !orphan.said
        && !orphan.cancel_requested
        && orphan.attempts < MAX_ATTEMPTS;
    if may_run_again && shared.store.put_back(orphan.lease).await? {
        return Ok(RecoveryEnd::PutBack);
    }
    let outcome = if orphan.cancel_requested {
        Outcome::cancelled()
    } else if takes_workers_down {
        let failures = orphan.failures;
        let sentence = format!(
            "{failures} processes in a row were lost, or failed, when they went on with the run: what its agent said since is \
             not read any more, and the run ends with what was stored before."
        );
        Outcome::because(Cause::Unstorable, sentence)
    } else {
        Outcome::because(Cause::WorkerLost, "the run was interrupted: the process that executed it was lost")
    };
    let leased = LeasedRun::from(orphan);
    if takes_workers_down {
        tracing::error!(run.id = %orphan.run, failures = orphan.failures, "a run takes its workers down; it is settled");
    }
    // Refused if yet another sweep has taken the run over: then that one settles it.
    let settled = settle_from_log(shared, &leased, outcome).await?;
    Ok(if settled.is_ok() { RecoveryEnd::Settled } else { RecoveryEnd::Postponed })
}
