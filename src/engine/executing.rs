//! The runs that this process executes, and what the outside can say to each.

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

/// What the outside can say to a run that this process executes.
#[derive(Debug, Clone)]
pub(super) struct Signals {
    /// Somebody asked for it to stop.
    pub cancel: CancellationToken,
    /// The lease is lost: end the agent, write nothing.
    pub lost: CancellationToken,
    /// What its agent asked may be decided.
    pub answers: Arc<Notify>,
    /// Until then nobody else can have taken the run over: measured from before the claim, or the last renewal, was sent.
    good_until: watch::Receiver<Instant>,
}

impl Signals {
    /// Until when nobody else can have taken the run over, unless the lease is renewed.
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
    /// Runs of lost workers that are to be driven on here.
    adopted: Mutex<Vec<(Orphan, Signals)>>,
    count: watch::Sender<usize>,
    /// What runs are executed here, once any are.
    scope: OnceLock<Option<SessionScope>>,
    /// Woken when there may be something to claim.
    pub ready: Notify,
    /// Woken when runs of a session that was closed are still to be cancelled.
    pub closing: Notify,
    /// When the leases were last renewed by the loop of the worker, once it has begun.
    renewed_at: Mutex<Option<Instant>>,
    /// Told each time that the loop of the worker comes round.
    pub round: Notify,
}

impl Executing {
    fn runs(&self) -> MutexGuard<'_, HashMap<RunKey, Execution>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs are executed here from now on: any, or those of one session.
    pub fn begin(&self, only: Option<SessionScope>) {
        // Whoever starts a second loop gets what the first one may have.
        let _ = self.scope.set(only);
        self.renewed();
    }

    pub fn renewed(&self) {
        *self.renewed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// For how long no leases were renewed here, if runs are executed here at all.
    pub fn silent_for(&self) -> Option<Duration> {
        self.renewed_at.lock().unwrap_or_else(PoisonError::into_inner).map(|at| at.elapsed())
    }

    /// Whether runs of lost workers are driven on here: any, or those of one session.
    pub fn adopts(&self, session: SessionKey) -> bool {
        self.scope.get().is_some_and(|scope| scope.is_none_or(|only| only.session == session))
    }

    /// Whether runs are executed here at all.
    pub fn executes(&self) -> bool {
        self.scope.get().is_some()
    }

    /// Whether only those of one session are.
    pub fn is_limited(&self) -> bool {
        self.scope.get().is_some_and(Option::is_some)
    }

    /// Takes a run of a lost worker that is to be driven on here.
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

    /// It is no longer.
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

    /// Waits until nothing is.
    pub async fn idle(&self) {
        // The sender lives as long as we do.
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Passes a commit on to whom it concerns.
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

    /// Tells a run that somebody asked for it to stop.
    pub fn cancel(&self, run: RunKey) {
        if let Some(execution) = self.runs().get(&run) {
            execution.signals.cancel.cancel();
        }
    }

    /// Lets the runs look for answers: another process may have stored one.
    pub fn look_for_answers(&self) {
        self.runs().values().for_each(|execution| execution.signals.answers.notify_one());
    }

    pub fn leases(&self) -> Vec<Lease> {
        self.runs().values().map(|execution| execution.lease).collect()
    }

    /// Tells the runs whose leases were asked for what became of them.
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

/// Tells the runs that somebody asked to stop. When the database cannot be asked, the next renewal asks again.
pub(super) async fn heed_cancel_requests(shared: &Shared, worker: WorkerKey) {
    match shared.store.cancel_requests(worker).await {
        Ok(requests) => requests.into_iter().for_each(|run| shared.executing.cancel(run)),
        Err(error) => {
            METRICS.cancel_looks_failed.inc();
            tracing::warn!(%error, "failed to look for cancel requests; trying again");
        }
    }
}
