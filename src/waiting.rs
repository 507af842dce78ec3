//! What a run waits for, when it does not go on.

use serde::Serialize;

use crate::run::Run;

/// Why a run does not go on just now. The order is that in which a run meets them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitsFor {
    /// Its turn: other runs of its session come first.
    Turn,
    /// A slot of its workspace.
    Slot,
    /// The agent that its session shares with others: that takes one turn at a time.
    SharedAgent,
    /// The time before which it does not begin.
    NotBefore,
    /// Its agent, which has as many turns as it may have at once.
    AgentLimit,
    /// A worker: those that are there are busy, or have not looked yet.
    Worker,
    /// A process that executes runs: there is none.
    Daemon,
    /// An answer to what its agent asks.
    Answer,
}

impl WaitsFor {
    /// Every reason.
    pub const ALL: [WaitsFor; 8] = [
        Self::Turn,
        Self::Slot,
        Self::SharedAgent,
        Self::NotBefore,
        Self::AgentLimit,
        Self::Worker,
        Self::Daemon,
        Self::Answer,
    ];

    /// The word in the store and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Turn => "turn",
            Self::Slot => "slot",
            Self::SharedAgent => "shared_agent",
            Self::NotBefore => "not_before",
            Self::AgentLimit => "agent_limit",
            Self::Worker => "worker",
            Self::Daemon => "daemon",
            Self::Answer => "answer",
        }
    }

    /// For people: what `run` waits for, and what can be done.
    pub fn explain(self, run: &Run) -> String {
        let Run { session_id, workspace, agent, .. } = run;
        match self {
            Self::Turn => format!("its turn: other runs of session {session_id} come first"),
            Self::Slot => format!("a slot of workspace {workspace}: all are taken by busy sessions (`mainstay slots`)"),
            Self::SharedAgent => {
                format!(
                    "the agent that sessions without a slot share in workspace {workspace}: it takes one turn at a time"
                )
            }
            Self::NotBefore => {
                run.not_before.map_or_else(|| "its time".to_owned(), |at| format!("its time: it begins at {at}"))
            }
            Self::AgentLimit => format!("agent {agent}: it has as many turns at once as it may (`max_concurrent`)"),
            Self::Worker => "a worker: all are busy (`mainstay workers`)".to_owned(),
            Self::Daemon => "a daemon: no process executes runs on this file; start `mainstay serve`".to_owned(),
            Self::Answer => "an answer to what its agent asks (`mainstay permissions`)".to_owned(),
        }
    }
}

impl std::str::FromStr for WaitsFor {
    type Err = UnknownReason;
    fn from_str(text: &str) -> Result<Self, UnknownReason> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text).ok_or_else(|| UnknownReason(text.to_owned()))
    }
}

/// The word names nothing that a run waits for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is nothing that a run waits for")]
pub struct UnknownReason(String);
