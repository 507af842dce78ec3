//! How the process of any agent is started, kept, read and ended: a [`Prompt`] gives a [`Reply`], what the agent says, as
//! [`Record`]s with the position in its output, and at the end how it ended.
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

/// A piece of an agent's output: what was read between the last record's offset and this one's. After [`Driver::adopt`]
/// what was read before is read again; a record ends at [`Adoption::offset`], and what comes behind it is news.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Position in the agent's output just behind this piece; grows from record to record.
    pub offset: u64,
    /// What it means; empty for a line that only counts as read.
    pub events: Vec<AgentEvent>,
    /// The memory that it takes, given back when this is dropped.
    pub held: Held,
}

/// Which turn it is, and where.
#[derive(Debug, Clone)]
pub struct TurnPlace {
    /// The run and the try at it; also the marker in the environment of everything that it starts.
    pub attempt: Attempt,
    /// The conversation.
    pub session: SessionId,
    /// The slot's id, or the workspace's when the session shares the resident agent.
    pub slot: String,
    /// The workspace.
    pub workspace: WorkspaceName,
    /// Where to work; absolute.
    pub dir: PathBuf,
    /// The agent's own id of this conversation, when it told us one.
    pub agent_session: Option<String>,
    /// Where the live agent is reached that the turn is on; none for a driver that needs none.
    pub endpoint: Option<String>,
}

/// What a backend is asked in one turn.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// The turn.
    pub place: TurnPlace,
    /// What the person said.
    pub message: String,
    /// The files of the message.
    pub attachments: Vec<Attachment>,
    /// The options of the session. Its `cwd` is [`TurnPlace::dir`] then, without links in it.
    pub options: SessionOptions,
    /// What they may be, as far as that is known only when the agent says what it offers.
    pub rules: OptionRules,
    /// Whether the agent may forget the conversation after the turn.
    pub oneshot: bool,
    /// From then on nothing is started: the run may be somebody else's.
    pub start_by: Instant,
    /// The longest that the turn may take; it is ended somewhat later also when no engine is there to do it.
    pub limit: Duration,
}

/// What it takes to go on with an agent that another worker started.
#[derive(Debug, Clone)]
pub struct Adoption {
    /// The run and the try at it that the lease allows now.
    pub attempt: Attempt,
    /// The process that holds the agent.
    pub host: Shim,
    /// Position in the agent's output up to which records became events.
    pub offset: u64,
}

/// The agent could not be started: nothing of it ran.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed to start agent: {message}")]
pub struct StartError {
    /// What is wrong and what can be done, for people.
    pub message: String,
    /// What kind of failure it is, if it is one of those that programs act on.
    pub class: Option<ErrorClass>,
    /// The system was short of something ([`is_shortage`]): the same start may succeed in a moment.
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
    /// The process that holds the agent, if one does. It starts nothing before [`Control::begin`].
    pub host: Option<Shim>,
    /// What it says. The channel is bounded: an agent waits for us, not the other way round. Closed when all is read.
    pub records: mpsc::Receiver<Record>,
    /// How to begin, to stop and to leave. An agent whose records nobody takes any more is left.
    pub control: Control,
    /// What the turn takes of the memory.
    pub memory: Account,
    /// Settled when the agent and everything that it started are gone, or when it was left.
    pub end: JoinHandle<End>,
}

/// What became of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Nothing of it ran: because of this, or because nobody wanted it any more.
    NotStarted(Option<StartError>),
    /// It ended, and nothing is left of it.
    Exited(ExitReport),
    /// The process that held it was lost, and it was ended. What is known of it.
    ShimLost(ExitReport),
    /// It goes on without us.
    Left,
}
