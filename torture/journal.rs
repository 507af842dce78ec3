//! The journal of a torture: how often each thing was done, and the violations.
//!
//! Always: bounded; of violations beyond the first few only the number is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use mainstay::clock::Timestamp;

/// How many violations are kept with their details.
const MAX_VIOLATIONS: usize = 50;

/// Something that must never happen, and did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Violation {
    /// Which promise is broken.
    pub(super) promise: &'static str,
    /// Where, and how.
    pub(super) detail: String,
}

/// The counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Count {
    EngineKills,
    AgentKills,
    HostKills,
    RelayKills,
    BridgeKills,
    BridgeHostKills,
    GatewayKills,
    EnginePauses,
    BridgePauses,
    BackendStops,
    Drains,
    HandOvers,
    Cancels,
    Closes,
    Sweeps,
    MessagesAcknowledged,
    MessagesRefused,
    SendsRetried,
    SendsDoubled,
    SendsHungUp,
    StreamsOpened,
    EventsRead,
    LooksAtBackends,
}

/// What counts as a kill.
const KILLS: [Count; 7] = [
    Count::EngineKills,
    Count::AgentKills,
    Count::HostKills,
    Count::RelayKills,
    Count::BridgeKills,
    Count::BridgeHostKills,
    Count::GatewayKills,
];

/// Shared by all tasks.
#[derive(Debug, Default)]
pub(super) struct Journal {
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    counts: BTreeMap<Count, u64>,
    violations: Vec<Violation>,
    violations_total: u64,
    runs_without_shim: BTreeSet<String>,
    gateway_down: Vec<(Timestamp, Timestamp)>,
    most_backends: usize,
}

impl Journal {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count(&self, what: Count) {
        self.add(what, 1);
    }

    pub(super) fn add(&self, what: Count, number: u64) {
        *self.entries().counts.entry(what).or_default() += number;
    }

    pub(super) fn counted(&self, what: Count) -> u64 {
        self.entries().counts.get(&what).copied().unwrap_or_default()
    }

    /// Processes that were ended by SIGKILL.
    pub(super) fn kills(&self) -> u64 {
        KILLS.map(|kills| self.counted(kills)).iter().sum()
    }

    pub(super) fn violation(&self, promise: &'static str, detail: impl Into<String>) {
        let mut entries = self.entries();
        entries.violations_total += 1;
        if entries.violations.len() < MAX_VIOLATIONS {
            entries.violations.push(Violation { promise, detail: detail.into() });
        }
    }

    pub(super) fn violations(&self) -> u64 {
        self.entries().violations_total
    }

    /// The shim of this run's agent was killed.
    pub(super) fn shim_killed(&self, run: String) {
        self.entries().runs_without_shim.insert(run);
    }

    pub(super) fn runs_without_shim(&self) -> BTreeSet<String> {
        self.entries().runs_without_shim.clone()
    }

    /// The gateway may have been down between these times.
    pub(super) fn gateway_was_down(&self, from: Timestamp, to: Timestamp) {
        self.entries().gateway_down.push((from, to));
    }

    pub(super) fn gateway_down(&self) -> Vec<(Timestamp, Timestamp)> {
        self.entries().gateway_down.clone()
    }

    /// This many backends were alive at once.
    pub(super) fn saw_backends(&self, number: usize) {
        self.count(Count::LooksAtBackends);
        let mut entries = self.entries();
        entries.most_backends = entries.most_backends.max(number);
    }

    pub(super) fn report(&self, seed: u64, duration: Duration, found: Findings) -> Report {
        let entries = self.entries();
        Report {
            seed,
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            counts: entries.counts.clone(),
            most_backends: entries.most_backends,
            found,
            violations_total: entries.violations_total,
            violations: entries.violations.clone(),
            kept_in: None,
        }
    }
}

/// What the database held at the end.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Findings {
    /// Runs by status.
    pub(super) runs: BTreeMap<&'static str, u64>,
    /// Completed runs by agent.
    pub(super) completed_by: BTreeMap<String, u64>,
    /// Runs by cause.
    pub(super) causes: BTreeMap<String, u64>,
    /// Runs that were claimed more than once.
    pub(super) runs_tried_again: u64,
    /// Events in all logs.
    pub(super) events: u64,
    /// Agents that kept a record.
    pub(super) agents: u64,
    /// Questions of agents that were answered.
    pub(super) answers: u64,
    /// Turns whose connection to their backend was cut.
    pub(super) cuts: u64,
    /// Words that agents said while that connection was broken.
    pub(super) unheard: u64,
    /// Backends that were started.
    pub(super) backends: u64,
}

/// The report of a torture.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    /// The seed of all draws.
    pub(super) seed: u64,
    /// How long it took, including the checks.
    pub(super) duration_ms: u64,
    /// What was done.
    #[serde(flatten)]
    pub(super) counts: BTreeMap<Count, u64>,
    /// The most backends that were seen alive at once.
    pub(super) most_backends: usize,
    /// The content of the database at the end.
    #[serde(flatten)]
    pub(super) found: Findings,
    /// How many violations there were.
    pub(super) violations_total: u64,
    /// The first of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) violations: Vec<Violation>,
    /// Where the database, logs and records are, if they were kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kept_in: Option<String>,
}
