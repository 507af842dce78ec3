//! How the file descriptors of a daemon are divided: connections must not take those that running turns, the database and
//! short requests need.

pub use crate::process::descriptors::{limit, raise_limit};

use crate::config::Config;

/// The database (4 for each of six connections at most), stdin, stdout, stderr, the runtime, signals, the listener, locks, and
/// what is opened for a moment: files in `/proc`, spools, a copy.
const BASE: u64 = 64;
/// A turn that starts: a directory, a listener, a log, a link, a pidfd, `/dev/null`, and the pipe by which the child reports a
/// failed exec. Once it runs it holds the link and the pidfd.
const PER_RUN: u64 = 8;
/// A backend: its link, its pidfd, a probe, and `/proc`.
const PER_BACKEND: u64 = 4;
/// If even the reserve does not fit, one in this many is for connections.
const SMALL_SHARE: u64 = 4;

/// How many connections a process with `limit` descriptors may serve at once: as many as the config says, but none of those
/// that are kept for runs, backends and the database.
pub fn max_connections(config: &Config, limit: Option<u64>) -> usize {
    let configured = config.server.max_connections;
    let Some(limit) = limit else { return configured };
    let (runs, backends) = (u64::from(config.engine.workers), u64::from(config.engine.max_backends));
    let reserve = BASE + PER_RUN * runs + PER_BACKEND * backends;
    let free = limit.saturating_sub(reserve).max(limit / SMALL_SHARE).max(1);
    // A server accepts an eighth more (`reserved_connections`).
    configured.min(usize::try_from((free * 8 / 9).max(1)).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn connections_leave_a_reserve_for_runs() {
        let config = Config::builtin(Path::new("/"));
        for (limit, expected) in [
            (None, 4096),
            (Some(1_000_000), 4096),
            (Some(1024), (1024 - 64 - 8 * 8 - 4 * 10) * 8 / 9),
            (Some(256), 78),
            (Some(128), 28),
            (Some(1), 1),
        ] {
            let connections = max_connections(&config, limit);
            assert_eq!(connections, expected, "{limit:?}");
            let accepted = (connections + crate::config::reserved_connections(connections)) as u64;
            assert!(limit.is_none_or(|limit| limit < 256 || accepted + 64 + 8 * 8 + 4 * 10 <= limit), "{limit:?}");
        }
    }
}
