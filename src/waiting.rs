//! What a run waits for, when it does not go on.

use serde::Serialize;

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
    /// Something of the system that the start of its agent needs: file descriptors, processes, memory, disk space. It is tried
    /// again after the time before which it does not begin.
    Resources,
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
    pub const ALL: [WaitsFor; 9] = [
        Self::Turn,
        Self::Slot,
        Self::SharedAgent,
        Self::NotBefore,
        Self::Resources,
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
            Self::Resources => "resources",
            Self::AgentLimit => "agent_limit",
            Self::Worker => "worker",
            Self::Daemon => "daemon",
            Self::Answer => "answer",
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
