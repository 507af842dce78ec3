//! Starts that wait until the system has again what it is short of: file descriptors, processes, memory, disk space.
//!
//! Always: nothing that was accepted fails because of a shortage. A run tries again a few times, then goes back to the queue
//! for a while, so that others, which may need nothing that is short, get its worker. It shows in `/readyz`, in the row of the
//! run, in a metric and in the log.
//!
//! Proof: `tests/faults/shortage.rs`.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::metrics::METRICS;
use crate::process::StartError;

/// Between two tries. The pause doubles: a machine that is short of processes is not helped by attempts to start more.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// Tries of a run before it goes back to the queue. One that went back before has none but the first.
pub(super) const TRIES: u32 = 4;
/// How long it stays there, doubling each time.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(30);
/// A shortage is over when the next try was due so long ago.
const OVER_AFTER: Duration = Duration::from_secs(6);

/// How long a run stays in the queue that was put back this often before.
pub(super) fn rest(shortages: i64) -> Duration {
    doubled(FIRST_REST, u32::try_from(shortages).unwrap_or(u32::MAX), LONGEST_REST)
}

fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    first.saturating_mul(1 << times.min(8)).min(longest)
}

/// The newest start of this process that failed for want of something, and until when that counts.
#[derive(Debug, Default)]
pub(super) struct Shortages(Mutex<Option<(Instant, String)>>);

impl Shortages {
    fn newest(&self) -> MutexGuard<'_, Option<(Instant, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a start that failed, for the `tries`th time in a row. Answers with the pause before the next one.
    pub fn failed(&self, error: &StartError, tries: u32) -> Duration {
        METRICS.starts_retried.inc();
        // A shortage may last for days: each line comes after twice the time of the one before.
        if tries.is_power_of_two() {
            tracing::warn!(error = error.message, tries, "short of resources; the start is tried again");
        }
        let pause = doubled(FIRST_PAUSE, tries.saturating_sub(1), LONGEST_PAUSE);
        self.lasts(error, pause);
        pause
    }

    /// Takes note of a start that failed, and whose run goes back to the queue. It did `shortages` times before.
    pub fn rests(&self, error: &StartError, shortages: i64) {
        let rest = rest(shortages);
        METRICS.starts_retried.inc();
        if shortages.unsigned_abs().saturating_add(1).is_power_of_two() {
            tracing::warn!(
                error = error.message,
                ?rest,
                shortages,
                "short of resources; the run waits for another start"
            );
        }
        self.lasts(error, rest);
    }

    /// A start that failed is tried again after this.
    fn lasts(&self, error: &StartError, pause: Duration) {
        *self.newest() = Some((Instant::now() + pause + OVER_AFTER, error.message.clone()));
    }

    /// A start that had waited went well.
    pub fn over(&self) {
        *self.newest() = None;
    }

    /// Why agents cannot be started just now.
    pub fn reason(&self) -> Option<String> {
        self.newest().as_ref().filter(|(until, _)| Instant::now() < *until).map(|(_, reason)| reason.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rest_doubles_up_to_half_a_minute() {
        let seconds: Vec<_> = (0..7).map(|shortages| rest(shortages).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(rest(i64::MAX), LONGEST_REST);
    }

    #[test]
    fn shortage_shows_until_no_start_fails_any_more() {
        let shortages = Shortages::default();
        assert_eq!(shortages.reason(), None);
        assert_eq!(shortages.failed(&"no pids".into(), 1), FIRST_PAUSE);
        assert_eq!(shortages.failed(&"no memory".into(), 2), FIRST_PAUSE * 2);
        assert_eq!(shortages.failed(&"no memory".into(), u32::MAX), LONGEST_PAUSE);
        assert_eq!(shortages.reason().as_deref(), Some("no memory"));
        shortages.over();
        assert_eq!(shortages.reason(), None);
        *shortages.newest() = Some((Instant::now(), String::new()));
        assert_eq!(shortages.reason(), None);
    }
}
