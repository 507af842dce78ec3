//! Whether the engine does its work: its loops run, its claims succeed, and what can be claimed is claimed.
//!
//! Always: a task that has to run until the engine closes is started by [`Shared::spawn_loop`]. One that ends earlier, by a
//! panic or by returning, fails the whole engine: it accepts nothing any more, is not ready, and the process that owns it is
//! told to end. Another process, or the next one, recovers its runs as after a crash. Tasks of one run or one backend are not
//! among them: the loop that owns them replaces them or settles what they left.
//!
//! Proof: the tests below, `tests/faults/readiness.rs`, `tests/it/health.rs`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{Engine, EngineError, Shared};
use crate::metrics::METRICS;
use crate::process::temp_dir;

/// A ready run that no worker claims for this long is stuck. While there is room, a claimable run is claimed within
/// milliseconds, and within a few seconds when the database is busy. Longer than this something is wrong.
pub(super) const STARVED_AFTER: Duration = Duration::from_secs(10);

/// A loop that spends longer than this on one round hangs: a round is some statements, each of which ends within seconds.
pub(super) const ROUND_LIMIT: Duration = Duration::from_secs(60);
/// The same for the sweep, which may end and read the agents of hundreds of lost runs in one round.
pub(super) const SWEEP_LIMIT: Duration = Duration::from_secs(10 * 60);

/// The result of a poll for ready runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClaimResult {
    /// There was nothing to claim.
    Idle,
    /// Runs were claimed.
    Claimed,
    /// There was something to claim, but nothing was claimed: another process was faster, or something is wrong.
    Missed,
}

/// What is known about the work of an engine.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Why the engine cannot go on.
    failure: watch::Sender<Option<String>>,
    claims: Mutex<Claims>,
    rounds: Mutex<BTreeMap<&'static str, Deadline>>,
}

/// The round that a loop is in, and how long it may take.
#[derive(Debug, Clone, Copy)]
struct Deadline {
    began: Instant,
    limit: Duration,
}

/// A loop is in a round until this is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Round<'a> {
    health: &'a Health,
    task: &'static str,
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        self.health.rounds().remove(self.task);
    }
}

#[derive(Debug, Default)]
struct Claims {
    /// Why the newest claim failed.
    error: Option<String>,
    /// When the first of the newest misses in a row happened.
    missed_since: Option<Instant>,
}

impl Health {
    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the result of a poll for ready runs.
    pub fn claimed(&self, result: Result<ClaimResult, String>) {
        let mut claims = self.claims();
        match result {
            Ok(ClaimResult::Missed) => {
                claims.error = None;
                claims.missed_since.get_or_insert_with(Instant::now);
            }
            Ok(ClaimResult::Idle | ClaimResult::Claimed) => *claims = Claims::default(),
            Err(error) => claims.error = Some(error),
        }
    }

    fn rounds(&self) -> MutexGuard<'_, BTreeMap<&'static str, Deadline>> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a round of a loop, which ends within this time unless the loop hangs. Waiting for the next round is not part of
    /// it.
    pub fn begin_round(&self, task: &'static str, limit: Duration) -> Round<'_> {
        self.rounds().insert(task, Deadline { began: Instant::now(), limit });
        Round { health: self, task }
    }

    /// Whether the loops make progress. The writer and the worker show theirs by what they write.
    ///
    /// # Errors
    /// [`EngineError::Stalled`].
    pub fn check_rounds(&self) -> Result<(), EngineError> {
        let rounds = self.rounds();
        let mut hanging = rounds.iter().filter(|(_, round)| round.began.elapsed() > round.limit);
        hanging.next().map_or(Ok(()), |(task, round)| {
            let seconds = round.began.elapsed().as_secs();
            Err(EngineError::Stalled(format!("its task {task:?} hangs: it has been at one round for {seconds} s")))
        })
    }

    fn fail(&self, reason: &str) {
        self.failure.send_if_modified(|failure| {
            let is_first = failure.is_none();
            failure.get_or_insert_with(|| reason.to_owned());
            is_first
        });
    }

    /// Whether the engine can go on.
    ///
    /// # Errors
    /// [`EngineError::Failed`].
    pub fn check_alive(&self) -> Result<(), EngineError> {
        self.failure.borrow().clone().map_or(Ok(()), |reason| Err(EngineError::Failed(reason)))
    }

    /// Waits until the engine cannot go on.
    pub async fn failed(&self) -> EngineError {
        let mut failure = self.failure.subscribe();
        // The sender lives as long as we do.
        let reason = failure.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        EngineError::Failed(reason.unwrap_or_default())
    }

    /// Whether the queue moves.
    ///
    /// # Errors
    /// [`EngineError::Stalled`].
    pub fn check_claims(&self) -> Result<(), EngineError> {
        let claims = self.claims();
        if let Some(error) = &claims.error {
            return Err(EngineError::Stalled(format!("runs cannot be claimed: {error}")));
        }
        match claims.missed_since.map(|since| since.elapsed()) {
            Some(missed) if missed > STARVED_AFTER => Err(EngineError::Stalled(format!(
                "there is room for runs, and ready runs have not been claimed for {} s",
                missed.as_secs()
            ))),
            _ => Ok(()),
        }
    }
}

impl Shared {
    /// Starts a task that has to run until `may_end` says that it may end.
    pub(super) fn spawn_loop<F>(self: &Arc<Self>, name: &'static str, may_end: fn(&Self) -> bool, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let shared = self.clone();
        self.tasks.spawn(async move {
            // A task of its own, so that its panic ends nothing else.
            let ended = tokio::spawn(task).await;
            if ended.is_ok() && may_end(&shared) {
                return;
            }
            let how = ended.err().map_or_else(|| "it returned".to_owned(), |error| error.to_string());
            METRICS.tasks_failed.inc();
            tracing::error!(task = name, error = %how, "a task of the engine ended abnormally");
            shared.health.fail(&format!("its task {name:?} ended abnormally: {how}"));
        });
    }

    /// The writer is a task of the store; its end is watched by one of ours.
    pub(super) fn watch_writer(self: &Arc<Self>) {
        let shared = self.clone();
        self.spawn_loop("writer", Self::is_closed, async move {
            tokio::select! {
                () = shared.store.writer_ended() => {}
                () = shared.closed.cancelled() => {}
            }
        });
    }

    /// Logs what agents will lack.
    pub(super) async fn check_directories(&self) {
        let shims = self.shims.clone();
        let look = tokio::task::spawn_blocking(move || (shims.problem(), temp_dir::problem()));
        // It fails only when the runtime goes down.
        let Ok((agents, temp)) = look.await else { return };
        if let Some(problem) = agents {
            tracing::error!(%problem, "no agent can be started: make the directory of agents writable for this user");
        }
        if let Some(problem) = temp {
            tracing::warn!(%problem, "agents may get their temporary directories beside the database");
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }
}

impl Engine {
    /// Returns when the engine has shown that it lives: its writer has answered, even if only that nothing can be written just
    /// now, and the loop that claims runs and renews their leases has made a round. While one of them hangs, or was not
    /// started, it does not return.
    pub async fn pulse(&self) {
        let round = self.shared.executing.round.notified();
        // Requests a round now; one comes by itself within a second.
        self.shared.executing.ready.notify_one();
        let asked = self.shared.store.check_writable();
        let ((), answered) = tokio::join!(round, asked);
        if let Err(error) = answered {
            tracing::debug!(%error, "the writer answers, but would not write now");
        }
    }

    /// Waits until the engine has failed because of a bug: one of its tasks ended abnormally. Then it accepts nothing any
    /// more, and the process should end: the next one recovers its runs.
    pub async fn failed(&self) -> EngineError {
        self.shared.health.failed().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_claim_shows_until_one_succeeds() {
        let health = Health::default();
        assert!(health.check_claims().is_ok());
        health.claimed(Err("no such table".to_owned()));
        assert!(health.check_claims().unwrap_err().to_string().contains("no such table"));
        health.claimed(Ok(ClaimResult::Idle));
        assert!(health.check_claims().is_ok());
    }

    #[test]
    fn only_misses_in_a_row_mean_a_queue_that_stands_still() {
        let health = Health::default();
        let age = |by: Duration| {
            let mut claims = health.claims();
            claims.missed_since = claims.missed_since.and_then(|since| since.checked_sub(by));
        };
        health.claimed(Ok(ClaimResult::Missed));
        assert!(health.check_claims().is_ok(), "another process may have been faster");
        age(STARVED_AFTER);
        health.claimed(Ok(ClaimResult::Missed));
        assert!(health.check_claims().unwrap_err().to_string().contains("have not been claimed for 10 s"));
        health.claimed(Ok(ClaimResult::Claimed));
        assert!(health.check_claims().is_ok());
        health.claimed(Ok(ClaimResult::Missed));
        assert!(health.check_claims().is_ok());
    }

    #[test]
    fn loop_that_stays_at_one_round_is_named() {
        let health = Health::default();
        let round = health.begin_round("sweep", Duration::from_secs(60));
        let _other = health.begin_round("watcher", Duration::from_secs(60));
        assert!(health.check_rounds().is_ok());
        let began = Instant::now().checked_sub(Duration::from_secs(61)).unwrap();
        health.rounds().get_mut("sweep").unwrap().began = began;
        assert!(health.check_rounds().unwrap_err().to_string().contains("\"sweep\" hangs"));
        drop(round);
        assert!(health.check_rounds().is_ok());
    }

    #[tokio::test]
    async fn the_first_failure_is_kept_and_told_to_late_askers() {
        let health = Health::default();
        assert!(health.check_alive().is_ok());
        health.fail("first");
        health.fail("second");
        assert_eq!(health.failed().await.to_string(), health.check_alive().unwrap_err().to_string());
        assert!(health.check_alive().unwrap_err().to_string().contains("first"));
    }
}
