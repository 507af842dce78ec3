//! A session: one conversation. It owns a log of events, messages, and the agent's own id for resuming it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::assignment::Assignment;
use crate::clock::Timestamp;
use crate::event::Seq;
use crate::id::{AgentName, RunId, SessionId, WorkspaceName};
use crate::options::{Effect, SessionOptions};
use crate::run::Status;
use crate::usage::Usage;

/// What a session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Execution {
    /// It has no queued or running run.
    Idle,
    /// A run is running.
    Streaming,
    /// A run is queued.
    Queued,
    /// The next run waits for a time in the future.
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

/// Whether an agent remembers a session from turn to turn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionMode {
    /// Each turn continues the agent's own session.
    #[default]
    Persistent,
    /// Each turn begins a new one, and the agent may forget it.
    Oneshot,
}

/// An id under which an agent has known a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AgentSession {
    /// The agent.
    pub agent: AgentName,
    /// Its id.
    pub id: String,
    /// How the newest turn in it obtained it: `new`, `reused`, `resumed` or `loaded`.
    pub origin: String,
    /// The newest turn in it.
    pub run_id: RunId,
    /// The turn that found it lost, and began a new one.
    pub lost_in: Option<RunId>,
    /// When an agent first reported it.
    pub began_at: Timestamp,
    /// When the newest turn in it reported it.
    pub used_at: Timestamp,
}

/// The options of a session, and their effects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OptionsReport {
    /// The options that are set.
    pub options: SessionOptions,
    /// The effect of each: `applied`, `ignored`, or `unknown` until the agent has reported what it offers.
    pub effects: BTreeMap<String, Effect>,
    /// What the agent offers, in its own words; null until it has reported that.
    pub advertised: Option<Value>,
}

/// A session, as readers see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// The workspace it belongs to.
    pub workspace: WorkspaceName,
    /// The agent it talks to.
    pub agent: AgentName,
    /// Given, or taken from its first message.
    pub title: Option<String>,
    /// How long it keeps its slot while idle.
    pub idle_ttl_ms: i64,
    /// The slot or shared agent that it has now; none when it never had one, was closed, or was idle for too long.
    pub assignment: Option<Assignment>,
    /// What it is doing now.
    pub execution: Execution,
    /// Whether it gives up its slot once its runs have ended, or runs are still being cancelled because it was closed.
    pub closing: bool,
    /// Whether its agent remembers it from turn to turn.
    pub mode: SessionMode,
    /// The options that its agent is given.
    pub options: SessionOptions,
    /// The agent's own session that the next turn continues; none before the first turn and after a reset.
    pub agent_session: Option<AgentSession>,
    /// The session that it works for.
    pub spawned_by: Option<SessionId>,
    /// What it is for, in a word or two.
    pub label: Option<String>,
    /// The tail of its agent's newest text, on one line.
    pub progress: Option<String>,
    /// How its newest settled run ended.
    pub last_outcome: Option<Status>,
    /// The usage of all its runs, as far as their agents report it; for the context, the current values.
    pub usage: Usage,
    /// The newest event of its log; 0 when there is none.
    pub last_seq: Seq,
    /// When it was created.
    pub created_at: Timestamp,
    /// When something was last enqueued, begun or ended in it.
    pub updated_at: Timestamp,
}
