//! The lines of a relay that are not events of the server: what it knows of the turn besides them.

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
    /// What the relay is doing, or could not do, as a text for the user.
    Status { label: String },
    /// Events were missed. What follows, up to [`Own::CaughtUp`], describes the current state and may repeat known things.
    Gap,
    /// Events are live again.
    CaughtUp,
    /// The turn cannot continue.
    Error { class: Option<ErrorClass>, message: String },
    /// The turn is over; nothing follows.
    End {
        /// Whether it ended because it was cancelled.
        cancelled: bool,
    },
}

/// How the relay got the session.
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
    /// Encodes it as a line, without its end.
    pub(super) fn to_line(&self) -> String {
        // Strings and JSON values: they always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }
}
