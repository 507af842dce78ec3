//! A permission: what an agent asks before it uses a tool, and how that was decided.
//!
//! Always: the first answer counts. What was asked and answered, by whom and when, is kept.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clock::Timestamp;
use crate::id::{PermissionId, RunId, SessionId};

/// What a tool does, in the words of ACP; policies are written for these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the words are ACP's")]
pub enum ToolKind {
    Read,
    Edit,
    Delete,
    Move,
    Search,
    Execute,
    Think,
    Fetch,
    SwitchMode,
    #[default]
    Other,
}

impl ToolKind {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::Read,
        Self::Edit,
        Self::Delete,
        Self::Move,
        Self::Search,
        Self::Execute,
        Self::Think,
        Self::Fetch,
        Self::SwitchMode,
        Self::Other,
    ];

    /// The word in config, database and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Edit => "edit",
            Self::Delete => "delete",
            Self::Move => "move",
            Self::Search => "search",
            Self::Execute => "execute",
            Self::Think => "think",
            Self::Fetch => "fetch",
            Self::SwitchMode => "switch_mode",
            Self::Other => "other",
        }
    }
}

/// What selecting an option means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the words are ACP's")]
pub enum OptionKind {
    AllowOnce,
    AllowAlways,
    RejectOnce,
    RejectAlways,
}

impl OptionKind {
    /// Whether the tool may be used.
    pub fn allows(self) -> bool {
        matches!(self, Self::AllowOnce | Self::AllowAlways)
    }
}

/// One of the answers that an agent offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermissionOption {
    /// The agent's own id of the option.
    pub id: String,
    /// Display name.
    pub name: String,
    /// Whether it allows or rejects, and for how long.
    pub kind: OptionKind,
}

/// What an agent asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PermissionRequest {
    /// The agent's own id of the request; unique within the turn.
    pub request: String,
    /// The tool call that waits; empty when the agent names none.
    pub tool_call: String,
    /// The tool.
    pub tool: String,
    /// What the tool does.
    pub kind: ToolKind,
    /// One sentence for people.
    pub title: String,
    /// The tool's input.
    pub input: Value,
    /// The answers that the agent accepts; at least one.
    pub options: Vec<PermissionOption>,
}

impl PermissionRequest {
    /// The option that allows or denies with the least effect: once before always.
    pub fn option_for(&self, allow: bool) -> Option<&PermissionOption> {
        let wanted = if allow {
            [OptionKind::AllowOnce, OptionKind::AllowAlways]
        } else {
            [OptionKind::RejectOnce, OptionKind::RejectAlways]
        };
        wanted.into_iter().find_map(|kind| self.options.iter().find(|option| option.kind == kind))
    }

    /// What an answer decides; `None` when there is no such option, or none that allows.
    pub fn decide(&self, answer: &Answer) -> Option<Decision> {
        match answer {
            Answer::Option(id) => self.options.iter().find(|option| option.id == *id).cloned().map(Decision::Selected),
            Answer::Approved(true) => self.option_for(true).cloned().map(Decision::Selected),
            Answer::Approved(false) => Some(self.denial()),
        }
    }

    /// The decision that denies the request; denying is always possible.
    fn denial(&self) -> Decision {
        self.option_for(false).cloned().map_or(Decision::Cancelled, Decision::Selected)
    }
}

/// An answer to a permission request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// One of the options, by its id.
    Option(String),
    /// Yes or no: the option that means so with the least effect.
    Approved(bool),
}

/// The decision on a request, which the agent is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// With one of its options.
    Selected(PermissionOption),
    /// Denied without a rejecting option, or the turn was cancelled.
    Cancelled,
}

impl Decision {
    /// Whether the tool may be used.
    pub fn allows(&self) -> bool {
        match self {
            Self::Selected(option) => option.kind.allows(),
            Self::Cancelled => false,
        }
    }

    /// The id of the option that was chosen.
    pub fn option(&self) -> Option<&str> {
        match self {
            Self::Selected(option) => Some(&option.id),
            Self::Cancelled => None,
        }
    }

    /// The state of a request with this decision.
    pub fn state(&self) -> PermissionState {
        if self.allows() { PermissionState::Allowed } else { PermissionState::Denied }
    }
}

/// The state of a permission request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PermissionState {
    /// Waits for an answer.
    Pending,
    /// The tool may be used.
    Allowed,
    /// The tool may not be used.
    Denied,
    /// No answer before `expires_at`; counts as denied.
    Expired,
    /// The turn ended first.
    Cancelled,
}

impl PermissionState {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Allowed, Self::Denied, Self::Expired, Self::Cancelled];

    /// The word in the database and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }
}

/// There is no such state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no state of a permission: pending, allowed, denied, expired and cancelled are")]
pub struct UnknownState(String);

impl FromStr for PermissionState {
    type Err = UnknownState;
    fn from_str(word: &str) -> Result<Self, UnknownState> {
        Self::ALL.into_iter().find(|state| state.as_str() == word).ok_or_else(|| UnknownState(word.to_owned()))
    }
}

/// A permission, as readers see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Permission {
    /// Its id: the `approvalId` of the AI SDK.
    pub id: PermissionId,
    /// The run that waits for it.
    pub run_id: RunId,
    /// Its session.
    pub session_id: SessionId,
    /// What was asked.
    #[serde(flatten)]
    pub request: PermissionRequest,
    /// Its state.
    pub state: PermissionState,
    /// The option that was chosen.
    pub option: Option<String>,
    /// Who answered: the name of a token, `cli:` and the user at a command line, or `policy`.
    pub answered_by: Option<String>,
    /// The reason that came with the answer, if any.
    pub reason: Option<String>,
    /// When it was asked.
    pub requested_at: Timestamp,
    /// When it expires.
    pub expires_at: Option<Timestamp>,
    /// When it was decided.
    pub answered_at: Option<Timestamp>,
}

impl Permission {
    /// The decision that the agent is told; `None` while the request is pending. An expired request is denied.
    pub fn decision(&self) -> Option<Decision> {
        match self.state {
            PermissionState::Pending => None,
            PermissionState::Allowed | PermissionState::Denied => {
                let chosen = self.option.clone().and_then(|id| self.request.decide(&Answer::Option(id)));
                Some(chosen.unwrap_or(Decision::Cancelled))
            }
            PermissionState::Expired => Some(self.request.denial()),
            PermissionState::Cancelled => Some(Decision::Cancelled),
        }
    }

    /// Whether the stored decision is the one that this answer would make.
    pub fn agrees_with(&self, answer: &Answer) -> bool {
        match answer {
            Answer::Option(id) => self.option.as_ref() == Some(id),
            Answer::Approved(true) => self.state == PermissionState::Allowed,
            Answer::Approved(false) => self.state == PermissionState::Denied,
        }
    }
}

/// How an agent's requests for one kind of tool are handled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Ask a person.
    #[default]
    Ask,
    /// Allow without asking.
    Allow,
    /// Deny without asking.
    Deny,
}
