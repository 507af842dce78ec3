//! The directory of agents beside the database, with one directory for each attempt, which holds the spool of its shim
//! and the socket to reach it.
//!
//! Always: readable by its owner only. A path may be longer than a socket address (108 bytes), so sockets are addressed
//! through an open directory.

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

/// How long to retry if a shim cannot be reached for want of file descriptors; its agent keeps running meanwhile.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// The shim's stderr: its own errors.
const LOG: &str = "log";
/// A shim writes one line before it ends.
const LOG_BYTES: u64 = 4096;

/// How an engine starts and finds the shims of its agents.
#[derive(Debug, Clone)]
pub struct Shims {
    program: PathBuf,
    dir: PathBuf,
    memory: Memory,
}

impl Shims {
    /// Shims are started from `program`, which is `mainstay`, and have their directories in `dir`.
    pub fn new(program: PathBuf, dir: PathBuf) -> Self {
        Self { program, dir, memory: Memory::default() }
    }

    /// Charges the output of their agents to this memory.
    pub fn with_memory(self, memory: Memory) -> Self {
        Self { memory, ..self }
    }

    /// The memory that the output of their agents is charged to.
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The program that shims and relays are started from.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// The directory of an attempt.
    pub fn dir_of(&self, attempt: Attempt) -> PathBuf {
        self.dir.join(attempt.to_string())
    }

    /// The file that holds the output of an attempt's agent.
    pub(crate) fn spool_of(&self, attempt: Attempt) -> PathBuf {
        self.dir_of(attempt).join(super::SPOOL)
    }

    /// The errors that an attempt's shim logged, up to 4 KiB.
    pub(crate) async fn log_of(&self, attempt: Attempt) -> Option<String> {
        let path = self.dir_of(attempt).join(LOG);
        let read = tokio::task::spawn_blocking(move || {
            let mut text = Vec::new();
            File::open(path)?.take(LOG_BYTES).read_to_end(&mut text)?;
            io::Result::Ok(String::from_utf8_lossy(&text).trim().to_owned())
        });
        // An unreadable log is treated as empty.
        read.await.ok()?.ok().filter(|text| !text.is_empty())
    }

    /// Why no shim can be started, if the directory shows it. Changes nothing. Blocking work.
    pub fn problem(&self) -> Option<String> {
        let denied = rustix::fs::access(&self.dir, Access::WRITE_OK | Access::EXEC_OK).err()?;
        Some(format!("{} cannot be written ({})", self.dir.display(), io::Error::from(denied)))
    }

    /// Starts a shim, which waits for the launch.
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
            // Connected before the shim is spawned: if this engine is killed in between, the shim finds the connection
            // closed and does not wait for a launch.
            let link = UnixStream::connect(socket_in(&handle)).await;
            let link = link.map_err(|error| StartError::at("the socket of its shim could not be reached", &error))?;
            let child = command.spawn().map_err(|error| {
                let program = self.program.display();
                StartError::at(&format!("its shim, {program}, could not be started"), &error)
            })?;
            // The runtime reaps the child whenever it exits: dropping it does not end it.
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

    /// Connects to a shim; `None` if it is gone, or if another process is in its place. A shortage is retried for some
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

    /// Removes the directory of an attempt, and logs a failure. Returns whether it is gone.
    pub async fn forget(&self, attempt: Attempt) -> bool {
        let home = self.dir_of(attempt);
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(home)).await;
        match removed {
            Ok(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(run.id = %attempt.run, %error, "failed to remove the directory of an agent");
                false
            }
            // The task fails only when the runtime shuts down; a sweep removes what is left.
            removed => removed.is_ok(),
        }
    }

    /// The attempts that have a directory, at most `limit` of them. Blocking work.
    ///
    /// # Errors
    /// The directory of agents exists and cannot be read.
    pub fn attempts(&self, limit: usize) -> io::Result<Vec<Attempt>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?.flatten(),
        };
        Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).take(limit).collect())
    }

    /// Whether the shim of an attempt is certainly gone, even if its pid means nothing here: it holds the lock of its
    /// spool as long as it lives, also in another container on the same file system.
    pub async fn is_gone(&self, attempt: Attempt) -> bool {
        let spool = self.spool_of(attempt);
        let is_gone = move || File::open(spool).is_ok_and(|spool| spool.try_lock_shared().is_ok());
        // Fails only when the runtime shuts down.
        tokio::task::spawn_blocking(is_gone).await.unwrap_or(false)
    }

    /// The shim that holds the agent of an attempt, if there is one.
    ///
    /// # Errors
    /// It cannot be looked up, because this process is short of a resource.
    pub async fn find(&self, attempt: Attempt) -> io::Result<Option<ProcessIdentity>> {
        let Some((_, peer)) = self.knock(attempt).await? else { return Ok(None) };
        let Some(process) = reap::look_up(peer)? else { return Ok(None) };
        // Until the shim has called listen(2) itself, the peer of its socket is the engine that made it.
        Ok(super::is_shim(&process)?.then_some(process))
    }

    /// Connects to the process that listens for an attempt, and returns its pid; `None` if there is no such process.
    ///
    /// # Errors
    /// This process is short of a resource.
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
