//! Drive: one claimed run, from the prompt to its settlement. Reads what the agent says, turns it into events, appends
//! them, and watches for every reason to stop. The first reason wins.
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

/// The folded message is stored at most this often while a run goes on, and less often the larger it is, so that what is
/// written of it stays in proportion to what the agent says.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(2);
/// For each of these the interval is longer by itself once.
const SNAPSHOT_BYTES: usize = 1024 * 1024;
/// A larger message is only stored while the run goes on when memory for that is free at once.
const SMALL_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// How long an agent that said its turn is over may take to end its process.
const EXIT_GRACE: Duration = Duration::from_secs(5);
/// Records taken in one append.
const RECORDS_AT_ONCE: usize = 64;
/// The most that a run may say, as JSON: its message is held in memory and shown as one.
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
// It is looked at behind each line.
const _: () = {
    let most = MAX_MESSAGE_BYTES + *limits::MAX_LINE_BYTES.end();
    assert!(most * limits::JSON_GROWTH < limits::MAX_STORED_BYTES);
};

/// Drives a run from its prompt to its end.
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

/// Drives a run whose worker was lost from where that stopped to its end.
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

/// How far an agent whose turn is over was asked to end.
#[derive(Debug, Clone, Copy)]
enum Closing {
    /// Its turn is not over, or it was stopped.
    No,
    /// Its stdin is closed then, unless it speaks again.
    Soon(Instant),
    /// Its stdin is closed. It is stopped then.
    Closed(Instant),
}

impl Closing {
    /// What follows from how the turn stands.
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
    /// Nothing of the agent ran, for want of something that may be there again in a moment.
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
    /// About how many bytes were heard that are not stored.
    unstored: usize,
    began: Instant,
    /// What the turn takes of the memory, once it has begun.
    memory: Option<Account>,
    /// When its agent was asked to begin; none once it has.
    prompted_at: Option<std::time::Instant>,
    /// The live agent that the turn is on, if it is on one.
    on: Option<Taken>,
    /// An error that it reported after it was to be stopped: one against that, unless it had ended before.
    late_error: Option<AgentError>,
    /// An error that it reported and may overcome.
    trouble: Option<AgentError>,
    /// It was adopted, and not all is read that its agent had said by then.
    is_behind: bool,
    /// Its adoption counts as failed until all of that is read.
    is_counted: bool,
    /// What it said last of the modes and options that it has.
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
            // The next worker settles the run from the spool; a plain stop does not leave its agent running.
            Err(Abandoned::Store(_)) if self.shared.ending.is_cancelled() && !self.shared.leaving.is_cancelled() => {
                self.drop_rest(&mut reply, Cause::Shutdown).await.and(heard)
            }
            // What it says has no place any more.
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
        // Without a host nobody else knows what the agent was asked.
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
                // Whoever asked first may have been another worker. An agent that had ended before anybody asked was not
                // ended by a limit or by our own end: we only came to read it late.
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
                // The next start makes the directory anew.
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

    /// Listens to the agent until it has no more to say. Answers with what it was asked to stop for, if it was.
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
            // An agent that we did not read from was not silent.
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
                            // One that reads its stdin waits for more otherwise.
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
                        // Whoever goes on with it tells it again; otherwise its limits end it.
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
                // Behind the records: what was read so far is stored by then.
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
            // Given back when what was heard is stored.
            let _held: Vec<_> = records.iter_mut().map(|record| std::mem::take(&mut record.held)).collect();
            self.unstored = usize::try_from(records.last().map_or(0, |last| last.offset).saturating_sub(self.offset))
                .unwrap_or(usize::MAX);
            let (events, facts) = off_executor(self.unstored, || self.hear(agent, driver, &mut records, asked));
            reply.memory.set_message(self.turn.bytes());
            // What worked in the agent's background is done: no chunk says so.
            let said = events.iter().any(Chunk::is_said) || (was_at_work && !self.turn.is_tool_running());
            if asked.is_none() {
                closing = closing.after(self.turn.state());
            }
            if asked.is_none() && self.turn.fold().bytes() > MAX_MESSAGE_BYTES {
                asked = Some(Cause::OutputLimit);
                reply.control.kill(Cause::OutputLimit);
                reply.memory.hurry();
            }
            // Whoever opens the conversation while somebody is asked sees the question.
            let asks = facts.iter().any(|fact| matches!(fact, Fact::Permission(_)));
            // A new message looks there for what else the run waits for.
            let asks = asks || (self.prompts.is_waiting() && events.iter().any(Chunk::is_of_tool));
            let bytes = self.turn.fold().bytes();
            let interval = SNAPSHOT_INTERVAL * u32::try_from(1 + bytes / SNAPSHOT_BYTES).unwrap_or(u32::MAX);
            let snapshot = asks || snapshot_at.is_none_or(|at: Instant| at.elapsed() >= interval);
            if snapshot {
                snapshot_at = Some(Instant::now());
            }
            self.append(events, facts, snapshot).await?;
            if said {
                // From now on it can be heard again: a write that took long is no silence of the agent.
                progress_at = Instant::now();
            }
        }
    }
}
