//! Shared by the tests: a daemon as a process, and its surroundings.

use std::path::PathBuf;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
pub use testkit::{Daemon, TIMEOUT, block_until, skipped};

pub const MAINSTAY: &str = env!("CARGO_BIN_EXE_mainstay");

/// A directory with a database and a config.
pub struct Scene {
    pub dir: tempfile::TempDir,
}

impl Scene {
    /// With this text in the config file.
    pub fn new(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("mainstay.toml"), config).unwrap();
        Self { dir }
    }

    /// With an agent `agent` that is this script, in the default workspace.
    pub fn with_agent(script: &str, more: &str) -> Self {
        // A JSON string is a TOML string.
        let (script, dir) = (Value::from(script), Value::from("."));
        Self::new(&format!(
            "{more}\n[agents.agent]\ndriver = \"openclaw\"\ncommand = [\"sh\", \"-c\", {script}]\nkill_grace = \"100ms\"\n\
             [workspaces.default]\nagent = \"agent\"\ndir = {dir}\n"
        ))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The log of the daemons.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Starts a program that becomes a daemon.
    pub fn start(&self, program: &[&str], env: &[(&str, &str)]) -> Daemon {
        let mut command = testkit::command(program[0]);
        command.args(&program[1..]).args(["serve", "--listen", "127.0.0.1:0"]).envs(env.iter().copied());
        Daemon::start(command.current_dir(self.dir.path()), &self.path("mainstay.db"), &self.path("log"))
    }

    /// A number from the database.
    pub fn ask(&self, sql: &str) -> i64 {
        let db = rusqlite::Connection::open(self.path("mainstay.db")).unwrap();
        db.busy_timeout(TIMEOUT).unwrap();
        db.query_row(sql, [], |row| row.get(0)).unwrap_or_else(|error| panic!("{error}: {sql}"))
    }

    pub fn daemon(&self) -> Daemon {
        self.start(&[MAINSTAY], &[])
    }

    /// Queues a turn and returns its run.
    pub fn send(&self, session: &str, text: &str) -> String {
        self.mainstay(&["send", session, text]).trim_end().to_owned()
    }

    /// The output of a command, which must have succeeded.
    pub fn mainstay(&self, args: &[&str]) -> String {
        let output = Command::new(MAINSTAY).args(args).current_dir(self.dir.path()).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

pub fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Whether SIGHUP is ignored in this process, as `nohup` sets it, and so in its children.
pub fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & 1 != 0
}
