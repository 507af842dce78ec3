//! The output of each kind of agent: what an agent says, encoded as lines of its protocol.
//!
//! Always: one thing said becomes a few complete lines; lines that only frame it say nothing.

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

/// The protocols that agents of a torture speak.
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
    pub(super) const ALL: [Self; 6] =
        [Self::Openclaw, Self::Claude, Self::Codex, Self::Acp, Self::Opencode, Self::Gateway];

    /// The word for it on the command line, and in the config.
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

/// Encodes one turn of an agent.
pub(super) trait Encoder: Send {
    /// The lines before everything else.
    fn begin(&mut self) -> Vec<Value> {
        Vec::new()
    }

    /// One thing said.
    fn say(&mut self, said: &Said) -> Vec<Value>;

    /// A question whether a tool may be used, if the protocol has such questions and no other line resembles the answer.
    fn ask(&mut self, _question: &str, _tool: &str, _input: &str) -> Option<Value> {
        None
    }

    /// Whether a line is the answer to a question.
    fn answers(&self, _line: &Value, _question: &str) -> bool {
        false
    }

    /// The lines written at once when a turn is cancelled; its end may come later.
    fn cancelling(&mut self) -> Vec<Value> {
        Vec::new()
    }

    /// The end of a turn. An agent that is started for each turn exits without one if the turn did not go well.
    fn end(&mut self, ending: Ending) -> Vec<Value>;

    /// Whether a turn may end well without an end line.
    fn may_omit_end(&self) -> bool {
        false
    }

    /// Whether all of the text is repeated with every word.
    fn retells(&self) -> bool {
        false
    }
}
