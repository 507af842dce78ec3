//! Drive: one claimed run, from the prompt to its settlement. Reads the agent's output, turns it into events, appends them,
//! and watches for every reason to stop. The first reason wins.
//!
//! Proof: `tests/it/run.rs`, `tests/it/permission.rs`.

mod abandoned;
mod adopting;
mod appending;
mod conversation;
mod dropping;
mod hearing;
mod lost;
mod prompts;
mod retry_write;
mod settling;
mod starting;
mod warm;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::OptionFuture;
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::{Instant, sleep_until};
use tracing::Instrument;

pub(super) use self::abandoned::Driven;
use self::abandoned::{Abandoned, log};
use self::conversation::Conversation;
use self::prompts::PermissionPrompts;
use super::Shared;
use super::decide::{asked_for, decide, decide_by_exit, not_started};
use super::executing::Signals;
use super::leased_run::LeasedRun;
use super::turn::{Turn, TurnState};
use crate::agent::{Agent, DriverConfig};
use crate::busy::off_executor;
use crate::chunk::Chunk;
use crate::config::limits;
use crate::driver::Driver;
use crate::failure::AgentError;
use crate::lease::WorkerKey;
use crate::memory::Account;
use crate::metrics::METRICS;
use crate::process::{End, Reply, StartError, reap};
use crate::run::{Cause, ExitReport, Outcome};
use crate::store::backend::Taken;
use crate::store::fact::Fact;
use crate::store::run::{Claimed, Orphan};

/// The folded message is stored at most this often while a run executes, and less often the larger it is, so that the bytes
/// written for it stay in proportion to the agent's output.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(2);
/// The interval grows by one [`SNAPSHOT_INTERVAL`] for each of these.
const SNAPSHOT_BYTES: usize = 1024 * 1024;
/// A message larger than this is stored during the run only if memory for that is free at once.
const SMALL_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// How long an agent that said its turn is over may take to exit.
const EXIT_GRACE: Duration = Duration::from_secs(5);
/// Records taken in one append.
const RECORDS_AT_ONCE: usize = 64;
/// Most bytes of a run's message, as JSON: it is held in memory and shown as a whole.
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
// Checked after each line, so that the last line may exceed it.
const _: () = {
    let most = MAX_MESSAGE_BYTES + *limits::MAX_LINE_BYTES.end();
    assert!(most * limits::JSON_GROWTH < limits::MAX_STORED_BYTES);
};

/// Drives a claimed run from its prompt to its end.
pub(super) async fn drive(shared: Arc<Shared>, worker: WorkerKey, claimed: Claimed, signals: Signals) {
    let mut drive = Drive::new(&shared, worker, LeasedRun::from(&claimed), signals);
    let span = drive.span();
    async {
        tracing::info!(agent = %claimed.agent, slot = claimed.slot, attempt = claimed.lease.token, "run started");
        let began = Instant::now();
        let driven = drive.claimed(&claimed).await;
        log(drive.without_what_is_refused(driven).await, began);
    }
    .instrument(span)
    .await;
}

/// Drives a run of a lost worker from where that worker stopped to its end.
pub(super) async fn adopt(shared: Arc<Shared>, worker: WorkerKey, orphan: Orphan, signals: Signals) -> Driven {
    let mut drive = Drive::new(&shared, worker, LeasedRun::from(&orphan), signals);
    let span = drive.span();
    async {
        let offset = orphan.source_offset;
        tracing::info!(agent = %orphan.agent, offset, attempt = orphan.lease.token, "run adopted");
        let began = Instant::now();
        let driven = drive.adopted(&orphan).await;
        log(drive.without_what_is_refused(driven).await, began)
    }
    .instrument(span)
    .await
}

/// How far the shutdown of an agent whose turn is over has got.
#[derive(Debug, Clone, Copy)]
enum Closing {
    /// Its turn is not over, or it was stopped.
    No,
    /// Its stdin is closed at this time, unless it speaks again.
    Soon(Instant),
    /// Its stdin is closed. It is stopped at this time.
    Closed(Instant),
}

impl Closing {
    /// The next step, given the state of the turn.
    fn after(self, turn: TurnState) -> Self {
        match (turn, self) {
            (TurnState::Working, _) => Self::No,
            (TurnState::Idle, Self::No) => Self::Soon(Instant::now() + EXIT_GRACE),
            (TurnState::Over, Self::No | Self::Soon(_)) => Self::Soon(Instant::now()),
            (TurnState::Idle | TurnState::Over, closing) => closing,
        }
    }

    fn at(self) -> Option<Instant> {
        match self {
            Self::No => None,
            Self::Soon(at) | Self::Closed(at) => Some(at),
        }
    }
}

/// How following an agent ended.
enum Followed {
    /// The run was settled; `None` when it went back to the queue.
    Done(Option<Outcome>),
    /// No part of the agent ran, for want of resources: a retry may succeed.
    Short(StartError),
}

struct Drive<'a> {
    shared: &'a Shared,
    worker: WorkerKey,
    leased: LeasedRun,
    signals: Signals,
    turn: Turn,
    prompts: PermissionPrompts,
    conversation: Conversation,
    offset: u64,
    /// About how many bytes were read and are not stored yet.
    unstored: usize,
    began: Instant,
    /// The turn's memory account, once it has begun.
    memory: Option<Account>,
    /// When its agent was asked to begin; `None` once it has.
    prompted_at: Option<std::time::Instant>,
    /// The backend that the turn is on, if it is on one.
    on: Option<Taken>,
    /// An error that the agent reported after it was asked to stop: a protest against that, unless it had ended before.
    late_error: Option<AgentError>,
    /// An error that the agent reported and may recover from.
    trouble: Option<AgentError>,
    /// The run was adopted, and what its agent had said by then is not yet read to the end.
    is_behind: bool,
    /// Its adoption counts as failed until that is read.
    is_counted: bool,
    /// The modes and options that the agent advertised last.
    advertised: Option<Value>,
}

impl<'a> Drive<'a> {
    fn new(shared: &'a Shared, worker: WorkerKey, leased: LeasedRun, signals: Signals) -> Self {
        let (turn, prompts) = (Turn::default(), PermissionPrompts::default());
        let began = Instant::now();
        let (conversation, offset, unstored) = (Conversation::default(), 0, 0);
        let (memory, on, late_error, trouble) = (None, None, None, None);
        let (is_behind, is_counted, advertised, prompted_at) = (false, false, None, None);
        Self {
            shared,
            worker,
            leased,
            signals,
            turn,
            prompts,
            conversation,
            offset,
            unstored,
            began,
            memory,
            prompted_at,
            on,
            late_error,
            trouble,
            is_behind,
            is_counted,
            advertised,
        }
    }

    fn span(&self) -> tracing::Span {
        tracing::info_span!("run", run.id = %self.leased.run, session.id = %self.leased.session_id)
    }

    fn limit(&self, agent: &Agent) -> Duration {
        let own = self.leased.timeout_ms.and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis);
        own.unwrap_or(agent.turn_timeout)
    }

    /// Follows the agent to its end.
    async fn follow(&mut self, agent: &Agent, driver: &dyn Driver, mut reply: Reply) -> Result<Followed, Abandoned> {
        reply.memory.set_message(self.turn.bytes());
        self.memory = Some(reply.memory.clone());
        let heard = self.listen(agent, driver, &mut reply).await;
        let heard = match heard {
            // A plain stop does not leave the agent running; the next worker settles the run from the spool.
            Err(Abandoned::Store(_)) if self.shared.ending.is_cancelled() && !self.shared.leaving.is_cancelled() => {
                self.drop_rest(&mut reply, Cause::Shutdown).await.and(heard)
            }
            // What it still says cannot be stored.
            Err(Abandoned::Refused { .. }) => self.drop_rest(&mut reply, Cause::Unstorable).await.and(heard),
            Err(_) => {
                reply.control.leave();
                heard
            }
            Ok(_) => heard,
        };
        drop(reply.records);
        let end = reply.end.await;
        let asked = match heard {
            Err(refused @ Abandoned::Refused { .. }) => {
                let mut exit = match end {
                    Ok(End::Exited(exit) | End::ShimLost(exit)) => exit,
                    Ok(End::NotStarted(_)) => ExitReport::default(),
                    Ok(End::Left) | Err(_) => return Err(Abandoned::LeaseLost),
                };
                self.end_lost_turn(driver, &mut exit).await?;
                return Err(refused);
            }
            heard => heard?,
        };
        // Without a shim no other process knows what the agent was asked.
        let is_ours = reply.host.is_none();
        let done = match end {
            Ok(End::Exited(mut exit)) => {
                self.note_start();
                if exit.code != Some(0) {
                    self.end_lost_turn(driver, &mut exit).await?;
                }
                if exit.stopped.is_some() && !reply.control.is_killed() && exit.signal == Some(Signal::KILL.as_raw()) {
                    METRICS.agents_killed.inc();
                    tracing::warn!(grace = ?agent.kill_grace, "the agent did not end when asked, and was killed");
                }
                // Another worker may have asked first. If the agent had ended before any request, no limit and no shutdown of
                // ours ended it: this process only came to read it late.
                let decides = |cause: &Cause| is_ours || matches!(cause, Cause::Cancelled | Cause::OutputLimit);
                let asked = exit.stopped.filter(|cause| *cause != Cause::Finished).or(asked.filter(decides));
                if asked.is_none() {
                    let late = self.late_error.take();
                    self.report(late).await?;
                }
                let may_begin_again = !self.turn.has_said() && exit.remaining == 0;
                let is_put_back = may_begin_again
                    && match asked {
                        Some(Cause::Shutdown) => self.put_back().await?,
                        None => self.try_again(agent, driver, &exit).await?,
                        _ => false,
                    };
                if is_put_back {
                    None
                } else {
                    if asked.is_none() {
                        self.report_why_it_ended().await?;
                    }
                    let outcome = self.outcome(agent, driver, asked, &exit);
                    self.settle(outcome, exit).await?
                }
            }
            Ok(End::ShimLost(mut exit)) => {
                METRICS.hosts_lost.inc();
                self.end_lost_turn(driver, &mut exit).await?;
                let cause = exit.stopped.or(asked).filter(|cause| *cause != Cause::Finished);
                self.settle(asked_for(cause.unwrap_or(Cause::ShimLost)), exit).await?
            }
            Ok(End::NotStarted(Some(error))) if error.is_shortage && matches!(asked, None | Some(Cause::Shutdown)) => {
                // The next start creates the directory again.
                return Ok(Followed::Short(error));
            }
            Ok(End::NotStarted(Some(error))) => self.settle(not_started(&error), ExitReport::default()).await?,
            Ok(End::NotStarted(None)) => match asked {
                Some(cause) if cause != Cause::Shutdown => self.settle(asked_for(cause), ExitReport::default()).await?,
                _ if self.put_back().await? => None,
                _ => self.settle(Outcome::cancelled(), ExitReport::default()).await?,
            },
            Ok(End::Left) => return Err(Abandoned::LeaseLost),
            Err(_) => return Err(Abandoned::TaskFailed),
        };
        if let Some(host) = reply.host {
            self.shared.shims.forget(host.started_for(self.leased.run)).await;
        }
        Ok(Followed::Done(done))
    }

    fn outcome(&self, agent: &Agent, driver: &dyn Driver, asked: Option<Cause>, exit: &ExitReport) -> Outcome {
        match agent.driver {
            DriverConfig::Text(_) => decide_by_exit(asked, exit),
            _ => decide(asked, &self.turn, exit, driver.says_end()),
        }
    }

    /// Reads the agent's output to its end. Returns what the agent was asked to stop for, if anything.
    async fn listen(
        &mut self,
        agent: &Agent,
        driver: &dyn Driver,
        reply: &mut Reply,
    ) -> Result<Option<Cause>, Abandoned> {
        let began = Instant::now();
        let age = reply.host.as_ref().map_or(Duration::ZERO, |host| reap::age(&host.process));
        let turn_ends_at = (began + self.limit(agent).saturating_sub(age)).min(self.began + self.limit(agent));
        let mut progress_at = began;
        let mut closing = Closing::No;
        let mut snapshot_at = None;
        let (mut asked, mut hurry_at): (Option<Cause>, Option<Instant>) = (None, None);
        let mut records = Vec::with_capacity(RECORDS_AT_ONCE);
        loop {
            let is_asking = self.prompts.is_waiting();
            let is_idle = !self.turn.is_tool_running() && !is_asking;
            // While the engine did not read from it, the agent was not silent.
            progress_at = progress_at.max(reply.memory.waited_until().unwrap_or(progress_at));
            let idle_from = is_idle.then_some(progress_at + agent.idle_timeout);
            let untold = self.prompts.untold.front().map(|line| reply.control.write(line));
            let wish = tokio::select! {
                biased;
                () = self.signals.lost.cancelled() => return Err(Abandoned::LeaseLost),
                () = self.shared.leaving.cancelled(), if reply.host.is_some() => return Err(Abandoned::HandedOver),
                () = self.shared.killing.cancelled(), if !reply.control.is_killed() => {
                    reply.control.kill(Cause::Shutdown);
                    reply.memory.hurry();
                    Some(Cause::Shutdown).filter(|_| asked.is_none())
                }
                () = self.signals.cancel.cancelled(), if asked.is_none() => Some(Cause::Cancelled),
                () = self.shared.ending.cancelled(), if asked.is_none() => Some(Cause::Shutdown),
                () = sleep_until(turn_ends_at), if asked.is_none() => Some(Cause::TurnTimeout),
                Some(()) = OptionFuture::from(idle_from.map(sleep_until)), if asked.is_none() => {
                    let is_silent = reply.memory.waited_until().is_none_or(|at| at <= progress_at);
                    Some(Cause::IdleTimeout).filter(|_| is_silent)
                }
                Some(()) = OptionFuture::from(closing.at().map(sleep_until)) => {
                    closing = match closing {
                        Closing::Soon(_) => {
                            // An agent that reads its stdin would otherwise wait for more.
                            reply.control.close_input().await;
                            Closing::Closed(Instant::now() + EXIT_GRACE)
                        }
                        Closing::Closed(_) | Closing::No => {
                            reply.control.stop(Cause::Finished);
                            Closing::No
                        }
                    };
                    continue;
                }
                Some(told) = OptionFuture::from(untold) => {
                    self.prompts.untold.pop_front();
                    if !told {
                        // A process that adopts the run tells it again; otherwise the agent's limits end it.
                        tracing::warn!("failed to tell the agent how its request was decided");
                    }
                    continue;
                }
                () = self.prompts.look(&self.signals.answers), if is_asking => {
                    self.heed_answers(driver).await?;
                    progress_at = Instant::now();
                    continue;
                }
                Some(()) = OptionFuture::from(hurry_at.map(sleep_until)) => {
                    reply.memory.hurry();
                    hurry_at = None;
                    continue;
                }
                count = reply.records.recv_many(&mut records, RECORDS_AT_ONCE) => {
                    if count == 0 {
                        return Ok(asked);
                    }
                    None
                }
                // After the records: what was read so far is stored by then.
                () = reply.control.caught_up(), if self.is_behind => {
                    self.is_behind = false;
                    self.retry_write(|| self.shared.store.end_adoption(self.leased.lease)).await?;
                    self.is_counted = false;
                    continue;
                }
            };
            if let Some(cause) = wish {
                tracing::info!(cause = cause.as_str(), "asking the agent to stop");
                asked = Some(cause);
                reply.control.stop(cause);
                // By then the agent is killed, and little is left to be read.
                hurry_at = Some(Instant::now() + agent.kill_grace);
                continue;
            }
            if asked == Some(Cause::OutputLimit) {
                records.clear();
            }
            if records.is_empty() {
                continue;
            }
            self.note_start();
            let was_at_work = self.turn.is_tool_running();
            // Released when what was read is stored.
            let _held: Vec<_> = records.iter_mut().map(|record| std::mem::take(&mut record.held)).collect();
            self.unstored = usize::try_from(records.last().map_or(0, |last| last.offset).saturating_sub(self.offset))
                .unwrap_or(usize::MAX);
            let (events, facts) = off_executor(self.unstored, || self.hear(agent, driver, &mut records, asked));
            reply.memory.set_message(self.turn.bytes());
            // A background task of the agent that has finished is progress too: no chunk says so.
            let said = events.iter().any(Chunk::is_said) || (was_at_work && !self.turn.is_tool_running());
            if asked.is_none() {
                closing = closing.after(self.turn.state());
            }
            if asked.is_none() && self.turn.fold().bytes() > MAX_MESSAGE_BYTES {
                asked = Some(Cause::OutputLimit);
                reply.control.kill(Cause::OutputLimit);
                reply.memory.hurry();
            }
            // A reader that opens the conversation while a question is open sees it.
            let asks = facts.iter().any(|fact| matches!(fact, Fact::Permission(_)));
            // When a new message arrives, the stored message shows what else the run waits for.
            let asks = asks || (self.prompts.is_waiting() && events.iter().any(Chunk::is_of_tool));
            let bytes = self.turn.fold().bytes();
            let interval = SNAPSHOT_INTERVAL * u32::try_from(1 + bytes / SNAPSHOT_BYTES).unwrap_or(u32::MAX);
            let snapshot = asks || snapshot_at.is_none_or(|at: Instant| at.elapsed() >= interval);
            if snapshot {
                snapshot_at = Some(Instant::now());
            }
            self.append(events, facts, snapshot).await?;
            if said {
                // Measured from here: a slow write is not silence of the agent.
                progress_at = Instant::now();
            }
        }
    }
}
