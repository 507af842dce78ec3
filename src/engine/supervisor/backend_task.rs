//! One supervised backend, from its start to its end. What happens becomes an event, and [`crate::backend::transition`]
//! decides what follows; the row is moved first, and only then is that carried out.
//!
//! Always: it leaves the states that hold a process only when nothing of that process is left, or when another process has
//! moved the row.

mod row;
mod starting;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::OptionFuture;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::super::Shared;
use crate::agent::Agent;
use crate::backend::{BackendEvent, BackendState, HealthPolicy};
use crate::config::OnShutdown;
use crate::driver::Driver;
use crate::failure::{AgentError, ErrorClass};
use crate::lease::WorkerKey;
use crate::metrics::METRICS;
use crate::process::temp_dir::remove_temp_dir;
use crate::process::{Adoption, End, Reply, last_words, reap};
use crate::run::{Attempt, Cause, ExitReport};
use crate::store::backend::BackendRow;
use crate::workspace::Workspace;

/// A shim confirms the end of its process within this time after SIGKILL.
const CONFIRM: Duration = Duration::from_secs(20);
/// Pause between attempts to end a process that does not end.
const END_AGAIN: Duration = Duration::from_secs(30);
/// Pause between attempts of a write that failed.
const WRITE_AGAIN: Duration = Duration::from_millis(250);
/// Longest part of its stderr that is shown in the reason, in characters.
const SHOWN_CHARS: usize = 300;

/// What the task does next.
enum Next {
    /// Applies an event, with its reason and the class of its error.
    Event(BackendEvent, String, Option<ErrorClass>),
    /// Reads the row again: another process may have moved it.
    Look,
    /// Leaves the backend running, for the next supervisor.
    Leave,
}

impl Next {
    fn event(event: BackendEvent, reason: impl Into<String>) -> Self {
        Self::Event(event, reason.into(), None)
    }
}

/// A backend of this worker.
pub(super) struct BackendTask {
    shared: Arc<Shared>,
    worker: WorkerKey,
    agent: Agent,
    workspace: Workspace,
    driver: Arc<dyn Driver>,
    care: HealthPolicy,
    row: BackendRow,
    /// The row as the supervisor read it last; `None` if it is not this worker's any more.
    rows: watch::Receiver<Option<BackendRow>>,
    reply: Option<Reply>,
    failures: u32,
    hung_since: Option<Instant>,
    probe_at: Instant,
    ready_by: Instant,
    /// When the newest start began.
    begun: std::time::Instant,
    /// Whether the current process was started by another worker.
    is_adopted: bool,
    /// Whether the closing engine has asked it to end.
    is_closing: bool,
    /// Starts in a row that failed for want of resources.
    short_starts: u32,
}

impl BackendTask {
    /// None when its agent or workspace is not configured here.
    pub fn new(shared: Arc<Shared>, row: BackendRow, rows: watch::Receiver<Option<BackendRow>>) -> Option<Self> {
        let worker = shared.worker.get()?.key;
        let agent = shared.config.agents.get(&row.agent)?.clone();
        let workspace = shared.config.workspaces.get(&row.workspace)?.clone();
        let driver = shared.drivers.get(&row.agent)?.clone();
        let care = driver.warm()?.care().with_restarts(agent.restart_pause, agent.max_restarts);
        let now = Instant::now();
        Some(Self {
            is_adopted: row.host.is_some(),
            ready_by: now + care.ready_within,
            begun: std::time::Instant::now(),
            shared,
            worker,
            agent,
            workspace,
            driver,
            care,
            row,
            rows,
            reply: None,
            failures: 0,
            hung_since: None,
            probe_at: now,
            is_closing: false,
            short_starts: 0,
        })
    }

    /// Supervises the backend until it is stopped, or another worker takes it over.
    pub async fn run(mut self) {
        loop {
            if self.row.state != BackendState::Starting {
                self.short_starts = 0;
            }
            let next = match self.row.state {
                BackendState::Stopped => break,
                BackendState::Starting if self.reply.is_none() && self.row.host.is_none() => self.begin().await,
                BackendState::Starting | BackendState::Running => self.watch().await,
                BackendState::Restarting => self.pause().await,
                BackendState::Crashed | BackendState::Stopping => self.end().await,
            };
            let goes_on = match next {
                Next::Event(event, reason, class) => self.apply(event, reason, class).await,
                Next::Look => self.look().await,
                Next::Leave => false,
            };
            if !goes_on {
                self.leave().await;
                break;
            }
        }
    }

    fn attempt(&self) -> Attempt {
        Attempt { run: self.row.id.into(), number: self.row.generation }
    }

    /// Watches a process until something happens to it.
    async fn watch(&mut self) -> Next {
        let Some(mut reply) = self.link().await else {
            return Next::event(BackendEvent::Exited, "it was lost before it was started");
        };
        let end = match self.watch_link(&mut reply).await {
            Ok(next) => {
                self.reply = Some(reply);
                return next;
            }
            Err(end) => end,
        };
        let crashed = |reason: String| Next::Event(BackendEvent::Exited, reason, Some(ErrorClass::Crashed));
        let next = match end {
            End::Exited(exit) | End::ShimLost(exit) if exit.remaining > 0 => {
                return self.confirm("it ended, and something of it survived that").await;
            }
            End::NotStarted(Some(error)) if error.is_shortage && self.forget_start().await => {
                return self.wait_out(&error).await;
            }
            End::NotStarted(Some(error)) => Next::Event(BackendEvent::NotStarted, error.message, error.class),
            End::Exited(exit) if self.has_found_too_little(&exit) && self.forget_start().await => {
                return self.wait_out(&how_it_ended(&exit).into()).await;
            }
            End::NotStarted(None) => crashed("it was not started in time".to_owned()),
            End::Exited(exit) => self.ended_by_itself(&exit),
            End::ShimLost(_) => crashed("the process that held it was lost, and it was ended".to_owned()),
            // Another engine is connected to its shim, or the shim could not be reached just now.
            End::Left => {
                sleep(WRITE_AGAIN).await;
                return Next::Look;
            }
        };
        self.shared.shims.forget(self.attempt()).await;
        next
    }

    fn has_found_too_little(&self, exit: &ExitReport) -> bool {
        self.row.state == BackendState::Starting && self.driver.warm().is_some_and(|warm| warm.is_shortage(exit))
    }

    /// The event for an end that was not requested.
    fn ended_by_itself(&self, exit: &ExitReport) -> Next {
        let told = self.driver.warm().and_then(|warm| warm.why_it_ended(exit));
        let AgentError { message, class, .. } = told.unwrap_or_else(|| how_it_ended(exit).into());
        let class = class.unwrap_or(ErrorClass::Crashed);
        // Any failure but a crash would happen again with the next start.
        let would_end_again = self.row.state == BackendState::Starting && class != ErrorClass::Crashed;
        let event = if would_end_again { BackendEvent::NotStarted } else { BackendEvent::Exited };
        Next::Event(event, message, Some(class))
    }

    /// The connection to its process; `None` if it has none.
    async fn link(&mut self) -> Option<Reply> {
        if let Some(reply) = self.reply.take() {
            return Some(reply);
        }
        let (warm, host) = (self.driver.warm()?, self.row.host.clone()?);
        Some(warm.adopt(Adoption { attempt: self.attempt(), host, offset: 0 }).await)
    }

    /// Watches the process through its shim. `Err` is how it ended.
    async fn watch_link(&mut self, reply: &mut Reply) -> Result<Next, End> {
        let (mut is_open, closed) = (true, self.shared.closed.clone());
        loop {
            let idle_at = (self.row.state == BackendState::Running && !self.row.is_busy).then(|| {
                let unused = self.shared.store.clock().now().since(self.row.used_at);
                Instant::now() + self.agent.keep_warm.saturating_sub(unused)
            });
            tokio::select! {
                biased;
                record = reply.records.recv(), if is_open => match record {
                    Some(_) => {}
                    // All output is read: the process has ended, or is about to.
                    None => is_open = false,
                },
                end = &mut reply.end => return Err(end.unwrap_or(End::Left)),
                () = closed.cancelled() => return Ok(self.close()),
                _ = self.rows.changed() => {
                    let seen = self.rows.borrow_and_update().clone();
                    if let Some(next) = self.heed(seen) {
                        return Ok(next);
                    }
                }
                () = sleep_until(self.probe_at) => {
                    if let Some(next) = self.probe().await {
                        return Ok(next);
                    }
                }
                Some(()) = OptionFuture::from(idle_at.map(sleep_until)) => {
                    return Ok(Next::event(BackendEvent::IdleTimeout, "nobody used it for as long as it is kept warm"));
                }
            }
        }
    }

    /// Takes over what other processes changed in the row. Returns what follows, if anything.
    fn heed(&mut self, seen: Option<BackendRow>) -> Option<Next> {
        let Some(seen) = seen.filter(|seen| seen.state == self.row.state && seen.generation == self.row.generation)
        else {
            return Some(Next::Look);
        };
        let closes = seen.close_when_idle && !seen.is_busy;
        (self.row.is_busy, self.row.close_when_idle, self.row.used_at) =
            (seen.is_busy, seen.close_when_idle, seen.used_at);
        closes.then(|| Next::event(BackendEvent::Stop, "it was asked to end, or its session was closed"))
    }

    async fn probe(&mut self) -> Option<Next> {
        let (Some(warm), Some(endpoint)) = (self.driver.warm(), &self.row.endpoint) else { return Some(Next::Look) };
        let probed = timeout(self.care.probe_within, warm.probe(endpoint)).await;
        let is_ready = self.row.state == BackendState::Running;
        let failure = match probed {
            Ok(Ok(())) => {
                if !is_ready {
                    self.shared.shortages.started(&self.row.workspace, self.begun);
                }
                (self.failures, self.hung_since, self.probe_at) = (0, None, Instant::now() + self.care.probe_every);
                return Some(Next::event(BackendEvent::Healthy, "it answers"));
            }
            Ok(Err(error)) if error.is_shortage => {
                // This process was too short of resources to probe: not a failure of the backend.
                let failure = error.message;
                tracing::warn!(backend.id = %self.row.id, %failure, "a backend could not be probed; trying again");
                self.probe_at = Instant::now() + self.care.probe_again;
                self.ready_by = self.ready_by.max(self.probe_at + self.care.probe_again);
                return None;
            }
            Ok(Err(error)) => error.message,
            Err(_) => "it does not answer in time".to_owned(),
        };
        let now = Instant::now();
        if !is_ready {
            self.probe_at = now + self.care.probe_until_ready;
            let hangs = now >= self.ready_by;
            let reason = || format!("it did not answer after its start: {failure}");
            return hangs.then(|| Next::Event(BackendEvent::Hung, reason(), Some(ErrorClass::Crashed)));
        }
        METRICS.probes_failed.inc();
        self.failures += 1;
        self.hung_since.get_or_insert(now);
        self.probe_at = now + self.care.probe_again;
        tracing::warn!(backend.id = %self.row.id, failures = self.failures, %failure, "a backend does not answer");
        let hangs = self.failures >= self.care.failures;
        hangs.then(|| Next::Event(BackendEvent::Hung, format!("it hung: {failure}"), Some(ErrorClass::Crashed)))
    }

    /// Waits until the next start is due.
    async fn pause(&mut self) -> Next {
        let now = self.shared.store.clock().now();
        let left = self.row.not_before.map_or(Duration::ZERO, |at| at.since(now)).min(self.care.longest_pause);
        let due = Instant::now() + left;
        let closed = self.shared.closed.clone();
        loop {
            tokio::select! {
                () = closed.cancelled() => return self.close(),
                () = sleep_until(due) => return Next::event(BackendEvent::RetryDue, "it is started again"),
                _ = self.rows.changed() => {
                    let seen = self.rows.borrow_and_update().clone();
                    if let Some(next) = self.heed(seen) {
                        return next;
                    }
                }
            }
        }
    }

    /// Ends the process, and makes sure that it is gone.
    async fn end(&mut self) -> Next {
        if let Some(mut reply) = self.link().await {
            match self.shared.killing.is_cancelled() {
                true => reply.control.kill(Cause::Shutdown),
                false => reply.control.stop(Cause::Shutdown),
            }
            let asked = ended(&mut reply, self.agent.kill_grace + CONFIRM).await;
            let end = match asked {
                Some(end) => Some(end),
                None => {
                    reply.control.kill(Cause::Shutdown);
                    ended(&mut reply, CONFIRM).await
                }
            };
            match end {
                Some(End::Exited(exit) | End::ShimLost(exit)) if exit.remaining > 0 => {}
                Some(End::Exited(_) | End::ShimLost(_) | End::NotStarted(_)) => {
                    self.shared.shims.forget(self.attempt()).await;
                    let crashed = (self.row.state == BackendState::Crashed).then_some(ErrorClass::Crashed);
                    return Next::Event(BackendEvent::Exited, "it was ended".to_owned(), crashed);
                }
                Some(End::Left) | None => {}
            }
            // If another worker took the backend over, ending it is not ours to do.
            if !self.look().await {
                return Next::Leave;
            }
        }
        self.confirm("it was ended").await
    }

    /// Ends what the shim did not end, or can no longer end.
    async fn confirm(&mut self, reason: &str) -> Next {
        let process = self.row.host.as_ref().map(|host| host.process.clone());
        let ended = reap::end(reap::Mark::up_to(self.attempt()), process, self.agent.kill_grace).await;
        if ended.is_certain {
            wipe(&self.shared, self.attempt()).await;
            return Next::Event(BackendEvent::Exited, reason.to_owned(), Some(ErrorClass::Crashed));
        }
        METRICS.backends_not_ended.inc();
        let remaining = ended.remaining;
        tracing::error!(backend.id = %self.row.id, remaining, "a backend could not be ended; trying again");
        tokio::select! {
            () = sleep(END_AGAIN) => Next::Look,
            () = self.shared.closed.cancelled() => Next::Leave,
        }
    }

    /// The engine closes: the backend is stopped, or left to another supervisor.
    fn close(&mut self) -> Next {
        let is_guest = self.is_adopted && self.shared.executing.is_limited();
        let leaves = self.shared.config.engine.on_shutdown == OnShutdown::Leave
            || self.shared.leaving.is_cancelled()
            || is_guest;
        // If the first stop was refused, a turn of another process is on the backend.
        if leaves || std::mem::replace(&mut self.is_closing, true) {
            return Next::Leave;
        }
        Next::event(BackendEvent::Stop, "the engine that watched over it was stopped")
    }
}

/// Waits for the end, at most this long.
async fn ended(reply: &mut Reply, within: Duration) -> Option<End> {
    let end = async {
        let mut is_open = true;
        loop {
            tokio::select! {
                biased;
                record = reply.records.recv(), if is_open => is_open = record.is_some(),
                end = &mut reply.end => return end.unwrap_or(End::Left),
            }
        }
    };
    timeout(within, end).await.ok()
}

fn how_it_ended(exit: &ExitReport) -> String {
    let how = match (exit.code, exit.signal) {
        (Some(code), _) => format!("it ended with code {code}"),
        (None, Some(signal)) => format!("it was ended by signal {signal}"),
        (None, None) => "it ended".to_owned(),
    };
    let said = exit.stderr.as_deref().and_then(last_words::cause).map(|said| said.chars().take(SHOWN_CHARS).collect());
    said.map_or(how.clone(), |said: String| format!("{how}: {said}"))
}

/// Removes the files that a start left.
pub(super) async fn wipe(shared: &Shared, attempt: Attempt) {
    shared.shims.forget(attempt).await;
    // It fails only when the runtime goes down.
    let _ = tokio::task::spawn_blocking(move || remove_temp_dir(attempt)).await;
}
