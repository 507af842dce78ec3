//! The row of a supervised backend: moved by events, read again, and left to other workers.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{BackendTask, CONFIRM, WRITE_AGAIN};
use crate::backend::{BackendEvent, BackendState, Effect, Transition, TransitionContext, recent, transition};
use crate::failure::ErrorClass;
use crate::metrics::METRICS;
use crate::store::backend::Move;
use crate::store::{Store, StoreError};

/// Attempts after which a closing engine gives up a write that fails.
const LAST_TRIES: u32 = 20;

impl BackendTask {
    /// Moves the row as the event requires. False if another worker supervises the backend.
    pub(super) async fn apply(&mut self, event: BackendEvent, reason: String, class: Option<ErrorClass>) -> bool {
        let (state, generation) = (self.row.state, self.row.generation);
        if !self.look().await {
            return false;
        }
        if self.row.state != state {
            // Another process was faster; what happened will show again.
            return true;
        }
        let now = self.shared.store.clock().now();
        let about = TransitionContext {
            now,
            generation: self.row.generation,
            restarts: &self.row.restarts,
            was_well: self.row.was_well,
            not_before: self.row.not_before,
            is_busy: self.row.is_busy,
            hung_for: self.hung_since.map_or(Duration::ZERO, |since| since.elapsed()),
            close_when_idle: self.row.close_when_idle,
        };
        let Transition::Move(to, effect) = transition(state, generation, event, &self.care, &about) else {
            return true;
        };
        let mut restarts: Vec<_> = recent(&self.care, &self.row.restarts, now).collect();
        let mut not_before = None;
        match effect {
            Effect::Pause(at) => {
                restarts.push(now);
                not_before = Some(at);
            }
            Effect::GiveUp(at) => not_before = Some(at),
            Effect::None | Effect::Begin | Effect::End => {}
        }
        let has_ended = matches!(to, BackendState::Restarting | BackendState::Stopped);
        let change = Move {
            worker: Some(self.worker),
            from: state,
            generation,
            to,
            to_generation: generation + i64::from(effect == Effect::Begin),
            // Why it was asked to end is why it has ended.
            reason: if state == BackendState::Stopping || (state == BackendState::Crashed && has_ended) {
                self.row.reason.clone().unwrap_or(reason)
            } else {
                reason
            },
            class: class
                .filter(|_| matches!(to, BackendState::Crashed | BackendState::Restarting) || not_before.is_some()),
            restarts,
            not_before,
            is_healthy: event == BackendEvent::Healthy,
            unless_busy: state == BackendState::Running && to == BackendState::Stopping,
            unused_since: (event == BackendEvent::IdleTimeout).then(|| now - self.agent.keep_warm),
        };
        let (key, shown) = (self.row.key, change.reason.clone());
        if self.retry_write(|store| store.move_backend(key, change.clone())).await == Some(true) && to != state {
            self.tell(state, to, event, effect, &shown);
        }
        self.look().await
    }

    fn tell(&self, from: BackendState, to: BackendState, event: BackendEvent, effect: Effect, reason: &str) {
        let crashed = matches!(from, BackendState::Starting | BackendState::Running)
            && matches!(event, BackendEvent::Exited | BackendEvent::Hung | BackendEvent::NotStarted);
        if crashed {
            METRICS.backends_crashed.inc();
        }
        if from == BackendState::Restarting && effect == Effect::Begin {
            METRICS.backends_restarted.inc();
        }
        if event == BackendEvent::IdleTimeout {
            METRICS.backends_idled.inc();
        }
        let (id, agent, from, to) = (self.row.id, &self.row.agent, from.as_str(), to.as_str());
        if crashed {
            tracing::warn!(backend.id = %id, %agent, from, to, reason, "backend failed");
        } else {
            tracing::info!(backend.id = %id, %agent, from, to, reason, "backend moved");
        }
    }

    /// Reads the row again. False if it is not this worker's any more.
    pub(super) async fn look(&mut self) -> bool {
        let key = self.row.key;
        let Some(live) = self.retry_write(|store| store.live_backend(key)).await else { return false };
        match live {
            Some(row) if row.worker == Some(self.worker) => {
                self.row = row;
                true
            }
            Some(_) => false,
            None => {
                self.row.state = BackendState::Stopped;
                true
            }
        }
    }

    /// Releases the backend, for the next sweep to take over.
    pub(super) async fn leave(&mut self) {
        if let Some(reply) = self.reply.take() {
            reply.control.leave();
            drop(reply.records);
            // The task ends at once after that.
            let _ = timeout(CONFIRM, reply.end).await;
        }
        let (key, worker) = (self.row.key, self.worker);
        if self.retry_write(|store| store.leave_backend(key, worker)).await.is_some() {
            tracing::info!(backend.id = %self.row.id, "backend left to the next one who sweeps");
        }
    }

    /// Retries a store operation until it succeeds. `None` if it fails for good, or if the engine closes meanwhile.
    pub(super) async fn retry_write<'s, T, F>(&'s self, mut ask: impl FnMut(&'s Store) -> F) -> Option<T>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut tries = 0;
        loop {
            match ask(&self.shared.store).await {
                Ok(done) => return Some(done),
                Err(error) if error.is_transient() && (tries < LAST_TRIES || !self.shared.closed.is_cancelled()) => {
                    METRICS.writes_retried.inc();
                    tries += 1;
                    sleep(WRITE_AGAIN).await;
                }
                Err(error) => {
                    tracing::error!(backend.id = %self.row.id, %error, "failed to store what became of a backend");
                    return None;
                }
            }
        }
    }
}
