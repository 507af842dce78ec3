//! The agents' protocols. A [`Driver`] is given a prompt and returns a [`Reply`].
//!
//! Deliberately absent: the store. A driver does not know that its events are stored.

pub mod acp;
pub mod backend;
pub mod claude;
pub mod codex;
pub mod demo;
mod json;
mod json_bounded;
pub mod open;
pub mod openclaw;
pub mod openclaw_gateway;
pub mod opencode;
pub mod per_turn;
pub(crate) mod probe;
mod provider;
pub mod relay;

use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::backend::HealthPolicy;
use crate::failure::AgentError;
use crate::id::{SessionId, WorkspaceName};
use crate::permission::{Decision, PermissionRequest};
use crate::process::{Adoption, Prompt, Reply, StartError, TurnPlace};
use crate::run::{Attempt, ExitReport};
use crate::workspace::ClientAccess;

pub use self::open::open;

/// Why a backend does not answer a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeError {
    /// The reason, for the operator.
    pub message: String,
    /// The probe could not be sent, because this process is short of a resource: that says nothing about the backend.
    pub is_shortage: bool,
}

impl<T: Into<String>> From<T> for ProbeError {
    fn from(message: T) -> Self {
        Self { message: message.into(), is_shortage: false }
    }
}

/// The protocol of one kind of agent.
pub trait Driver: Send + Sync {
    /// Prepares one turn, which begins at [`Control::begin`](crate::process::Control::begin).
    ///
    /// # Errors
    /// [`StartError`] if the agent could not be started; then nothing of it is left.
    fn prompt(&self, prompt: Prompt) -> BoxFuture<'_, Result<Reply, StartError>>;

    /// Continues a turn that another worker began; `None` for agents that end with their engine.
    fn adopt(&self, adoption: Adoption) -> BoxFuture<'_, Option<Reply>>;

    /// The line that tells the agent how its request was decided, for
    /// [`Control::write`](crate::process::Control::write). Sending it twice does no harm. `None` for agents that ask nothing.
    fn answer(&self, _request: &PermissionRequest, _decision: &Decision) -> Option<String> {
        None
    }

    /// Whether the agent's stderr proves that this session of its own is gone. Any other failure may be temporary.
    fn is_session_gone(&self, _stderr: &str, _session: &str) -> bool {
        false
    }

    /// Whether the protocol reports the end of a turn. For an agent whose protocol does not, exit code 0 is the end.
    fn says_end(&self) -> bool {
        true
    }

    /// Makes sure that a turn whose process is gone has ended in its backend, and ends it there if necessary. The
    /// caller waits for some seconds, and then asks again.
    ///
    /// # Errors
    /// It is not known whether the turn has ended: the backend cannot be reached, or does not end it. It may be dead.
    fn end_turn<'a>(&'a self, _place: &'a TurnPlace) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    /// The protocol of the backend that executes turns of this driver; `None` if each turn has a process of its own.
    fn warm(&self) -> Option<&dyn Warm> {
        None
    }
}

/// How a backend, which executes many turns, is started and probed. The engine decides when.
pub trait Warm: Send + Sync {
    /// Whether all sessions of a workspace share one backend; otherwise each session has its own.
    fn is_shared(&self) -> bool;

    /// How its health is supervised.
    fn care(&self) -> HealthPolicy {
        HealthPolicy::default()
    }

    /// Prepares the start of a backend, as [`Driver::prompt`] does for a turn. The [`Reply`] yields no records and ends
    /// when the backend does; the text is its endpoint.
    ///
    /// # Errors
    /// [`StartError`] if it could not be started; then nothing of it is left.
    fn start(&self, start: WarmStart) -> BoxFuture<'_, Result<(Reply, String), StartError>>;

    /// Continues to supervise a backend that another worker started.
    fn adopt(&self, adoption: Adoption) -> BoxFuture<'_, Reply>;

    /// The reason that a backend gave for ending by itself, if it says more than its exit code and stderr do. Every
    /// class but `crashed` means that the next one would end in the same way.
    fn why_it_ended(&self, _exit: &ExitReport) -> Option<AgentError> {
        None
    }

    /// Whether a backend ended by itself because the system was short of a resource: the same start may succeed in a
    /// moment.
    fn is_shortage(&self, _exit: &ExitReport) -> bool {
        false
    }

    /// Whether the backend at an endpoint is healthy. Returns within a few seconds.
    fn probe<'a>(&'a self, endpoint: &'a str) -> BoxFuture<'a, Result<(), ProbeError>>;
}

/// Which backend to start, and where.
#[derive(Debug, Clone)]
pub struct WarmStart {
    /// The backend: its id in place of a run's, and its generation.
    pub attempt: Attempt,
    /// The workspace.
    pub workspace: WorkspaceName,
    /// The working directory; absolute.
    pub dir: PathBuf,
    /// The session that it serves; none if it is shared.
    pub session: Option<SessionId>,
    /// Whether the agent may use files and terminals of the workspace through the bridge.
    pub client: ClientAccess,
    /// It ends by itself after this time without an engine.
    pub alone: Duration,
}
