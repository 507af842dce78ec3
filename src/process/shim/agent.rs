//! The agent of a shim: its pipes, its end, and the end of every process that it started.
//!
//! Always: the agent is over only when no process of it is left. The shim is the sub-reaper of everything that descends
//! from the agent, whatever session, group or environment a descendant chooses, so the kernel says when nothing is left
//! (no child to wait for). The agent's exit status is not reaped before its group was signalled, so that its pid, which
//! is also its group id, cannot be reused meanwhile. Output written before the end is read; the end never waits for
//! more output.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags};
use rustix::io::{Errno, ioctl_fionbio, ioctl_fionread};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, kill_process_group, pidfd_open, wait};

use super::spool::Spool;
use super::stdin::Stdin;
use super::wire::{Began, Ended, FromShim, Stop, Stopping};
use crate::process::StartError;
use crate::process::launch::Launch;
use crate::process::reap;
use crate::process::stderr::Excerpt;
use crate::run::Cause;
use crate::worker::ProcessIdentity;

/// One read takes a whole pipe of the default size.
const READ_BYTES: usize = 64 * 1024;

/// Maximum stdout of one turn: it is kept on disk until the turn is over. Much more than a message may hold, because
/// agents also write output that is no part of a message.
const MAX_STDOUT_BYTES: u64 = 1024 * 1024 * 1024;

/// How much of stderr is also spooled as it arrives, in case the shim dies before it can report the rest at the end.
const SPOOLED_STDERR_BYTES: usize = 16 * 1024;

/// Maximum time between SIGTERM and SIGKILL for what an agent left running when it ended, even if the agent's own grace
/// is longer: the turn is over, and the user waits for the answer.
pub(crate) const CLOSING: Duration = Duration::from_secs(2);

/// How long to wait after SIGKILL. A process ends at once, unless it sleeps in the kernel, and then after any length of
/// time.
pub(crate) const CONFIRM: Duration = Duration::from_secs(5);

/// SIGKILL is repeated at this interval, for a fork that escaped the previous pass.
const KILL_AGAIN: Duration = Duration::from_millis(50);

/// The engine enforces the turn's limit. If there is none, the shim does, this much later.
const LIMIT_MARGIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Agent {
    leader: Pid,
    exited: OwnedFd,
    status: Option<WaitStatus>,
    stage: Stage,
    stdin: Option<Stdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    excerpt: Excerpt,
    stdout_bytes: u64,
    stderr_bytes: usize,
    grace: Duration,
    limit_at: Option<Instant>,
    stop_wanted: bool,
    /// For a backend: how long it may be without an engine, and since when it is. When set, output is discarded.
    alone: Option<(Duration, Instant)>,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// It runs, and no stop was requested.
    Running,
    /// It was asked to end its turn in its own protocol.
    Interrupted { term_at: Instant, kill_at: Instant },
    /// It was sent SIGTERM.
    Asked { kill_at: Instant },
    /// It has ended, and the processes that it left were sent SIGTERM.
    Closing { kill_at: Instant },
    /// Its processes are being killed.
    Killing { give_up_at: Instant, again_at: Instant },
    /// No process is left, or the remaining ones cannot be ended.
    Gone { remaining: usize },
}

impl Agent {
    /// Starts the agent. The error is a text for the user.
    pub(super) fn start(launch: Launch, temp_dir: &Path, spool: &mut Spool) -> Result<Self, StartError> {
        let mut command = launch.command(temp_dir);
        // Keeps the directory open until the agent has started in it.
        let _dir = launch.enter(&mut command)?;
        launch.set_limits();
        let mut child = command.spawn().map_err(|error| launch.explain(&error))?;
        let Watched { leader, identity, exited } = match watch(&child) {
            Ok(watched) => watched,
            Err(error) => {
                // The child must end with the shim: no engine knows of it yet.
                let _ = child.kill();
                return Err(StartError::at(
                    "it cannot be watched, for which /proc and pidfds (Linux 5.3) are needed",
                    &error,
                ));
            }
        };
        let stdin = child.stdin.take().zip(launch.stdin);
        let stdin = stdin.map(|(pipe, first)| Stdin::new(pipe, first, launch.stdin_stays_open));
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let fds =
            [stdin.as_ref().map(Stdin::as_fd), stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)];
        if let Err(error) = fds.into_iter().flatten().try_for_each(|fd| ioctl_fionbio(fd, true)) {
            // As above.
            let _ = child.kill();
            return Err(format!("its pipes cannot be used: {error}").into());
        }
        spool.add(&FromShim::Began(Began { pid: identity.pid, started_at_ticks: identity.started_at_ticks }));
        let now = Instant::now();
        Ok(Self {
            leader,
            exited,
            status: None,
            stage: Stage::Running,
            stdin,
            stdout,
            stderr,
            excerpt: Excerpt::default(),
            stdout_bytes: 0,
            stderr_bytes: 0,
            grace: Duration::from_millis(launch.kill_grace_ms),
            limit_at: Duration::from_millis(launch.limit_ms)
                .checked_add(LIMIT_MARGIN)
                .and_then(|limit| now.checked_add(limit)),
            stop_wanted: false,
            alone: launch.alone_ms.map(|ms| (Duration::from_millis(ms), now)),
        })
    }

    /// Whether there is nothing left to wait for.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.stage, Stage::Gone { .. })
    }

    /// The descriptors to poll; stdout only if there is room for it.
    pub(super) fn poll_fds(&self, room: bool) -> impl Iterator<Item = PollFd<'_>> {
        let is_running = self.status.is_none().then(|| PollFd::new(&self.exited, PollFlags::IN));
        let stdin = self.stdin.as_ref().and_then(Stdin::poll_fd);
        let stdout = self.stdout.as_ref().filter(|_| room).map(|pipe| PollFd::new(pipe, PollFlags::IN));
        let stderr = self.stderr.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN));
        [is_running, stdin, stdout, stderr].into_iter().flatten()
    }

    /// When to wake up without a descriptor becoming ready.
    pub(super) fn wake_at(&self, now: Instant) -> Option<Instant> {
        match self.stage {
            Stage::Running => self.limit_at,
            Stage::Interrupted { term_at, .. } => Some(term_at),
            Stage::Asked { kill_at } => Some(kill_at),
            // No descriptor signals the end of a grandchild.
            Stage::Closing { .. } | Stage::Killing { .. } => Some(now + Duration::from_millis(5)),
            Stage::Gone { .. } => None,
        }
    }

    /// Asks the agent to end, or kills it at once if there is no grace. The first cause is kept.
    pub(super) fn stop(&mut self, stop: &Stop, spool: &mut Spool) {
        if !self.stop_wanted {
            self.stop_wanted = true;
            spool.add(&FromShim::Stopping(Stopping { cause: stop.cause }));
        }
        let kill_at = Instant::now() + Duration::from_millis(stop.grace_ms);
        match &mut self.stage {
            _ if stop.grace_ms == 0 => self.kill(),
            Stage::Running => match &stop.interrupt {
                Some(line) if self.stdin.is_some() => {
                    self.write(format!("{line}\n").as_bytes());
                    self.close_input();
                    let term_at = Instant::now() + Duration::from_millis(stop.grace_ms / 2);
                    self.stage = Stage::Interrupted { term_at, kill_at };
                }
                _ => {
                    self.signal(Signal::TERM);
                    self.stage = Stage::Asked { kill_at };
                }
            },
            Stage::Interrupted { kill_at: at, .. } => *at = kill_at.min(*at),
            Stage::Asked { kill_at: at } | Stage::Closing { kill_at: at } => *at = kill_at.min(*at),
            Stage::Killing { .. } | Stage::Gone { .. } => {}
        }
    }

    /// Asks the agent to end on the shim's own initiative.
    pub(super) fn stop_for(&mut self, cause: Cause, spool: &mut Spool) {
        let grace_ms = u64::try_from(self.grace.as_millis()).unwrap_or(u64::MAX);
        self.stop(&Stop { cause, grace_ms, interrupt: None }, spool);
    }

    /// Reaps descendants that were reparented to the shim and have ended.
    pub(super) fn take_away_zombies(&self) {
        if self.status.is_none() {
            reap::take_away_zombies(self.leader.as_raw_pid());
        }
    }

    /// Does everything that can be done without waiting. `room`: whether stdout may be read.
    pub(super) fn step(&mut self, room: bool, spool: &mut Spool) {
        let now = Instant::now();
        self.write_stdin();
        self.read_stderr(spool);
        if room {
            self.read_stdout(spool);
        }
        match self.stage {
            Stage::Running | Stage::Interrupted { .. } | Stage::Asked { .. } if self.has_exited() => self.close(now),
            Stage::Interrupted { term_at, kill_at } if now >= term_at => {
                self.signal(Signal::TERM);
                self.stage = Stage::Asked { kill_at };
            }
            Stage::Running if self.limit_at.is_some_and(|at| now >= at) => self.stop_for(Cause::TurnTimeout, spool),
            Stage::Asked { kill_at } if now >= kill_at => self.kill(),
            Stage::Closing { kill_at } => {
                if self.nothing_is_left() {
                    self.stage = Stage::Gone { remaining: 0 };
                } else if now >= kill_at {
                    self.kill();
                }
            }
            Stage::Killing { give_up_at, again_at } => {
                if self.nothing_is_left() {
                    self.stage = Stage::Gone { remaining: 0 };
                } else if now >= give_up_at {
                    self.stage = Stage::Gone { remaining: reap::descendants().len() };
                } else if now >= again_at {
                    self.signal(Signal::KILL);
                    self.stage = Stage::Killing { give_up_at, again_at: now + KILL_AGAIN };
                }
            }
            Stage::Running | Stage::Interrupted { .. } | Stage::Asked { .. } | Stage::Gone { .. } => {}
        }
    }

    /// The agent has ended by itself: the processes that it left get a moment to do the same.
    fn close(&mut self, now: Instant) {
        // Signals the group too, for a process that was forked just now.
        let _ = kill_process_group(self.leader, Signal::TERM);
        if self.nothing_is_left() {
            self.stage = Stage::Gone { remaining: 0 };
        } else {
            self.signal(Signal::TERM);
            self.stage = Stage::Closing { kill_at: now + self.grace.min(CLOSING) };
        }
    }

    /// How it ended. First reads everything that it wrote until then.
    pub(super) fn end(mut self, spool: &mut Spool) -> Ended {
        self.read_rest(spool);
        let remaining = match self.stage {
            Stage::Gone { remaining } => remaining,
            Stage::Running
            | Stage::Interrupted { .. }
            | Stage::Asked { .. }
            | Stage::Closing { .. }
            | Stage::Killing { .. } => 0,
        };
        Ended {
            code: self.status.and_then(WaitStatus::exit_status),
            signal: self.status.and_then(WaitStatus::terminating_signal),
            stderr: self.excerpt.into_text(),
            remaining,
        }
    }

    fn kill(&mut self) {
        if matches!(self.stage, Stage::Killing { .. } | Stage::Gone { .. }) {
            return;
        }
        self.signal(Signal::KILL);
        let now = Instant::now();
        self.stage = Stage::Killing { give_up_at: now + CONFIRM, again_at: now + KILL_AGAIN };
    }

    /// Signals every process of it: first the group in one call, so that no member can fork in between.
    fn signal(&self, signal: Signal) {
        if self.status.is_none() {
            // Fails if the whole group is gone.
            let _ = kill_process_group(self.leader, signal);
        }
        for process in reap::descendants() {
            let in_group = self.status.is_none() && process.pid == self.leader.as_raw_pid();
            if !in_group {
                reap::send(&process, signal);
            }
        }
    }

    fn has_exited(&self) -> bool {
        let mut fds = [PollFd::new(&self.exited, PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 }))
            .is_ok_and(|ready| ready > 0)
    }

    /// Reaps what has ended. Returns whether no child is left, and so no descendant of the agent.
    fn nothing_is_left(&mut self) -> bool {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.leader => self.status = Some(status),
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    }

    /// Queues bytes for its stdin, if that is open.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        if let Some(stdin) = &mut self.stdin {
            stdin.add(bytes);
        }
    }

    /// Closes its stdin after what is queued.
    pub(super) fn close_input(&mut self) {
        if let Some(stdin) = &mut self.stdin {
            stdin.close();
        }
    }

    /// Asks a backend to end if it was without an engine for too long.
    pub(super) fn keep_company(&mut self, has_engine: bool, spool: &mut Spool) {
        let now = Instant::now();
        let Some((patience, since)) = &mut self.alone else { return };
        if has_engine {
            *since = now;
        } else if now.duration_since(*since) >= *patience {
            self.stop_for(Cause::ShimLost, spool);
        }
    }

    fn write_stdin(&mut self) {
        if self.stdin.as_mut().is_some_and(Stdin::write) {
            self.stdin = None;
        }
    }

    fn read_stdout(&mut self, spool: &mut Spool) {
        let mut piece = [0; READ_BYTES];
        let Some(pipe) = &mut self.stdout else { return };
        match read(pipe, &mut piece) {
            Some(0) => self.stdout = None,
            Some(read) => {
                self.keep_stdout(&piece[..read], spool);
                self.stdout_bytes += read as u64;
                if self.alone.is_none() && self.stdout_bytes > MAX_STDOUT_BYTES {
                    self.stdout = None;
                    self.stop(&Stop { cause: Cause::OutputLimit, grace_ms: 0, interrupt: None }, spool);
                }
            }
            None => {}
        }
    }

    fn read_stderr(&mut self, spool: &mut Spool) {
        let mut piece = [0; READ_BYTES];
        let Some(pipe) = &mut self.stderr else { return };
        match read(pipe, &mut piece) {
            Some(0) => self.stderr = None,
            Some(read) => self.keep_stderr(&piece[..read], spool),
            None => {}
        }
    }

    /// A backend's stdout is only for diagnosis, as its stderr is, and not spooled: it may run for months.
    fn keep_stdout(&mut self, bytes: &[u8], spool: &mut Spool) {
        if self.alone.is_some() {
            self.excerpt.push(bytes);
        } else {
            spool.add(&FromShim::Stdout(Bytes::copy_from_slice(bytes)));
        }
    }

    fn keep_stderr(&mut self, bytes: &[u8], spool: &mut Spool) {
        let room = SPOOLED_STDERR_BYTES.saturating_sub(self.stderr_bytes).min(bytes.len());
        if room > 0 && spool.try_at().is_none() {
            spool.add(&FromShim::Stderr(Bytes::copy_from_slice(&bytes[..room])));
            self.stderr_bytes += room;
        }
        self.excerpt.push(bytes);
    }

    /// Reads what is in the pipes now that every process of the agent is gone. Another process may hold them open and
    /// keep writing, so exactly the bytes that are there now are read.
    fn read_rest(&mut self, spool: &mut Spool) {
        let mut piece = [0; READ_BYTES];
        if let Some(mut pipe) = self.stdout.take() {
            let mut left = readable(&pipe);
            while let Some(read) = read(&mut pipe, &mut piece[..left.min(READ_BYTES)]).filter(|read| *read > 0) {
                self.keep_stdout(&piece[..read], spool);
                left -= read;
            }
        }
        if let Some(mut pipe) = self.stderr.take() {
            let mut left = readable(&pipe);
            while let Some(read) = read(&mut pipe, &mut piece[..left.min(READ_BYTES)]).filter(|read| *read > 0) {
                self.keep_stderr(&piece[..read], spool);
                left -= read;
            }
        }
    }
}

/// What is needed to watch a process.
struct Watched {
    leader: Pid,
    identity: ProcessIdentity,
    exited: OwnedFd,
}

fn watch(child: &Child) -> io::Result<Watched> {
    let leader = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
    let identity = reap::look_up(leader.as_raw_pid())?.ok_or(io::ErrorKind::NotFound)?;
    Ok(Watched { leader, identity, exited: pidfd_open(leader, PidfdFlags::empty())? })
}

/// Reads what is available: 0 at the end, none if there is nothing now. A pipe that cannot be read counts as ended.
fn read(pipe: &mut impl Read, buffer: &mut [u8]) -> Option<usize> {
    loop {
        match pipe.read(buffer) {
            Ok(read) => return Some(read),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Some(0),
        }
    }
}

fn readable(pipe: &impl AsFd) -> usize {
    ioctl_fionread(pipe).ok().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0)
}
