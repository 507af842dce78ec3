//! The worker: claims ready runs while it has room, drives each in a task of its own, and renews all their leases together. A
//! wake-up only shortens the wait; the worker also polls.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::task::JoinSet;

use super::executing::{Signals, heed_cancel_requests};
use super::health::ClaimResult;
use super::leased_run::LeasedRun;
use super::{EngineError, Shared, drive};
use crate::id::WorkerId;
use crate::lease::WorkerKey;
use crate::metrics::METRICS;
use crate::process::reap;
use crate::run::{Cause, Outcome};
use crate::store::StoreError;
use crate::store::run::{ClaimRequest, Claimed, SessionScope};
use crate::store::worker::Registration;

/// Poll interval for ready runs.
const CLAIM_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How this process is known in the table of workers.
#[derive(Debug)]
pub(super) struct Identity {
    pub key: WorkerKey,
    /// What the row says.
    registration: Registration,
}

impl Identity {
    /// Runs that this process executes at once.
    pub fn capacity(&self) -> u32 {
        self.registration.capacity
    }
}

impl Shared {
    /// The row of this process in the table of workers; registered when it is first needed.
    pub(super) async fn worker(&self, capacity: u32) -> Result<&Identity, EngineError> {
        let identity = self
            .worker
            .get_or_try_init(|| async {
                let registration = Registration {
                    id: WorkerId::generate(),
                    process: reap::own_identity().map_err(EngineError::Identity)?,
                    hostname: hostname(),
                    capacity,
                    lease: self.config.engine.lease,
                };
                let id = registration.id;
                let key = self.store.register_worker(registration.clone()).await?;
                tracing::debug!(worker.id = %id, capacity, "worker registered");
                Ok::<_, EngineError>(Identity { key, registration })
            })
            .await?;
        // Only now: the watcher, once woken, checks whether there is a worker.
        self.feed.wanted.notify_one();
        Ok(identity)
    }
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".into(), |name| name.trim().to_owned())
}

/// Claims and drives runs until the engine drains, and renews leases until the last of them is settled.
pub(super) async fn run(shared: Arc<Shared>, capacity: u32, only: Option<SessionScope>) {
    let Some(identity) = shared.worker.get() else { return };
    let worker = identity.key;
    let mut runs = JoinSet::new();
    let mut driven = HashMap::new();
    let mut renewal = tokio::time::interval(shared.config.engine.lease / 3);
    renewal.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        shared.executing.round.notify_waiters();
        while let Some(ended) = runs.try_join_next_with_id() {
            tidy_up(&shared, &mut driven, ended).await;
        }
        // Even beyond the capacity: their agents run already.
        for (orphan, signals) in shared.executing.take_adopted() {
            let leased = LeasedRun::from(&orphan);
            let adopted = drive::adopt(shared.clone(), worker, orphan, signals);
            // `drive::adopt` logs the outcome.
            driven.insert(runs.spawn(adopted.map(drop)).id(), leased);
        }
        let room = usize::try_from(capacity).unwrap_or(usize::MAX).saturating_sub(runs.len());
        let mut looked = false;
        if room == 0 {
            // Nothing is claimed while there is no room, so the previous result means nothing any more.
            shared.health.claimed(Ok(ClaimResult::Idle));
        }
        if room > 0 && !shared.draining.is_cancelled() {
            match claim(&shared, worker, room, only).await {
                Ok((claimed, result)) => {
                    looked = claimed.is_empty();
                    shared.health.claimed(Ok(result));
                    for (claimed, signals) in claimed {
                        let leased = LeasedRun::from(&claimed);
                        driven.insert(runs.spawn(drive::drive(shared.clone(), worker, claimed, signals)).id(), leased);
                    }
                }
                Err(error) => {
                    METRICS.claims_failed.inc();
                    shared.health.claimed(Err(error.to_string()));
                    tracing::warn!(%error, "failed to claim runs; trying again");
                    looked = true;
                }
            }
        }
        if !looked && room > 0 && !shared.draining.is_cancelled() {
            // There may be more ready runs than one claim takes.
            continue;
        }
        tokio::select! {
            () = shared.executing.ready.notified() => {}
            () = tokio::time::sleep(CLAIM_POLL_INTERVAL) => {}
            () = shared.draining.cancelled(), if !shared.draining.is_cancelled() => {}
            () = shared.closed.cancelled() => break,
            _ = renewal.tick() => renew(&shared, identity).await,
            Some(ended) = runs.join_next_with_id() => tidy_up(&shared, &mut driven, ended).await,
        }
    }
}

type Ended = Result<(tokio::task::Id, ()), tokio::task::JoinError>;

/// A task that panicked leaves an unsettled run behind, which is settled here.
async fn tidy_up(shared: &Shared, driven: &mut HashMap<tokio::task::Id, LeasedRun>, ended: Ended) {
    let (id, failure) = match ended {
        Ok((id, ())) => (id, None),
        Err(error) => (error.id(), Some(error)),
    };
    let Some(leased) = driven.remove(&id) else { return };
    let lease = leased.lease;
    if let Some(error) = failure {
        let (run, session) = (leased.run, &leased.session_id);
        METRICS.tasks_failed.inc();
        tracing::error!(run.id = %run, session.id = %session, %error, "the task of a run ended abnormally");
        reap::end(reap::Mark::up_to(leased.attempt()), None, Duration::ZERO).await;
        let outcome = Outcome::because(Cause::Internal, "an internal error ended the run; the log has details");
        if let Err(error) = super::unstorable::settle_from_log(shared, &leased, outcome).await {
            METRICS.runs_left.inc();
            tracing::error!(run.id = %run, session.id = %session, %error, "failed to settle the run; the sweep will");
        }
    }
    shared.executing.remove(lease);
}

async fn claim(
    shared: &Shared,
    worker: WorkerKey,
    room: usize,
    only: Option<SessionScope>,
) -> Result<(Vec<(Claimed, Signals)>, ClaimResult), StoreError> {
    let _claiming = shared.claiming.lock().await;
    let request = ClaimRequest {
        worker,
        limit: i64::try_from(room).unwrap_or(i64::MAX),
        agents: shared.config.agents.values().map(|agent| (agent.name.clone(), agent.max_concurrent)).collect(),
        workspaces: shared.config.workspaces.keys().cloned().collect(),
        only,
        lease: shared.config.engine.lease,
    };
    if shared.draining.is_cancelled() || !shared.store.has_claimable_run(&request).await? {
        return Ok((Vec::new(), ClaimResult::Idle));
    }
    // Measured from before the request: a worker that waits for the lease to run out starts to count later than this.
    let good_until = Instant::now() + request.lease;
    let claimed = shared.store.claim(request).await?;
    let with_signals = |claimed: Claimed| {
        let signals = shared.executing.add(claimed.lease, good_until);
        (claimed, signals)
    };
    let claimed: Vec<_> = claimed.into_iter().map(with_signals).collect();
    if !claimed.is_empty() {
        // A cancel that was stored between the claim and this line could not be signalled: the run was not registered here
        // yet.
        heed_cancel_requests(shared, worker).await;
    }
    // Runs behind the awaited one are left alone: that is no miss.
    let result = if !claimed.is_empty() {
        ClaimResult::Claimed
    } else if only.is_none() {
        ClaimResult::Missed
    } else {
        ClaimResult::Idle
    };
    Ok((claimed, result))
}

async fn renew(shared: &Shared, worker: &Identity) {
    let leases = shared.executing.leases();
    let good_until = Instant::now() + worker.registration.lease;
    match shared.store.renew(worker.key, worker.registration.clone(), leases.clone()).await {
        Ok(renewed) => {
            shared.executing.renewed();
            shared.executing.keep_only(&leases, &renewed, good_until);
        }
        // A worker that cannot renew loses its leases in time, and its writes are refused from then on.
        Err(error) => {
            METRICS.renewals_failed.inc();
            tracing::warn!(%error, leases = leases.len(), "failed to renew leases; trying again");
        }
    }
    heed_cancel_requests(shared, worker.key).await;
}
