//! The table `backends`: the warm agent processes of all engines on the file.
//!
//! Always: at most one backend per key is live (an index enforces it). Admission is counted in the transaction that creates a
//! backend. A turn takes a running backend, and a stop request takes one without turns, in one transaction each, so that one of
//! the two comes first. A state changes only from the state and the generation that the supervisor saw.
//!
//! Proof: `tests/it/warm/`.

mod admission;
mod list;
mod watch;

use crate::backend::BackendState;
use crate::clock::Timestamp;
use crate::failure::ErrorClass;
use crate::id::{AgentName, BackendId, SessionId, WorkspaceName};
use crate::lease::{BackendKey, WorkerKey};
use crate::store::StoreError;
use crate::worker::{ProcessIdentity, Shim};

pub use admission::{Awaited, Place, Taken, Wanted};
pub use list::StopRequest;
pub use watch::Move;

/// A backend, as its supervisor sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendRow {
    /// Its row.
    pub key: BackendKey,
    /// Its id.
    pub id: BackendId,
    /// Its agent.
    pub agent: AgentName,
    /// The workspace that it works in.
    pub workspace: WorkspaceName,
    /// The session that it is kept for.
    pub session: Option<SessionId>,
    /// Its state.
    pub state: BackendState,
    /// Why it is in that state.
    pub reason: Option<String>,
    /// Its generation: how often it was started.
    pub generation: i64,
    /// The worker that supervises it.
    pub worker: Option<WorkerKey>,
    /// Its shim, if one was started.
    pub host: Option<Shim>,
    /// The endpoint at which turns reach it.
    pub endpoint: Option<String>,
    /// Whether a turn is on it.
    pub is_busy: bool,
    /// Whether it ends as soon as no turn is on it.
    pub close_when_idle: bool,
    /// When it was restarted recently.
    pub restarts: Vec<Timestamp>,
    /// Whether it has ever answered.
    pub was_well: bool,
    /// It is not started again before this.
    pub not_before: Option<Timestamp>,
    /// When a turn last began or ended on it.
    pub used_at: Timestamp,
}

struct Row {
    key: BackendKey,
    id: String,
    agent: String,
    workspace: String,
    session: Option<String>,
    state: String,
    reason: Option<String>,
    generation: i64,
    worker: Option<WorkerKey>,
    pid_scope: Option<String>,
    pid: Option<i64>,
    pid_started_at: Option<i64>,
    shim_secret: Option<String>,
    endpoint: Option<String>,
    is_busy: bool,
    close_when_idle: bool,
    restarts: String,
    was_well: bool,
    not_before: Option<i64>,
    used_at: i64,
}

impl TryFrom<Row> for BackendRow {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let process = row.pid_scope.zip(row.pid).zip(row.pid_started_at);
        let process = process.map(|((host, pid), started_at_ticks)| ProcessIdentity {
            host,
            pid: i32::try_from(pid).unwrap_or_default(),
            started_at_ticks,
        });
        let host = process.zip(row.shim_secret);
        Ok(Self {
            key: row.key,
            id: row.id.parse()?,
            agent: row.agent.parse()?,
            workspace: row.workspace.parse()?,
            session: row.session.map(|id| id.parse()).transpose()?,
            state: state_of(&row.state)?,
            reason: row.reason,
            generation: row.generation,
            worker: row.worker,
            host: host.map(|(process, secret)| Shim { process, attempt: row.generation, secret }),
            endpoint: row.endpoint,
            is_busy: row.is_busy,
            close_when_idle: row.close_when_idle,
            restarts: times_of(&row.restarts),
            was_well: row.was_well,
            not_before: row.not_before.map(Timestamp::from_millis),
            used_at: Timestamp::from_millis(row.used_at),
        })
    }
}

fn state_of(word: &str) -> Result<BackendState, StoreError> {
    word.parse().map_err(|error: crate::backend::UnknownState| StoreError::Invalid(error.to_string()))
}

fn class_of(word: Option<String>) -> Result<Option<ErrorClass>, StoreError> {
    let parsed = word.map(|word| word.parse()).transpose();
    parsed.map_err(|error: crate::failure::UnknownClass| StoreError::Invalid(error.to_string()))
}

fn times_of(json: &str) -> Vec<Timestamp> {
    let times: Vec<i64> = serde_json::from_str(json).unwrap_or_default();
    times.into_iter().map(Timestamp::from_millis).collect()
}

fn json_of(times: &[Timestamp]) -> String {
    serde_json::Value::from_iter(times.iter().map(|at| at.as_millis())).to_string()
}
