//! What an agent says, whatever protocol it speaks: the vocabulary between its process, its driver and the turn.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::chunk::Notice;
use crate::failure::AgentError;
use crate::permission::PermissionRequest;
use crate::usage::Usage;

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

/// Reads one line of an agent's output; `None` when it is not a line of the agent's protocol (it is counted, and reading
/// goes on). Made anew for every turn, so it may remember what it has seen.
pub type LineParser = Box<dyn FnMut(&str) -> Option<Vec<AgentEvent>> + Send>;
