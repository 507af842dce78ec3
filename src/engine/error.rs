//! The errors of the engine, told apart by kind; surfaces map the kinds, never the texts.

use crate::event::Seq;
use crate::id::{BackendId, InvalidId, RunId};
use crate::message::InvalidMessage;
use crate::options::InvalidOption;
use crate::permission::Permission;
use crate::store::StoreError;
use crate::store::run::Refusal;
use crate::text::InvalidText;

/// An engine operation that did not happen. Nothing was stored.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is no such session, run, agent or workspace.
    #[error("there is no {what} {id:?}")]
    NotFound {
        /// Kind of thing.
        what: &'static str,
        /// What was asked for.
        id: String,
    },
    /// An id is malformed.
    #[error(transparent)]
    InvalidId(#[from] InvalidId),
    /// The message cannot be sent.
    #[error(transparent)]
    InvalidMessage(#[from] InvalidMessage),
    /// An option of a session cannot be set.
    #[error(transparent)]
    InvalidOption(#[from] InvalidOption),
    /// A value is outside what is allowed.
    #[error("{0}")]
    InvalidValue(String),
    /// The message was not taken.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The session exists with other values.
    #[error("session {0} exists with other values")]
    SessionDiffers(String),
    /// The session has unfinished runs.
    #[error("the session is busy with run {0}: cancel it first, or close with cancel")]
    SessionBusy(RunId),
    /// The permission was decided otherwise before.
    #[error("the permission is {} already{}", .0.state.as_str(), by_whom(.0))]
    Decided(Box<Permission>),
    /// The agent does not offer this answer to what it asks.
    #[error("the agent offers no such answer: it takes {}", options_of(.0))]
    NotOffered(Box<Permission>),
    /// A turn is on the backend.
    #[error("backend {0} is busy: force it, and it ends as soon as no turn is on it")]
    BackendBusy(BackendId),
    /// The cursor is beyond the newest event.
    #[error("cursor {after} is beyond the newest event, {last_seq}")]
    CursorAhead {
        /// The cursor.
        after: Seq,
        /// The newest event.
        last_seq: Seq,
    },
    /// The engine is shutting down.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// A task that the engine cannot do without ended: a bug.
    #[error("the engine failed and takes no more runs ({0}): restart the process, and report what its log says")]
    Failed(String),
    /// The engine makes no progress, whatever the reason.
    #[error("the engine stalls: {0}")]
    Stalled(String),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// This process could not be identified, which recovery needs.
    #[error("failed to read this process's identity from /proc: {0}")]
    Identity(std::io::Error),
}

impl From<InvalidText> for EngineError {
    fn from(invalid: InvalidText) -> Self {
        Self::InvalidValue(invalid.to_string())
    }
}

fn by_whom(permission: &Permission) -> String {
    permission.answered_by.as_ref().map(|by| format!(", by {by}")).unwrap_or_default()
}

fn options_of(permission: &Permission) -> String {
    let options = permission.request.options.iter().map(|option| format!("{:?} ({})", option.id, option.name));
    options.collect::<Vec<_>>().join(", ")
}
