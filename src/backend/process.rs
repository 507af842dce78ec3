//! One process a turn: started with the message, read to its end, and gone with everything that it started.
//!
//! Always: the turn is over only when nothing of it is left. The process that leads it stays unreaped until then, so that
//! its pid, which is also the id of its group, belongs to nobody else while signals are sent. Output that was written
//! before the end is read; the end may wait for a reader who is slow, but never for more output.
//!
//! Deliberately absent: what a line means (`openclaw.rs`), and why a turn is stopped (the engine).
//! Proof: `tests/backend.rs`.

use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::process::{Child, ChildStdin};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::pipe::Pipe;
use super::temp_dir::TempDir;
pub use super::temp_dir::remove_temp_dir;
use super::{Backend, LineParser, Prompt, Record, Reply, StartError, launch, output, reap, stderr};
use crate::agent::ProcessSpec;
use crate::run::{Attempt, ExitReport};
use crate::worker::ProcessIdentity;

/// Records that wait for the engine; a record may be as large as the longest line, so they are few.
const RECORDS_WAITING: usize = 8;

/// What an agent left running when it ended gets no more time than this, however patient the agent's own grace is: its
/// turn is over, and somebody waits for the answer. It is also the time for which the last words of a cancelled agent
/// are held out to a reader.
pub(super) const CLOSING: Duration = Duration::from_secs(2);

/// A backend that starts one process per turn.
#[derive(Debug, Clone)]
pub struct PerTurn {
    spec: ProcessSpec,
    kill_grace: Duration,
    parser: fn() -> LineParser,
}

impl PerTurn {
    /// A backend that starts `spec` for each turn and reads its output with a new `parser`. A cancelled turn has
    /// `kill_grace` between SIGTERM and SIGKILL.
    pub fn new(spec: ProcessSpec, kill_grace: Duration, parser: fn() -> LineParser) -> Self {
        Self { spec, kill_grace, parser }
    }

    async fn start(&self, prompt: Prompt) -> Result<Reply, StartError> {
        let attempt = prompt.attempt;
        let temp_dir = match tokio::task::spawn_blocking(move || TempDir::create(attempt)).await {
            Ok(Ok(dir)) => dir,
            Ok(Err(error)) => return Err(StartError(format!("no temporary directory could be made: {error}"))),
            Err(_) => return Err(StartError("the engine is going down".to_owned())),
        };
        let mut command = launch::command(&self.spec, &prompt, temp_dir.path())?;
        // Looked at last of all: who is stopped anywhere before this line and wakes up too late starts nothing.
        let is_too_late = || Instant::now() >= prompt.start_by;
        let too_late = || StartError("the time to start it is over".to_owned());
        if is_too_late() {
            return Err(too_late());
        }
        let child = command.spawn().map_err(|error| launch::explain(&error, &command, &prompt))?;
        let mut leader = Leader::new(attempt, child)?;
        // A stop also interrupts a fork, which then begins anew. The leader ends what it leads as it is dropped: a program
        // that was put in place this moment has done nothing yet.
        if is_too_late() {
            return Err(too_late());
        }

        let (sender, records) = mpsc::channel(RECORDS_WAITING);
        let (cancel, kill) = (CancellationToken::new(), CancellationToken::new());
        let stop = Stop { cancel: cancel.clone(), kill: kill.child_token(), grace: self.kill_grace };
        let over = CancellationToken::new();
        let stdin = leader.child.stdin.take();
        let (Some(stdout), Some(stderr)) = (leader.child.stdout.take(), leader.child.stderr.take()) else {
            return Err(StartError("its output could not be connected".to_owned()));
        };
        let read_stdout = output::read(
            Pipe::new(stdout, over.clone()),
            self.spec.max_line_bytes,
            (self.parser)(),
            sender.clone(),
            stop.clone(),
            over.clone(),
        );
        let read_stderr = stderr::read(Pipe::new(stderr, over.clone()));

        let process = Some(leader.identity.clone());
        let exit = tokio::spawn(async move {
            let watch_leader = async {
                leader.until_gone(&stop).await;
                over.cancel();
            };
            let watch_reader = watch_reader(sender, &stop, &over);
            let write_message = write_message(stdin, prompt.message, &over);
            let ((), (), malformed, stderr, ()) =
                tokio::join!(watch_leader, watch_reader, read_stdout, read_stderr, write_message);
            let status = leader.reap().await;
            // A large directory takes a while; whether it went is logged there.
            let _ = tokio::task::spawn_blocking(move || drop(temp_dir)).await;
            ExitReport {
                code: status.and_then(|status| status.code()),
                signal: status.and_then(|status| status.signal()),
                stderr,
                malformed_lines: malformed.lines,
                malformed_sample: malformed.sample,
            }
        });
        Ok(Reply { process, records, cancel, kill, exit })
    }
}

impl Backend for PerTurn {
    fn prompt(&self, prompt: Prompt) -> BoxFuture<'_, Result<Reply, StartError>> {
        Box::pin(self.start(prompt))
    }
}

/// How a turn is stopped from outside.
#[derive(Debug, Clone)]
pub(super) struct Stop {
    pub(super) cancel: CancellationToken,
    pub(super) kill: CancellationToken,
    grace: Duration,
}

/// Ends the turn when the reader of its records went away, also while the agent says nothing or has closed its stdout.
async fn watch_reader(records: mpsc::Sender<Record>, stop: &Stop, over: &CancellationToken) {
    tokio::select! {
        () = records.closed() => stop.kill.cancel(),
        () = over.cancelled() => {}
    }
}

/// Writes the message while the output is read, and closes stdin behind it. An agent that does not want to read it all
/// may do so, and whoever else holds the other end must not keep us.
async fn write_message(stdin: Option<ChildStdin>, message: String, over: &CancellationToken) {
    let Some(mut stdin) = stdin else { return };
    tokio::select! {
        _ = stdin.write_all(message.as_bytes()) => {}
        () = over.cancelled() => {}
    }
}

/// The process at the head of a turn, and with it everything that it starts.
#[derive(Debug)]
struct Leader {
    attempt: Attempt,
    child: Child,
    identity: ProcessIdentity,
    /// Readable once the process has exited; it tells without reaping.
    exited: AsyncFd<OwnedFd>,
    /// Everything that it started is gone.
    gone: bool,
}

impl Leader {
    fn new(attempt: Attempt, child: Child) -> Result<Self, StartError> {
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let identity = pid.and_then(reap::identity_of);
        let exited =
            pid.and_then(Pid::from_raw).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()).and_then(watch);
        match (identity, exited) {
            (Some(identity), Some(exited)) => Ok(Self { attempt, child, identity, exited, gone: false }),
            _ => {
                reap::kill_at_once(attempt.into(), None);
                Err(StartError("it cannot be watched: /proc and pidfds (Linux 5.3) are needed".to_owned()))
            }
        }
    }

    /// Waits for the process to exit or to be stopped, then ends what is left of the run.
    async fn until_gone(&mut self, stop: &Stop) {
        let (grace, known) = self.until_exit_or_kill(stop).await;
        let group = || Some(self.identity.clone());
        let ended = tokio::select! {
            biased;
            ended = reap::end_known(self.attempt.into(), group(), known.clone(), grace) => ended,
            () = stop.kill.cancelled() => reap::end_known(self.attempt.into(), group(), known, Duration::ZERO).await,
        };
        if ended.remaining > 0 {
            tracing::warn!(run.id = %self.attempt.run, remaining = ended.remaining, "processes of a run survive SIGKILL");
        } else if ended.ended > 0 {
            tracing::debug!(run.id = %self.attempt.run, ended = ended.ended, "ended what an agent left running");
        }
        self.gone = true;
    }

    /// Gives the time that what is left has between SIGTERM and SIGKILL, and what was there before the first signal:
    /// once its parent is gone, a process that cleared its environment is known only by that.
    async fn until_exit_or_kill(&self, stop: &Stop) -> (Duration, Vec<ProcessIdentity>) {
        let closing = stop.grace.min(CLOSING);
        let known = tokio::select! {
            biased;
            () = self.exit() => return (closing, Vec::new()),
            () = stop.kill.cancelled() => self.survivors().await,
            () = stop.cancel.cancelled() => {
                let known = self.survivors().await;
                self.signal_group(Signal::TERM);
                tokio::select! {
                    biased;
                    () = self.exit() => return (closing, known),
                    () = stop.kill.cancelled() => {}
                    () = tokio::time::sleep(stop.grace) => {}
                }
                known
            }
        };
        self.signal_group(Signal::KILL);
        (Duration::ZERO, known)
    }

    async fn survivors(&self) -> Vec<ProcessIdentity> {
        let (mark, leader) = (self.attempt.into(), self.identity.clone());
        // It fails only when the runtime goes down.
        tokio::task::spawn_blocking(move || reap::survivors(mark, Some(&leader))).await.unwrap_or_default()
    }

    async fn exit(&self) {
        // It fails only when the runtime goes down, and then nothing waits any more.
        let _ = self.exited.readable().await;
    }

    /// One signal to the whole group, so that nothing in it can start something else in between.
    fn signal_group(&self, signal: Signal) {
        if let Some(group) = Pid::from_raw(self.identity.pid) {
            // It fails when all of the group is gone.
            let _ = kill_process_group(group, signal);
        }
    }

    /// How the process ended; `None` when it did not although it was killed.
    async fn reap(&mut self) -> Option<ExitStatus> {
        tokio::time::timeout(CLOSING, self.child.wait()).await.ok()?.ok()
    }
}

#[expect(deprecated, reason = "an OwnedFd keeps the promise that the successor asks for with `unsafe`")]
fn watch(pidfd: OwnedFd) -> Option<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(pidfd, Interest::READABLE).ok()
}

impl Drop for Leader {
    /// The task was aborted, or the runtime goes down: no time is left to ask or to wait.
    fn drop(&mut self) {
        if !self.gone {
            self.signal_group(Signal::KILL);
            reap::kill_at_once(self.attempt.into(), Some(&self.identity));
        }
    }
}
