//! The agent shim: a small process of this same program that owns one agent, so that the agent outlives the engine.
//!
//! It leads a session of its own, holds the agent's pipes, writes the agent's output to a spool, and serves one engine
//! at a time over a Unix socket: the whole spool from its beginning, then live. It needs no engine to end the agent at
//! its limit or on an earlier request, nor to learn how the agent ended. It exits as soon as the spool contains the
//! end.
//!
//! Always: nothing blocks but the one `poll`; memory is bounded; nothing is started for an engine that disconnected,
//! nor once another engine has connected. A newer lease replaces an older one, never the other way round.
//!
//! Deliberately absent: threads and an async runtime (a shim has less than a megabyte of its own), and any knowledge of
//! what agents say.
//! Proof: `tests/it/process/`, `tests/it/adopt/`.

mod agent;
pub(crate) mod dir;
pub mod frame;
mod link;
mod spool;
mod stdin;
pub mod wire;

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;

use self::agent::Agent;
pub(super) use self::agent::{CLOSING, CONFIRM};
use self::link::Link;
use self::spool::Spool;
use self::wire::{FromEngine, FromShim, Hello, NotStarted, VERSION, Welcome};
use super::StartError;
use super::launch::Launch;
use super::temp_dir::TempDir;
use crate::failure::is_shortage;
use crate::run::Cause;
use crate::worker::ProcessIdentity;

/// The argument that makes this program a shim; the directory of the agent is the next and last one.
pub const COMMAND: &str = "host";
/// The name of a shim among the processes of a machine.
pub const PROCESS_NAME: &str = "agent-host";
/// The file in the agent's directory that holds its output and its end.
pub const SPOOL: &str = "spool";
/// The socket in the agent's directory.
pub const SOCKET: &str = "socket";

/// How long to wait for the launch; the engine that starts a shim sends it at once.
const START_BY: Duration = Duration::from_secs(60);
/// How long a connection may take to send its hello; an engine sends it at once.
const HELLO_BY: Duration = Duration::from_secs(5);
/// Connections that may wait to be accepted.
const LISTEN_BACKLOG: i32 = 16;
/// Connections without a hello that are kept at the same time.
const MAX_AT_THE_DOOR: usize = 8;
/// Maximum unread output. Beyond it the agent blocks in write(2), as with a pipe.
const MAX_AHEAD_BYTES: u64 = 16 * 1024 * 1024;
/// Poll interval for conditions that no file descriptor signals.
const LOOK_AROUND: Duration = Duration::from_secs(5);
/// Between two attempts to create the spool when resources are short, such as on a full disk.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// How long an end that cannot be written (a full disk) is kept in memory.
const RETENTION: Duration = Duration::from_secs(24 * 3600);

/// The directory of the agent, if this program was started as a shim.
pub fn asked_for(mut arguments: impl Iterator<Item = OsString>) -> Option<PathBuf> {
    let is_shim = arguments.nth(1).is_some_and(|word| word == COMMAND);
    let dir = arguments.next().filter(|_| is_shim)?;
    (arguments.next().is_none() && Path::new(&dir).is_absolute()).then(|| dir.into())
}

/// Whether a process is a shim, by its name.
///
/// # Errors
/// This process is short of a resource.
pub(super) fn is_shim(process: &ProcessIdentity) -> io::Result<bool> {
    match std::fs::read_to_string(format!("/proc/{}/comm", process.pid)) {
        Err(error) if is_shortage(&error) => Err(error),
        name => Ok(name.is_ok_and(|name| name.trim_end() == PROCESS_NAME)),
    }
}

/// Runs as a shim until its agent has ended. The socket that engines connect to is passed as stdin.
///
/// # Errors
/// Something that a shim needs is missing; nothing was started.
pub fn run(dir: &Path) -> io::Result<()> {
    // Fails for a group leader, which already has everything that it needs.
    let _ = rustix::process::setsid();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let name = std::ffi::CString::new(PROCESS_NAME).unwrap_or_default();
    rustix::thread::set_name(&name)?;
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    // The socket listens already; this call makes the shim the peer that clients see (SO_PEERCRED).
    rustix::net::listen(&listener, LISTEN_BACKLOG)?;
    let start_by = Instant::now() + START_BY;
    let spool = loop {
        match Spool::create(&dir.join(SPOOL)) {
            Err(error) if is_shortage(&error) && Instant::now() < start_by => std::thread::sleep(RETRY_INTERVAL),
            created => break created?,
        }
    };
    // The directory that it was started in may be unmounted or removed.
    std::env::set_current_dir("/")?;
    Shim {
        dir: dir.to_owned(),
        listener,
        spool,
        door: Vec::new(),
        engine: None,
        known: None,
        sent: 0,
        look_at: Instant::now() + LOOK_AROUND,
        work: Work::Awaited { start_by },
    }
    .run()
}

struct Shim {
    /// The agent's own directory.
    dir: PathBuf,
    listener: UnixListener,
    spool: Spool,
    /// Connections without a hello so far.
    door: Vec<Link>,
    engine: Option<Link>,
    /// The shared secret and the newest fencing token.
    known: Option<(String, i64)>,
    /// How much of the spool was sent to any engine.
    sent: u64,
    /// When to check next what no descriptor signals.
    look_at: Instant,
    work: Work,
}

enum Work {
    /// Waits for the launch.
    Awaited { start_by: Instant },
    /// The agent runs.
    Agent { agent: Box<Agent>, temp_dir: TempDir },
    /// Only the end has to be written.
    Over { leave_at: Instant },
}

impl Shim {
    fn run(mut self) -> io::Result<()> {
        loop {
            self.spool.try_again(Instant::now());
            self.serve();
            if self.is_done() {
                return Ok(());
            }
            self.wait()?;
            self.open_the_door();
            self.hear();
            self.tend();
        }
    }

    /// Whether more of the agent's output may be read.
    fn has_room(&self) -> bool {
        self.spool.try_at().is_none() && self.spool.length().saturating_sub(self.sent) < MAX_AHEAD_BYTES
    }

    fn serve(&mut self) {
        if let Some(engine) = &mut self.engine {
            if engine.send(&self.spool).is_err() {
                self.engine = None;
            } else {
                self.sent = self.sent.max(engine.position());
            }
        }
    }

    fn is_done(&self) -> bool {
        match self.work {
            Work::Over { leave_at } => self.spool.try_at().is_none() || Instant::now() >= leave_at,
            Work::Awaited { .. } | Work::Agent { .. } => false,
        }
    }

    /// Waits for an event. Which one is found by checking everything, which is cheap.
    fn wait(&self) -> io::Result<()> {
        let now = Instant::now();
        let mut fds = vec![PollFd::new(&self.listener, PollFlags::IN)];
        fds.extend(self.door.iter().map(|link| PollFd::new(link.stream(), PollFlags::IN)));
        if let Some(link) = &self.engine {
            let flags = if link.is_waiting() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            fds.push(PollFd::new(link.stream(), flags));
        }
        let mut wake_at = vec![self.look_at];
        wake_at.extend(self.spool.try_at());
        wake_at.extend(self.door.iter().map(|link| link.hello_by));
        match &self.work {
            Work::Awaited { start_by } => wake_at.push(*start_by),
            Work::Agent { agent, .. } => {
                fds.extend(agent.poll_fds(self.has_room()));
                wake_at.extend(agent.wake_at(now));
            }
            Work::Over { leave_at } => wake_at.push(*leave_at),
        }
        let patience = wake_at.into_iter().min().map(|at| at.saturating_duration_since(now));
        // Rounds up, so that the shim does not wake just before the deadline again and again.
        let patience = patience.and_then(|time| Timespec::try_from(time + Duration::from_micros(100)).ok());
        match poll(&mut fds, patience.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn open_the_door(&mut self) {
        let now = Instant::now();
        self.door.retain(|link| link.hello_by > now);
        while let Ok((stream, _)) = self.listener.accept() {
            if self.door.len() < MAX_AT_THE_DOOR
                && let Ok(link) = Link::new(stream, now + HELLO_BY)
            {
                self.door.push(link);
            }
        }
    }

    fn hear(&mut self) {
        for mut link in std::mem::take(&mut self.door) {
            match link.hear() {
                Ok(None) => self.door.push(link),
                Ok(Some(FromEngine::Hello(hello))) => self.greet(link, hello),
                // The engine that started this shim is the first connection. If it disconnects without a hello, no
                // other engine will send a launch.
                Err(_) if self.known.is_none() => self.start_nothing(None),
                // A connection without a valid hello is dropped.
                Ok(Some(_)) | Err(_) => {}
            }
        }
        while let Some(engine) = &mut self.engine {
            match engine.hear() {
                Ok(None) => break,
                Ok(Some(FromEngine::Start(launch))) => self.start(*launch),
                Ok(Some(FromEngine::Input(bytes))) => {
                    if let Work::Agent { agent, .. } = &mut self.work {
                        agent.write(&bytes);
                    }
                }
                Ok(Some(FromEngine::CloseInput)) => {
                    if let Work::Agent { agent, .. } = &mut self.work {
                        agent.close_input();
                    }
                }
                Ok(Some(FromEngine::Stop(stop))) => match &mut self.work {
                    Work::Agent { agent, .. } => agent.stop(&stop, &mut self.spool),
                    Work::Awaited { .. } => self.start_nothing(None),
                    Work::Over { .. } => {}
                },
                Ok(Some(FromEngine::Hello(_))) => {}
                Err(_) => self.engine = None,
            }
        }
        // No other engine may send the launch.
        if self.engine.is_none() && self.known.is_some() && matches!(self.work, Work::Awaited { .. }) {
            self.start_nothing(None);
        }
    }

    /// Serves this engine from now on, if its secret and token allow that.
    fn greet(&mut self, mut link: Link, hello: Hello) {
        let is_first = self.known.is_none();
        let may_be_served = match &self.known {
            Some((secret, token)) => *secret == hello.secret && hello.token >= *token,
            None => true,
        };
        if !may_be_served {
            return;
        }
        self.known = Some((hello.secret, hello.token));
        link.say(&FromShim::Welcome(Welcome { version: hello.version.min(VERSION) }));
        self.engine = Some(link);
        if !is_first && matches!(self.work, Work::Awaited { .. }) {
            self.start_nothing(None);
        }
    }

    fn start(&mut self, launch: Launch) {
        if !matches!(self.work, Work::Awaited { .. }) {
            return;
        }
        // Checked last of all: an engine or shim that was paused anywhere before this line and resumes too late starts
        // nothing.
        if launch.is_too_late() {
            return self.start_nothing(None);
        }
        let temp_dir = match TempDir::create(launch.attempt, &self.dir) {
            Ok(temp_dir) => temp_dir,
            Err(error) => {
                let message = format!(
                    "no temporary directory could be made for it ({}): make room, or let TMPDIR of the daemon name a \
                     directory that can be written",
                    error.message
                );
                return self.start_nothing(Some(StartError { message, ..error }));
            }
        };
        match Agent::start(launch, temp_dir.path(), &mut self.spool) {
            Ok(agent) => self.work = Work::Agent { agent: Box::new(agent), temp_dir },
            Err(error) => self.start_nothing(Some(error)),
        }
    }

    fn start_nothing(&mut self, error: Option<StartError>) {
        if !matches!(self.work, Work::Awaited { .. }) {
            return;
        }
        let class = error.as_ref().and_then(|error| error.class);
        let is_shortage = error.as_ref().is_some_and(|error| error.is_shortage);
        let error = error.map(|error| error.message);
        self.spool.add(&FromShim::NotStarted(NotStarted { error, class, is_shortage }));
        self.work = Work::Over { leave_at: Instant::now() + RETENTION };
    }

    fn tend(&mut self) {
        let room = self.has_room();
        let now = Instant::now();
        if now >= self.look_at {
            self.look_at = now + LOOK_AROUND;
            self.look_around();
        }
        match &mut self.work {
            Work::Awaited { start_by } if now >= *start_by => self.start_nothing(None),
            Work::Agent { agent, .. } => {
                agent.step(room, &mut self.spool);
                if agent.is_gone() {
                    self.end();
                }
            }
            Work::Awaited { .. } | Work::Over { .. } => {}
        }
    }

    fn look_around(&mut self) {
        if let Work::Agent { agent, .. } = &mut self.work {
            agent.take_away_zombies();
            agent.keep_company(self.engine.is_some(), &mut self.spool);
            // The database is gone: no engine will ever ask for this agent.
            if self.spool.is_removed() {
                agent.stop_for(Cause::ShimLost, &mut self.spool);
            }
        }
    }

    fn end(&mut self) {
        let over = Work::Over { leave_at: Instant::now() + RETENTION };
        if let Work::Agent { agent, temp_dir } = std::mem::replace(&mut self.work, over) {
            let ended = agent.end(&mut self.spool);
            drop(temp_dir);
            self.spool.add(&FromShim::Ended(ended));
        }
    }
}
