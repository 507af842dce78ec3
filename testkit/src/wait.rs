//! Waits that end: with what they wait for, or with a failed test that names the line that waited.

use std::panic::Location;
use std::time::{Duration, Instant};

/// The longest that anything may take on a loaded machine before a test gives up.
pub const TIMEOUT: Duration = Duration::from_secs(120);

/// How often a condition is polled that no event tells of.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// What a future answers within [`TIMEOUT`].
///
/// # Panics
/// When it takes longer.
#[track_caller]
pub fn within<F: Future>(future: F) -> impl Future<Output = F::Output> {
    within_limit(TIMEOUT, future)
}

/// What a future answers within a limit of its own.
///
/// # Panics
/// When it takes longer.
#[track_caller]
pub fn within_limit<F: Future>(limit: Duration, future: F) -> impl Future<Output = F::Output> {
    let caller = Location::caller();
    async move {
        match tokio::time::timeout(limit, future).await {
            Ok(output) => output,
            Err(_) => panic!("waited for {limit:?} in vain at {caller}"),
        }
    }
}

/// Waits for what only shows from outside: a file, a process, a line in a log.
///
/// # Panics
/// When it does not become true within [`TIMEOUT`].
#[track_caller]
pub fn until(mut condition: impl FnMut() -> bool) -> impl Future<Output = ()> {
    within(async move {
        while !condition() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    })
}

/// The same in a test without a runtime.
///
/// # Panics
/// When it does not become true within [`TIMEOUT`].
#[track_caller]
pub fn block_until(mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < TIMEOUT, "waited for {TIMEOUT:?} in vain");
        std::thread::sleep(POLL_INTERVAL);
    }
}
