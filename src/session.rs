//! A session: one conversation. It owns a log of events, messages, and the agent's own id for resuming it.

use serde::Serialize;

use crate::assignment::Assignment;
use crate::clock::Timestamp;
use crate::event::Seq;
use crate::id::{AgentName, SessionId, WorkspaceName};

/// What a session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Execution {
    /// Nothing.
    Idle,
    /// A run is running.
    Streaming,
    /// A run waits for its turn.
    Queued,
    /// The next run waits for a time that is still to come.
    Parked,
}

impl Execution {
    /// The word in JSON and for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Streaming => "streaming",
            Self::Queued => "queued",
            Self::Parked => "parked",
        }
    }
}

/// A session, as readers see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// The workspace it belongs to.
    pub workspace: WorkspaceName,
    /// The agent it talks to.
    pub agent: AgentName,
    /// Given, or taken from its first message.
    pub title: Option<String>,
    /// How long it keeps its slot while nothing happens.
    pub idle_ttl_ms: i64,
    /// The slot or shared agent that it has now; none when it never had one, was closed, or was idle for too long.
    pub assignment: Option<Assignment>,
    /// What it is doing.
    pub execution: Execution,
    /// The newest event of its log; 0 when there is none.
    pub last_seq: Seq,
    /// When it was created.
    pub created_at: Timestamp,
    /// When something was last enqueued, begun or ended in it.
    pub updated_at: Timestamp,
}
