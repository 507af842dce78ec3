//! The limits of configured values, each with its reason. `docs/config.md` lists them for users.

use std::ops::RangeInclusive;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A config of this size is a mistake (a log, a database) and not read further.
pub const MAX_FILE_BYTES: usize = 1024 * 1024;

/// 0 serves without executing; above a thousand agents at once a machine needs more processes, not more workers.
pub const WORKERS: RangeInclusive<u32> = 0..=1024;
/// Below a second, an ordinary pause of the process would cost it its runs; above an hour, recovery from a dead worker comes too
/// late to be of use.
pub const LEASE: RangeInclusive<Duration> = Duration::from_secs(1)..=HOUR;
/// A sweep costs a write transaction; with less than one a day, slots stay taken and dead workers unnoticed.
pub const SWEEP_INTERVAL: RangeInclusive<Duration> = Duration::from_secs(1)..=DAY;
/// Zero settles at once; above an hour, the operator who asked for the stop has killed the process by then.
pub const SHUTDOWN_GRACE: RangeInclusive<Duration> = Duration::ZERO..=HOUR;
/// Below a tenth of a second, a session would lose its slot between two messages.
pub const IDLE_TTL: RangeInclusive<Duration> = Duration::from_millis(100)..=YEAR;
/// Zero deletes them at the next sweep.
pub const ASSIGNMENT_RETENTION: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(10 * YEAR.as_secs());
/// Each is a process or a server of some 100 MB.
pub const MAX_BACKENDS: RangeInclusive<u32> = 0..=1000;

/// Below, a message of the maximum size does not fit beside the line that carries it; above, it limits nothing.
pub const MEMORY_LIMIT: RangeInclusive<usize> = 256 * 1024 * 1024..=1024 * 1024 * 1024 * 1024;

/// With zero, a busy session could take no message; an edit cancels all queued runs in one transaction, at 0.2 ms per run.
pub const MAX_QUEUED: RangeInclusive<u32> = 1..=100_000;

/// SQLite neither stores a longer text (`SQLITE_MAX_LENGTH`) nor takes it as a parameter.
pub const MAX_STORED_BYTES: usize = 1_000_000_000;
/// A character of one byte takes at most this many bytes in JSON: `\u0001`.
pub const JSON_GROWTH: usize = 6;

/// Below a KiB, not even a short message fits. A body is held in memory and stored as it is: it is JSON already.
pub const MAX_BODY_BYTES: RangeInclusive<usize> = 1024..=256 * 1024 * 1024;
const _: () = assert!(*MAX_BODY_BYTES.end() * 2 < MAX_STORED_BYTES);
/// Common set-ups give a process no more file descriptors than this.
pub const MAX_CONNECTIONS: RangeInclusive<usize> = 1..=65_535;
/// Entries of `allowed_origins` and `allowed_hosts`: every request is compared with all of them.
pub const MAX_ALLOWED: usize = 100;

/// Below a tenth of a second, no process can answer.
pub const TURN_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(30 * DAY.as_secs());
/// As the limit of the whole turn.
pub const IDLE_TIMEOUT: RangeInclusive<Duration> = TURN_TIMEOUT;
/// Zero kills at once; a person who cancels a turn waits this long.
pub const KILL_GRACE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(10 * 60);
/// An agent that may never run should be left out of the config.
pub const MAX_CONCURRENT: RangeInclusive<u32> = 1..=10_000;
/// Below, a backend that fails to start would keep the machine busy with starts; above an hour, no turn waits for it any more.
pub const RESTART_PAUSE: RangeInclusive<Duration> = Duration::from_millis(10)..=HOUR;
/// A backend that restarts more often within five minutes does nothing else.
pub const MAX_RESTARTS: RangeInclusive<u32> = 1..=10_000;
/// Below a second, a backend would be gone before the next message. An idle backend costs some 100 MB.
pub const KEEP_WARM: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(7 * DAY.as_secs());
/// Below a second, no person can answer.
pub const PERMISSION_TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=YEAR;
/// A message whose runs are interrupted more often needs an operator.
pub const MAX_RESUMES: RangeInclusive<u32> = 1..=100;
/// Below 4 KiB, ordinary events are lost; above, a line is held in memory, and its content must fit into a row.
pub const MAX_LINE_BYTES: RangeInclusive<usize> = 4096..=64 * 1024 * 1024;
const _: () = assert!(*MAX_LINE_BYTES.end() * JSON_GROWTH < MAX_STORED_BYTES);

/// 0 leaves only the resident agent; every slot is a row.
pub const SLOTS: RangeInclusive<u32> = 0..=1000;
