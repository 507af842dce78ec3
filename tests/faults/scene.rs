//! Shared by the tests: a daemon with the preload shim, scripts as agents, and clients that remember what they were told.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use serde_json::Value;
pub use testkit::{Answer, Api, Daemon, TIMEOUT, skipped, until, within};

use crate::shim::Shim;

/// The number of words that the agent of [`Scene::new`] says in a turn.
pub const WORDS: usize = 60;

/// A directory with a database, a config and the shim's files, and a client.
pub struct Scene {
    /// Where the database is.
    pub home: PathBuf,
    pub db: PathBuf,
    pub shim: Shim,
    pub config: PathBuf,
    pub log: PathBuf,
    _dir: tempfile::TempDir,
}

impl Scene {
    /// With an agent that counts to [`WORDS`], one word after the other.
    pub fn new(more: &str) -> Self {
        let line = r#"{\"event\":\"agent\",\"stream\":\"assistant\",\"data\":{\"delta\":\"$i \"}}"#;
        let count = format!(r#"i=0; while [ $i -lt {WORDS} ]; do i=$((i+1)); echo "{line}"; sleep 0.02; done"#);
        Self::with_agent(&count, more)
    }

    /// With this script as its agent.
    pub fn with_agent(script: &str, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap().join("home");
        std::fs::create_dir(&home).unwrap();
        let config = dir.path().join("mainstay.toml");
        // A JSON string is a TOML string.
        let (script, place) = (Value::from(script), Value::from(dir.path().to_str().unwrap()));
        let text = format!(
            "[agents.agent]\ndriver = \"openclaw\"\nkill_grace = \"500ms\"\nmax_concurrent = 100\n\
             command = [\"sh\", \"-c\", {script}, \"agent\", \"{{message}}\"]\n\
             [workspaces.default]\nagent = \"agent\"\ndir = {place}\nslots = 8\n{more}\n"
        );
        std::fs::write(&config, text).unwrap();
        let shim = Shim::new(&home, dir.path());
        let (db, log) = (home.join("m.db"), dir.path().join("log"));
        Self { db, home, shim, config, log, _dir: dir }
    }

    /// With a record of all file operations.
    pub fn recording(mut self) -> Self {
        let record = self.record();
        self.shim = Shim::new(&self.home, self._dir.path()).recording(&record);
        self
    }

    pub fn record(&self) -> PathBuf {
        self._dir.path().join("record")
    }

    /// The command that starts a daemon.
    pub fn serve(&self) -> Command {
        self.serve_at("127.0.0.1:0")
    }

    /// The same, listening at this address.
    pub fn serve_at(&self, address: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        self.arguments(&mut command, address);
        self.shim.around(&mut command);
        command
    }

    /// A daemon that gets this path of the database.
    pub fn daemon_on(&self, db: &Path) -> Daemon {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        self.arguments_on(db, &mut command, "127.0.0.1:0");
        self.ready(command.spawn().unwrap()).unwrap_or_else(|_| panic!("it did not start: {}", self.logged()))
    }

    fn arguments(&self, command: &mut Command, address: &str) {
        self.arguments_on(&self.db, command, address);
    }

    fn arguments_on(&self, db: &Path, command: &mut Command, address: &str) {
        command.args(["serve", "--listen", address, "--log-format", "json", "--db"]).arg(db);
        command.arg("--config").arg(&self.config);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(testkit::log_file(&self.log)).process_group(0);
    }

    /// The command that starts a daemon in a namespace of its own: `prepare` is a line of shell that runs there first, with the
    /// database's directory as `$0`.
    pub fn serve_in(&self, namespace: &[&str], prepare: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(namespace).args(["sh", "-c", &format!("{prepare} && exec \"$@\"")]);
        command.arg(&self.home).arg(env!("CARGO_BIN_EXE_mainstay"));
        self.arguments(&mut command, "127.0.0.1:0");
        command
    }

    /// The command that starts a daemon with this limit of file descriptors, soft and hard.
    pub fn serve_limited(&self, limit: &str) -> Command {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={limit}")).arg(env!("CARGO_BIN_EXE_mainstay"));
        self.arguments(&mut command, "127.0.0.1:0");
        command
    }

    /// A daemon that is ready.
    pub fn daemon(&self) -> Daemon {
        self.ready(self.serve().spawn().unwrap()).unwrap_or_else(|_| panic!("it did not start: {}", self.logged()))
    }

    /// Waits until a started process is ready; an error if it exits instead.
    pub fn ready(&self, child: Child) -> Result<Daemon, ExitStatus> {
        Daemon::ready(child, &self.db)
    }

    /// A process that was started and will listen at this address.
    pub fn reached_at(&self, child: Child, address: &str) -> Daemon {
        Daemon::expected_at(child, format!("http://{address}"), &self.db)
    }

    pub fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How often the daemons have logged this since the log was `from` bytes long.
    pub fn logged_since(&self, from: usize, what: &str) -> usize {
        self.logged()[from..].matches(what).count()
    }

    pub fn open(&self) -> rusqlite::Connection {
        let conn = rusqlite::Connection::open(&self.db).unwrap();
        conn.busy_timeout(TIMEOUT).unwrap();
        conn
    }

    pub fn wal_bytes(&self) -> u64 {
        std::fs::metadata(self.home.join("m.db-wal")).map_or(0, |meta| meta.len())
    }
}

/// Sends messages to the counting agent of [`Scene::new`].
pub trait Count {
    async fn count(&self, session: &str, message: &str) -> Answer;
}

impl Count for Api {
    async fn count(&self, session: &str, message: &str) -> Answer {
        self.post_message(session, message, "count").await
    }
}

/// The text of a whole turn of the counting agent.
pub fn counted() -> String {
    (1..=WORDS).map(|word| format!("{word} ")).collect()
}

/// Checks that the file is intact, and that its logs have no gaps.
pub fn check_file(conn: &rusqlite::Connection) -> Result<(), String> {
    let ask = |sql: &str| {
        let mut statement = conn.prepare(sql).map_err(|error| error.to_string())?;
        let rows = statement.query_map([], |row| row.get::<_, rusqlite::types::Value>(0)).map_err(|e| e.to_string())?;
        rows.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())
    };
    let integrity = ask("PRAGMA integrity_check")?;
    if integrity != [rusqlite::types::Value::from("ok".to_owned())] {
        return Err(format!("integrity_check says {integrity:?}"));
    }
    let rules = [
        ("rows that point nowhere", "PRAGMA foreign_key_check"),
        (
            "logs with gaps",
            "SELECT s.id FROM sessions s LEFT JOIN
                 (SELECT session_key, count(*) n, min(seq) first, max(seq) last FROM events GROUP BY 1) e ON e.session_key = s.key
             WHERE s.last_seq <> coalesce(e.last, 0) OR e.first <> 1 OR e.last <> e.n",
        ),
        ("messages without a run", "SELECT id FROM messages m WHERE role = 'user' AND NOT EXISTS (SELECT 1 FROM runs WHERE message_key = m.key)"),
    ];
    for (what, sql) in rules {
        let broken = ask(sql)?;
        if !broken.is_empty() {
            return Err(format!("{what}: {broken:?}"));
        }
    }
    Ok(())
}

/// The ids of stored messages, by session.
pub fn stored_messages(conn: &rusqlite::Connection) -> BTreeMap<String, Vec<String>> {
    let sql = "SELECT s.id, m.id FROM messages m JOIN sessions s ON s.key = m.session_key WHERE m.role = 'user'";
    let mut statement = conn.prepare(sql).unwrap();
    let mut stored: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    for (session, message) in rows.map(Result::unwrap) {
        stored.entry(session).or_default().push(message);
    }
    stored
}
