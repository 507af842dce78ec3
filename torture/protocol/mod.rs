//! How an agent of a torture speaks: what it says, in the lines of each kind of agent.
//!
//! Always: one thing said is a handful of whole lines; what only frames it says nothing.

mod acp;
mod claude;
mod codex;
mod gateway;
mod openclaw;
mod opencode;

use serde_json::Value;

pub(super) use self::acp::Acp;
pub(super) use self::claude::Claude;
pub(super) use self::codex::Codex;
pub(super) use self::gateway::Gateway;
pub(super) use self::openclaw::Openclaw;
pub(super) use self::opencode::Opencode;
use super::record::Said;

/// The protocols that an agent of a torture knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Protocol {
    /// OpenClaw's events.
    #[default]
    Openclaw,
    /// Claude Code's stream.
    Claude,
    /// The items of `codex exec`.
    Codex,
    /// ACP, to many turns.
    Acp,
    /// The server of opencode, to many turns.
    Opencode,
    /// OpenClaw's gateway, to many turns; no engine starts it.
    Gateway,
}

impl Protocol {
    /// All of them.
    pub(super) const ALL: [Self; 6] =
        [Self::Openclaw, Self::Claude, Self::Codex, Self::Acp, Self::Opencode, Self::Gateway];

    /// The word on the command line, and in the config.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Openclaw => "openclaw",
            Self::Claude => "claude",
            Self::Codex => "codex",
            Self::Acp => "acp",
            Self::Opencode => "opencode",
            Self::Gateway => "openclaw-gateway",
        }
    }
}

impl std::str::FromStr for Protocol {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|protocol| protocol.as_str() == text);
        found.ok_or("openclaw, claude, codex, acp, opencode or openclaw-gateway is needed")
    }
}

/// How a turn ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Well,
    Failed,
    Cancelled,
}

/// An agent's encoder in one turn.
pub(super) trait Encoder: Send {
    /// What comes before all else.
    fn begin(&mut self) -> Vec<Value> {
        Vec::new()
    }

    /// One thing.
    fn say(&mut self, said: &Said) -> Vec<Value>;

    /// A question whether a tool may be used, where the protocol has that; and no other line is like its answer.
    fn ask(&mut self, _question: &str, _tool: &str, _input: &str) -> Option<Value> {
        None
    }

    /// Whether a line is the answer to a question.
    fn answers(&self, _line: &Value, _question: &str) -> bool {
        false
    }

    /// What is said at once when a turn is cancelled; its end may come later.
    fn cancelling(&mut self) -> Vec<Value> {
        Vec::new()
    }

    /// The end of a turn. Agents with a process for each turn end it without, when it did not go well.
    fn end(&mut self, ending: Ending) -> Vec<Value>;

    /// Whether a turn may end well without a word of it.
    fn may_omit_end(&self) -> bool {
        false
    }

    /// Whether all of the text is said again with every word.
    fn retells(&self) -> bool {
        false
    }
}
