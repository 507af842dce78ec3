//! Agents: child processes and outbound calls. A [`Backend`] is prompted and gives a [`Reply`]: what the agent says, as
//! [`Record`]s with the position in its output, and at the end how it ended.
//!
//! Deliberately absent: the store. A driver does not know that what it reads is kept.

mod control;
pub mod demo;
mod home;
pub mod host;
mod launch;
mod lines;
pub mod openclaw;
mod output;
pub mod process;
pub mod reap;
mod stderr;
mod temp_dir;
mod template;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::agent::{Agent, Driver};
use crate::id::{SessionId, WorkspaceName};
use crate::run::{Attempt, ExitReport};
use crate::worker::AgentHost;

pub use self::control::Control;
use self::process::Hosts;

pub use output::decode;

/// What an agent says, whatever protocol it speaks.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentEvent {
    /// It says what it is busy with.
    Status(String),
    /// It thinks.
    Reasoning(String),
    /// It writes to the person.
    Text(String),
    /// It starts a tool.
    ToolStarted {
        /// Unique in the turn; empty when the agent gave none.
        id: String,
        /// The tool.
        name: String,
        /// Its input.
        input: Value,
    },
    /// A tool reports progress.
    ToolProgress {
        /// The id it was started with.
        id: String,
        /// The output so far.
        output: Value,
    },
    /// A tool is done.
    ToolFinished {
        /// The id it was started with.
        id: String,
        /// The tool, when the agent says it again.
        name: Option<String>,
        /// Its output, or what went wrong.
        result: Result<Value, String>,
    },
    /// It reports an error of its own.
    Error(String),
    /// It says that the turn is over; its process may take a moment to end.
    Ended,
}

/// A piece of an agent's output: what was read between the last record's offset and this one's.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Position in the agent's output just behind this piece; grows from record to record.
    pub offset: u64,
    /// What it means; empty for a line that only counts as read.
    pub events: Vec<AgentEvent>,
}

/// Reads one line of an agent's output; `None` when it is not a line of the agent's protocol (it is counted, and reading
/// goes on). Made anew for every turn, so it may remember what it has seen.
pub type LineParser = Box<dyn FnMut(&str) -> Option<Vec<AgentEvent>> + Send>;

/// What a backend is asked in one turn.
#[derive(Debug, Clone)]
pub struct Prompt {
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
    /// What the person said.
    pub message: String,
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
    pub host: AgentHost,
    /// Position in the agent's output up to which records became events.
    pub offset: u64,
}

/// The agent could not be started: nothing of it ran.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed to start agent: {0}")]
pub struct StartError(pub String);

/// An agent that answers a prompt.
#[derive(Debug)]
pub struct Reply {
    /// The process that holds the agent, if one does. It starts nothing before [`Control::begin`].
    pub host: Option<AgentHost>,
    /// What it says. The channel is bounded: an agent waits for us, not the other way round. Closed when all is read.
    pub records: mpsc::Receiver<Record>,
    /// How to begin, to stop and to leave. An agent whose records nobody takes any more is left.
    pub control: Control,
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
    HostLost(ExitReport),
    /// It goes on without us.
    Left,
}

/// A way to reach an agent.
pub trait Backend: Send + Sync {
    /// Gets ready for one turn, which begins when [`Control::begin`] says so.
    ///
    /// # Errors
    /// [`StartError`] when the agent could not be started; then nothing of it is left.
    fn prompt(&self, prompt: Prompt) -> BoxFuture<'_, Result<Reply, StartError>>;

    /// Goes on with a turn that another worker began; `None` for agents that end with their engine.
    fn adopt(&self, adoption: Adoption) -> BoxFuture<'_, Option<Reply>>;
}

/// The backend of an agent: the one line that a new driver adds.
pub fn open(agent: &Agent, hosts: &Hosts) -> Arc<dyn Backend> {
    match &agent.driver {
        Driver::Demo => Arc::new(demo::Demo),
        Driver::Openclaw(spec) => {
            Arc::new(process::PerTurn::new(spec.clone(), agent.kill_grace, openclaw::parser, hosts.clone()))
        }
    }
}
