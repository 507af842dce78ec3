//! What a run waits for.

use serde::Serialize;

/// What blocks a run. In the order in which a run meets the reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitsFor {
    /// Its turn: other runs of its session come first.
    Turn,
    /// A slot of its workspace.
    Slot,
    /// The agent that its session shares with others, which executes one turn at a time.
    SharedAgent,
    /// The time before which it does not begin.
    NotBefore,
    /// A system resource that the start of its agent needs: file descriptors, processes, memory, disk space. The start is
    /// retried after `not_before`.
    Resources,
    /// Its agent, which has reached its limit of concurrent turns.
    AgentLimit,
    /// A worker: the existing ones are busy or have not polled yet.
    Worker,
    /// A process that executes runs: none is running.
    Daemon,
    /// An answer to a permission request of its agent.
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
