//! Starts that wait for resources that the system is short of: file descriptors, processes, memory, disk space.
//!
//! Always: nothing that was accepted fails because of a shortage. A run is retried a few times, then goes back to the queue
//! for a while, so that others, which may not need what is short, get its worker. The shortage shows in the row of the run, in
//! a metric and in the log, and in `/readyz` unless agents can be started in another workspace.
//!
//! Proof: `tests/faults/shortage.rs`.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::id::WorkspaceName;
use crate::metrics::METRICS;
use crate::process::StartError;

/// The first pause between two attempts. It doubles: a machine that is short of processes is not helped by attempts to start
/// more.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// Attempts of a run before it goes back to the queue. One that went back before has only one.
pub(super) const TRIES: u32 = 4;
/// How long it rests there, doubled each time.
const FIRST_REST: Duration = Duration::from_secs(1);
/// A claim takes a run that would rest for longer than this.
const LONGEST_REST: Duration = Duration::from_secs(30);
/// A shortage is over when the next attempt was due this long ago.
const OVER_AFTER: Duration = Duration::from_secs(6);

/// How long a run rests in the queue that was put back this often before.
pub(super) fn rest(shortages: i64) -> Duration {
    doubled(FIRST_REST, u32::try_from(shortages).unwrap_or(u32::MAX), LONGEST_REST)
}

fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    first.saturating_mul(1 << times.min(8)).min(longest)
}

/// How the newest start in a workspace went.
#[derive(Debug)]
enum Newest {
    /// It failed for want of something.
    Short {
        /// When the first of those that failed in a row did.
        since: Instant,
        failed_at: Instant,
        /// It counts until this time.
        until: Instant,
        reason: String,
    },
    /// It succeeded.
    Fine { begun: Instant },
}

/// The starts of this process, by workspace: one that is over its quota says nothing about others.
#[derive(Debug, Default)]
pub(super) struct Shortages(Mutex<BTreeMap<WorkspaceName, Newest>>);

impl Shortages {
    fn newest(&self) -> MutexGuard<'_, BTreeMap<WorkspaceName, Newest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a failed start, the `tries`th in a row. Returns the pause before the next one.
    pub fn failed(&self, workspace: &WorkspaceName, error: &StartError, tries: u32) -> Duration {
        METRICS.starts_retried.inc();
        // A shortage may last for days: each line comes after twice as many attempts as the one before.
        if tries.is_power_of_two() {
            tracing::warn!(error = error.message, %workspace, tries, "short of resources; the start is tried again");
        }
        let pause = doubled(FIRST_PAUSE, tries.saturating_sub(1), LONGEST_PAUSE);
        self.lasts(workspace, error, pause);
        pause
    }

    /// Records a failed start whose run goes back to the queue. `shortages` is how often that happened before.
    pub fn rests(&self, workspace: &WorkspaceName, error: &StartError, shortages: i64) {
        let rest = rest(shortages);
        METRICS.starts_retried.inc();
        if shortages.unsigned_abs().saturating_add(1).is_power_of_two() {
            tracing::warn!(
                error = error.message,
                %workspace,
                ?rest,
                shortages,
                "short of resources; the run waits for another start"
            );
        }
        self.lasts(workspace, error, rest);
    }

    /// Records a failed start that is retried after `pause`.
    fn lasts(&self, workspace: &WorkspaceName, error: &StartError, pause: Duration) {
        let failed_at = Instant::now();
        let mut newest = self.newest();
        let since = match newest.get(workspace) {
            Some(Newest::Short { since, until, .. }) if failed_at < *until => *since,
            _ => failed_at,
        };
        let (until, reason) = (failed_at + pause + OVER_AFTER, error.message.clone());
        newest.insert(workspace.clone(), Newest::Short { since, failed_at, until, reason });
    }

    /// Records a start that began at `begun` and succeeded. One that began before another one failed does not show that the
    /// shortage is over.
    pub fn started(&self, workspace: &WorkspaceName, begun: Instant) {
        let mut newest = self.newest();
        if !matches!(newest.get(workspace), Some(Newest::Short { failed_at, .. }) if begun <= *failed_at) {
            newest.insert(workspace.clone(), Newest::Fine { begun });
        }
    }

    /// Records a turn that needed no start: that says nothing about a shortage in its workspace.
    pub fn served(&self, workspace: &WorkspaceName, begun: Instant) {
        let mut newest = self.newest();
        if !matches!(newest.get(workspace), Some(Newest::Short { until, .. }) if Instant::now() < *until) {
            newest.insert(workspace.clone(), Newest::Fine { begun });
        }
    }

    /// Why agents cannot be started just now in this workspace.
    pub fn reason(&self, workspace: &WorkspaceName) -> Option<String> {
        match self.newest().get(workspace)? {
            Newest::Short { until, reason, .. } if Instant::now() < *until => Some(reason.clone()),
            Newest::Short { .. } | Newest::Fine { .. } => None,
        }
    }

    /// Why no agent can be started just now: none was in any workspace since the oldest shortage began.
    pub fn reason_everywhere(&self) -> Option<String> {
        let (newest, now) = (self.newest(), Instant::now());
        let short = newest.values().filter_map(|newest| match newest {
            Newest::Short { since, until, reason, .. } if now < *until => Some((*since, reason)),
            Newest::Short { .. } | Newest::Fine { .. } => None,
        });
        let (oldest, reason) = short.min_by_key(|(since, _)| *since)?;
        let is_fine = |newest: &Newest| matches!(newest, Newest::Fine { begun } if *begun >= oldest);
        (!newest.values().any(is_fine)).then(|| reason.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(workspace: &str) -> WorkspaceName {
        workspace.parse().unwrap()
    }

    #[test]
    fn rest_doubles_up_to_half_a_minute() {
        let seconds: Vec<_> = (0..7).map(|shortages| rest(shortages).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(rest(i64::MAX), LONGEST_REST);
    }

    #[test]
    fn shortage_shows_until_no_start_fails_any_more() {
        let (shortages, a) = (Shortages::default(), name("a"));
        assert_eq!(shortages.reason(&a), None);
        let before = Instant::now();
        assert_eq!(shortages.failed(&a, &"no pids".into(), 1), FIRST_PAUSE);
        assert_eq!(shortages.failed(&a, &"no memory".into(), 2), FIRST_PAUSE * 2);
        assert_eq!(shortages.failed(&a, &"no memory".into(), u32::MAX), LONGEST_PAUSE);
        shortages.started(&a, before);
        shortages.served(&a, Instant::now());
        assert_eq!(shortages.reason(&a).as_deref(), Some("no memory"));
        shortages.started(&a, Instant::now() + FIRST_PAUSE);
        assert_eq!(shortages.reason(&a), None);
        shortages.failed(&a, &"no memory".into(), 1);
        if let Some(Newest::Short { until, .. }) = shortages.newest().get_mut(&a) {
            *until = Instant::now();
        }
        assert_eq!((shortages.reason(&a), shortages.reason_everywhere()), (None, None));
    }

    #[test]
    fn shortage_of_a_workspace_is_its_own() {
        let (shortages, [a, b, c]) = (Shortages::default(), ["a", "b", "c"].map(name));
        let everywhere = || shortages.reason_everywhere();
        shortages.started(&b, Instant::now());
        shortages.failed(&a, &"no memory".into(), 1);
        assert_eq!((shortages.reason(&a).as_deref(), shortages.reason(&b)), (Some("no memory"), None));
        assert_eq!(everywhere().as_deref(), Some("no memory"), "nothing was started since then");
        shortages.served(&b, Instant::now());
        shortages.failed(&a, &"no memory".into(), 2);
        assert_eq!(everywhere(), None);
        shortages.rests(&c, &"no space".into(), 0);
        assert_eq!(everywhere(), None);
        shortages.failed(&b, &"no pids".into(), 1);
        assert_eq!(everywhere().as_deref(), Some("no memory"), "all of them are short");
    }
}
