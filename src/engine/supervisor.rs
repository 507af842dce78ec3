//! The supervisor: watches the backends of this worker, each in a task of its own. It knows them by their rows; a wake-up only
//! makes it poll sooner.
//!
//! Always: each backend of this worker has one task, and no other backend has one; every task is awaited when the engine
//! closes. A turn that waits for a backend (`drive/warm.rs`) holds no lock.
//!
//! Proof: `tests/it/warm/`.

mod adopt;
mod backend_task;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{Id, JoinSet};

use super::Shared;
use super::health::ROUND_LIMIT;
use crate::backend::BackendState;
use crate::lease::BackendKey;
use crate::metrics::METRICS;
use crate::store::Notice;
use crate::store::backend::BackendRow;

pub(super) use adopt::adopt;
use backend_task::BackendTask;

/// Poll interval for what other processes request of a backend.
const BACKEND_POLL_INTERVAL: Duration = Duration::from_millis(500);

/// What turns, the supervisor and the metrics share.
#[derive(Default)]
pub(super) struct SupervisorHandle {
    /// Counts the changes of backends, and of what they are needed for.
    changed: watch::Sender<u64>,
    /// Turns that wait for a backend.
    pub waiting: std::sync::atomic::AtomicU64,
    live: Mutex<BTreeMap<&'static str, u64>>,
}

impl SupervisorHandle {
    /// Wakes the waiting tasks if a commit may concern them.
    pub fn notice(&self, notice: &Notice) {
        // A settled run may have been the last one on a backend.
        if matches!(notice, Notice::Backends | Notice::Ready) {
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// A receiver that sees the changes from now on.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// How many backends were in each state when the rows were last read.
    pub fn live(&self) -> Vec<(&'static str, u64)> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |state: BackendState| (state.as_str(), live.get(state.as_str()).copied().unwrap_or_default());
        BackendState::ALL.into_iter().filter(|state| *state != BackendState::Stopped).map(count).collect()
    }

    fn count(&self, rows: &[BackendRow]) {
        let mut live = BTreeMap::new();
        for row in rows {
            *live.entry(row.state.as_str()).or_default() += 1;
        }
        *self.live.lock().unwrap_or_else(PoisonError::into_inner) = live;
    }
}

/// The tasks of this worker's backends.
#[derive(Default)]
struct Tasks {
    set: JoinSet<()>,
    backends: HashMap<Id, BackendKey>,
    rows: HashMap<BackendKey, watch::Sender<Option<BackendRow>>>,
}

impl Tasks {
    fn tend(&mut self, shared: &Arc<Shared>, row: BackendRow) {
        let (key, id) = (row.key, row.id);
        let (sender, rows) = watch::channel(None);
        match BackendTask::new(shared.clone(), row, rows) {
            Some(backend_task) => {
                let task = self.set.spawn(backend_task.run());
                self.backends.insert(task.id(), key);
                self.rows.insert(key, sender);
            }
            None => tracing::debug!(backend.id = %id, "a backend of an agent that is not configured here"),
        }
    }

    fn ended(&mut self, ended: Result<(Id, ()), tokio::task::JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            // Its row has no task now, and gets another one.
            Err(error) => {
                METRICS.tasks_failed.inc();
                tracing::error!(%error, "the task of a backend ended abnormally");
                error.id()
            }
        };
        if let Some(key) = self.backends.remove(&id) {
            self.rows.remove(&key);
        }
    }
}

/// Supervises backends until the engine closes, then ends them, or leaves them to the next supervisor.
pub(super) async fn run(shared: Arc<Shared>) {
    let Some(worker) = shared.worker.get().map(|identity| identity.key) else { return };
    let mut changes = shared.supervision.changes();
    let mut tasks = Tasks::default();
    while !shared.closed.is_cancelled() {
        changes.mark_unchanged();
        let round = shared.health.begin_round("supervisor", ROUND_LIMIT);
        match shared.store.live_backends().await {
            Ok(live) => {
                shared.supervision.count(&live);
                let mut own: HashMap<_, _> =
                    live.into_iter().filter(|row| row.worker == Some(worker)).map(|row| (row.key, row)).collect();
                for (key, sender) in &tasks.rows {
                    let row = own.remove(key);
                    sender.send_if_modified(|known| {
                        let differs = *known != row;
                        *known = row;
                        differs
                    });
                }
                own.into_values().for_each(|row| tasks.tend(&shared, row));
            }
            Err(error) => tracing::warn!(%error, "failed to look at the backends; trying again"),
        }
        drop(round);
        tokio::select! {
            () = shared.closed.cancelled() => {}
            _ = changes.changed() => {}
            () = tokio::time::sleep(BACKEND_POLL_INTERVAL) => {}
            Some(ended) = tasks.set.join_next_with_id() => tasks.ended(ended),
        }
    }
    while let Some(ended) = tasks.set.join_next_with_id().await {
        tasks.ended(ended);
    }
}
