//! What went wrong with an agent: a class that programs can act on, and advice for people.
//!
//! Always: a class comes from a typed signal (a code, a kind, a status), never from the words of a message. An error
//! without one has no class.

use std::io;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// Kinds of failure, each with its own remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// The provider does not know the agent, or refuses its key.
    Authentication,
    /// The provider accepts no more requests until a time that it may have given.
    RateLimit,
    /// The provider is overloaded.
    Overloaded,
    /// The conversation exceeds the model's context.
    ContextTooLong,
    /// The agent's program is not installed.
    AgentMissing,
    /// The agent violated its protocol.
    Protocol,
    /// The agent exited unexpectedly.
    Crashed,
}

impl ErrorClass {
    /// Every class.
    pub const ALL: [Self; 7] = [
        Self::Authentication,
        Self::RateLimit,
        Self::Overloaded,
        Self::ContextTooLong,
        Self::AgentMissing,
        Self::Protocol,
        Self::Crashed,
    ];

    /// The word in the database, in JSON and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Authentication => "authentication",
            Self::RateLimit => "rate_limit",
            Self::Overloaded => "overloaded",
            Self::ContextTooLong => "context_too_long",
            Self::AgentMissing => "agent_missing",
            Self::Protocol => "protocol",
            Self::Crashed => "crashed",
        }
    }

    /// What a person can do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Authentication => "Log the agent in, or correct its key in `env` of the agent.",
            Self::RateLimit => "Wait until the limit is over, then send the message again.",
            Self::Overloaded => "The provider is busy: send the message again in a moment.",
            Self::ContextTooLong => "Begin a new session, or ask for less at once.",
            Self::AgentMissing => "Install the agent: `mainstay agents` says how.",
            Self::Protocol => "Check that the agent's version fits: `mainstay agents` shows it.",
            Self::Crashed => {
                "See why it ended: `mainstay show` prints what it wrote to stderr, or, when it is kept warm, `mainstay backends` \
                 says it."
            }
        }
    }
}

impl std::str::FromStr for ErrorClass {
    type Err = UnknownClass;
    fn from_str(text: &str) -> Result<Self, UnknownClass> {
        let found = Self::ALL.into_iter().find(|class| class.as_str() == text);
        found.ok_or_else(|| UnknownClass(text.chars().take(40).collect()))
    }
}

/// The word names no class.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a class of errors")]
pub struct UnknownClass(String);

/// Whether a system call failed for lack of a resource that other users give back: file descriptors (`EMFILE`, `ENFILE`),
/// processes (`EAGAIN` of a fork), memory (`ENOMEM`), disk space. The same call may succeed in a moment.
pub fn is_shortage(error: &io::Error) -> bool {
    const SHORTAGES: [Errno; 6] = [Errno::MFILE, Errno::NFILE, Errno::AGAIN, Errno::NOMEM, Errno::NOSPC, Errno::DQUOT];
    error.raw_os_error().is_some_and(|code| SHORTAGES.iter().any(|errno| errno.raw_os_error() == code))
}

/// An error that an agent reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentError {
    /// For people, in the agent's words.
    pub message: String,
    /// Its class, if the agent reports it by a typed signal.
    pub class: Option<ErrorClass>,
    /// When a retry makes sense, if known.
    pub retry_at: Option<Timestamp>,
}

impl AgentError {
    /// An error of a known class.
    pub fn of(class: ErrorClass, message: impl Into<String>) -> Self {
        Self { message: message.into(), class: Some(class), retry_at: None }
    }
}

impl<T: Into<String>> From<T> for AgentError {
    fn from(message: T) -> Self {
        Self { message: message.into(), class: None, retry_at: None }
    }
}
