//! How any agent process is started, kept, read and ended: a [`Prompt`] gives a [`Reply`], which yields the agent's
//! output as [`Record`]s with their position in it, and at the end how the agent ended.
//!
//! Deliberately absent: what a line means (`driver`), and the store.

pub mod caller;
mod clean;
pub(crate) mod control;
pub mod descriptors;
#[cfg(test)]
pub(crate) mod fixtures;
pub(crate) mod frames;
pub mod last_words;
pub(crate) mod launch;
pub(crate) mod lines;
pub(crate) mod output;
pub mod program;
pub mod reap;
pub mod shim;
pub(crate) mod shim_client;
mod stderr;
pub mod temp_dir;
pub(crate) mod template;
mod text;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::agent_event::AgentEvent;
use crate::failure::{ErrorClass, is_shortage};
use crate::id::{SessionId, WorkspaceName};
use crate::memory::{Account, Held};
use crate::message::Attachment;
use crate::options::SessionOptions;
use crate::policy::OptionRules;
use crate::run::{Attempt, ExitReport};
use crate::worker::Shim;

pub use self::control::Control;
pub use self::output::decode;
pub use self::shim::dir::Shims;

/// A piece of an agent's output: what was read between the previous record's offset and this one's. After
/// `Driver::adopt` the output is read again from its beginning; one record ends exactly at [`Adoption::offset`], and
/// everything after it is new.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Position in the agent's output just behind this piece; grows from record to record.
    pub offset: u64,
    /// Its events; empty for lines that only advance the position.
    pub events: Vec<AgentEvent>,
    /// The memory that it takes, released on drop.
    pub held: Held,
}

/// Identifies a turn and where it is executed.
#[derive(Debug, Clone)]
pub struct TurnPlace {
    /// The run and its attempt; also the marker in the environment of every process that the agent starts.
    pub attempt: Attempt,
    /// The conversation.
    pub session: SessionId,
    /// The slot's id, or the workspace's when the session shares the resident agent.
    pub slot: String,
    /// The workspace.
    pub workspace: WorkspaceName,
    /// The working directory; absolute.
    pub dir: PathBuf,
    /// The agent's own id of this conversation, if it reported one.
    pub agent_session: Option<String>,
    /// Where the backend of the turn is reached; none for a driver without backends.
    pub endpoint: Option<String>,
}

/// What an agent is asked in one turn.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// The turn and where it is executed.
    pub place: TurnPlace,
    /// The user's message.
    pub message: String,
    /// The files of the message.
    pub attachments: Vec<Attachment>,
    /// The options of the session. If `cwd` is set, it equals [`TurnPlace::dir`], with links resolved.
    pub options: SessionOptions,
    /// Limits on the options that can be checked only when the agent says what it offers.
    pub rules: OptionRules,
    /// Whether the agent may forget the conversation after the turn.
    pub oneshot: bool,
    /// Nothing is started after this instant: the run may belong to another worker by then.
    pub start_by: Instant,
    /// Maximum duration of the turn. The shim enforces it somewhat later if no engine does.
    pub limit: Duration,
}

/// What is needed to continue with an agent that another worker started.
#[derive(Debug, Clone)]
pub struct Adoption {
    /// The run and the attempt that the current lease allows.
    pub attempt: Attempt,
    /// The shim of the agent.
    pub host: Shim,
    /// Position in the agent's output up to which records became events.
    pub offset: u64,
}

/// The agent could not be started, and nothing of it ran.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed to start agent: {message}")]
pub struct StartError {
    /// What is wrong and what to do about it.
    pub message: String,
    /// The kind of failure, if programs act on it.
    pub class: Option<ErrorClass>,
    /// The system was short of a resource ([`is_shortage`]): the same start may succeed in a moment.
    pub is_shortage: bool,
}

impl StartError {
    /// A system call failed while the agent was being started.
    pub(crate) fn at(what: &str, error: &io::Error) -> Self {
        Self { message: format!("{what}: {error}"), class: None, is_shortage: is_shortage(error) }
    }
}

impl<T: Into<String>> From<T> for StartError {
    fn from(message: T) -> Self {
        Self { message: message.into(), class: None, is_shortage: false }
    }
}

/// An agent that answers a prompt.
#[derive(Debug)]
pub struct Reply {
    /// The shim of the agent, if it has one. It starts nothing before [`Control::begin`].
    pub host: Option<Shim>,
    /// The agent's output. The channel is bounded, so that the agent waits for the engine. Closed when everything is read.
    pub records: mpsc::Receiver<Record>,
    /// How to begin, stop or leave the agent. Dropping the receiver of the records leaves it too.
    pub control: Control,
    /// The memory that the turn takes.
    pub memory: Account,
    /// Completes when the agent and everything that it started are gone, or when the agent was left.
    pub end: JoinHandle<End>,
}

/// How an agent ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Nothing of it ran, because of this error or because it was no longer wanted.
    NotStarted(Option<StartError>),
    /// It ended, and no process of it is left.
    Exited(ExitReport),
    /// Its shim was lost, and the agent was ended. What is known of its end.
    ShimLost(ExitReport),
    /// It keeps running without this engine.
    Left,
}
