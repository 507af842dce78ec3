//! Current totals and recent results: the first thing that an operator reads.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::clock::Timestamp;

/// Statistics over all processes on the file. Events are counted since `since`; states are current.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// The start of the counted period.
    pub since: Timestamp,
    /// Sessions.
    pub sessions: SessionStats,
    /// Turns.
    pub turns: TurnStats,
    /// How long completed turns took, from their claim to their end.
    pub latency_ms: LatencyStats,
    /// Failed turns by class; `other` has those without a class.
    pub errors: BTreeMap<String, i64>,
    /// Backends.
    pub backends: BackendStats,
    /// Pending permissions.
    pub permissions_pending: i64,
}

/// Sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SessionStats {
    /// Number of sessions that have a slot or share an agent now.
    pub placed: i64,
    /// Number of sessions with any activity.
    pub used: i64,
}

/// Turns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TurnStats {
    /// How many run now.
    pub active: i64,
    /// How many wait now.
    pub queued: i64,
    /// How many ended in each status.
    #[serde(flatten)]
    pub ended: BTreeMap<String, i64>,
}

/// In milliseconds; none when no turn was completed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LatencyStats {
    /// On average, rounded.
    pub average: Option<i64>,
    /// At most.
    pub max: Option<i64>,
}

/// Backends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackendStats {
    /// Number of live ones, by state.
    pub live: BTreeMap<String, i64>,
    /// How many were stopped.
    pub stopped: i64,
    /// When the last one was.
    pub last_stopped_at: Option<Timestamp>,
}
