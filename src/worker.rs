//! A worker: a process that may execute runs, and what proves that it is alive or dead.

use serde::Serialize;

use crate::clock::Timestamp;
use crate::id::{RunId, WorkerId};
use crate::run::Attempt;

/// Identifies one process, across reboots and reused pids.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProcessIdentity {
    /// Boot id and pid namespace: the scope in which the pid is unique.
    pub host: String,
    /// The pid in that scope.
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

/// The shim of an agent, and what an engine needs to adopt it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shim {
    /// Which process it is.
    pub process: ProcessIdentity,
    /// The number of the attempt that it was started for.
    pub attempt: i64,
    /// The secret that an engine has to show to adopt it.
    pub secret: String,
}

impl Shim {
    /// The attempt that it was started for.
    pub fn started_for(&self, run: RunId) -> Attempt {
        Attempt { run, number: self.attempt }
    }
}
