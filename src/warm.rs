//! A warm backend: a live agent (a child process that speaks ACP, an HTTP server) that is kept for a session, or shared by
//! the sessions of a workspace, and its life as a total function.

use serde::{Deserialize, Serialize};

/// Where a backend is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendState {
    /// Nothing of it runs.
    Stopped,
    /// Its process is there and does not answer so far.
    Starting,
    /// It answers.
    Running,
    /// It ended without being asked to, or hung; what is left of it is being ended.
    Crashed,
    /// It will be started again after a pause.
    Restarting,
    /// It was asked to end.
    Stopping,
}

impl BackendState {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Stopped, Self::Starting, Self::Running, Self::Crashed, Self::Restarting, Self::Stopping];

    /// The word in the database, in JSON and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Crashed => "crashed",
            Self::Restarting => "restarting",
            Self::Stopping => "stopping",
        }
    }
}
