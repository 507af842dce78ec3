//! The right to decide: only for a caller that is no process of a run. An agent neither answers an agent's question, its own
//! included, nor changes what agents are told, whatever token it shows.

use std::net::SocketAddr;

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;

use super::App;
use super::auth::Caller;
use super::error::Error;
use crate::engine::callers::{self, Peer};

/// The two ends of the connection that a request arrived on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// A caller that may decide.
pub(super) struct Decider(Caller);

impl Decider {
    /// The caller's name.
    pub(super) fn name(&self) -> &str {
        self.0.name()
    }
}

impl FromRequestParts<App> for Decider {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        Candidate::from_request_parts(parts, app).await?.decide().await
    }
}

/// A caller that may be allowed to decide: checked only when it does, because the check scans all of `/proc`.
pub(super) struct Candidate {
    caller: Caller,
    ends: Option<Ends>,
}

impl Candidate {
    /// The caller, not checked yet.
    pub(super) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The caller, if it is no process of a run.
    pub(super) async fn decide(self) -> Result<Decider, Error> {
        let ends = self.ends.ok_or_else(|| Error::internal("a request came by no connection"))?;
        let refused = |message: &str| Err(Error::new(StatusCode::FORBIDDEN, "run_may_not_decide", message));
        match callers::of_connection(ends.local, ends.remote).await {
            Peer::Remote | Peer::Outside => Ok(Decider(self.caller)),
            Peer::Run(process) => {
                let run = process.run.map(tracing::field::display);
                tracing::warn!(
                    pid = process.pid,
                    run.id = run,
                    by = self.caller.name(),
                    "decision of an agent refused"
                );
                refused(
                    "this request comes from a process that an agent has started, and agents neither answer what agents \
                     ask nor change what they are told: leave it to a person",
                )
            }
            Peer::Unclear => {
                tracing::warn!(by = self.caller.name(), "decision refused: its sender may be an agent");
                refused(
                    "which process of this machine sends this could not be told, and it may be an agent's: keep the \
                     connection open until the answer is there, and send it from a process whose /proc/PID/fd the daemon \
                     may read",
                )
            }
        }
    }
}

impl FromRequestParts<App> for Candidate {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        let caller = Caller::from_request_parts(parts, app).await?;
        Ok(Self { caller, ends: parts.extensions.get().copied() })
    }
}
