//! A slot: a numbered place in a workspace's pool, room for one live session at a time.

use serde::Serialize;

use crate::clock::Timestamp;
use crate::id::{RunId, SessionId, WorkspaceName};

/// A slot and who sits in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Slot {
    /// `chat-slot-<workspace>-<number>`.
    pub id: String,
    /// Its pool.
    pub workspace: WorkspaceName,
    /// Its number, from 1.
    pub number: i64,
    /// False when the config has fewer slots now: it is given to nobody any more.
    pub enabled: bool,
    /// `free`, `active` or `idle`.
    pub state: String,
    /// The session in it.
    pub session_id: Option<SessionId>,
    /// The run that runs in it.
    pub run_id: Option<RunId>,
    /// When its session was last of use.
    pub last_active_at: Option<Timestamp>,
}
