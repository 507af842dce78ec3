//! The engine: one method for each thing the product does. Surfaces (HTTP, the command line, programs that embed us) talk
//! to [`Engine`] and the nouns, and to nothing below.

pub mod decide;
mod drive;
mod error;
pub mod feed;
pub mod fold;
mod stderr;
mod sweep;
pub mod turn;
mod watch;
mod worker;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backend::{self, Backend, reap};
use crate::clock::{Clock, SystemClock, Timestamp, millis};
use crate::config::Config;
use crate::event::{Event, Seq};
use crate::id::{AgentName, RunId, SessionId, WorkspaceName};
use crate::lease::SessionKey;
use crate::message::UserMessage;
use crate::run::{Run, RunOptions};
use crate::session::Session;
use crate::slot::Slot;
use crate::store::Store;
use crate::store::event::Range;
use crate::store::run::{Enqueue, Located};
use crate::store::session::{Closed, Created, NewSession};
use crate::worker::Worker;
use crate::workspace::Workspace;

pub use crate::store::StoreError;
pub use crate::store::message::{MessageCursor, MessagePage};
pub use crate::store::run::{Purpose, Refusal, RunFilter};
pub use crate::store::session::SessionCursor;
pub use error::EngineError;
pub use feed::{Followed, Follower};
pub use sweep::SweepReport;

use feed::{Feed, Scope};
use worker::Executing;

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
    backends: std::collections::BTreeMap<AgentName, Arc<dyn Backend>>,
    store: Store,
    feed: Arc<Feed>,
    executing: Arc<Executing>,
    tasks: TaskTracker,
    /// Stop claiming; running turns go on.
    draining: CancellationToken,
    /// Running turns are to end now.
    ending: CancellationToken,
    /// Everything is over: the watcher stops.
    closed: CancellationToken,
    /// How this process is known in the table of workers; made when it is first needed.
    worker: tokio::sync::OnceCell<worker::Identity>,
}

/// What is to be sent.
#[derive(Debug, Clone)]
pub struct Send {
    /// The session; created when it does not exist.
    pub session: SessionId,
    /// What the person said.
    pub message: UserMessage,
    /// Why it is sent.
    pub purpose: Purpose,
    /// For a new session: its workspace, when not `default`.
    pub workspace: Option<WorkspaceName>,
    /// For a new session: its agent, when not the workspace's.
    pub agent: Option<AgentName>,
    /// How it is to be run.
    pub options: RunOptions,
}

impl Send {
    /// A message for a session, with the usual options.
    pub fn new(session: SessionId, message: UserMessage) -> Self {
        let (purpose, options) = (Purpose::Send, RunOptions::default());
        Self { session, message, purpose, workspace: None, agent: None, options }
    }
}

/// A message that was taken: its run.
#[derive(Debug, Clone)]
pub struct Sent {
    /// The run.
    pub run: Run,
    /// False when the same message had been sent before: nothing was started.
    pub created: bool,
}

/// A session to be made.
#[derive(Debug, Clone, Default)]
pub struct CreateSession {
    /// Its id; made when none is given.
    pub id: Option<SessionId>,
    /// Its workspace, when not `default`.
    pub workspace: Option<WorkspaceName>,
    /// Its agent, when not the workspace's.
    pub agent: Option<AgentName>,
    /// Its title; taken from its first message when none.
    pub title: Option<String>,
    /// How long it keeps its slot while nothing happens; the engine's default when none.
    pub idle_ttl: Option<Duration>,
}

/// Longest title, in characters.
const MAX_TITLE_CHARS: usize = 500;
/// Longest idle TTL and turn timeout that can be asked for: a year.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

impl Engine {
    /// Opens the database at `path`, creating it as needed, and the pools of the config. Executes nothing until
    /// [`Engine::start`] or [`Engine::execute_session`].
    ///
    /// # Errors
    /// [`EngineError::Store`] when the file cannot be used.
    pub async fn open(path: &Path, config: Config) -> Result<Self, EngineError> {
        Self::open_with_clock(path, config, Arc::new(SystemClock)).await
    }

    /// The same with another clock.
    ///
    /// # Errors
    /// [`EngineError::Store`] when the file cannot be used.
    pub async fn open_with_clock(path: &Path, config: Config, clock: Arc<dyn Clock>) -> Result<Self, EngineError> {
        let feed = Arc::new(Feed::default());
        let executing = Arc::new(Executing::default());
        let on_commit = {
            let (feed, executing) = (feed.clone(), executing.clone());
            Box::new(move |notices: Vec<_>| {
                for notice in &notices {
                    feed.publish(notice);
                    executing.notice(notice);
                }
            })
        };
        let store = Store::open(path, config.engine.durability, clock, on_commit).await?;
        for workspace in config.workspaces.values() {
            // A pool that is there belongs to whoever serves; only its daemon makes it larger or smaller.
            store.make_pool(workspace.clone()).await?;
        }
        let backends = config.agents.values().map(|agent| (agent.name.clone(), backend::open(agent))).collect();
        let shared = Arc::new(Shared {
            config,
            backends,
            store,
            feed,
            executing,
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            ending: CancellationToken::new(),
            closed: CancellationToken::new(),
            worker: tokio::sync::OnceCell::new(),
        });
        shared.tasks.spawn(watch::run(shared.clone()));
        Ok(Self { shared })
    }

    /// The time, as the rows carry it.
    pub fn now(&self) -> Timestamp {
        self.shared.store.clock().now()
    }

    /// The configuration that it was opened with.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Begins to execute runs, as many at once as the config says, and to sweep: once now, then at every interval.
    ///
    /// # Errors
    /// When this process cannot be registered as a worker.
    pub async fn start(&self) -> Result<(), EngineError> {
        for workspace in self.shared.config.workspaces.values() {
            self.shared.store.sync_slots(workspace.clone()).await?;
        }
        self.shared.worker(self.shared.config.engine.workers).await?;
        self.shared.tasks.spawn(sweep::run(self.shared.clone()));
        self.shared.tasks.spawn(worker::run(self.shared.clone(), self.shared.config.engine.workers, None));
        Ok(())
    }

    /// Executes the runs of one session in this process, one after the other, until the engine is shut down: for a
    /// program that wants an answer and cannot count on a daemon.
    ///
    /// # Errors
    /// When this process cannot be registered as a worker, or there is no such session.
    pub async fn execute_session(&self, session: &SessionId) -> Result<(), EngineError> {
        let key = self.session_key(session).await?;
        self.shared.worker(1).await?;
        self.shared.tasks.spawn(worker::run(self.shared.clone(), 1, Some(key)));
        Ok(())
    }

    /// Whether some process on this file executes runs now: its heartbeat is fresh, and it is not proven dead.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn is_executed_elsewhere(&self) -> Result<bool, EngineError> {
        let silent_since = self.now() - self.shared.config.engine.lease;
        let workers = self.shared.store.registered_workers().await?;
        Ok(workers.iter().any(|worker| {
            let alive = reap::is_alive(&worker.process);
            worker.capacity > 0 && worker.heartbeat_at > silent_since && alive != reap::Liveness::Dead
        }))
    }

    /// Stops claiming, lets running turns go on for `grace`, then ends them: those that have said nothing go back to the
    /// queue, the others end as interrupted. [`Engine::end_now`] cuts the grace short. Readers are served on.
    pub async fn drain(&self, grace: Duration) {
        self.shared.draining.cancel();
        let drained = self.shared.executing.idle();
        tokio::select! {
            () = drained => {}
            () = tokio::time::sleep(grace) => {}
            () = self.shared.ending.cancelled() => {}
        }
        self.shared.ending.cancel();
        self.shared.executing.idle().await;
    }

    /// Stops everything and closes the file. What is still executed is left to the next sweep: [`Engine::drain`] first.
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

    /// Ends the grace of a drain that is under way.
    pub fn end_now(&self) {
        self.shared.ending.cancel();
    }

    /// One sweep now.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn sweep(&self) -> Result<SweepReport, EngineError> {
        sweep::sweep(&self.shared).await
    }

    // ── sending ──

    /// Enqueues a message: message, run and the session's place in one transaction; answers after the commit. The same
    /// message id again answers with the run that it has.
    ///
    /// # Errors
    /// [`EngineError::NotFound`] for an unknown agent or workspace, [`EngineError::Refused`], [`EngineError::InvalidValue`]
    /// for options out of range, [`EngineError::ShuttingDown`], [`EngineError::Store`].
    pub async fn send(&self, send: Send) -> Result<Sent, EngineError> {
        if self.shared.draining.is_cancelled() {
            return Err(EngineError::ShuttingDown);
        }
        if !(-1000..=1000).contains(&send.options.priority) {
            return Err(EngineError::InvalidValue("priority must be between -1000 and 1000".into()));
        }
        if let Some(timeout) = send.options.timeout {
            check_duration("timeout_ms", timeout)?;
        }
        let known = self.shared.store.find_session(&send.session).await?;
        let workspace = match (&send.workspace, known) {
            (Some(name), _) => self.workspace(name)?,
            // A session of a workspace that is not configured here waits for a process that knows it.
            (None, Some(session)) => match self.shared.config.workspaces.get(&session.workspace) {
                Some(workspace) => workspace,
                None => self.default_workspace()?,
            },
            (None, None) => self.default_workspace()?,
        };
        let agent = self.agent_or_resident(send.agent.as_ref(), workspace)?;
        let enqueue = Enqueue {
            session: send.session,
            new: NewSession::of(workspace.name.clone(), agent, millis(self.shared.config.engine.idle_ttl)),
            workspace_named: send.workspace.is_some(),
            agent_named: send.agent.is_some(),
            message: send.message,
            purpose: send.purpose,
            options: send.options,
            when_full: workspace.when_full,
        };
        let enqueued = self.shared.store.enqueue(enqueue).await??;
        if enqueued.created {
            let run = &enqueued.run.run;
            tracing::info!(run.id = %run.id, session.id = %run.session_id, agent = %run.agent, "run enqueued");
        }
        Ok(Sent { run: enqueued.run.run, created: enqueued.created })
    }

    /// Asks for a run to stop, in whatever state it is; asking again changes nothing. Answers with the run as it is then,
    /// and whether it was settled before.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn cancel_run(&self, id: RunId) -> Result<(Run, bool), EngineError> {
        let cancelled = self.shared.store.cancel_run(id).await?.ok_or_else(|| not_found("run", id))?;
        let run = cancelled.run.run;
        if !cancelled.was_settled {
            tracing::info!(run.id = %run.id, session.id = %run.session_id, "cancel requested");
        }
        Ok((run, cancelled.was_settled))
    }

    /// Cancels what a session is at: its running run, else the next in its queue. `None` when it is at nothing.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn cancel_session(&self, id: &SessionId) -> Result<Option<Run>, EngineError> {
        let key = self.session_key(id).await?;
        match self.shared.store.find_current_run(key).await? {
            Some(current) => Ok(Some(self.cancel_run(current.run.id).await?.0)),
            None => Ok(None),
        }
    }

    /// Waits until a run is settled.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn wait_settled(&self, id: RunId) -> Result<Run, EngineError> {
        loop {
            let run = self.run(id).await?;
            if run.status.is_settled() {
                return Ok(run);
            }
            let mut follower = self.follow_run(id, run.last_seq.unwrap_or(0)).await?;
            while follower.next_frames().await?.is_some() {}
        }
    }

    // ── sessions ──

    /// Creates a session. Answers with it, and whether it is new.
    ///
    /// # Errors
    /// [`EngineError::SessionDiffers`] when the id exists with other values; [`EngineError::NotFound`] for an unknown agent
    /// or workspace; [`EngineError::InvalidValue`]; [`EngineError::Store`].
    pub async fn create_session(&self, create: CreateSession) -> Result<(Session, bool), EngineError> {
        let workspace = match &create.workspace {
            Some(name) => self.workspace(name)?,
            None => self.default_workspace()?,
        };
        let agent = self.agent_or_resident(create.agent.as_ref(), workspace)?;
        let idle_ttl = create.idle_ttl.unwrap_or(self.shared.config.engine.idle_ttl);
        check_duration("idle_ttl_ms", idle_ttl)?;
        check_title(create.title.as_deref())?;
        let id = create.id.unwrap_or_else(SessionId::generate);
        let mut new = NewSession::of(workspace.name.clone(), agent, millis(idle_ttl));
        new.title = create.title;
        match self.shared.store.create_session(id.clone(), new).await? {
            Created::Different => Err(EngineError::SessionDiffers(id.to_string())),
            created => Ok((self.session(&id).await?, created == Created::New)),
        }
    }

    /// Changes the title or the idle TTL of a session.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::InvalidValue`], [`EngineError::Store`].
    pub async fn update_session(
        &self,
        id: &SessionId,
        title: Option<String>,
        idle_ttl: Option<Duration>,
    ) -> Result<Session, EngineError> {
        check_title(title.as_deref())?;
        if let Some(idle_ttl) = idle_ttl {
            check_duration("idle_ttl_ms", idle_ttl)?;
        }
        match self.shared.store.update_session(id.clone(), title, idle_ttl.map(millis)).await? {
            true => self.session(id).await,
            false => Err(not_found("session", id)),
        }
    }

    /// Frees the slot of a session. With `cancel`, its runs are asked to stop, and the slot is free when the last one has.
    ///
    /// # Errors
    /// [`EngineError::NotFound`]; [`EngineError::SessionBusy`] without `cancel`; [`EngineError::Store`].
    pub async fn close_session(&self, id: &SessionId, cancel: bool) -> Result<Session, EngineError> {
        match self.shared.store.close_session(id.clone(), cancel).await? {
            None => Err(not_found("session", id)),
            Some(Closed::Busy(run)) => Err(EngineError::SessionBusy(run)),
            Some(Closed::Closed | Closed::Closing) => self.session(id).await,
        }
    }

    /// A session.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn session(&self, id: &SessionId) -> Result<Session, EngineError> {
        self.shared.store.find_session(id).await?.ok_or_else(|| not_found("session", id))
    }

    /// A page of sessions, the one with the latest news first, each with the cursor behind it.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn list_sessions(
        &self,
        after: Option<SessionCursor>,
        limit: i64,
    ) -> Result<Vec<(SessionCursor, Session)>, EngineError> {
        Ok(self.shared.store.list_sessions(after, limit).await?)
    }

    /// A page of a conversation, oldest first. Without `partial`, the answer of an unfinished run is left out: the
    /// resumed stream brings it.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn list_messages(
        &self,
        id: &SessionId,
        after: MessageCursor,
        limit: i64,
        partial: bool,
    ) -> Result<MessagePage, EngineError> {
        let key = self.session_key(id).await?;
        Ok(self.shared.store.list_messages(key, after, limit, partial).await?)
    }

    // ── runs ──

    /// A run.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn run(&self, id: RunId) -> Result<Run, EngineError> {
        Ok(self.locate(id).await?.run)
    }

    /// What the agent of a run wrote to stderr, and a sample of its lines that were no event.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn run_diagnostics(&self, id: RunId) -> Result<(Option<String>, Option<String>), EngineError> {
        Ok(self.shared.store.run_diagnostics(self.locate(id).await?.key).await?)
    }

    /// A page of runs, newest first, each with the cursor behind it.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn list_runs(&self, filter: &RunFilter, limit: i64) -> Result<Vec<(i64, Run)>, EngineError> {
        let runs = self.shared.store.list_runs(filter, limit).await?;
        Ok(runs.into_iter().map(|located| (located.key, located.run)).collect())
    }

    /// What a session is at: its running run, else the next in its queue.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn current_run(&self, id: &SessionId) -> Result<Option<Run>, EngineError> {
        let key = self.session_key(id).await?;
        Ok(self.shared.store.find_current_run(key).await?.map(|located| located.run))
    }

    // ── the log ──

    /// A page of a run's events behind a cursor, oldest first.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::CursorAhead`], [`EngineError::Store`].
    pub async fn run_events(&self, id: RunId, after: Seq, limit: i64) -> Result<Vec<Event>, EngineError> {
        let located = self.locate(id).await?;
        self.check_cursor(located.session, after).await?;
        let Some(first_seq) = located.run.first_seq else { return Ok(Vec::new()) };
        let after = after.max(first_seq - 1);
        Ok(self.shared.store.events(Range { session: located.session, run: Some(located.key), after, limit }).await?)
    }

    /// A page of a session's events behind a cursor, oldest first.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::CursorAhead`], [`EngineError::Store`].
    pub async fn session_events(&self, id: &SessionId, after: Seq, limit: i64) -> Result<Vec<Event>, EngineError> {
        let session = self.session_key(id).await?;
        self.check_cursor(session, after).await?;
        Ok(self.shared.store.events(Range { session, run: None, after, limit }).await?)
    }

    /// Follows a run from a cursor to its end: replay, then live.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::CursorAhead`], [`EngineError::Store`].
    pub async fn follow_run(&self, id: RunId, after: Seq) -> Result<Follower, EngineError> {
        let located = self.locate(id).await?;
        self.check_cursor(located.session, after).await?;
        let after = after.max(located.run.first_seq.unwrap_or(0) - 1).max(0);
        let scope = Scope::Run { key: located.key, id };
        Ok(Follower::new(&self.shared.feed, self.shared.store.clone(), located.session, scope, after))
    }

    /// Follows a session from a cursor, across its runs, for ever.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::CursorAhead`], [`EngineError::Store`].
    pub async fn follow_session(&self, id: &SessionId, after: Seq) -> Result<Follower, EngineError> {
        let session = self.session_key(id).await?;
        self.check_cursor(session, after).await?;
        Ok(Follower::new(&self.shared.feed, self.shared.store.clone(), session, Scope::Session, after))
    }

    // ── the rest ──

    /// The slots of all pools.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn list_slots(&self) -> Result<Vec<Slot>, EngineError> {
        Ok(self.shared.store.list_slots().await?)
    }

    /// The processes that execute runs.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn list_workers(&self) -> Result<Vec<Worker>, EngineError> {
        Ok(self.shared.store.list_workers().await?)
    }

    /// Whether a write would be taken now: asks the writer to commit an empty transaction.
    ///
    /// # Errors
    /// [`EngineError::ShuttingDown`], [`EngineError::Store`].
    pub async fn check_ready(&self) -> Result<(), EngineError> {
        if self.shared.draining.is_cancelled() {
            return Err(EngineError::ShuttingDown);
        }
        Ok(self.shared.store.check_writable().await?)
    }

    async fn locate(&self, id: RunId) -> Result<Located, EngineError> {
        self.shared.store.find_run(id).await?.ok_or_else(|| not_found("run", id))
    }

    async fn session_key(&self, id: &SessionId) -> Result<SessionKey, EngineError> {
        self.shared.store.find_session_key(id).await?.ok_or_else(|| not_found("session", id))
    }

    async fn check_cursor(&self, session: SessionKey, after: Seq) -> Result<(), EngineError> {
        let last_seq = self.shared.store.last_seqs(&[session]).await?.first().map_or(0, |(_, last_seq)| *last_seq);
        if (0..=last_seq).contains(&after) { Ok(()) } else { Err(EngineError::CursorAhead { after, last_seq }) }
    }

    fn workspace(&self, name: &WorkspaceName) -> Result<&Workspace, EngineError> {
        self.shared.config.workspaces.get(name).ok_or_else(|| not_found("workspace", name))
    }

    fn default_workspace(&self) -> Result<&Workspace, EngineError> {
        self.shared
            .config
            .workspaces
            .iter()
            .find(|(name, _)| name.as_str() == "default")
            .map_or_else(|| Err(not_found("workspace", "default")), |(_, workspace)| Ok(workspace))
    }

    fn agent_or_resident(&self, name: Option<&AgentName>, workspace: &Workspace) -> Result<AgentName, EngineError> {
        let name = name.unwrap_or(&workspace.agent);
        match self.shared.config.agents.contains_key(name) {
            true => Ok(name.clone()),
            false => Err(not_found("agent", name)),
        }
    }
}

fn not_found(what: &'static str, id: impl std::fmt::Display) -> EngineError {
    EngineError::NotFound { what, id: id.to_string() }
}

fn check_duration(what: &str, duration: Duration) -> Result<(), EngineError> {
    if duration.is_zero() || duration > MAX_DURATION {
        return Err(EngineError::InvalidValue(format!("{what} must be between 1 and {}", MAX_DURATION.as_millis())));
    }
    Ok(())
}

fn check_title(title: Option<&str>) -> Result<(), EngineError> {
    match title {
        Some(title) if title.chars().count() > MAX_TITLE_CHARS => {
            Err(EngineError::InvalidValue(format!("title must have at most {MAX_TITLE_CHARS} characters")))
        }
        _ => Ok(()),
    }
}
