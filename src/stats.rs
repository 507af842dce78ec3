//! How the whole is and how it went lately: what an operator looks at first.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::clock::Timestamp;

/// Over all processes on the file. What happened is counted since `since`; what is, is as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// From when on is counted.
    pub since: Timestamp,
    /// Sessions.
    pub sessions: SessionStats,
    /// Turns.
    pub turns: TurnStats,
    /// How long completed turns took, from their claim to their end.
    pub latency_ms: LatencyStats,
    /// Turns that failed, by class; `other` are those of no class.
    pub errors: BTreeMap<String, i64>,
    /// Live agents that are kept warm.
    pub backends: BackendStats,
    /// What agents wait to be allowed.
    pub permissions_pending: i64,
}

/// Sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SessionStats {
    /// How many have a slot or share an agent now.
    pub placed: i64,
    /// In how many anything happened.
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

/// Milliseconds; none when nothing was completed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LatencyStats {
    /// On average, rounded.
    pub average: Option<i64>,
    /// At most.
    pub max: Option<i64>,
}

/// Live agents that are kept warm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackendStats {
    /// How many there are now, by state.
    pub live: BTreeMap<String, i64>,
    /// How many were stopped.
    pub stopped: i64,
    /// When the last one was.
    pub last_stopped_at: Option<Timestamp>,
}
