//! The events of an agent, whatever protocol it speaks: the vocabulary between its process, its driver and the turn.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::chunk::Notice;
use crate::failure::AgentError;
use crate::permission::PermissionRequest;
use crate::usage::Usage;

/// An event of an agent, whatever protocol it speaks.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentEvent {
    /// A status: what it is busy with.
    Status(String),
    /// A piece of reasoning.
    Reasoning(String),
    /// A piece of its answer.
    Text(String),
    /// A message of the model begins. Not emitted for the messages of a sub-agent.
    MessageBegan(Again),
    /// A tool call starts.
    ToolStarted {
        /// Unique in the turn; empty when the agent gave none.
        id: String,
        /// The tool.
        name: String,
        /// What this call does, in the agent's words for people.
        title: Option<String>,
        /// Its input.
        input: Value,
        /// The parent tool call, if a sub-agent makes this one.
        parent: Option<String>,
    },
    /// A tool reports progress.
    ToolProgress {
        /// The id it was started with.
        id: String,
        /// The output so far.
        output: Value,
    },
    /// A tool call ends.
    ToolFinished {
        /// The id it was started with.
        id: String,
        /// The tool, if the agent repeats its name.
        name: Option<String>,
        /// Its output, or an error message.
        result: Result<Value, String>,
    },
    /// It produced a file.
    File {
        /// What it is.
        media_type: String,
        /// Where it is; a `data:` URL holds it.
        url: String,
    },
    /// It cites a resource.
    Source {
        /// Where that is.
        url: String,
        /// What it is called.
        title: Option<String>,
    },
    /// Its plan, as a list of steps (`[{content, status, priority?}, …]`); takes the place of an earlier one.
    Plan(Value),
    /// It requests permission to use a tool, and waits.
    Permission(PermissionRequest),
    /// Its own id of this conversation.
    Session {
        /// The id.
        id: String,
        /// How the turn came by it.
        origin: SessionOrigin,
    },
    /// Its title of the conversation.
    Title(String),
    /// The modes, options and commands that it offers (`{modes?, config_options?, commands?}`); an absent key means unchanged.
    Advertised(Value),
    /// The usage of the turn so far.
    Usage(Usage),
    /// The usage of its session so far, earlier turns included.
    TotalUsage(Usage),
    /// A notice for the person, besides the answer.
    Notice(Notice),
    /// A block of the model's message begins. Its number, unique within the turn, names it in [`AgentEvent::Withdrawn`].
    /// Everything until the next block or message begins belongs to it.
    BlockBegan(u64),
    /// It withdraws blocks: their text does not count any more.
    Withdrawn(Vec<u64>),
    /// The number of its background tasks: a turn whose end was reported is not over until they have ended.
    Tasks(usize),
    /// It continues, although it reported its end.
    Continued,
    /// It requested something that is not supported. The line refuses the request and is written to the agent's stdin at once.
    /// Writing it twice does no harm.
    Refused(String),
    /// It withdraws the permission request with this id ([`PermissionRequest::request`]).
    PermissionWithdrawn(String),
    /// It proves that the session that it was to resume is gone.
    SessionGone,
    /// It reports an error of its own.
    Error(AgentError),
    /// It reports an error that it may recover from. This becomes the error of the turn if the turn ends without
    /// [`AgentEvent::Ended`].
    Trouble(AgentError),
    /// It reports the end of the turn; its process may take a moment to exit.
    Ended,
}

/// Whether a message of the model repeats the previous one, requested again after its stream broke, according to the agent's
/// protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// It is a new message.
    No,
    /// It replaces the newest message, whose content does not count any more.
    Yes,
}

/// How a turn obtained the agent's own session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionOrigin {
    /// It is a new one.
    New,
    /// A backend had it open.
    Reused,
    /// The agent resumed it without replaying its history.
    Resumed,
    /// The agent loaded it and replayed its history.
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

/// Parses one line of an agent's output; `None` when it is not a line of the agent's protocol (the line is counted, and reading
/// continues). Created for each turn, so it may keep state.
pub type LineParser = Box<dyn FnMut(&str) -> Option<Vec<AgentEvent>> + Send>;
