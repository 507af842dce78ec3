//! A daemon as a process of its own.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use crate::client::{Api, token};
use crate::processes::state_of;
use crate::wait::{block_until, until};

/// A command that inherits no Mainstay setting from the environment of the tests.
#[must_use]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MAINSTAY_")) {
        command.env_remove(name);
    }
    command
}

/// Opens a log for appending.
///
/// # Panics
/// If that fails.
#[must_use]
pub fn log_file(path: &Path) -> File {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Reads the first line that a process prints.
///
/// # Panics
/// If its stdout is not a pipe.
pub fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap_or_else(|| panic!("stdout is not piped"));
    BufReader::new(stdout).read_line(&mut line).unwrap_or_else(|error| panic!("{error}"));
    line.trim_end().to_owned()
}

/// A daemon that is ready, and a client of it. Killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    pub child: Child,
    url: String,
    db: PathBuf,
    /// Created once, because the database may be removed, and its token with it.
    api: OnceLock<Api>,
}

impl Daemon {
    /// Starts a command that serves this database, with its stderr appended to a log.
    ///
    /// # Panics
    /// If it exits instead.
    #[must_use]
    #[track_caller]
    pub fn start(command: &mut Command, db: &Path, log: &Path) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log_file(log));
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let log = || std::fs::read_to_string(log).unwrap_or_default();
        Self::ready(child, db).unwrap_or_else(|status| panic!("it does not serve ({status}), and logged: {}", log()))
    }

    /// Waits until a process with a piped stdout is ready.
    ///
    /// # Errors
    /// The exit status, if it exits instead.
    pub fn ready(mut child: Child, db: &Path) -> Result<Self, ExitStatus> {
        let line = first_line(&mut child);
        match line.strip_prefix("listening on ") {
            Some(url) => {
                let daemon = Self::expected_at(child, url.to_owned(), db);
                daemon.api();
                Ok(daemon)
            }
            None => Err(child.wait().unwrap_or_else(|error| panic!("{error}"))),
        }
    }

    /// A daemon that was started and will listen at this URL.
    #[must_use]
    pub fn expected_at(child: Child, url: String, db: &Path) -> Self {
        Self { child, url, db: db.to_owned(), api: OnceLock::new() }
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The address that it listens at: `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// Sends it a signal, given by name.
    ///
    /// # Panics
    /// If there is no such process or signal.
    #[track_caller]
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args(["-s", signal, &self.pid().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "no {signal} for {}", self.pid());
    }

    /// Whether all of its threads are stopped.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).into_iter().flatten().flatten();
        tasks.map(|task| state_of(&task.path())).all(|state| state == Some('T'))
    }

    /// Kills it by dropping it, as in a crash.
    pub fn kill(self) {}

    /// Sends SIGTERM, and waits until it has exited.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn stop(mut self) {
        self.signal("TERM");
        let status = self.wait();
        assert!(status.success(), "the daemon stopped with {status}");
    }

    /// Waits until it has exited.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let mut ended = None;
        block_until(|| {
            ended = self.try_wait();
            ended.is_some()
        });
        ended.unwrap_or_else(|| unreachable!("it has ended"))
    }

    /// The same, without blocking other tasks of the test.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut ended = None;
        until(|| {
            ended = self.try_wait();
            ended.is_some()
        })
        .await;
        ended.unwrap_or_else(|| unreachable!("it has ended"))
    }

    fn api(&self) -> &Api {
        self.api.get_or_init(|| {
            // The daemon may have mounts of its own; another user's daemon does not let us see them.
            let in_its_mounts = PathBuf::from(format!("/proc/{}/root{}", self.pid(), self.db.display()));
            Api::new(self.url.clone(), token(&in_its_mounts).or_else(|| token(&self.db)))
        })
    }

    fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap_or_else(|error| panic!("{error}"))
    }
}

impl Deref for Daemon {
    type Target = Api;

    fn deref(&self) -> &Api {
        self.api()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The test may have ended it already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
