//! The metrics for operators: a counter for everything that had to be repaired or retried, and commit times. Each name is
//! written once, here; each counter is incremented beside the log line of the same event.
//!
//! Always: counters cover the whole process from its start; every series exists from the first scrape on. Counting costs one
//! atomic addition. Values that can be read at scrape time are not kept here: see [`Gauges`].

use std::sync::LazyLock;

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::failure::ErrorClass;
use crate::permission::PermissionState;
use crate::run::Status;

const PREFIX: &str = "mainstay";

/// The counters of this process.
pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// Rendering covers everything that is registered, so no counter can be forgotten.
pub(crate) struct Metrics {
    registry: Registry,
    settled: Family<[(&'static str, &'static str); 1], Counter>,
    failed: Family<[(&'static str, &'static str); 1], Counter>,
    pub run_seconds: Histogram,
    decided: Family<[(&'static str, &'static str); 1], Counter>,
    pub permissions_pending: Gauge,
    pub lost_runs_adopted: Counter,
    pub lost_runs_left: Counter,
    pub lost_runs_settled: Counter,
    pub lost_runs_put_back: Counter,
    pub lost_runs_postponed: Counter,
    pub runs_put_back: Counter,
    pub runs_left: Counter,
    pub runs_unstorable: Counter,
    pub runs_handed_over: Counter,
    pub hosts_lost: Counter,
    pub tasks_failed: Counter,
    pub leases_lost: Counter,
    pub agents_killed: Counter,
    pub processes_ended: Counter,
    pub backends_started: Counter,
    pub backends_crashed: Counter,
    pub backends_restarted: Counter,
    pub backends_adopted: Counter,
    pub backends_evicted: Counter,
    pub backends_idled: Counter,
    pub backends_not_ended: Counter,
    pub turns_not_ended: Counter,
    pub probes_failed: Counter,
    pub assignments_expired: Counter,
    pub workers_removed: Counter,
    pub sweeps: Counter,
    pub sweeps_failed: Counter,
    pub claims_failed: Counter,
    pub renewals_failed: Counter,
    pub cancel_looks_failed: Counter,
    pub watches_failed: Counter,
    pub writes_retried: Counter,
    pub starts_retried: Counter,
    pub memory_waits: Counter,
    pub batches_split: Counter,
    pub readers_lagged: Counter,
    pub streams_failed: Counter,
    pub readers_dropped: Counter,
    pub connections_open: Gauge,
    pub connections_given_up: Counter,
    pub streams_open: Gauge,
    pub requests_crowded: Counter,
    pub streams_crowded: Counter,
    pub requests_without_memory: Counter,
    pub accepts_failed: Counter,
    pub log_lines_dropped: Counter,
    pub commit_seconds: Histogram,
}

impl Metrics {
    fn new() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);

        let settled: Family<_, Counter> = Family::default();
        registry.register("runs_settled", "Runs that this process executed to their end", settled.clone());
        let decided: Family<_, Counter> = Family::default();
        registry.register("permissions_decided", "What agents asked here, by how it was decided", decided.clone());
        let permissions_pending = Gauge::default();
        let help = "What agents ask here and nobody has answered yet";
        registry.register("permissions_pending", help, permissions_pending.clone());
        let connections_open = Gauge::default();
        registry.register("connections", "Connections that are open", connections_open.clone());
        let streams_open = Gauge::default();
        registry.register("streams", "Streams, and answers that wait for the end of a run", streams_open.clone());
        let failed: Family<_, Counter> = Family::default();
        registry.register("runs_failed", "Runs that failed in this process, by class", failed.clone());
        // From a tenth of a second to half a day.
        let run_seconds = Histogram::new(exponential_buckets(0.1, 4.0, 10));
        registry.register(
            "run_seconds",
            "Time of a run in this process, from its claim to its end",
            run_seconds.clone(),
        );
        // From 0.1 ms (no sync) to 6.5 s (after the longest wait for another process).
        let commit_seconds = Histogram::new(exponential_buckets(0.0001, 4.0, 9));
        registry.register("commit_seconds", "Time of a transaction that wrote, in seconds", commit_seconds.clone());

        let mut counter = |name, help| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let metrics = Self {
            lost_runs_adopted: counter("lost_runs_adopted", "Runs of lost workers that this process went on with"),
            lost_runs_left: counter("lost_runs_left", "Runs of lost workers left for a daemon to go on with"),
            lost_runs_settled: counter(
                "lost_runs_settled",
                "Runs of lost workers that were settled: their agents had ended, or had to be",
            ),
            lost_runs_put_back: counter(
                "lost_runs_put_back",
                "Runs of lost workers that had said nothing and wait again",
            ),
            lost_runs_postponed: counter("lost_runs_postponed", "Runs of lost workers whose agent may still live"),
            runs_put_back: counter("runs_put_back", "Runs that had said nothing when this process was stopped"),
            runs_left: counter("runs_left", "Runs left to the sweep because the database failed for good"),
            runs_unstorable: counter(
                "runs_unstorable",
                "Runs settled without what cannot be stored, or what takes every process down",
            ),
            runs_handed_over: counter("runs_handed_over", "Runs left to the next process, with their agents"),
            hosts_lost: counter("hosts_lost", "Agents that were ended because the process that held them was lost"),
            tasks_failed: counter("tasks_failed", "Tasks that ended abnormally: a bug"),
            leases_lost: counter("leases_lost", "Runs given up because another process has them now"),
            agents_killed: counter("agents_killed", "Agents that did not end when asked to"),
            processes_ended: counter("processes_ended", "Processes that the agents of lost workers left running"),
            backends_started: counter("backends_started", "Warm backends that were started, each start of one"),
            backends_crashed: counter(
                "backends_crashed",
                "Warm backends that ended without being asked to, hung, or did not start",
            ),
            backends_restarted: counter("backends_restarted", "Restarts of warm backends after that"),
            backends_adopted: counter("backends_adopted", "Warm backends of lost workers that were taken over"),
            backends_evicted: counter("backends_evicted", "Warm backends closed to make room for another one"),
            backends_idled: counter("backends_idled", "Warm backends closed because nobody used them"),
            backends_not_ended: counter(
                "backends_not_ended",
                "Tries to end a warm backend after which something of it lived",
            ),
            turns_not_ended: counter("turns_not_ended", "Settled turns that a live agent may still be at"),
            probes_failed: counter("probes_failed", "Running backends that did not answer a probe"),
            assignments_expired: counter("assignments_expired", "Idle places that expired"),
            workers_removed: counter("workers_removed", "Dead workers that were removed"),
            sweeps: counter("sweeps", "Sweeps"),
            sweeps_failed: counter("sweeps_failed", "Sweeps that failed"),
            claims_failed: counter("claims_failed", "Looks for ready runs that failed"),
            renewals_failed: counter("renewals_failed", "Renewals of leases that failed"),
            cancel_looks_failed: counter("cancel_looks_failed", "Looks for cancel requests that failed"),
            watches_failed: counter("watches_failed", "Looks for what other processes wrote that failed"),
            writes_retried: counter("writes_retried", "Writes of runs tried again: disk full, database locked"),
            starts_retried: counter(
                "starts_retried",
                "Starts of agents tried again: out of file descriptors, processes, memory or disk space",
            ),
            memory_waits: counter("memory_waits", "Times that an agent had to wait for memory"),
            batches_split: counter("batches_split", "Batches of writes tried one by one after a failure"),
            readers_lagged: counter("readers_lagged", "Times that a live reader was too slow and went to the store"),
            streams_failed: counter("streams_failed", "Streams cut short because the database could not be read"),
            readers_dropped: counter(
                "readers_dropped",
                "Connections reset because their client took nothing of its answer",
            ),
            connections_given_up: counter("connections_given_up", "Idle connections closed to make room for others"),
            requests_crowded: counter("requests_crowded", "Requests refused because max_connections were under way"),
            streams_crowded: counter("streams_crowded", "Streams refused because there were as many as may be"),
            requests_without_memory: counter(
                "requests_without_memory",
                "Requests refused because memory_limit was taken",
            ),
            accepts_failed: counter("accepts_failed", "Connections that could not be accepted"),
            log_lines_dropped: counter("log_lines_dropped", "Lines for stderr that could not be written"),
            settled,
            failed,
            run_seconds,
            decided,
            permissions_pending,
            connections_open,
            streams_open,
            commit_seconds,
            registry,
        };
        for end in Status::ALL.into_iter().filter(|status| status.is_settled()) {
            metrics.runs_settled(end);
        }
        for class in ErrorClass::ALL.into_iter().map(Some).chain([None]) {
            metrics.runs_failed(class);
        }
        for state in PermissionState::ALL.into_iter().filter(|state| *state != PermissionState::Pending) {
            metrics.permissions_decided(state);
        }
        metrics
    }

    /// Runs that ended like this.
    pub fn runs_settled(&self, status: Status) -> Counter {
        self.settled.get_or_create_owned(&[("status", status.as_str())])
    }

    /// Runs that failed like this.
    pub fn runs_failed(&self, class: Option<ErrorClass>) -> Counter {
        self.failed.get_or_create_owned(&[("class", class.map_or("other", ErrorClass::as_str))])
    }

    /// Permissions that were decided like this.
    pub fn permissions_decided(&self, state: PermissionState) -> Counter {
        self.decided.get_or_create_owned(&[("state", state.as_str())])
    }
}

/// Current values, read at scrape time.
#[derive(Debug, Clone)]
pub(crate) struct Gauges {
    /// Warm backends that live, by state, over all processes.
    pub backends: Vec<(&'static str, u64)>,
    pub backends_awaited: u64,
    pub runs_executing: u64,
    pub runs_capacity: u64,
    pub followers: u64,
    pub writes_waiting: u64,
    pub database_bytes: u64,
    pub wal_bytes: u64,
    pub memory_limit: usize,
    /// Memory in use and the number of waiters, by part.
    pub memory: [(&'static str, usize, usize); 3],
    /// Values of all processes on the file; none when it cannot be read.
    pub file: Option<FileGauges>,
}

/// Current values of the database file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FileGauges {
    pub runs_running: u64,
    pub runs_queued: u64,
    pub sessions_placed: u64,
}

/// All metrics in the OpenMetrics text format, which Prometheus reads.
pub(crate) fn render(gauges: &Gauges) -> String {
    let mut now = Registry::with_prefix(PREFIX);
    let bytes = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
    let mut gauge = |name, help, value| now.register(name, help, ConstGauge::new(value));
    gauge("runs_executing", "Runs in execution here", gauges.runs_executing);
    gauge("runs_capacity", "Runs that are executed here at once", gauges.runs_capacity);
    gauge("followers", "Readers that follow live", gauges.followers);
    gauge("writes_waiting", "Writes that wait for the writer", gauges.writes_waiting);
    gauge("database_bytes", "Size of the database file", gauges.database_bytes);
    gauge("wal_bytes", "Size of its write-ahead log", gauges.wal_bytes);
    gauge("memory_limit_bytes", "What is in flight may take so much memory", bytes(gauges.memory_limit));
    gauge("backends_awaited", "Turns that wait here for a warm backend", gauges.backends_awaited);
    if let Some(file) = gauges.file {
        gauge("runs_running", "Runs that run, over all processes on the file", file.runs_running);
        gauge("runs_queued", "Runs that wait, over all processes on the file", file.runs_queued);
        gauge("sessions_placed", "Sessions that have a slot or share an agent", file.sessions_placed);
    }
    let backends: Family<[(&'static str, &'static str); 1], Gauge> = Family::default();
    for (state, count) in &gauges.backends {
        backends.get_or_create_owned(&[("state", *state)]).set(i64::try_from(*count).unwrap_or(i64::MAX));
    }
    now.register("backends", "Warm backends that live, of all processes on the file", backends);

    let used: Family<[(&'static str, &'static str); 1], Gauge> = Family::default();
    let waiting: Family<[(&'static str, &'static str); 1], Gauge> = Family::default();
    let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    for (part, bytes, waits) in gauges.memory {
        used.get_or_create_owned(&[("part", part)]).set(number(bytes));
        waiting.get_or_create_owned(&[("part", part)]).set(number(waits));
    }
    now.register("memory_used_bytes", "Memory that is taken of the limit", used);
    now.register("memory_waiting", "Who waits for memory", waiting);

    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = encode_registry(&mut text, &METRICS.registry)
        .and_then(|()| encode_registry(&mut text, &now))
        .and_then(|()| encode_eof(&mut text));
    text
}
