//! A lease: a worker's dated, numbered right to move one run.
//!
//! Always: every write to a running run names the newest token of its lease, in the same statement. A worker with an older token
//! (it was paused, cut off or declared dead) changes nothing and is told so at once.

use std::time::Duration;

use crate::clock::Timestamp;

/// Row key of a run.
pub type RunKey = i64;
/// Row key of a session.
pub type SessionKey = i64;
/// Row key of a worker.
pub type WorkerKey = i64;
/// Row key of a warm backend.
pub type BackendKey = i64;

/// The right to write to one run; granted by a claim or by the recovery of a dead worker's run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The run.
    pub run: RunKey,
    /// The fencing token: how many leases of this run were granted so far.
    pub token: i64,
}

/// A lease as other workers see it. Each renewal changes it; a lease that stays unchanged for its whole length is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HeldLease {
    /// The run and the token.
    pub lease: Lease,
    /// Its end as of the last renewal, by the wall clock of its holder; every renewal makes it later. It is never compared with
    /// a clock. [`HeldLease::GIVEN_BACK`] once the holder has given the lease back.
    pub expires_at: Timestamp,
    /// How long the holder's leases last.
    pub length: Duration,
}

impl HeldLease {
    /// The end of a lease that its holder gave back: any worker may take the run over.
    pub const GIVEN_BACK: Timestamp = Timestamp::from_millis(0);
}

/// Another worker holds the run now, or it is settled: stop, and write nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the lease of the run is lost: it is settled, or another worker holds it")]
pub struct LeaseLost;
