//! What relays and the bridge say to each other, and what of it ends up in a turn's output, one JSON text a line.
//!
//! Always: a turn's output is what the agent said of it, as it came, and lines of our own, which have a `mainstay` key.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::UnixStream;

use crate::agent_event::SessionOrigin;
use crate::clock::Timestamp;
use crate::driver::relay::RelayedTurn;
use crate::failure::{AgentError, ErrorClass};

/// The longest line that a relay or the bridge takes from the other: a turn with all its files.
pub(super) const MAX_LINE_BYTES: u64 = 256 * 1024 * 1024;

/// What the bridge is told. A connection begins with a ping, a turn, or the end of one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToBridge {
    /// Whether the agent is there.
    Ping,
    /// A turn.
    Turn(Box<RelayedTurn>),
    /// How a request of the agent was decided.
    Answer(Answer),
    /// The turn is to end.
    Cancel,
    /// The relay of the turn in this session of ours is gone: whether the turn has ended, which it does.
    EndTurn(String),
}

/// How a request for permission was decided.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answer {
    /// The id of the request, as JSON.
    pub request: String,
    /// The option that was chosen; none when the turn is cancelled, or no option says no.
    pub option: Option<String>,
}

/// A line of our own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "mainstay", rename_all = "snake_case")]
pub(super) enum Own {
    /// The answer to a ping.
    Ready,
    /// Which session of the agent the turn is in.
    Session {
        /// The agent's id.
        id: String,
        /// How the turn came by it.
        origin: SessionOrigin,
        /// What the session had cost before the turn, in US dollars, if that is known.
        cost_before: Option<f64>,
        /// The modes that the agent offers, as it says it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        modes: Option<Value>,
        /// Its options, as it says it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        config_options: Option<Value>,
    },
    /// The agent was told to end the turn: what its tools say from now on is not to be trusted.
    Cancelling,
    /// The turn failed, and not in the agent's own words.
    Error {
        /// What kind of error it is.
        class: Option<ErrorClass>,
        /// For people.
        message: String,
        /// When it makes sense to try again, in milliseconds since 1970.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_at: Option<i64>,
    },
    /// Something that people have to know beside the answer.
    Notice {
        /// In words.
        text: String,
    },
    /// The turn came to its end: the last line of a turn, and the answer when somebody waits for the end.
    Ended,
    /// The agent does not end the turn, and is about to be ended itself: the last line of such a turn.
    Left,
}

impl Own {
    /// An error of a kind.
    pub(super) fn error(class: impl Into<Option<ErrorClass>>, message: impl Into<String>) -> Self {
        Self::Error { class: class.into(), message: message.into(), retry_at: None }
    }
}

impl From<AgentError> for Own {
    fn from(error: AgentError) -> Self {
        let AgentError { message, class, retry_at } = error;
        Self::Error { class, message, retry_at: retry_at.map(Timestamp::as_millis) }
    }
}

/// The line that says it, without its end.
pub(super) fn line(value: &impl Serialize) -> String {
    // Texts, numbers and JSON: none of them can fail to serialise.
    serde_json::to_string(value).unwrap_or_default()
}

/// Connects to a socket whose path may be longer than a socket address.
pub(super) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let (dir, name) = open_dir_of(path)?;
    UnixStream::connect(in_dir(&dir, name)).await
}

/// The directory of a path, open, and the name in it.
pub(super) fn open_dir_of(path: &Path) -> io::Result<(File, &Path)> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is no path of a socket", path.display())));
    };
    Ok((File::open(dir)?, Path::new(name)))
}

/// A name in an open directory, as a path that is short.
pub(super) fn in_dir(dir: &File, name: &Path) -> PathBuf {
    Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name)
}
