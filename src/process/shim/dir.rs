//! Where agents live: a directory beside the database with one for each attempt, which holds the spool of its shim and
//! the socket to reach it.
//!
//! Always: readable by its owner only. A path may be longer than a socket address may be (108 bytes), so sockets are named
//! by an open directory.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::fs::Access;
use tokio::net::UnixStream;
use tokio::process::Command;

use crate::failure::is_shortage;
use crate::memory::Memory;
use crate::process::{StartError, launch, reap};
use crate::run::Attempt;
use crate::worker::ProcessIdentity;

/// A shim that cannot be reached for want of file descriptors is tried again for this long; its agent goes on meanwhile.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// What a shim says of its own troubles.
const LOG: &str = "log";
/// It has a line to say, and then ends.
const LOG_BYTES: u64 = 4096;

/// The shims of agents, as an engine starts and finds them.
#[derive(Debug, Clone)]
pub struct Shims {
    program: PathBuf,
    dir: PathBuf,
    memory: Memory,
}

impl Shims {
    /// Shims are started from `program`, which is `mainstay`, and live in `dir`.
    pub fn new(program: PathBuf, dir: PathBuf) -> Self {
        Self { program, dir, memory: Memory::default() }
    }

    /// What their agents say takes of this memory.
    pub fn with_memory(self, memory: Memory) -> Self {
        Self { memory, ..self }
    }

    /// What their agents say takes of this memory.
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The program that shims, and relays of turns, are started from.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// The directory of an attempt.
    pub fn dir_of(&self, attempt: Attempt) -> PathBuf {
        self.dir.join(attempt.to_string())
    }

    /// The file that holds what the agent of an attempt said.
    pub(crate) fn spool_of(&self, attempt: Attempt) -> PathBuf {
        self.dir_of(attempt).join(super::SPOOL)
    }

    /// What the shim of an attempt said of its own troubles, as far as it is short.
    pub(crate) async fn log_of(&self, attempt: Attempt) -> Option<String> {
        let path = self.dir_of(attempt).join(LOG);
        let read = tokio::task::spawn_blocking(move || {
            let mut text = Vec::new();
            File::open(path)?.take(LOG_BYTES).read_to_end(&mut text)?;
            io::Result::Ok(String::from_utf8_lossy(&text).trim().to_owned())
        });
        // Who cannot be asked has nothing to say.
        read.await.ok()?.ok().filter(|text| !text.is_empty())
    }

    /// Why no shim can be started there, if that can be seen. Only looks. Blocking work.
    pub fn problem(&self) -> Option<String> {
        let denied = rustix::fs::access(&self.dir, Access::WRITE_OK | Access::EXEC_OK).err()?;
        Some(format!("{} cannot be written ({})", self.dir.display(), io::Error::from(denied)))
    }

    /// Starts a shim, which waits to be told what to start.
    pub(crate) async fn start(&self, attempt: Attempt) -> Result<(ProcessIdentity, UnixStream), StartError> {
        let home = self.dir_of(attempt);
        let prepared = tokio::task::spawn_blocking(move || prepare(&home)).await;
        let prepared = prepared.map_err(|_| StartError::from("the engine is going down"))?;
        let Prepared { home, handle, listener, log } =
            prepared.map_err(|error| StartError::at("no directory could be made for it", &error))?;
        let mut command = Command::new(&self.program);
        command.arg0("mainstay").arg(super::COMMAND).arg(&home);
        for variable in launch::KEPT_FROM_AGENTS {
            command.env_remove(variable);
        }
        command.stdin(OwnedFd::from(listener)).stdout(Stdio::null()).stderr(log);
        let started = async {
            // Before the shim is there: should we be killed in between, it finds us gone, and does not wait for us.
            let link = UnixStream::connect(socket_in(&handle)).await;
            let link = link.map_err(|error| StartError::at("the socket of its shim could not be reached", &error))?;
            let child = command.spawn().map_err(|error| {
                let program = self.program.display();
                StartError::at(&format!("its shim, {program}, could not be started"), &error)
            })?;
            // Its exit status is taken whenever it comes: dropping the child does not end it.
            let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
            let process = pid.map_or(Ok(None), reap::look_up);
            let process = process.map_err(|error| StartError::at("its shim could not be found in /proc", &error))?;
            Ok((process.ok_or_else(|| StartError::from("its shim ended at once"))?, link))
        };
        let started = started.await;
        if started.is_err() {
            self.forget(attempt).await;
        }
        started
    }

    /// Connects to a shim; `None` when it is gone, or when another process is in its place. A shortage is waited out for some
    /// seconds.
    pub(crate) async fn connect(&self, attempt: Attempt, process: &ProcessIdentity) -> Option<UnixStream> {
        let give_up = Instant::now() + CONNECT_TIMEOUT;
        let (link, peer) = loop {
            match self.knock(attempt).await {
                Err(_) if Instant::now() < give_up => tokio::time::sleep(RETRY_INTERVAL).await,
                reached => break reached.ok().flatten()?,
            }
        };
        (peer == process.pid && reap::is_alive(process) == reap::Liveness::Alive).then_some(link)
    }

    /// Removes what an attempt left in its directory. What cannot be removed is logged. Whether nothing is left of it.
    pub async fn forget(&self, attempt: Attempt) -> bool {
        let home = self.dir_of(attempt);
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(home)).await;
        match removed {
            Ok(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(run.id = %attempt.run, %error, "failed to remove the directory of an agent");
                false
            }
            // The task fails only when the runtime goes down; a sweep removes what is left.
            removed => removed.is_ok(),
        }
    }

    /// The attempts that have a directory, at most so many of them. Blocking work.
    ///
    /// # Errors
    /// The directory of agents is there and cannot be read.
    pub fn attempts(&self, limit: usize) -> io::Result<Vec<Attempt>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?.flatten(),
        };
        Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).take(limit).collect())
    }

    /// Whether the shim of an attempt is gone for sure, wherever its pid means something: it holds the lock of its spool
    /// as long as it lives, also in another container on the same file system.
    pub async fn is_gone(&self, attempt: Attempt) -> bool {
        let spool = self.spool_of(attempt);
        let is_gone = move || File::open(spool).is_ok_and(|spool| spool.try_lock_shared().is_ok());
        // It fails only when the runtime goes down.
        tokio::task::spawn_blocking(is_gone).await.unwrap_or(false)
    }

    /// The process that holds the agent of an attempt, if one does.
    ///
    /// # Errors
    /// It cannot be looked for, because this process is short of something.
    pub async fn find(&self, attempt: Attempt) -> io::Result<Option<ProcessIdentity>> {
        let Some((_, peer)) = self.knock(attempt).await? else { return Ok(None) };
        let Some(process) = reap::look_up(peer)? else { return Ok(None) };
        // Until a shim has taken over its socket, the engine that made it is on the other side.
        Ok(super::is_shim(&process)?.then_some(process))
    }

    /// Connects to the process that listens for an attempt, and tells its pid; `None` when no process does.
    ///
    /// # Errors
    /// This process is short of something.
    async fn knock(&self, attempt: Attempt) -> io::Result<Option<(UnixStream, i32)>> {
        let home = self.dir_of(attempt);
        let knocked = async {
            let handle = tokio::task::spawn_blocking(move || File::open(home)).await??;
            let link = UnixStream::connect(socket_in(&handle)).await?;
            let peer = link.peer_cred()?.pid();
            io::Result::Ok(peer.map(|peer| (link, peer)))
        };
        match knocked.await {
            Err(error) if is_shortage(&error) => Err(error),
            knocked => Ok(knocked.ok().flatten()),
        }
    }
}

struct Prepared {
    home: PathBuf,
    handle: File,
    listener: UnixListener,
    log: File,
}

fn prepare(home: &Path) -> io::Result<Prepared> {
    match std::fs::remove_dir_all(home) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    DirBuilder::new().recursive(true).mode(0o700).create(home)?;
    let handle = File::open(home)?;
    let listener = UnixListener::bind(socket_in(&handle))?;
    let log = OpenOptions::new().append(true).create_new(true).mode(0o600).open(home.join(LOG))?;
    Ok(Prepared { home: home.to_owned(), handle, listener, log })
}

fn socket_in(home: &File) -> PathBuf {
    format!("/proc/self/fd/{}/{}", home.as_raw_fd(), super::SOCKET).into()
}
