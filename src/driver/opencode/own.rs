//! The lines of a relay that are not events of the server: what it knows of the turn beside them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::agent_event::SessionOrigin;
use crate::failure::ErrorClass;

/// One line. Events of the server are objects with a `type` and have no key `mainstay`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "mainstay", rename_all = "snake_case")]
pub(super) enum Own {
    /// The server's id of the conversation.
    Session { id: String, origin: Origin },
    /// What the server offers.
    Advertised { offer: Value },
    /// What the relay is busy with, or could not do, for people.
    Status { label: String },
    /// Events were missed. What follows, up to [`Own::CaughtUp`], is how things stand: known things may be said again.
    Gap,
    /// Events come live again.
    CaughtUp,
    /// The turn cannot go on.
    Error { class: Option<ErrorClass>, message: String },
    /// The turn is over; nothing follows.
    End {
        /// Because we asked for it.
        cancelled: bool,
    },
}

/// How the relay came by the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Origin {
    New,
    Resumed,
}

impl From<Origin> for SessionOrigin {
    fn from(origin: Origin) -> Self {
        match origin {
            Origin::New => Self::New,
            Origin::Resumed => Self::Resumed,
        }
    }
}

impl Own {
    /// The line, without its end.
    pub(super) fn to_line(&self) -> String {
        // Texts and JSON values: none of them can fail to serialise.
        serde_json::to_string(self).unwrap_or_default()
    }
}
