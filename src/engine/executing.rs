//! The runs that this process executes, and the signals that reach each of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::lease::{Lease, RunKey, SessionKey, WorkerKey};
use crate::metrics::METRICS;
use crate::store::Notice;
use crate::store::run::{Orphan, SessionScope};

/// The signals that reach a run which this process executes.
#[derive(Debug, Clone)]
pub(super) struct Signals {
    /// A cancel was requested.
    pub cancel: CancellationToken,
    /// The lease is lost: leave the agent to the new holder, write nothing.
    pub lost: CancellationToken,
    /// A question of its agent may have been answered.
    pub answers: Arc<Notify>,
    /// Until then no other worker can have taken the run over: measured from before the claim, or the last renewal, was sent.
    good_until: watch::Receiver<Instant>,
}

impl Signals {
    /// Until when no other worker can have taken the run over, unless the lease is renewed.
    pub fn good_until(&self) -> Instant {
        *self.good_until.borrow()
    }
}

struct Execution {
    lease: Lease,
    signals: Signals,
    good_until: watch::Sender<Instant>,
}

/// The runs that this process executes.
#[derive(Default)]
pub(super) struct Executing {
    runs: Mutex<HashMap<RunKey, Execution>>,
    /// Runs of lost workers that this process is to adopt.
    adopted: Mutex<Vec<(Orphan, Signals)>>,
    count: watch::Sender<usize>,
    /// Which runs are executed here; unset before any are.
    scope: OnceLock<Option<SessionScope>>,
    /// Woken when there may be something to claim.
    pub ready: Notify,
    /// Woken when a closed session still has runs to cancel.
    pub closing: Notify,
    /// When the loop of the worker last renewed the leases; `None` before it has begun.
    renewed_at: Mutex<Option<Instant>>,
    /// Notified in each round of the worker's loop.
    pub round: Notify,
}

impl Executing {
    fn runs(&self) -> MutexGuard<'_, HashMap<RunKey, Execution>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on runs are executed here: all, or those of one session.
    pub fn begin(&self, only: Option<SessionScope>) {
        // Set once: a second loop gets the scope of the first.
        let _ = self.scope.set(only);
        self.renewed();
    }

    pub fn renewed(&self) {
        *self.renewed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Time since the leases were last renewed here; `None` if no runs are executed here.
    pub fn silent_for(&self) -> Option<Duration> {
        self.renewed_at.lock().unwrap_or_else(PoisonError::into_inner).map(|at| at.elapsed())
    }

    /// Whether a lost worker's run of this session is adopted here.
    pub fn adopts(&self, session: SessionKey) -> bool {
        self.scope.get().is_some_and(|scope| scope.is_none_or(|only| only.session == session))
    }

    /// Whether runs are executed here at all.
    pub fn executes(&self) -> bool {
        self.scope.get().is_some()
    }

    /// Whether only runs of one session are executed here.
    pub fn is_limited(&self) -> bool {
        self.scope.get().is_some_and(Option::is_some)
    }

    /// Queues a run of a lost worker for the worker's loop, which drives it on.
    pub fn adopt(&self, orphan: Orphan, until: Instant) {
        let signals = self.add(orphan.lease, until);
        if orphan.cancel_requested {
            signals.cancel.cancel();
        }
        self.adopted.lock().unwrap_or_else(PoisonError::into_inner).push((orphan, signals));
        self.ready.notify_one();
    }

    pub fn take_adopted(&self) -> Vec<(Orphan, Signals)> {
        std::mem::take(&mut *self.adopted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A run is in execution from now on.
    pub fn add(&self, lease: Lease, until: Instant) -> Signals {
        let (good_until, seen) = watch::channel(until);
        let (cancel, lost) = (CancellationToken::new(), CancellationToken::new());
        let signals = Signals { cancel, lost, answers: Arc::default(), good_until: seen };
        self.runs().insert(lease.run, Execution { lease, signals: signals.clone(), good_until });
        self.count.send_modify(|count| *count += 1);
        signals
    }

    /// The run is not in execution any more.
    pub fn remove(&self, lease: Lease) {
        let mut runs = self.runs();
        // After a lost lease the same run may have come back to this process under a newer one.
        if runs.get(&lease.run).is_some_and(|execution| execution.lease == lease) {
            runs.remove(&lease.run);
        }
        drop(runs);
        self.count.send_modify(|count| *count -= 1);
        self.ready.notify_one();
    }

    /// The runs in execution.
    pub fn keys(&self) -> Vec<RunKey> {
        self.runs().keys().copied().collect()
    }

    /// How many are in execution.
    pub fn count(&self) -> usize {
        *self.count.borrow()
    }

    /// Whether anything is in execution.
    pub fn is_busy(&self) -> bool {
        self.count() > 0
    }

    /// Waits until no run is in execution.
    pub async fn idle(&self) {
        // The sender lives as long as we do.
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Passes a commit on to the runs and loops that it concerns.
    pub fn notice(&self, notice: &Notice) {
        match notice {
            Notice::Ready => self.ready.notify_one(),
            Notice::CancelRequested(run) => self.cancel(*run),
            Notice::PermissionAnswered(run) => {
                if let Some(execution) = self.runs().get(run) {
                    execution.signals.answers.notify_one();
                }
            }
            Notice::Closing => self.closing.notify_one(),
            Notice::EventsCommitted(_) | Notice::EventsAppended(_) | Notice::Backends => {}
        }
    }

    /// Signals a cancel request to a run.
    pub fn cancel(&self, run: RunKey) {
        if let Some(execution) = self.runs().get(&run) {
            execution.signals.cancel.cancel();
        }
    }

    /// Has all runs poll for answers: another process may have stored one.
    pub fn look_for_answers(&self) {
        self.runs().values().for_each(|execution| execution.signals.answers.notify_one());
    }

    pub fn leases(&self) -> Vec<Lease> {
        self.runs().values().map(|execution| execution.lease).collect()
    }

    /// Passes on the result of a renewal: each run of `asked` gets its new term, or is told that its lease is lost.
    pub fn keep_only(&self, asked: &[Lease], renewed: &[Lease], good_until: Instant) {
        let runs = self.runs();
        for lease in asked {
            let Some(execution) = runs.get(&lease.run).filter(|execution| execution.lease == *lease) else { continue };
            if renewed.contains(lease) {
                execution.good_until.send_replace(good_until);
            } else {
                execution.signals.lost.cancel();
            }
        }
    }
}

/// Signals the stored cancel requests to their runs. If the query fails, the next renewal repeats it.
pub(super) async fn heed_cancel_requests(shared: &Shared, worker: WorkerKey) {
    match shared.store.cancel_requests(worker).await {
        Ok(requests) => requests.into_iter().for_each(|run| shared.executing.cancel(run)),
        Err(error) => {
            METRICS.cancel_looks_failed.inc();
            tracing::warn!(%error, "failed to look for cancel requests; trying again");
        }
    }
}
