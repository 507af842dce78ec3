//! What each agent says, and how it is spoken to. A [`Driver`] is prompted and gives a [`Reply`].
//!
//! Deliberately absent: the store. A driver does not know that what it reads is kept.

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

/// Why a live agent does not answer a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeError {
    /// For people.
    pub message: String,
    /// It could not be asked, because this process is short of something: that says nothing about the agent.
    pub is_shortage: bool,
}

impl<T: Into<String>> From<T> for ProbeError {
    fn from(message: T) -> Self {
        Self { message: message.into(), is_shortage: false }
    }
}

/// A way to reach an agent.
pub trait Driver: Send + Sync {
    /// Gets ready for one turn, which begins when [`Control::begin`](crate::process::Control::begin) says so.
    ///
    /// # Errors
    /// [`StartError`] when the agent could not be started; then nothing of it is left.
    fn prompt(&self, prompt: Prompt) -> BoxFuture<'_, Result<Reply, StartError>>;

    /// Goes on with a turn that another worker began; `None` for agents that end with their engine.
    fn adopt(&self, adoption: Adoption) -> BoxFuture<'_, Option<Reply>>;

    /// The line that tells the agent how its request was decided, for [`Control::write`](crate::process::Control::write). To be told twice does no harm.
    /// `None` for agents that ask nothing.
    fn answer(&self, _request: &PermissionRequest, _decision: &Decision) -> Option<String> {
        None
    }

    /// Whether what it wrote to stderr proves that this session of its own is gone. Any other failure may pass.
    fn is_session_gone(&self, _stderr: &str, _session: &str) -> bool {
        false
    }

    /// Whether its protocol says when a turn is over. For an agent of which that is not true, exit code 0 is the end.
    fn says_end(&self) -> bool {
        true
    }

    /// Sees to it that a turn whose process is gone does not go on in a live agent: it is ended there if it does. Whoever
    /// asks waits for some seconds, and asks again.
    ///
    /// # Errors
    /// Why that is not known: the live agent cannot be reached, or does not end it. It may be dead.
    fn end_turn<'a>(&'a self, _place: &'a TurnPlace) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    /// The live agent that turns of this backend are on; `None` when each turn has a process of its own.
    fn warm(&self) -> Option<&dyn Warm> {
        None
    }
}

/// A live agent that several turns are on: how it is started and asked whether it is well. Who decides is the engine.
pub trait Warm: Send + Sync {
    /// Whether all sessions of a workspace share one; otherwise each session has its own.
    fn is_shared(&self) -> bool;

    /// How it is looked after.
    fn care(&self) -> HealthPolicy {
        HealthPolicy::default()
    }

    /// Gets ready to start it, as [`Driver::prompt`] does for a turn. Its [`Reply`] says nothing and ends when it does.
    ///
    /// # Errors
    /// [`StartError`] when it could not be started; then nothing of it is left.
    fn start(&self, start: WarmStart) -> BoxFuture<'_, Result<(Reply, String), StartError>>;

    /// Goes on watching over one that another worker started.
    fn adopt(&self, adoption: Adoption) -> BoxFuture<'_, Reply>;

    /// What one that ended by itself says of that, where it says more than its exit code and its stderr do. Every class but
    /// `crashed` is of one that would end so again.
    fn why_it_ended(&self, _exit: &ExitReport) -> Option<AgentError> {
        None
    }

    /// Whether one ended by itself because the system was short of something: the same start may succeed in a moment.
    fn is_shortage(&self, _exit: &ExitReport) -> bool {
        false
    }

    /// Whether the one at an endpoint is well. Comes back within a few seconds.
    fn probe<'a>(&'a self, endpoint: &'a str) -> BoxFuture<'a, Result<(), ProbeError>>;
}

/// What is to be started, and where it is to be.
#[derive(Debug, Clone)]
pub struct WarmStart {
    /// The backend, its id in place of a run's, and its generation.
    pub attempt: Attempt,
    /// The workspace.
    pub workspace: WorkspaceName,
    /// Where it works; absolute.
    pub dir: PathBuf,
    /// The session that it is for; none when it is shared.
    pub session: Option<SessionId>,
    /// Whether a turn may use the files and terminals of the workspace through us.
    pub client: ClientAccess,
    /// It ends by itself when no engine was there for so long.
    pub alone: Duration,
}
