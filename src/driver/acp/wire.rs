//! The messages between relays and the bridge, some of which become part of a turn's output; one JSON text a line.
//!
//! Always: a turn's output is the agent's messages about it, unchanged, and the bridge's own lines, which have a
//! `mainstay` key.

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

/// Maximum line between a relay and the bridge: a turn with all its files.
pub(super) const MAX_LINE_BYTES: u64 = 256 * 1024 * 1024;

/// A message to the bridge. A connection begins with a ping, a turn, or the end of one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToBridge {
    /// Asks whether the agent is there.
    Ping,
    /// Begins a turn.
    Turn(Box<RelayedTurn>),
    /// The decision of a permission request.
    Answer(Answer),
    /// Cancels the turn.
    Cancel,
    /// The relay of the turn in this session of Mainstay's is gone: asks whether the turn has ended, and ends it.
    EndTurn(String),
}

/// The decision of a permission request.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answer {
    /// The id of the request, as JSON.
    pub request: String,
    /// The chosen option; none if the turn is cancelled, or no option says no.
    pub option: Option<String>,
}

/// A line of the bridge's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "mainstay", rename_all = "snake_case")]
pub(super) enum Own {
    /// The answer to a ping.
    Ready,
    /// The session of the agent in which the turn is executed.
    Session {
        /// The agent's id.
        id: String,
        /// How the turn got it.
        origin: SessionOrigin,
        /// The cost of the session before the turn, in US dollars, if that is known.
        cost_before: Option<f64>,
        /// The modes that the agent offers, in its own format.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        modes: Option<Value>,
        /// The options that the agent offers, in its own format.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        config_options: Option<Value>,
    },
    /// The agent was told to end the turn: the status of its tools is not reliable from now on.
    Cancelling,
    /// The turn failed; the agent did not report that itself.
    Error {
        /// The kind of error.
        class: Option<ErrorClass>,
        /// A text for the user.
        message: String,
        /// When to retry, in milliseconds since 1970.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_at: Option<i64>,
    },
    /// A notice to the user beside the answer.
    Notice {
        /// The text.
        text: String,
    },
    /// The turn is over: the last line of a turn, and the answer to [`ToBridge::EndTurn`].
    Ended,
    /// The agent does not end the turn and is about to be ended itself: the last line of such a turn.
    Left,
}

impl Own {
    /// An error of a class.
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

/// Encodes a message as a line, without its end.
pub(super) fn line(value: &impl Serialize) -> String {
    // Strings, numbers and JSON: they always serialise.
    serde_json::to_string(value).unwrap_or_default()
}

/// Connects to a socket whose path may be longer than a socket address.
pub(super) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let (dir, name) = open_dir_of(path)?;
    UnixStream::connect(in_dir(&dir, name)).await
}

/// Opens the directory of a path, and returns the name in it.
pub(super) fn open_dir_of(path: &Path) -> io::Result<(File, &Path)> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is no path of a socket", path.display())));
    };
    Ok((File::open(dir)?, Path::new(name)))
}

/// A short path to a name in an open directory.
pub(super) fn in_dir(dir: &File, name: &Path) -> PathBuf {
    Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name)
}
