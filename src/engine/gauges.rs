//! The current state of this engine, beside the counters of its process.

use std::sync::atomic::Ordering;

use super::Engine;
use crate::metrics::{self, FileGauges, Gauges};

impl Engine {
    /// What an operator watches, in the text format of OpenMetrics: the counters of this process and the current state of this
    /// engine. `docs/operations.md` lists them.
    pub async fn metrics(&self) -> String {
        let shared = &self.shared;
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let (database_bytes, wal_bytes) = shared.store.sizes();
        let number = |number: i64| u64::try_from(number).unwrap_or(0);
        // Left out if the file cannot be read: the rest is worth knowing all the more then.
        let file = shared.store.stats(self.now()).await.ok().map(|stats| FileGauges {
            runs_running: number(stats.turns.active),
            runs_queued: number(stats.turns.queued),
            sessions_placed: number(stats.sessions.placed),
        });
        metrics::render(&Gauges {
            runs_executing: count(shared.executing.count()),
            runs_capacity: shared.worker.get().map_or(0, |worker| worker.capacity().into()),
            followers: count(shared.feed.followers()),
            writes_waiting: count(shared.store.writes_waiting()),
            database_bytes,
            wal_bytes,
            memory_limit: shared.memory.limit(),
            memory: shared.memory.parts(),
            backends: shared.supervision.live(),
            backends_awaited: shared.supervision.waiting.load(Ordering::Relaxed),
            file,
        })
    }
}
