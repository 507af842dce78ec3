//! File descriptors: an engine raises its soft limit to the hard one, and its agents get the limit that it was started
//! with.
//!
//! Each reader takes a socket, and the usual soft limit of 1024 exists for programs that use `select`. Agents may be
//! such programs, or close every descriptor up to the limit before they start a child.

use std::io;
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The soft limit that this process was started with, set when it is raised.
static INHERITED: OnceLock<Option<u64>> = OnceLock::new();

/// Raises the soft limit of this process to the hard one.
///
/// # Errors
/// The system refuses; the limit is unchanged.
pub fn raise_limit() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return Ok(());
    }
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    // A second call has nothing to raise.
    let _ = INHERITED.set(limit.current);
    Ok(())
}

/// How many file descriptors this process may have; `None` if unlimited.
pub fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// The soft limit that agents get; `None` if they inherit it unchanged.
pub(super) fn limit_of_agents() -> Option<u64> {
    INHERITED.get().copied().flatten()
}

/// Sets the soft limit of this process, which its children inherit.
pub(super) fn set_limit(soft: u64) {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum.map_or(soft, |hard| soft.min(hard));
    // Lowering it is always allowed.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(current), ..limit });
}
