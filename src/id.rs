//! Identifiers. Client-supplied ones are checked on input and never used as a path; generated ones are UUIDv7.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Longest id that a client may give, in characters.
pub const MAX_ID_CHARS: usize = 200;

/// An id was not 1–200 characters of `A–Z a–z 0–9 . _ : -`, or not a UUID where one is needed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {given:?} is not valid: {want}")]
pub struct InvalidId {
    what: &'static str,
    given: String,
    want: &'static str,
}

/// Shortens a foreign text for an error message.
pub(crate) fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '-');
                if text.is_empty() || text.len() > MAX_ID_CHARS || !text.chars().all(legal) {
                    return Err(InvalidId {
                        what: $what,
                        given: shorten(text),
                        want: "use 1–200 characters of A–Z a–z 0–9 . _ : -",
                    });
                }
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id!(
    /// Names a session; given by the client, or generated.
    SessionId,
    "session id"
);
text_id!(
    /// Names a message within its session; the idempotency key of a send.
    MessageId,
    "message id"
);
text_id!(
    /// Names a workspace, as the config does.
    WorkspaceName,
    "workspace name"
);
text_id!(
    /// Names an agent, as the config does.
    AgentName,
    "agent name"
);

impl WorkspaceName {
    /// The workspace that exists without any config.
    pub fn builtin() -> Self {
        Self("default".to_owned())
    }
}

impl AgentName {
    /// The agent that exists without any config.
    pub fn builtin() -> Self {
        Self("demo".to_owned())
    }
}

impl SessionId {
    /// A new id, for a session that the client did not name.
    pub fn generate() -> Self {
        Self(Uuid::now_v7().to_string())
    }
}

impl MessageId {
    /// A new id, for a message that the client did not name.
    pub fn generate() -> Self {
        Self(Uuid::now_v7().to_string())
    }

    /// The id of the message that a run answers with: the same whenever the run is replayed.
    pub fn of_response(run: RunId) -> Self {
        Self(format!("msg-{run}"))
    }

    /// The run that produced the answer with this id, if it is the id of an answer.
    pub fn run_of_response(&self) -> Option<RunId> {
        self.0.strip_prefix("msg-")?.parse().ok()
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id; later ids sort later.
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let invalid = |_| InvalidId { what: $what, given: shorten(text), want: "a UUID is needed" };
                Uuid::try_parse(text).map(Self).map_err(invalid)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

uuid_id!(
    /// Names a run.
    RunId,
    "run id"
);
uuid_id!(
    /// Names a process that executes runs.
    WorkerId,
    "worker id"
);

uuid_id!(
    /// Names a backend: a warm agent process.
    BackendId,
    "backend id"
);

uuid_id!(
    /// Names a permission; the `approvalId` of the AI SDK.
    PermissionId,
    "permission id"
);

impl From<BackendId> for RunId {
    /// A backend's processes have a shim and a marker as those of a run do; its id takes the place of the run's.
    fn from(id: BackendId) -> Self {
        Self(id.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_with_dots_and_colons_are_data() {
        for good in ["a", "..", "agent:main:web:1", "a-b_c.D", &"x".repeat(200)] {
            assert!(good.parse::<SessionId>().is_ok(), "{good}");
        }
    }

    #[test]
    fn ids_that_could_be_paths_or_markup_are_refused() {
        for bad in ["", "a/b", "a b", "ü", "a\n", "<x>", &"x".repeat(201)] {
            assert!(bad.parse::<SessionId>().is_err(), "{bad}");
        }
    }
}
