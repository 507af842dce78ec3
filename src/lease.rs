//! A lease: a worker's dated, numbered right to move one run.
//!
//! Always: every write to a running run names the newest token of its lease, in the same statement. Whoever was granted
//! an older one (a worker that was paused, cut off or declared dead) changes nothing and learns so at once.

/// Row key of a run.
pub type RunKey = i64;
/// Row key of a session.
pub type SessionKey = i64;
/// Row key of a worker.
pub type WorkerKey = i64;

/// The right to write to one run; granted by a claim or by the recovery of a dead worker's run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The run.
    pub run: RunKey,
    /// The fencing token: how many leases of this run were granted so far.
    pub token: i64,
}

/// Another worker holds the run now, or it is settled: stop, and write nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the lease of the run is lost: it is settled, or another worker holds it")]
pub struct LeaseLost;
