//! An assignment: which session sits in which slot, and until when it may idle there.
//!
//! Always: one live assignment per session and per slot, and nothing busy ever expires (`migrations/`:
//! `one_live_assignment_per_session`, `one_live_session_per_slot`, `busy_never_expires`). Enqueue, claim and settle move it by
//! triggers in the same transaction; callers have nothing to do.

use serde::Serialize;

use crate::clock::Timestamp;

/// active ⇄ idle → expired, reclaimed or deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AssignmentState {
    /// A run of the session is queued or running.
    Active,
    /// The session has nothing to do; it keeps the slot until the idle TTL has passed.
    Idle,
    /// It was idle for too long: the slot is free.
    Expired,
    /// It was idle while another session needed a slot: that session has the slot now.
    Reclaimed,
    /// The session was closed: the slot is free.
    Deleted,
}

impl AssignmentState {
    /// Every state.
    pub const ALL: [AssignmentState; 5] = [Self::Active, Self::Idle, Self::Expired, Self::Reclaimed, Self::Deleted];

    /// The word in the database and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Idle => "idle",
            Self::Expired => "expired",
            Self::Reclaimed => "reclaimed",
            Self::Deleted => "deleted",
        }
    }
}

/// The assignment of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Assignment {
    /// The slot; none when it shares the workspace's resident agent.
    pub slot: Option<String>,
    /// Its state.
    pub state: AssignmentState,
    /// When it was last used.
    pub last_active_at: Timestamp,
    /// Whether the slot differs from the session's previous one: an agent that keys its context by slot has lost it.
    pub slot_changed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_knows_the_same_states() {
        let list = AssignmentState::ALL.map(|s| format!("'{}'", s.as_str())).join(", ");
        assert!(include_str!("../migrations/V1__engine.sql").contains(&format!("({list})")), "{list}");
    }
}
