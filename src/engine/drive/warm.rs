//! A turn and its backend: awaited before the turn begins, and examined when the turn came to nothing.
//!
//! Always: a turn that waits can be cancelled, has its turn limit, and blocks no other turn. A turn is retried once if its
//! backend died before the agent said anything.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use super::starting::NotBegun;
use super::{Abandoned, Drive};
use crate::agent::Agent;
use crate::agent_event::AgentEvent;
use crate::backend::BackendState;
use crate::driver::{Driver, Warm};
use crate::engine::decide::{asked_for, not_started};
use crate::failure::ErrorClass;
use crate::id::BackendId;
use crate::metrics::METRICS;
use crate::process::StartError;
use crate::run::{Cause, Outcome};
use crate::store::backend::{Awaited, Place, Taken, Wanted};
use crate::store::run::Claimed;

/// Poll interval for what other processes do to backends.
const BACKEND_POLL_INTERVAL: Duration = Duration::from_millis(250);
/// The supervisor knows of the end of a process within this time.
const KNOWN_WITHIN: Duration = Duration::from_secs(3);

/// How long a turn keeps its worker busy while its workspace is short of resources that its backend may wait for.
const SHORT_FOR: Duration = Duration::from_secs(2);
/// A backend that is there this soon was not waited for.
const AT_ONCE: Duration = Duration::from_secs(1);

/// The status for readers while a turn waits for its backend; `None` if there is nothing worth showing. A failed start is
/// shown until the backend has started.
fn status_of(awaited: &Awaited, agent: &Agent, is_known: bool) -> Option<String> {
    let name = &agent.name;
    match (awaited.state, &awaited.reason) {
        (BackendState::Restarting, Some(reason)) => {
            Some(format!("{name} does not run: {reason}. It is started again."))
        }
        _ => (!is_known).then(|| format!("Starting {name}…")),
    }
}

/// Counts a turn as waiting until this is dropped.
struct Waiting<'a>(&'a AtomicU64);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drive<'_> {
    /// Waits until the turn has a backend. The inner `Err` is how the run leaves this worker when it cannot get one.
    pub(super) async fn take_backend(
        &mut self,
        warm: &dyn Warm,
        claimed: &Claimed,
        agent: &Agent,
    ) -> Result<Result<Taken, NotBegun>, Abandoned> {
        let most = self.shared.config.engine.max_backends;
        if most == 0 {
            let error = "`max_backends` is 0, and this agent has to be kept warm: allow at least one";
            return Ok(Err(NotBegun::Settled(Outcome::because(Cause::Unconfigured, error))));
        }
        let mut wanted = Wanted {
            lease: self.leased.lease,
            agent: agent.name.clone(),
            workspace: claimed.workspace.clone(),
            session: (!warm.is_shared()).then_some(claimed.session),
            worker: self.worker,
            most,
            awaited: None,
        };
        let supervision = &self.shared.supervision;
        let _waiting = Waiting::new(&supervision.waiting);
        let mut changes = supervision.changes();
        let give_up = self.began + self.limit(agent);
        let rests_after = if claimed.shortages > 0 { Duration::ZERO } else { SHORT_FOR };
        let mut told = None;
        loop {
            changes.mark_unchanged();
            match self.retry_write(|| self.shared.store.take_backend(wanted.clone())).await? {
                Place::Taken(taken) => return Ok(Ok(taken)),
                Place::LeaseLost => return Err(Abandoned::LeaseLost),
                Place::GivenUp { reason, class, until } => {
                    let outcome = not_started(&StartError { class, ..StartError::from(reason) });
                    // A failure other than a crash is not cured by waiting.
                    let retry_at = (class == Some(ErrorClass::Crashed)).then_some(until);
                    return Ok(Err(NotBegun::Settled(Outcome { retry_at, ..outcome })));
                }
                Place::Awaited(id) => wanted.awaited = Some(id),
                Place::Full { evicted } => {
                    METRICS.backends_evicted.inc_by(u64::from(evicted));
                    wanted.awaited = None;
                }
            }
            if let Some(reason) = self.short_of(rests_after) {
                return Ok(Err(NotBegun::Short(reason)));
            }
            let awaited = wanted.awaited;
            while let Some(news) = tokio::select! {
                biased;
                () = self.signals.lost.cancelled() => return Err(Abandoned::LeaseLost),
                () = self.signals.cancel.cancelled() => return Ok(Err(NotBegun::Settled(Outcome::cancelled()))),
                () = self.shared.ending.cancelled() => return Ok(Err(NotBegun::PutBack)),
                () = self.shared.leaving.cancelled() => return Ok(Err(NotBegun::PutBack)),
                () = sleep_until(give_up) => match self.short_of(Duration::ZERO) {
                    Some(reason) => return Ok(Err(NotBegun::Short(reason))),
                    None => return Ok(Err(NotBegun::Settled(asked_for(Cause::TurnTimeout)))),
                },
                news = self.changed(&mut changes, awaited, agent, rests_after, told.as_deref()) => news,
            } {
                let status = self.turn.hear(AgentEvent::Status(news.clone()));
                self.append(status, Vec::new(), false).await?;
                told = Some(news);
            }
        }
    }

    /// What the workspace is short of, once the turn has waited this long.
    fn short_of(&self, rests_after: Duration) -> Option<String> {
        let has_waited = self.began.elapsed() >= rests_after;
        has_waited.then(|| self.shared.shortages.reason(&self.leased.workspace)).flatten()
    }

    /// Returns when it is time to try again, or with a status that readers have not been told. While a backend is starting,
    /// its row is only read, not written, until the run is to rest in the queue.
    async fn changed(
        &self,
        changes: &mut tokio::sync::watch::Receiver<u64>,
        awaited: Option<BackendId>,
        agent: &Agent,
        rests_after: Duration,
        told: Option<&str>,
    ) -> Option<String> {
        loop {
            // Change or timeout: either way, read again.
            let _ = timeout(BACKEND_POLL_INTERVAL, changes.changed()).await;
            let awaited = self.shared.store.awaited_backend(awaited?).await.ok()??;
            if self.short_of(rests_after).is_some() {
                return None;
            }
            let news = status_of(&awaited, agent, told.is_some() || self.began.elapsed() < AT_ONCE);
            if let Some(news) = news.filter(|news| told != Some(news)) {
                return Some(news);
            }
        }
    }

    /// Whether the turn came to nothing because its backend died, and is to be retried on a new one.
    pub(super) async fn has_lost_its_backend(&self, driver: &dyn Driver) -> Result<bool, Abandoned> {
        let (Some(taken), Some(warm)) = (&self.on, driver.warm()) else { return Ok(false) };
        let store = &self.shared.store;
        if !self.retry_write(|| store.is_first_try(self.leased.lease.run)).await? {
            return Ok(false);
        }
        let mut changes = self.shared.supervision.changes();
        let known_by = Instant::now() + KNOWN_WITHIN;
        // A dead backend does not answer; then its supervisor is about to record that.
        let mut answers = None;
        loop {
            if !self.retry_write(|| store.is_backend_running(taken.key, taken.generation)).await? {
                return Ok(true);
            }
            let answers = match answers {
                Some(answers) => answers,
                None => *answers.insert(warm.probe(&taken.endpoint).await.is_ok()),
            };
            if answers || Instant::now() >= known_by {
                return Ok(false);
            }
            let _ = timeout(BACKEND_POLL_INTERVAL, changes.changed()).await;
        }
    }
}
