//! A slot: a numbered place in a workspace's pool, room for one live session at a time.

use serde::Serialize;

use crate::clock::Timestamp;
use crate::id::{RunId, SessionId, WorkspaceName};

/// A slot and the session in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Slot {
    /// `chat-slot-<workspace>-<number>`.
    pub id: String,
    /// Its pool.
    pub workspace: WorkspaceName,
    /// Its number, from 1.
    pub number: i64,
    /// False when the config has fewer slots now: it is not assigned any more.
    pub enabled: bool,
    /// `free`, `active` or `idle`.
    pub state: String,
    /// The session in it.
    pub session_id: Option<SessionId>,
    /// The run that is running in it.
    pub run_id: Option<RunId>,
    /// When its session was last active.
    pub last_active_at: Option<Timestamp>,
}
