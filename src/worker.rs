//! A worker: a process that may execute runs, and what proves that it lives or died.

use serde::Serialize;

use crate::clock::Timestamp;
use crate::id::{RunId, WorkerId};
use crate::run::Attempt;

/// What tells one process from every other, past reboots and reused pids.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProcessIdentity {
    /// Boot id and pid namespace: where the pid means something.
    pub host: String,
    /// The pid there.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub started_at_ticks: i64,
}

/// A worker, as readers see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Worker {
    /// Its id.
    pub id: WorkerId,
    /// The machine's name, for people.
    pub hostname: String,
    /// Its pid there.
    pub pid: i64,
    /// Runs it executes at once.
    pub capacity: i64,
    /// Runs it executes now.
    pub running: i64,
    /// The version of Mainstay.
    pub version: String,
    /// When it started.
    pub started_at: Timestamp,
    /// When it last renewed its leases.
    pub heartbeat_at: Timestamp,
}

/// The process that holds an agent, and what it takes to go on with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shim {
    /// Which process it is.
    pub process: ProcessIdentity,
    /// The number of the attempt that it was started for.
    pub attempt: i64,
    /// What it asks of whoever wants to go on with it.
    pub secret: String,
}

impl Shim {
    /// The try at a run that it was started for.
    pub fn started_for(&self, run: RunId) -> Attempt {
        Attempt { run, number: self.attempt }
    }
}
