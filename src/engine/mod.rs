//! The engine: one method for each thing the product does. Surfaces (HTTP, the command line, programs that embed Mainstay) use
//! [`Engine`] and the nouns, and nothing below.

pub mod agents;
mod backends;
mod backup;
pub mod callers;
mod chat;
mod closing;
pub mod decide;
pub mod descriptors;
pub mod doctor;
mod drive;
mod error;
mod executing;
mod failure_detector;
pub mod feed;
pub mod fold;
mod gauges;
mod health;
mod leased_run;
mod permissions;
mod progress;
mod prompting;
mod read_only;
mod readiness;
mod reading;
mod replay;
mod sending;
mod sessions;
mod shortage;
mod supervisor;
mod sweep;
pub mod turn;
mod unstorable;
mod watch;
mod worker;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent::Agent;
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::config::{Config, OnShutdown};
use crate::driver::{self, Driver};
use crate::id::{AgentName, RunId, SessionId};
use crate::lease::SessionKey;
use crate::memory::Memory;
use crate::process::Shims;
use crate::process::reap;
use crate::stats::Stats;
use crate::store::Store;
use crate::store::run::{RunRow, SessionScope};

pub use crate::store::LargeText;
pub use crate::store::audit::Depth;
pub use crate::store::event::EventPage;
pub use crate::store::message::{MessageCursor, MessagePage, MessageRange, PageFrom};
pub use crate::store::permission::PermissionFilter;
pub use crate::store::run::{Purpose, Refusal, RunFilter};
pub use crate::store::session::SessionCursor;
pub use crate::store::{StoreError, database_exists, short_id::IdKind, token_file};
pub use backup::{Backup, back_up};
pub use chat::{GivenAnswer, ResumeFrom};
pub use error::EngineError;
pub use feed::{Followed, Follower};
pub use permissions::Paused;
pub use read_only::READS_AT_MOST;
pub use sending::{SendMessage, Sent};
pub use sessions::CreateSession;
pub use sweep::SweepReport;

use executing::Executing;
use feed::Feed;
use supervisor::SupervisorHandle;

/// An open engine. Clones share it.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("store", &self.shared.store).finish_non_exhaustive()
    }
}

/// What the loops of an engine share.
struct Shared {
    config: Config,
    drivers: std::collections::BTreeMap<AgentName, Arc<dyn Driver>>,
    /// The shims of this database's agents.
    shims: Shims,
    store: Store,
    /// The budget for what is in flight.
    memory: Memory,
    feed: Arc<Feed>,
    executing: Arc<Executing>,
    supervision: Arc<SupervisorHandle>,
    tasks: TaskTracker,
    /// Held from a claim until its runs are registered in `executing`, so that a drain sees them.
    claiming: tokio::sync::Mutex<()>,
    /// Stop claiming; running turns continue.
    draining: CancellationToken,
    /// End the running turns now.
    ending: CancellationToken,
    /// Kill their agents without grace.
    killing: CancellationToken,
    /// Leave running turns to the next process; their agents continue.
    leaving: CancellationToken,
    /// The engine is closed: its loops stop.
    closed: CancellationToken,
    /// Which workers and leases are lost, as far as this process has observed.
    failure_detector: tokio::sync::Mutex<failure_detector::FailureDetector>,
    /// The row of this process in the table of workers; created when it is first needed.
    worker: tokio::sync::OnceCell<worker::Identity>,
    /// Whether the loops of this engine run and its claims succeed.
    health: health::Health,
    /// Whether messages are accepted, as of the newest probe.
    readiness: readiness::Readiness,
    /// Starts that wait for resources.
    shortages: shortage::Shortages,
    /// Which agents are installed here, as of the newest survey.
    surveys: agents::Surveys,
}

impl Engine {
    /// Opens the database at `path`, creating it as needed, and the pools of the config. Executes nothing until
    /// [`Engine::start`] or [`Engine::execute_until`].
    ///
    /// # Errors
    /// [`EngineError::Store`] when the file cannot be used.
    pub async fn open(path: &Path, config: Config) -> Result<Self, EngineError> {
        Self::open_with_clock(path, config, Arc::new(SystemClock)).await
    }

    /// Like [`Engine::open`], with agents of the embedding program: where `driver` returns a driver for an agent of the
    /// config, it takes that agent's turns instead of the configured one.
    ///
    /// # Errors
    /// [`EngineError::Store`] when the file cannot be used.
    pub async fn open_with_backends(
        path: &Path,
        config: Config,
        driver: impl Fn(&Agent, &Shims) -> Option<Arc<dyn Driver>> + Send,
    ) -> Result<Self, EngineError> {
        Self::open_with(path, config, Arc::new(SystemClock), driver).await
    }

    /// Like [`Engine::open`], with another clock.
    ///
    /// # Errors
    /// [`EngineError::Store`] when the file cannot be used.
    pub async fn open_with_clock(path: &Path, config: Config, clock: Arc<dyn Clock>) -> Result<Self, EngineError> {
        Self::open_with(path, config, clock, |_, _| None).await
    }

    async fn open_with(
        path: &Path,
        config: Config,
        clock: Arc<dyn Clock>,
        driver: impl Fn(&Agent, &Shims) -> Option<Arc<dyn Driver>> + Send,
    ) -> Result<Self, EngineError> {
        let memory = Memory::new(config.engine.memory_limit);
        let feed = Arc::new(Feed::within(&memory));
        let executing = Arc::new(Executing::default());
        let supervision = Arc::new(SupervisorHandle::default());
        let on_commit = {
            let (feed, executing, supervision) = (feed.clone(), executing.clone(), supervision.clone());
            Box::new(move |notices: Vec<_>| {
                for notice in &notices {
                    feed.publish(notice);
                    executing.notice(notice);
                    supervision.notice(notice);
                }
            })
        };
        let is_alive = |process: &_| reap::is_alive(process) == reap::Liveness::Alive;
        let store = Store::open(path, config.engine.durability, clock, on_commit, is_alive).await?;
        for workspace in config.workspaces.values() {
            // An existing pool belongs to the daemon that serves it; only that daemon resizes it.
            store.make_pool(workspace.clone()).await?;
        }
        Ok(Self::assemble(config, store, memory, feed, executing, supervision, driver))
    }

    fn assemble(
        config: Config,
        store: Store,
        memory: Memory,
        feed: Arc<Feed>,
        executing: Arc<Executing>,
        supervision: Arc<SupervisorHandle>,
        driver: impl Fn(&Agent, &Shims) -> Option<Arc<dyn Driver>>,
    ) -> Self {
        let shims = Shims::new(config.engine.shim_program.clone(), store.agents_dir().to_owned());
        let shims = shims.with_memory(memory.clone());
        let open = |agent: &Agent| driver(agent, &shims).unwrap_or_else(|| driver::open(agent, &shims));
        let drivers = config.agents.values().map(|agent| (agent.name.clone(), open(agent))).collect();
        let shared = Arc::new(Shared {
            config,
            drivers,
            shims,
            store,
            memory,
            feed,
            executing,
            supervision,
            tasks: TaskTracker::new(),
            claiming: tokio::sync::Mutex::new(()),
            draining: CancellationToken::new(),
            ending: CancellationToken::new(),
            killing: CancellationToken::new(),
            leaving: CancellationToken::new(),
            closed: CancellationToken::new(),
            failure_detector: tokio::sync::Mutex::default(),
            worker: tokio::sync::OnceCell::new(),
            health: health::Health::default(),
            readiness: readiness::Readiness::default(),
            shortages: shortage::Shortages::default(),
            surveys: agents::Surveys::default(),
        });
        shared.spawn_loop("watcher", Shared::is_closed, watch::run(shared.clone()));
        shared.watch_writer();
        Self { shared }
    }

    /// The time, as the rows carry it.
    pub fn now(&self) -> Timestamp {
        self.shared.store.clock().now()
    }

    /// The configuration that the engine was opened with.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// The memory budget for what is in flight.
    pub fn memory(&self) -> &Memory {
        &self.shared.memory
    }

    /// Begins to execute runs, as many at once as the config says, and to sweep: once now, then at every interval.
    ///
    /// # Errors
    /// When this process cannot be registered as a worker.
    pub async fn start(&self) -> Result<(), EngineError> {
        self.shared.check_directories().await;
        for workspace in self.shared.config.workspaces.values() {
            self.shared.store.sync_slots(workspace.clone()).await?;
        }
        self.shared.worker(self.shared.config.engine.workers).await?;
        // Before the first sweep, which hands over what it adopts.
        self.shared.executing.begin(None);
        self.spawn_loops(self.shared.config.engine.workers, None);
        Ok(())
    }

    fn spawn_loops(&self, capacity: u32, only: Option<SessionScope>) {
        let shared = &self.shared;
        shared.spawn_loop("closing", Shared::is_closed, closing::run(shared.clone()));
        shared.spawn_loop("sweep", Shared::is_draining, sweep::run(shared.clone()));
        shared.spawn_loop("supervisor", Shared::is_closed, supervisor::run(shared.clone()));
        shared.spawn_loop("worker", Shared::is_closed, worker::run(shared.clone(), capacity, only));
    }

    /// Executes the runs of a run's session in this process, one after the other, until that run is settled, and sweeps: for a
    /// program that wants an answer and cannot rely on a daemon.
    ///
    /// # Errors
    /// When this process cannot be registered as a worker, or there is no such run.
    pub async fn execute_until(&self, run: RunId) -> Result<(), EngineError> {
        let located = self.locate(run).await?;
        // With capacity 0: no other process is to rely on this one to execute its runs.
        self.shared.worker(0).await?;
        let only = SessionScope { session: located.session, until: located.key };
        self.shared.executing.begin(Some(only));
        self.spawn_loops(1, Some(only));
        Ok(())
    }

    /// Stops claiming and gives running turns `grace` to end. What still runs then is left to another process on the file that
    /// executes runs, or to the next one if the config says so; otherwise it is ended (runs that have said nothing go back to
    /// the queue, the others end as interrupted). [`Engine::end_now`] and [`Engine::hand_over`] cut the grace short. Readers
    /// are still served.
    pub async fn drain(&self, grace: Duration) {
        self.shared.draining.cancel();
        drop(self.shared.claiming.lock().await);
        if let Some(worker) = self.shared.worker.get() {
            // Two workers that stop at once must not leave their runs to each other. A write that fails or hangs does not
            // delay the drain.
            let retired = self.shared.store.retire_worker(worker.key);
            if !matches!(tokio::time::timeout(RETIRE_WITHIN, retired).await, Ok(Ok(()))) {
                tracing::warn!("failed to tell the others that this worker stops");
            }
        }
        tokio::select! {
            () = self.shared.executing.idle() => {}
            () = tokio::time::sleep(grace) => {
                let leave = self.shared.config.engine.on_shutdown == OnShutdown::Leave;
                // If the database cannot be queried, assume that no other process executes runs.
                if leave || self.is_executed_elsewhere().await.unwrap_or(false) {
                    self.shared.leaving.cancel();
                }
            }
            () = self.shared.ending.cancelled() => {}
            () = self.shared.leaving.cancelled() => {}
            _ = self.failed() => {}
        }
        self.shared.ending.cancel();
        tokio::select! {
            () = self.shared.executing.idle() => {}
            // After a failure no loop is left that would end them.
            _ = self.failed() => {}
        }
    }

    /// Leaves running turns to the next process on the file: their agents continue, and nothing is lost. Agents inside this
    /// process cannot be left; their turns end as in [`Engine::drain`].
    pub fn hand_over(&self) {
        self.shared.leaving.cancel();
    }

    /// Stops everything and closes the file. Runs still in execution are left to the next sweep: call [`Engine::drain`] first.
    pub async fn close(&self) {
        self.shared.draining.cancel();
        self.shared.closed.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        if let Some(worker) = self.shared.worker.get()
            && let Err(error) = self.shared.store.deregister_worker(worker.key).await
        {
            tracing::warn!(%error, "failed to deregister this worker; the next sweep will remove it");
        }
        self.shared.store.close().await;
    }

    /// Cuts the grace of a drain short: running turns are asked to end.
    pub fn end_now(&self) {
        self.shared.ending.cancel();
    }

    /// Ends running turns without any grace for their agents.
    pub fn kill_now(&self) {
        self.shared.ending.cancel();
        self.shared.killing.cancel();
    }

    /// Runs one sweep now.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn sweep(&self) -> Result<SweepReport, EngineError> {
        sweep::sweep(&self.shared).await
    }

    /// The current state over all processes on the file, and statistics of the last `window`: at most a year.
    ///
    /// # Errors
    /// [`EngineError::InvalidValue`] for a window out of range, [`EngineError::Store`].
    pub async fn stats(&self, window: Duration) -> Result<Stats, EngineError> {
        check_duration("window", window)?;
        Ok(self.shared.store.stats(self.now() - window).await?)
    }

    async fn locate(&self, id: RunId) -> Result<RunRow, EngineError> {
        self.shared.store.find_run(id).await?.ok_or_else(|| not_found("run", id))
    }

    async fn session_key(&self, id: &SessionId) -> Result<SessionKey, EngineError> {
        self.shared.store.find_session_key(id).await?.ok_or_else(|| not_found("session", id))
    }
}

fn not_found(what: &'static str, id: impl std::fmt::Display) -> EngineError {
    EngineError::NotFound { what, id: id.to_string() }
}

/// A write takes milliseconds, unless the database is locked or its disk is full.
const RETIRE_WITHIN: Duration = Duration::from_secs(1);

/// Longest idle TTL, turn timeout and statistics window that is accepted: a year.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

fn check_duration(what: &str, duration: Duration) -> Result<(), EngineError> {
    if duration.is_zero() || duration > MAX_DURATION {
        return Err(EngineError::InvalidValue(format!("{what} must be between 1 and {}", MAX_DURATION.as_millis())));
    }
    Ok(())
}
