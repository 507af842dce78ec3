//! Drive: one claimed run, from the prompt to its settlement. Reads what the agent says, turns it into events, appends
//! them, and watches for every reason to stop. The first reason wins.
//!
//! Proof: `tests/it/run.rs`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::Instrument;

use super::Shared;
use super::decide::{decide, not_started};
use super::turn::Turn;
use super::worker::{Signals, is_ours};
use crate::agent::Agent;
use crate::backend::{AgentEvent, Prompt, Record, Reply};
use crate::chunk::Chunk;
use crate::lease::{LeaseLost, WorkerKey};
use crate::run::{Cause, ExitReport, Outcome};
use crate::store::StoreError;
use crate::store::event::Append;
use crate::store::run::{Claimed, Settle};

/// The folded message is stored at most this often while a run goes on.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(2);
/// How long an agent that said its turn is over may take to end its process.
const EXIT_GRACE: Duration = Duration::from_secs(5);
/// Between two tries of a write that failed for a passing reason (a full disk, a lock).
const WRITE_AGAIN: Duration = Duration::from_millis(250);
/// How long writes are tried again once the process is to end: its runs are then left to the next sweep.
const LAST_TRIES: Duration = Duration::from_secs(10);
/// Records taken in one append.
const RECORDS_AT_ONCE: usize = 64;
/// The most that a run may say: its message is held in memory and shown as one.
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Why a run is left without settling it.
enum Left {
    /// Somebody else has it now.
    LeaseLost,
    /// The database fails for good; the lease runs out and the sweep takes over.
    Store(StoreError),
}

impl From<LeaseLost> for Left {
    fn from(_: LeaseLost) -> Self {
        Self::LeaseLost
    }
}

/// Drives a run to its end.
pub(super) async fn drive(shared: Arc<Shared>, worker: WorkerKey, claimed: Claimed, signals: Signals) {
    let span = tracing::info_span!("run", run.id = %claimed.run, session.id = %claimed.session_id);
    async {
        tracing::info!(agent = %claimed.agent, slot = claimed.slot, attempt = claimed.lease.token, "run started");
        let began = Instant::now();
        let drive = Drive {
            shared: &shared,
            worker,
            claimed: &claimed,
            signals,
            turn: Turn::default(),
            offset: 0,
            was_let_go: false,
        };
        match drive.run().await {
            Ok(Some(outcome)) => {
                let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                let (status, cause) = (outcome.status(), outcome.cause.as_str());
                tracing::info!(%status, cause, error = outcome.error, duration_ms, "run settled");
            }
            Ok(None) => tracing::info!("run put back to the queue"),
            Err(Left::LeaseLost) => tracing::warn!("lease lost: the agent was ended, nothing more was written"),
            Err(Left::Store(error)) => tracing::error!(%error, "failed to store what the agent said; the run is left"),
        }
    }
    .instrument(span)
    .await;
}

struct Drive<'a> {
    shared: &'a Shared,
    worker: WorkerKey,
    claimed: &'a Claimed,
    signals: Signals,
    turn: Turn,
    offset: u64,
    /// It had said that its turn is over, stayed, and was ended by us.
    was_let_go: bool,
}

impl Drive<'_> {
    /// Answers with the outcome; `None` when the run went back to the queue.
    async fn run(mut self) -> Result<Option<Outcome>, Left> {
        let Some(agent) = self.shared.agent(self.claimed) else {
            let error = format!("agent {:?} is not configured in this process", self.claimed.agent.as_str());
            return self.settle(Outcome::because(Cause::Unconfigured, error), ExitReport::default()).await;
        };
        let Some(workspace) = self.shared.config.workspaces.get(&self.claimed.workspace) else {
            let error = format!("workspace {:?} is not configured in this process", self.claimed.workspace.as_str());
            return self.settle(Outcome::because(Cause::Unconfigured, error), ExitReport::default()).await;
        };
        if self.signals.cancel.is_cancelled() {
            return self.settle(Outcome::cancelled(), ExitReport::default()).await;
        }
        let parts: Vec<serde_json::Value> = serde_json::from_str(&self.claimed.message_parts).unwrap_or_default();
        // A worker that was stopped since its claim may have lost the run, perhaps to one who has finished it by now.
        // Afterwards it is too late to find out: an agent that was started has begun to act.
        let start_by = self.signals.good_until();
        let prompt = Prompt {
            start_by,
            attempt: self.claimed.attempt(),
            session: self.claimed.session_id.clone(),
            slot: self.claimed.slot.clone().unwrap_or_else(|| self.claimed.workspace.to_string()),
            workspace: self.claimed.workspace.clone(),
            dir: workspace.dir.clone(),
            agent_session: self.claimed.agent_session.clone(),
            message: crate::message::prompt(&parts),
        };
        let Some(backend) = self.shared.backends.get(&agent.name) else {
            return self
                .settle(Outcome::because(Cause::Internal, "the agent has no backend"), ExitReport::default())
                .await;
        };
        let mut reply = match backend.prompt(prompt).await {
            Ok(reply) => reply,
            Err(_) if std::time::Instant::now() >= start_by => return Err(Left::LeaseLost),
            Err(error) => return self.settle(not_started(&error), ExitReport::default()).await,
        };
        let heard = self.listen(agent, &mut reply).await;
        if heard.is_err() {
            reply.kill.cancel();
        }
        drop(reply.records);
        let exit = reply.exit.await.unwrap_or_else(|error| {
            tracing::error!(%error, "the task of the agent's process ended abnormally");
            ExitReport::default()
        });
        let asked = heard?;
        if asked == Some(Cause::Shutdown) && !self.turn.has_said() {
            match self.shared.store.put_back(self.claimed.lease).await {
                Ok(true) => return Ok(None),
                Ok(false) => {}
                Err(error) => return Err(Left::Store(error)),
            }
        }
        self.settle(decide(asked, &self.turn, &exit, self.was_let_go), exit).await
    }

    /// Listens to the agent until it has no more to say. Answers with what it was asked to stop for, if it was.
    async fn listen(&mut self, agent: &Agent, reply: &mut Reply) -> Result<Option<Cause>, Left> {
        if let Some(process) = reply.process.clone() {
            // Stored before the first output, so that whoever comes after us finds and ends it.
            let lease = self.claimed.lease;
            let stored = self.insist(|| self.shared.store.record_process(lease, process.clone())).await?;
            if !stored {
                return Err(Left::LeaseLost);
            }
        }
        let began = Instant::now();
        let own_limit = self.claimed.timeout_ms.and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis);
        let turn_ends_at = began + own_limit.unwrap_or(agent.turn_timeout);
        let mut progress_at = began;
        let mut exit_by = None;
        let mut snapshot_at = None;
        let mut asked: Option<Cause> = None;
        let mut records = Vec::with_capacity(RECORDS_AT_ONCE);
        loop {
            let idle_from = (!self.turn.is_tool_running()).then_some(progress_at + agent.idle_timeout);
            let wish = tokio::select! {
                biased;
                () = self.signals.lost.cancelled() => return Err(Left::LeaseLost),
                () = self.shared.killing.cancelled(), if !reply.kill.is_cancelled() => {
                    reply.kill.cancel();
                    Some(Cause::Shutdown).filter(|_| asked.is_none())
                }
                () = self.signals.cancel.cancelled(), if asked.is_none() => Some(Cause::Cancelled),
                () = self.shared.ending.cancelled(), if asked.is_none() => Some(Cause::Shutdown),
                () = sleep_until(turn_ends_at), if asked.is_none() => Some(Cause::TurnTimeout),
                () = until(idle_from), if asked.is_none() && idle_from.is_some() => Some(Cause::IdleTimeout),
                () = until(exit_by), if exit_by.is_some() => {
                    reply.cancel.cancel();
                    self.was_let_go = true;
                    exit_by = None;
                    None
                }
                count = reply.records.recv_many(&mut records, RECORDS_AT_ONCE) => {
                    if count == 0 {
                        return Ok(asked);
                    }
                    None
                }
            };
            if let Some(cause) = wish {
                if !is_ours(self.shared, &self.signals).await {
                    return Err(Left::LeaseLost);
                }
                tracing::info!(cause = cause.as_str(), "asking the agent to stop");
                asked = Some(cause);
                reply.cancel.cancel();
                continue;
            }
            if asked == Some(Cause::OutputLimit) {
                records.clear();
            }
            if records.is_empty() {
                continue;
            }
            let events = self.hear(&mut records, asked);
            if events.iter().any(Chunk::is_said) {
                progress_at = Instant::now();
            }
            if self.turn.has_ended() && exit_by.is_none() && asked.is_none() {
                exit_by = Some(Instant::now() + EXIT_GRACE);
            }
            if asked.is_none() && self.turn.fold().bytes() > MAX_MESSAGE_BYTES {
                asked = Some(Cause::OutputLimit);
                reply.kill.cancel();
            }
            let snapshot = snapshot_at.is_none_or(|at: Instant| at.elapsed() >= SNAPSHOT_INTERVAL);
            if snapshot {
                snapshot_at = Some(Instant::now());
            }
            self.append(events, snapshot).await?;
        }
    }

    fn hear(&mut self, records: &mut Vec<Record>, asked: Option<Cause>) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        for record in records.drain(..) {
            self.offset = self.offset.max(record.offset);
            for event in record.events {
                // What an agent says against being stopped is not an error of the turn.
                if asked.is_some() && matches!(event, AgentEvent::Error(_)) {
                    continue;
                }
                chunks.extend(self.turn.hear(event));
            }
        }
        chunks
    }

    async fn append(&mut self, chunks: Vec<Chunk>, snapshot: bool) -> Result<(), Left> {
        if chunks.is_empty() {
            return Ok(());
        }
        let append = Append {
            lease: self.claimed.lease,
            session: self.claimed.session,
            run_id: self.claimed.run,
            said: chunks.iter().any(Chunk::is_said),
            events: chunks.iter().map(Chunk::to_json).collect(),
            source_offset: i64::try_from(self.offset).unwrap_or(i64::MAX),
            parts: (snapshot && !self.turn.fold().is_empty()).then(|| self.turn.fold().parts_json()),
        };
        self.insist(|| self.shared.store.append(append.clone())).await??;
        Ok(())
    }

    async fn settle(&self, outcome: Outcome, exit: ExitReport) -> Result<Option<Outcome>, Left> {
        match self.try_settle(outcome.clone(), exit.clone()).await? {
            Ok(()) => Ok(Some(outcome)),
            Err(LeaseLost) => {
                // A cancel that was stored a moment before decides the outcome.
                let requests = self.insist(|| self.shared.store.cancel_requests(self.worker)).await?;
                if outcome.cause == Cause::Cancelled || !requests.contains(&self.claimed.lease.run) {
                    return Err(Left::LeaseLost);
                }
                self.try_settle(Outcome::cancelled(), exit).await??;
                Ok(Some(Outcome::cancelled()))
            }
        }
    }

    async fn try_settle(&self, outcome: Outcome, exit: ExitReport) -> Result<Result<(), LeaseLost>, Left> {
        let mut turn = self.turn.clone();
        let events = turn.close(&outcome);
        let settle = Settle {
            lease: self.claimed.lease,
            session: self.claimed.session,
            run_id: self.claimed.run,
            events: events.iter().map(Chunk::to_json).collect(),
            source_offset: i64::try_from(self.offset).unwrap_or(i64::MAX),
            outcome,
            exit,
            parts: (!turn.fold().is_empty()).then(|| turn.fold().parts_json()),
        };
        Ok(self.insist(|| self.shared.store.settle(settle.clone())).await?.map(|_| ()))
    }

    /// Tries a write until it is done or refused for good. The lease is what ends this: once it is lost, so is the write.
    async fn insist<T, F>(&self, mut write: impl FnMut() -> F) -> Result<T, Left>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut last_try = None;
        loop {
            match write().await {
                Ok(done) => return Ok(done),
                Err(error) if error.is_transient() => {
                    tracing::warn!(%error, "failed to write; trying again");
                    let give_up = async {
                        self.shared.ending.cancelled().await;
                        tokio::time::sleep_until(*last_try.get_or_insert_with(|| Instant::now() + LAST_TRIES)).await;
                    };
                    tokio::select! {
                        () = tokio::time::sleep(WRITE_AGAIN) => {}
                        () = self.signals.lost.cancelled() => return Err(Left::LeaseLost),
                        () = give_up => return Err(Left::Store(error)),
                    }
                }
                Err(error) => return Err(Left::Store(error)),
            }
        }
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
