//! The failure detector: which workers and which leases are lost, judged only by what can be trusted.
//!
//! Always: the wall clock decides nothing. A worker is lost when it is proven dead. A lease is lost when it was given back, or
//! when it has not changed for its whole length while this process observed it. A gap between two observations counts for at
//! most one interval: after the whole machine was suspended or stopped, the holders get their chance to renew first.
//!
//! Proof: the tests below, and `tests/it/time.rs`.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use super::{EngineError, Shared};
use crate::clock::Timestamp;
use crate::config::EngineConfig;
use crate::lease::{BackendKey, HeldLease, RunKey, WorkerKey};
use crate::process::reap::{self, Liveness};
use crate::store::run::Lost;

/// Longest time between two observations: a lost run is noticed this soon.
const MAX_DETECTION_INTERVAL: Duration = Duration::from_secs(1);
/// A worker that cannot be proven dead (on another machine) is forgotten after this many lease lengths without a heartbeat.
const SILENT_LEASES: u32 = 10;

/// The time between two observations. A lease is lost after three of them at the earliest.
pub(super) fn interval(config: &EngineConfig) -> Duration {
    MAX_DETECTION_INTERVAL.min(config.lease / 3)
}

/// The result of one observation.
#[derive(Debug, Default)]
pub(super) struct Observation {
    /// What may be taken over.
    pub lost: Lost,
    /// Workers on other machines that fell silent long ago, where nothing can be proven.
    pub silent: Vec<WorkerKey>,
    /// Backends without a supervisor.
    pub unwatched: Vec<BackendKey>,
}

impl Observation {
    /// Whether something is lost that was not lost before.
    pub fn has_news_since(&self, before: &Observation) -> bool {
        let was_lost = |run: RunKey| before.lost.leases.iter().any(|held| held.lease.run == run);
        self.lost.workers.iter().any(|worker| !before.lost.workers.contains(worker))
            || self.lost.leases.iter().any(|held| !was_lost(held.lease.run))
            || self.unwatched.iter().any(|backend| !before.unwatched.contains(backend))
    }
}

/// What was observed so far.
#[derive(Debug, Default)]
pub(super) struct FailureDetector {
    leases: UnchangedFor<RunKey, HeldLease>,
    heartbeats: UnchangedFor<WorkerKey, Timestamp>,
}

/// Observes once.
pub(super) async fn look(shared: &Shared) -> Result<Observation, EngineError> {
    let own = shared.worker(0).await?.key;
    let mut failure_detector = shared.failure_detector.lock().await;
    let begun = Instant::now();
    let workers = shared.store.registered_workers().await?;
    let held = shared.store.held_leases().await?;
    let (lease, step) = (shared.config.engine.lease, shared.config.engine.lease / 3);
    failure_detector.leases.look(begun, step, held.into_iter().map(|held| (held.lease.run, held)));
    failure_detector.heartbeats.look(begun, step, workers.iter().map(|worker| (worker.key, worker.heartbeat_at)));

    let unwatched = shared.store.live_backends().await?.into_iter().filter(|row| row.worker.is_none());
    let mut observation = Observation { unwatched: unwatched.map(|row| row.key).collect(), ..Observation::default() };
    let executing = shared.executing.keys();
    let is_lost = |held: &HeldLease, still: Duration| {
        let is_over = held.expires_at == HeldLease::GIVEN_BACK || still >= lease.max(held.length);
        is_over && !executing.contains(&held.lease.run)
    };
    observation.lost.leases =
        failure_detector.leases.values().filter(|(held, still)| is_lost(held, *still)).map(|(h, _)| *h).collect();
    for worker in workers.into_iter().filter(|worker| worker.key != own) {
        match reap::is_alive(&worker.process) {
            Liveness::Dead => observation.lost.workers.push(worker.key),
            Liveness::Unknown if failure_detector.heartbeats.of(worker.key) >= lease * SILENT_LEASES => {
                observation.silent.push(worker.key);
            }
            Liveness::Unknown | Liveness::Alive => {}
        }
    }
    Ok(observation)
}

/// How long each value has not changed, as far as it was observed.
#[derive(Debug)]
struct UnchangedFor<K, V> {
    seen: HashMap<K, (V, Duration)>,
    looked_at: Option<Instant>,
}

impl<K, V> Default for UnchangedFor<K, V> {
    fn default() -> Self {
        Self { seen: HashMap::new(), looked_at: None }
    }
}

impl<K: Eq + Hash, V: PartialEq> UnchangedFor<K, V> {
    /// Records the values that an observation found which began at `begun`. At most `most` of the time since the one before
    /// counts.
    fn look(&mut self, begun: Instant, most: Duration, found: impl Iterator<Item = (K, V)>) {
        // From the end of one observation to the beginning of the next: a value found in the first may have been read at its
        // end, and one found in the second at its beginning.
        let passed = self.looked_at.map_or(Duration::ZERO, |at| begun.saturating_duration_since(at)).min(most);
        let mut before = std::mem::take(&mut self.seen);
        self.seen = found
            .map(|(key, value)| {
                let unchanged = before.remove(&key).filter(|(old, _)| *old == value);
                (key, (value, unchanged.map_or(Duration::ZERO, |(_, still)| still + passed)))
            })
            .collect();
        self.looked_at = Some(Instant::now());
    }

    fn values(&self) -> impl Iterator<Item = (&V, Duration)> {
        self.seen.values().map(|(value, still)| (value, *still))
    }

    fn of(&self, key: K) -> Duration {
        self.seen.get(&key).map_or(Duration::ZERO, |(_, still)| *still)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_secs(10);

    /// Observes one value at these seconds, and returns how long it has not changed.
    fn still(looks: &[(u64, i32)]) -> Duration {
        let (start, mut stillness) = (Instant::now(), UnchangedFor::default());
        for (second, value) in looks {
            stillness.look(start + Duration::from_secs(*second), STEP, std::iter::once(((), *value)));
            stillness.looked_at = Some(start + Duration::from_secs(*second));
        }
        stillness.of(())
    }

    #[test]
    fn what_is_seen_for_the_first_time_may_be_fresh() {
        assert_eq!(still(&[(100, 1)]), Duration::ZERO);
    }

    #[test]
    fn only_what_does_not_change_is_still() {
        assert_eq!(still(&[(0, 1), (9, 1), (18, 1)]), Duration::from_secs(18));
        assert_eq!(still(&[(0, 1), (9, 1), (18, 2)]), Duration::ZERO);
        assert_eq!(still(&[(0, 1), (9, 2), (18, 1), (20, 1)]), Duration::from_secs(2));
    }

    #[test]
    fn time_in_which_nobody_looked_counts_for_one_look() {
        assert_eq!(still(&[(0, 1), (9, 1), (100_000, 1)]), Duration::from_secs(19));
    }

    #[test]
    fn what_went_away_begins_anew() {
        let (start, mut stillness) = (Instant::now(), UnchangedFor::default());
        stillness.look(start, STEP, std::iter::once(((), 1)));
        stillness.look(start + STEP, STEP, std::iter::empty());
        stillness.look(start + STEP * 2, STEP, std::iter::once(((), 1)));
        assert_eq!(stillness.of(()), Duration::ZERO);
    }
}
