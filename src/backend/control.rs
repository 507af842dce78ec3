//! How an engine steers an agent that answers: begin, stop, kill, leave.
//!
//! Always: asking again changes nothing; the first reason to stop is kept.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

use crate::run::Cause;

/// The engine's side and the backend's side share it.
#[derive(Debug, Clone, Default)]
pub struct Control {
    begin: CancellationToken,
    ask: CancellationToken,
    kill: CancellationToken,
    leave: CancellationToken,
    cause: Arc<OnceLock<Cause>>,
}

impl Control {
    /// Lets it begin: whoever comes after us will find it.
    pub fn begin(&self) {
        self.begin.cancel();
    }

    /// Asks it to stop: in its own protocol, then SIGTERM, then after the agent's grace SIGKILL. Goes on by itself.
    pub fn stop(&self, cause: Cause) {
        // A second reason is no reason.
        let _ = self.cause.set(cause);
        self.ask.cancel();
    }

    /// Ends it at once, without grace.
    pub fn kill(&self, cause: Cause) {
        // As above.
        let _ = self.cause.set(cause);
        self.kill.cancel();
    }

    /// Leaves it to whoever comes next. An agent that ends with its engine is killed.
    pub fn leave(&self) {
        self.leave.cancel();
    }

    /// Why it was first asked to stop, if it was.
    pub fn cause(&self) -> Option<Cause> {
        self.cause.get().copied()
    }

    /// Whether it is to end at once.
    pub fn is_killed(&self) -> bool {
        self.kill.is_cancelled()
    }

    pub(super) async fn begun(&self) {
        self.begin.cancelled().await;
    }

    pub(super) async fn asked(&self) {
        self.ask.cancelled().await;
    }

    pub(super) async fn killed(&self) {
        self.kill.cancelled().await;
    }

    pub(super) async fn left(&self) {
        self.leave.cancelled().await;
    }
}
