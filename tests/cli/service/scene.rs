//! What the tests stand on: a daemon as a process of its own, with whatever is around it.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::token::token;

/// The longest that anything may take on a loaded machine before the test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const MAINSTAY: &str = env!("CARGO_BIN_EXE_mainstay");

/// A directory with a database and a config.
pub struct Scene {
    pub dir: tempfile::TempDir,
}

/// A daemon that serves. Killed when it is dropped.
pub struct Daemon {
    pub child: Child,
    pub address: String,
}

impl Scene {
    /// With this text in the config file.
    pub fn new(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("mainstay.toml"), config).unwrap();
        Self { dir }
    }

    /// With an agent `agent` that is this script, in the workspace that sessions get by themselves.
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

    /// The token that the daemon has made.
    pub fn token(&self) -> String {
        token(&self.path("mainstay.db")).unwrap()
    }

    /// What the daemons have logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Starts this program, which is to become a daemon.
    pub fn start(&self, program: &[&str], env: &[(&str, &str)]) -> Daemon {
        let mut command = Command::new(program[0]);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MAINSTAY_")) {
            command.env_remove(name);
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        command.args(&program[1..]).args(["serve", "--listen", "127.0.0.1:0"]).envs(env.iter().copied());
        command.current_dir(self.dir.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening on ").map(str::to_owned);
        Daemon { child, address: address.unwrap_or_else(|| panic!("it said {line:?}, and logged: {}", self.log())) }
    }

    /// A number from the database.
    pub fn ask(&self, sql: &str) -> i64 {
        let db = rusqlite::Connection::open(self.path("mainstay.db")).unwrap();
        db.busy_timeout(PATIENCE).unwrap();
        db.query_row(sql, [], |row| row.get(0)).unwrap_or_else(|error| panic!("{error}: {sql}"))
    }

    pub fn daemon(&self) -> Daemon {
        self.start(&[MAINSTAY], &[])
    }

    /// Queues a turn and answers with its run.
    pub fn send(&self, session: &str, text: &str) -> String {
        self.mainstay(&["send", session, text]).trim_end().to_owned()
    }

    /// What a command printed that succeeded.
    pub fn mainstay(&self, args: &[&str]) -> String {
        let output = Command::new(MAINSTAY).args(args).current_dir(self.dir.path()).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Daemon {
    pub fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        until("its end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Asks it to stop, and waits.
    pub fn stop(mut self) -> ExitStatus {
        signal(self.pid(), Signal::TERM);
        self.wait()
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Gone already when the test has ended it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Whether this process was started with SIGHUP ignored, as `nohup` does, and what it starts too.
pub fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & 1 != 0
}

/// Waits for what only shows from outside: a process, a line in a log.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Says why a test was not made, past the test harness, which keeps what passing tests print to itself.
pub fn skipped(why: &str) {
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = writeln!(std::io::stderr(), "\nSKIPPED {name}: {why}\n");
}
