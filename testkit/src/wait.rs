//! Waits that end: with the awaited result, or with a failed test that names the waiting line.

use std::panic::Location;
use std::time::{Duration, Instant};

/// The longest that anything may take on a loaded machine before a test fails.
pub const TIMEOUT: Duration = Duration::from_secs(120);

/// Poll interval for conditions that no event signals.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The result of a future within [`TIMEOUT`].
///
/// # Panics
/// If it takes longer.
#[track_caller]
pub fn within<F: Future>(future: F) -> impl Future<Output = F::Output> {
    within_limit(TIMEOUT, future)
}

/// The result of a future within a given limit.
///
/// # Panics
/// If it takes longer.
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

/// Waits for a condition that is only visible from outside: a file, a process, a line in a log.
///
/// # Panics
/// If it does not become true within [`TIMEOUT`].
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
/// If it does not become true within [`TIMEOUT`].
#[track_caller]
pub fn block_until(mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < TIMEOUT, "waited for {TIMEOUT:?} in vain");
        std::thread::sleep(POLL_INTERVAL);
    }
}
