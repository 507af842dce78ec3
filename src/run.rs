//! A run: queued ─claim→ running ─settle→ settled; a run without output may go back to queued.
//!
//! Always: a run is running exactly while one live lease names it, and settled is final. The schema says the same
//! (`migrations/`: the CHECKs of `runs`, `settled_is_final`); `the_schema_knows_the_same_statuses` compares the lists.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::event::Seq;
use crate::failure::ErrorClass;
use crate::id::{AgentName, MessageId, RunId, SessionId, WorkspaceName};
use crate::usage::Usage;
use crate::waiting::WaitsFor;

/// The status of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Waits for its turn in the session, for a slot, or for a worker.
    Queued,
    /// A worker holds its lease.
    Running,
    /// The agent came to a normal end.
    Completed,
    /// The agent failed, or could not be started.
    Failed,
    /// A cancel was requested.
    Cancelled,
    /// The turn limit or the idle limit was exceeded.
    TimedOut,
    /// The process that executed it died or was shut down after the agent had spoken.
    Interrupted,
}

impl Status {
    /// Every status, in the order of a run's life.
    pub const ALL: [Status; 7] = [
        Self::Queued,
        Self::Running,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
        Self::TimedOut,
        Self::Interrupted,
    ];

    /// The word in the database, in JSON and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
            Self::Interrupted => "interrupted",
        }
    }

    /// Whether the status is final.
    pub fn is_settled(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Status {
    type Err = UnknownStatus;
    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        Self::ALL.into_iter().find(|s| s.as_str() == text).ok_or_else(|| UnknownStatus(text.chars().take(40).collect()))
    }
}

/// The word names no status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a status: use queued, running, completed, failed, cancelled, timed_out or interrupted")]
pub struct UnknownStatus(String);

/// Why a run ended. The first cause wins; the cause decides the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The agent exited with code 0 and reported no error.
    Finished,
    /// The agent reported an error.
    AgentError,
    /// The agent's process ended with a code other than 0.
    ExitCode,
    /// The agent's process was ended by a signal that Mainstay did not send.
    Signal,
    /// The agent ended normally but gave no output of any kind.
    NoOutput,
    /// The agent's process exited with code 0 before its protocol reported the end of the turn.
    Incomplete,
    /// The agent's output exceeded the limit of a run.
    OutputLimit,
    /// The agent could not be started.
    SpawnFailed,
    /// The config of this process has no such agent or workspace any more.
    Unconfigured,
    /// The operator's config does not allow an option of the session.
    NotAllowed,
    /// The agent's output cannot be stored, or every process that adopts the run dies of it.
    Unstorable,
    /// Something inside Mainstay failed: a bug.
    Internal,
    /// A cancel was requested.
    Cancelled,
    /// The turn exceeded its limit.
    TurnTimeout,
    /// The agent made no progress for longer than the idle limit.
    IdleTimeout,
    /// The worker died or lost its lease after the agent had spoken.
    WorkerLost,
    /// The agent's shim died, and the agent was ended.
    ShimLost,
    /// The process was shut down before the turn was over.
    Shutdown,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Cause; 18] = [
        Self::Finished,
        Self::AgentError,
        Self::ExitCode,
        Self::Signal,
        Self::NoOutput,
        Self::Incomplete,
        Self::OutputLimit,
        Self::SpawnFailed,
        Self::Unconfigured,
        Self::NotAllowed,
        Self::Unstorable,
        Self::Internal,
        Self::Cancelled,
        Self::TurnTimeout,
        Self::IdleTimeout,
        Self::WorkerLost,
        Self::ShimLost,
        Self::Shutdown,
    ];

    /// The word in the database, in JSON and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::AgentError => "agent_error",
            Self::ExitCode => "exit_code",
            Self::Signal => "signal",
            Self::NoOutput => "no_output",
            Self::Incomplete => "incomplete",
            Self::OutputLimit => "output_limit",
            Self::SpawnFailed => "spawn_failed",
            Self::Unconfigured => "unconfigured",
            Self::NotAllowed => "not_allowed",
            Self::Unstorable => "unstorable",
            Self::Internal => "internal",
            Self::Cancelled => "cancelled",
            Self::TurnTimeout => "turn_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::WorkerLost => "worker_lost",
            Self::ShimLost => "shim_lost",
            Self::Shutdown => "shutdown",
        }
    }

    /// The status that a run with this cause ends in.
    pub fn status(self) -> Status {
        match self {
            Self::Finished => Status::Completed,
            Self::Cancelled => Status::Cancelled,
            Self::TurnTimeout | Self::IdleTimeout => Status::TimedOut,
            Self::WorkerLost | Self::ShimLost | Self::Shutdown => Status::Interrupted,
            Self::AgentError
            | Self::ExitCode
            | Self::Signal
            | Self::NoOutput
            | Self::Incomplete
            | Self::OutputLimit
            | Self::SpawnFailed
            | Self::Unconfigured
            | Self::NotAllowed
            | Self::Unstorable
            | Self::Internal => Status::Failed,
        }
    }
}

/// How a run ended: what the settling transaction stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Why.
    pub cause: Cause,
    /// The cause in a sentence for people; none when the run was completed.
    pub error: Option<String>,
    /// The class of the failure. A class that the agent reported is stored already and takes precedence.
    pub class: Option<ErrorClass>,
    /// When a retry makes sense, if known.
    pub retry_at: Option<Timestamp>,
}

impl Outcome {
    /// The agent came to a normal end.
    pub fn completed() -> Self {
        Self::of(Cause::Finished, None)
    }

    /// The run was cancelled.
    pub fn cancelled() -> Self {
        Self::of(Cause::Cancelled, None)
    }

    /// Any other end, with a sentence for people that explains it.
    pub fn because(cause: Cause, error: impl Into<String>) -> Self {
        Self::of(cause, Some(error.into()))
    }

    /// An end of which only the cause is known, and perhaps a sentence for people.
    pub fn of(cause: Cause, error: Option<String>) -> Self {
        Self { cause, error, class: None, retry_at: None }
    }

    /// Adds the class of the failure.
    pub fn with_class(self, class: ErrorClass) -> Self {
        Self { class: Some(class), ..self }
    }

    /// The status it leaves the run in.
    pub fn status(&self) -> Status {
        self.cause.status()
    }
}

/// One attempt at a run: everything that is started under one lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attempt {
    /// The run.
    pub run: RunId,
    /// The fencing token of the lease: a later attempt has a higher one. The lower half counts the leases; the upper half is the
    /// generation: it distinguishes the runs of a restored copy of the file from the same runs of the original, so that neither
    /// mistakes the other's processes for its own.
    pub number: i64,
}

impl Attempt {
    /// The half of the number that counts leases.
    pub const COUNT_MASK: i64 = 0xFFFF_FFFF;

    /// The number from which a restored copy of the file counts; no other copy has the same.
    pub fn new_generation() -> i64 {
        (fastrand::i64(1..1 << 30) << 32) & !Self::COUNT_MASK
    }

    /// The number before that of the first attempt in this file.
    pub fn origin(self) -> i64 {
        self.number & !Self::COUNT_MASK
    }
}

impl std::fmt::Display for Attempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.run, self.number)
    }
}

impl std::str::FromStr for Attempt {
    type Err = NoAttempt;
    fn from_str(text: &str) -> Result<Self, NoAttempt> {
        let (run, number) = text.rsplit_once('-').ok_or(NoAttempt)?;
        Ok(Self { run: run.parse().map_err(|_| NoAttempt)?, number: number.parse().map_err(|_| NoAttempt)? })
    }
}

/// The text names no attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an attempt is written as the id of its run, `-` and a number")]
pub struct NoAttempt;

/// What is known of the agent's process after it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExitReport {
    /// Exit code, if it exited.
    pub code: Option<i32>,
    /// Signal, if one killed it.
    pub signal: Option<i32>,
    /// Why it was first told to end, if it had not exited by then; [`Cause::Finished`] if it had reported the end of its turn
    /// but did not exit.
    pub stopped: Option<Cause>,
    /// Descendants that could not be ended. While there are any, no new agent may start in its place.
    pub remaining: usize,
    /// Head and tail of what it wrote to stderr; bounded.
    pub stderr: Option<String>,
    /// Lines of output that were not events: too long, or not in the agent's protocol.
    pub malformed_lines: i64,
    /// The beginning of the first of them; bounded.
    pub malformed_sample: Option<String>,
}

/// A run, as readers see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// The session that it is a turn of.
    pub session_id: SessionId,
    /// The message that it answers.
    pub message_id: MessageId,
    /// The id of the message that it answers with.
    pub response_id: MessageId,
    /// The workspace that it runs in.
    pub workspace: WorkspaceName,
    /// The agent that it is for.
    pub agent: AgentName,
    /// The slot that it ran in; none before it began and while it shares the workspace's resident agent.
    pub slot: Option<String>,
    /// Its status.
    pub status: Status,
    /// What it waits for, if anything.
    pub waits_for: Option<WaitsFor>,
    /// The system resource that ran out when its agent was to be started, while the run waits for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub short_of: Option<String>,
    /// Why it ended: the word of a [`Cause`].
    pub cause: Option<String>,
    /// Why it ended, for people.
    pub error: Option<String>,
    /// The class of the failure, if it failed and the class is known.
    pub error_class: Option<ErrorClass>,
    /// What a person can do about it.
    pub advice: Option<&'static str>,
    /// When a retry makes sense, if known.
    pub retry_at: Option<Timestamp>,
    /// The tail of the agent's text, on one line.
    pub progress: Option<String>,
    /// Its usage, as far as the agent reports it.
    pub usage: Usage,
    /// Higher goes first in the queue; −1000 to 1000.
    pub priority: i64,
    /// How often it was claimed.
    pub attempts: i64,
    /// Its own limit for the whole turn; the agent's when none.
    pub timeout_ms: Option<i64>,
    /// Exit code of the agent's process.
    pub exit_code: Option<i64>,
    /// Signal that ended the agent's process.
    pub exit_signal: Option<i64>,
    /// Its first event in the session's log; none before it began.
    pub first_seq: Option<Seq>,
    /// Its newest event in the session's log.
    pub last_seq: Option<Seq>,
    /// The interrupted run that it resumes.
    pub resumes: Option<RunId>,
    /// Lines of the agent's output that were not events.
    pub malformed_lines: i64,
    /// When it was enqueued.
    pub queued_at: Timestamp,
    /// It is not claimed before this.
    pub not_before: Option<Timestamp>,
    /// When a worker claimed it last.
    pub claimed_at: Option<Timestamp>,
    /// When a cancel was requested.
    pub cancel_requested_at: Option<Timestamp>,
    /// When it ended.
    pub settled_at: Option<Timestamp>,
}

/// What to do with a message for a session that has a queued or running run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenBusy {
    /// Queue it behind them.
    #[default]
    Enqueue,
    /// Refuse the message.
    Reject,
    /// Cancel the running run and execute this message next.
    Interrupt,
}

impl std::str::FromStr for WhenBusy {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "enqueue" => Ok(Self::Enqueue),
            "reject" => Ok(Self::Reject),
            "interrupt" => Ok(Self::Interrupt),
            other => Err(format!("{other:?} is not one of enqueue, reject, interrupt")),
        }
    }
}

/// How a run is to be enqueued.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// What to do when the session is busy.
    pub when_busy: WhenBusy,
    /// Limit for the whole turn, from its claim; the agent's own limit when none.
    pub timeout: Option<Duration>,
    /// Higher goes first in the session's queue and in the claim; −1000 to 1000.
    pub priority: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = include_str!("../migrations/V1__engine.sql");

    #[test]
    fn the_schema_knows_the_same_statuses() {
        let list = Status::ALL.map(|s| format!("'{s}'")).join(", ");
        assert!(SCHEMA.contains(&format!("({list})")), "{list}");
    }

    #[test]
    fn every_cause_ends_a_run() {
        for cause in Cause::ALL {
            assert!(cause.status().is_settled(), "{cause:?}");
        }
    }
}
