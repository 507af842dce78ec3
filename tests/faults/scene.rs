//! What the tests stand on: a daemon behind the shim, with scripts for agents, and clients that remember what they were told.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::{Client, Method};
use serde_json::{Value, json};

use crate::shim::Shim;
use crate::token::token;

/// The longest that anything may take on a loaded machine before the test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Words that the agent of [`Scene::new`] says in a turn.
pub const WORDS: usize = 60;

/// A directory with a database, a config and the shim's files, and a client.
pub struct Scene {
    /// Where the database is.
    pub home: PathBuf,
    pub db: PathBuf,
    pub shim: Shim,
    pub config: PathBuf,
    pub log: PathBuf,
    client: Client,
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
        Self { db, home, shim, config, log, client: Client::new(), _dir: dir }
    }

    /// With a record of all that is done to the files.
    pub fn recording(mut self) -> Self {
        let record = self.record();
        self.shim = Shim::new(&self.home, self._dir.path()).recording(&record);
        self
    }

    pub fn record(&self) -> PathBuf {
        self._dir.path().join("record")
    }

    /// What a daemon is started with.
    pub fn serve(&self) -> Command {
        self.serve_at("127.0.0.1:0")
    }

    /// The same, to listen at this address.
    pub fn serve_at(&self, address: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        self.arguments(&mut command, address);
        self.shim.around(&mut command);
        command
    }

    /// A daemon that was given this name of the database.
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
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).process_group(0);
    }

    /// What a daemon is started with in a place of its own: `prepare` is a line of shell that is run there first, with the
    /// database's directory as `$0`.
    pub fn serve_in(&self, namespace: &[&str], prepare: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(namespace).args(["sh", "-c", &format!("{prepare} && exec \"$@\"")]);
        command.arg(&self.home).arg(env!("CARGO_BIN_EXE_mainstay"));
        self.arguments(&mut command, "127.0.0.1:0");
        command
    }

    /// What a daemon is started with that has so many file descriptors, soft and hard limit.
    pub fn serve_limited(&self, limit: &str) -> Command {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={limit}")).arg(env!("CARGO_BIN_EXE_mainstay"));
        self.arguments(&mut command, "127.0.0.1:0");
        command
    }

    /// A daemon that serves.
    pub fn daemon(&self) -> Daemon {
        self.ready(self.serve().spawn().unwrap()).unwrap_or_else(|_| panic!("it did not start: {}", self.logged()))
    }

    /// A process that was started, once it serves; or how it ended.
    pub fn ready(&self, mut child: Child) -> Result<Daemon, ExitStatus> {
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Some(url) = line.trim_end().strip_prefix("listening on ") else { return Err(child.wait().unwrap()) };
        Ok(self.reached(child, url.to_owned()))
    }

    /// A process that was started and will serve at this address.
    pub fn reached_at(&self, child: Child, address: &str) -> Daemon {
        self.reached(child, format!("http://{address}"))
    }

    fn reached(&self, child: Child, url: String) -> Daemon {
        Daemon { child, url, client: self.client.clone(), db: self.db.clone(), token: OnceLock::new() }
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
        conn.busy_timeout(PATIENCE).unwrap();
        conn
    }

    pub fn wal_bytes(&self) -> u64 {
        std::fs::metadata(self.home.join("m.db-wal")).map_or(0, |meta| meta.len())
    }
}

/// What became of a message.
#[derive(Debug, Clone)]
pub struct Sent {
    pub status: u16,
    pub body: Value,
}

impl Sent {
    pub fn run(&self) -> String {
        assert_eq!(self.status, 202, "{self:?}");
        self.body["id"].as_str().unwrap().to_owned()
    }

    pub fn refusal(&self) -> (u16, &str) {
        (self.status, self.body["error"]["code"].as_str().unwrap_or("none"))
    }
}

/// A daemon as a process of its own.
pub struct Daemon {
    pub child: Child,
    url: String,
    client: Client,
    db: PathBuf,
    /// What requests show: read once, for the database may go.
    token: OnceLock<Option<String>>,
}

impl Daemon {
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.url)).timeout(PATIENCE);
        // As the daemon sees it, which may have mounts of its own.
        let db = || PathBuf::from(format!("/proc/{}/root{}", self.child.id(), self.db.display()));
        match self.token.get_or_init(|| token(&db())) {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Status and body of an answer.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        let answer = self.request(Method::GET, path).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    pub async fn send(&self, session: &str, message: &str) -> Sent {
        self.send_text(session, message, "count").await
    }

    pub async fn send_text(&self, session: &str, message: &str, text: &str) -> Sent {
        let body = json!({"message": {"id": message, "text": text}});
        let answer =
            self.request(Method::POST, &format!("/v1/sessions/{session}/runs")).json(&body).send().await.unwrap();
        let status = answer.status().as_u16();
        Sent { status, body: answer.json().await.unwrap() }
    }

    /// Follows a run to its end, with a word for each event that comes.
    pub async fn follow(&self, run: &str, mut heard: impl FnMut(i64, &str)) -> String {
        let request =
            self.request(Method::GET, &format!("/v1/runs/{run}/events")).header("accept", "text/event-stream");
        let mut stream = request.send().await.unwrap().bytes_stream();
        let (mut text, mut said) = (String::new(), String::new());
        while let Some(piece) = stream.next().await {
            text.push_str(std::str::from_utf8(&piece.expect("the stream broke")).unwrap());
            while let Some((block, rest)) = text.split_once("\n\n") {
                let field = |name| block.lines().find_map(|line| line.strip_prefix(name));
                if let (Some(id), Some(data)) = (field("id: "), field("data: ")) {
                    heard(id.parse().unwrap(), data);
                    let chunk: Value = serde_json::from_str(data).unwrap();
                    said.push_str(chunk["delta"].as_str().unwrap_or_default());
                }
                if field("data: ") == Some("[DONE]") {
                    return said;
                }
                text = rest.to_owned();
            }
        }
        panic!("the stream of run {run} ended before the run: {said}");
    }

    pub async fn settled(&self, run: &str) -> Value {
        self.follow(run, |_, _| ()).await;
        self.get(&format!("/v1/runs/{run}")).await.1
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
    }

    /// Whether all of its threads stand still.
    pub fn is_stopped(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        tasks.flatten().all(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
        })
    }

    /// Asks it to stop, and waits.
    pub fn stop(mut self) {
        self.signal("TERM");
        assert!(self.child.wait().unwrap().success());
    }

    /// Waits until it has ended, as asked by this signal.
    pub async fn ended_by(mut self, signal: &str) {
        self.signal(signal);
        let mut status = None;
        until("its end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        assert!(status.unwrap().success());
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

pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it took longer than anything may take")
}

/// Waits for what only shows from outside: a file, a line in a log, a word in shared memory.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waited).await.is_ok(), "waited in vain until {what}");
}

/// What a whole turn of the counting agent says.
pub fn counted() -> String {
    (1..=WORDS).map(|word| format!("{word} ")).collect()
}

/// The file is whole, and its logs have no gaps.
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

/// Ids of messages, by session, that are stored.
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

/// Says that something cannot be shown on this machine, where the test harness does not swallow it.
pub fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "\n*** SKIPPED: {why} ***");
}
