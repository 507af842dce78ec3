//! Starts that wait until the system has again what it is short of: file descriptors, processes, memory, disk space.
//!
//! Always: nothing that was accepted fails because of a shortage. What waits keeps its place, tries again after a pause, and
//! shows in `/readyz`, in a metric and in the log.
//!
//! Proof: `tests/faults/shortage.rs`.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::metrics::METRICS;
use crate::process::StartError;

/// Between two tries. The pause doubles: a machine that is short of processes is not helped by attempts to start more.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// A shortage without a failed start for this long is over: more than the longest pause and the try behind it.
const OVER_AFTER: Duration = Duration::from_secs(10);

/// The newest start of this process that failed for want of something.
#[derive(Debug, Default)]
pub(super) struct Shortages(Mutex<Option<(Instant, String)>>);

impl Shortages {
    fn newest(&self) -> MutexGuard<'_, Option<(Instant, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a start that failed, for the `tries`th time. Answers with the pause before the next one.
    pub fn failed(&self, error: &StartError, tries: u32) -> Duration {
        METRICS.starts_retried.inc();
        // A shortage may last for days: each line comes after twice the time of the one before.
        if tries.is_power_of_two() {
            tracing::warn!(error = error.message, tries, "short of resources; the start is tried again");
        }
        *self.newest() = Some((Instant::now(), error.message.clone()));
        FIRST_PAUSE.saturating_mul(1 << tries.saturating_sub(1).min(8)).min(LONGEST_PAUSE)
    }

    /// A start that had waited went well.
    pub fn over(&self) {
        *self.newest() = None;
    }

    /// Why agents cannot be started just now.
    pub fn reason(&self) -> Option<String> {
        self.newest().as_ref().filter(|(at, _)| at.elapsed() < OVER_AFTER).map(|(_, reason)| reason.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let ago = Instant::now().checked_sub(OVER_AFTER).unwrap();
        *shortages.newest() = Some((ago, String::new()));
        assert_eq!(shortages.reason(), None);
    }
}
