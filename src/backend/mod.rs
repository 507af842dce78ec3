//! Agents: child processes and outbound calls. A [`Backend`] is prompted and gives a [`Reply`]: what the agent says, as
//! [`Record`]s with the position in its output, and at the end how it ended.
//!
//! Deliberately absent: the store. A driver does not know that what it reads is kept.

pub mod acp;
pub mod caller;
pub mod claude;
mod clean;
pub mod codex;
mod control;
pub mod demo;
pub mod descriptors;
#[cfg(test)]
mod fixtures;
mod frames;
mod home;
pub mod host;
mod json;
mod json_bounded;
pub mod last_words;
mod launch;
mod lines;
pub mod openclaw;
pub mod openclaw_gateway;
pub mod opencode;
mod output;
pub mod per_turn;
pub mod probe;
pub mod process;
mod provider;
pub mod reap;
pub mod relay;
mod stderr;
pub mod temp_dir;
pub(crate) mod template;
mod text;
pub mod warm_process;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::agent::{Agent, Driver};
use crate::chunk::Notice;
use crate::failure::{AgentError, ErrorClass, is_shortage};
use crate::id::{SessionId, WorkspaceName};
use crate::memory::{Account, Held};
use crate::message::Attachment;
use crate::options::SessionOptions;
use crate::permission::{Decision, PermissionRequest};
use crate::policy::OptionRules;
use crate::run::{Attempt, ExitReport};
use crate::usage::Usage;
use crate::warm::Care;
use crate::worker::AgentHost;
use crate::workspace::ClientAccess;

pub use self::control::Control;
use self::per_turn::{Dialect, PerTurn};
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
    /// A message of the model begins. Of a sub-agent's messages nothing is said here.
    MessageBegan(Again),
    /// It starts a tool.
    ToolStarted {
        /// Unique in the turn; empty when the agent gave none.
        id: String,
        /// The tool.
        name: String,
        /// What this call does, in the agent's words for people.
        title: Option<String>,
        /// Its input.
        input: Value,
        /// The call of the tool on whose behalf this one is used: that of a sub-agent.
        parent: Option<String>,
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
    /// It made a file.
    File {
        /// What it is.
        media_type: String,
        /// Where it is; a `data:` URL holds it.
        url: String,
    },
    /// It points to a resource.
    Source {
        /// Where that is.
        url: String,
        /// What it is called.
        title: Option<String>,
    },
    /// What it means to do, as a list of steps (`[{content, status, priority?}, …]`); takes the place of an earlier one.
    Plan(Value),
    /// It asks whether a tool may be used, and waits.
    Permission(PermissionRequest),
    /// Its own id of this conversation.
    Session {
        /// The id.
        id: String,
        /// How the turn came by it.
        origin: SessionOrigin,
    },
    /// What it calls the conversation.
    Title(String),
    /// The modes, options and commands that it offers (`{modes?, config_options?, commands?}`); a key that is not there
    /// did not change.
    Advertised(Value),
    /// What the turn used so far.
    Usage(Usage),
    /// What its session used so far, in earlier turns as well.
    TotalUsage(Usage),
    /// It says something to the person beside its answer.
    Notice(Notice),
    /// A block of the model's message begins. Its number, which no other block of the turn has, names it in
    /// [`AgentEvent::Withdrawn`]: what is said from here on until the next block or message begins belongs to it.
    BlockBegan(u64),
    /// It takes blocks back that it said: their words do not count any more.
    Withdrawn(Vec<u64>),
    /// So many tasks run in its background: a turn whose end was said is not over before they are.
    Tasks(usize),
    /// It works on, although it said its end.
    Continued,
    /// It asks for something that is not served. The line refuses that, and is written to its stdin at once. To be told
    /// twice does no harm.
    Refused(String),
    /// It asks no more what it asked under this id ([`PermissionRequest::request`]).
    PermissionWithdrawn(String),
    /// It proves that the session that it was to go on in is gone.
    SessionGone,
    /// It reports an error of its own.
    Error(AgentError),
    /// It reports an error that it may overcome: the error of the turn if that ends without its end.
    Trouble(AgentError),
    /// It says that the turn is over; its process may take a moment to end.
    Ended,
}

/// Whether the agent's protocol says that a message of the model is the one before, asked for again after its stream broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// It is new.
    No,
    /// It is the newest message once more, of which nothing counts any more.
    Yes,
}

/// How a turn came by the agent's own session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionOrigin {
    /// It is a new one.
    New,
    /// A live agent had it.
    Reused,
    /// The agent went on with it, without telling it again.
    Resumed,
    /// The agent read it back and told it again.
    Loaded,
}

impl SessionOrigin {
    /// The word in the database and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Reused => "reused",
            Self::Resumed => "resumed",
            Self::Loaded => "loaded",
        }
    }
}

/// A piece of an agent's output: what was read between the last record's offset and this one's. After [`Backend::adopt`]
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

/// Reads one line of an agent's output; `None` when it is not a line of the agent's protocol (it is counted, and reading
/// goes on). Made anew for every turn, so it may remember what it has seen.
pub type LineParser = Box<dyn FnMut(&str) -> Option<Vec<AgentEvent>> + Send>;

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
    pub host: AgentHost,
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

/// Why a live agent does not answer a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeError {
    /// For people.
    pub message: String,
    /// It could not be asked, because this process is short of something: that says nothing about the agent.
    pub is_shortage: bool,
}

impl<T: Into<String>> From<T> for ProbeError {
    fn from(message: T) -> Self {
        Self { message: message.into(), is_shortage: false }
    }
}

/// An agent that answers a prompt.
#[derive(Debug)]
pub struct Reply {
    /// The process that holds the agent, if one does. It starts nothing before [`Control::begin`].
    pub host: Option<AgentHost>,
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

    /// The line that tells the agent how its request was decided, for [`Control::write`]. To be told twice does no harm.
    /// `None` for agents that ask nothing.
    fn answer(&self, _request: &PermissionRequest, _decision: &Decision) -> Option<String> {
        None
    }

    /// Whether what it wrote to stderr proves that this session of its own is gone. Any other failure may pass.
    fn is_session_gone(&self, _stderr: &str, _session: &str) -> bool {
        false
    }

    /// Whether its protocol says when a turn is over. For an agent of which that is not true, exit code 0 is the end.
    fn says_end(&self) -> bool {
        true
    }

    /// Sees to it that a turn whose process is gone does not go on in a live agent: it is ended there if it does. Whoever
    /// asks waits for some seconds, and asks again.
    ///
    /// # Errors
    /// Why that is not known: the live agent cannot be reached, or does not end it. It may be dead.
    fn end_turn<'a>(&'a self, _place: &'a TurnPlace) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    /// The live agent that turns of this backend are on; `None` when each turn has a process of its own.
    fn warm(&self) -> Option<&dyn Warm> {
        None
    }
}

/// A live agent that several turns are on: how it is started and asked whether it is well. Who decides is the engine.
pub trait Warm: Send + Sync {
    /// Whether all sessions of a workspace share one; otherwise each session has its own.
    fn is_shared(&self) -> bool;

    /// How it is looked after.
    fn care(&self) -> Care {
        Care::default()
    }

    /// Gets ready to start it, as [`Backend::prompt`] does for a turn. Its [`Reply`] says nothing and ends when it does.
    ///
    /// # Errors
    /// [`StartError`] when it could not be started; then nothing of it is left.
    fn start(&self, start: WarmStart) -> BoxFuture<'_, Result<(Reply, String), StartError>>;

    /// Goes on watching over one that another worker started.
    fn adopt(&self, adoption: Adoption) -> BoxFuture<'_, Reply>;

    /// What one that ended by itself says of that, where it says more than its exit code and its stderr do. Every class but
    /// `crashed` is of one that would end so again.
    fn why_it_ended(&self, _exit: &ExitReport) -> Option<AgentError> {
        None
    }

    /// Whether one ended by itself because the system was short of something: the same start may succeed in a moment.
    fn is_shortage(&self, _exit: &ExitReport) -> bool {
        false
    }

    /// Whether the one at an endpoint is well. Comes back within a few seconds.
    fn probe<'a>(&'a self, endpoint: &'a str) -> BoxFuture<'a, Result<(), ProbeError>>;
}

/// What is to be started, and where it is to be.
#[derive(Debug, Clone)]
pub struct WarmStart {
    /// The backend, its id in place of a run's, and its generation.
    pub attempt: Attempt,
    /// The workspace.
    pub workspace: WorkspaceName,
    /// Where it works; absolute.
    pub dir: PathBuf,
    /// The session that it is for; none when it is shared.
    pub session: Option<SessionId>,
    /// Whether a turn may use the files and terminals of the workspace through us.
    pub client: ClientAccess,
    /// It ends by itself when no engine was there for so long.
    pub alone: Duration,
}

/// The backend of an agent: the one line that a new driver adds.
pub fn open(agent: &Agent, hosts: &Hosts) -> Arc<dyn Backend> {
    match &agent.driver {
        Driver::Demo => demo::backend(agent.kill_grace, hosts),
        Driver::Openclaw(spec) => {
            let dialect = Dialect { says_end: false, ..Dialect::of_lines(openclaw::parser) };
            Arc::new(PerTurn::new(spec.clone(), agent.kill_grace, dialect, hosts.clone()))
        }
        Driver::Text(spec) => Arc::new(PerTurn::new(spec.clone(), agent.kill_grace, Dialect::of_text(), hosts.clone())),
        Driver::Claude(spec) => Arc::new(claude::backend(spec, agent.kill_grace, hosts)),
        Driver::Codex(spec) => Arc::new(codex::backend(spec, agent.kill_grace, hosts)),
        Driver::Acp { process, shared } => Arc::new(acp::Acp::new(process, *shared, agent.kill_grace, hosts)),
        Driver::Opencode(spec) => Arc::new(opencode::Opencode::new(spec, agent.kill_grace, hosts)),
        Driver::OpenclawGateway(spec) => Arc::new(openclaw_gateway::Gateway::new(spec, agent.kill_grace, hosts)),
    }
}
