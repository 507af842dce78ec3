//! Shared by the tests: an engine with scripts as agents, and daemons as real processes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mainstay::clock::{Clock, SystemClock};
use mainstay::config::Config;
use mainstay::engine::{Engine, Follower, MessageCursor, SendMessage, Sent};
use mainstay::id::{MessageId, RunId, SessionId};
use mainstay::message::UserMessage;
use mainstay::run::Run;
use serde_json::Value;
pub use testkit::{Daemon, TIMEOUT, until, within};

/// An engine on a database of its own, whose agents are shell scripts.
pub struct Scene {
    pub dir: tempfile::TempDir,
    pub engine: Engine,
}

/// A line of an agent's output that says `text`.
pub fn says(text: &str) -> String {
    format!(r#"echo '{{"event":"agent","stream":"assistant","data":{{"delta":"{text}"}}}}'"#)
}

/// A config with an agent `name` for each script, resident in a workspace of the same name.
pub fn config(dir: &Path, agents: &[(&str, &str)], more: &str) -> String {
    let mut text = format!("{more}\n");
    for (name, script) in agents {
        // A JSON string is a TOML string.
        let script = Value::from(*script);
        let home = Value::from(dir.display().to_string());
        text.push_str(&format!(
            "[agents.{name}]\ndriver = \"openclaw\"\nkill_grace = \"500ms\"\nmax_concurrent = 100\n\
             command = [\"sh\", \"-c\", {script}, \"agent\", \"{{message}}\"]\n\
             [workspaces.{name}]\nagent = \"{name}\"\ndir = {home}\nslots = 5\n"
        ));
    }
    text
}

impl Scene {
    /// An engine that does not execute anything yet.
    pub async fn idle(agents: &[(&str, &str)], more: &str) -> Self {
        Self::with_clock(agents, more, Arc::new(SystemClock)).await
    }

    pub async fn with_clock(agents: &[(&str, &str)], more: &str, clock: Arc<dyn Clock>) -> Self {
        Self::of_program(env!("CARGO_BIN_EXE_mainstay"), agents, more, clock).await
    }

    /// In a program that embeds the engine and has no `mainstay` program.
    pub async fn embedded(more: &str, clock: Arc<dyn Clock>) -> Self {
        Self::of_program("no-mainstay-here", &[], more, clock).await
    }

    async fn of_program(program: &str, agents: &[(&str, &str)], more: &str, clock: Arc<dyn Clock>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = config(dir.path(), agents, more);
        let mut config = Config::load(&text, Path::new("test.toml"), dir.path()).unwrap();
        config.engine.shim_program = program.into();
        let engine = Engine::open_with_clock(&dir.path().join("m.db"), config, clock).await.unwrap();
        Self { dir, engine }
    }

    /// An engine that executes runs.
    pub async fn new(agents: &[(&str, &str)], more: &str) -> Self {
        let scene = Self::idle(agents, more).await;
        scene.engine.start().await.unwrap();
        scene
    }

    pub async fn send(&self, agent: &str, session: &str, text: &str) -> Run {
        self.try_send(agent, session, text).await.run
    }

    pub async fn try_send(&self, agent: &str, session: &str, text: &str) -> Sent {
        let message = UserMessage::text(MessageId::generate(), text).unwrap();
        let mut send = SendMessage::new(session.parse().unwrap(), message);
        send.workspace = Some(agent.parse().unwrap());
        self.engine.send(send).await.unwrap()
    }

    /// Gives all leases back without their holders: to other workers these look gone.
    pub async fn give_leases_back(&self) {
        let db = self.dir.path().join("m.db");
        let give_back = move || {
            let other = rusqlite::Connection::open(db).unwrap();
            other.busy_timeout(TIMEOUT).unwrap();
            other.execute("UPDATE runs SET lease_expires_at = 0 WHERE lease_expires_at IS NOT NULL", []).unwrap();
        };
        // Blocking, because the engine may be in the middle of a write.
        tokio::task::spawn_blocking(give_back).await.unwrap();
    }

    /// Waits until a run is settled.
    pub async fn settled(&self, run: RunId) -> Run {
        settled(&self.engine, run).await
    }

    /// Sends a message, and waits for the end of its run.
    pub async fn turn(&self, agent: &str, session: &str, text: &str) -> Run {
        let run = self.send(agent, session, text).await;
        self.settled(run.id).await
    }

    /// The types of a run's chunks, deltas with their text, in one line.
    pub async fn story(&self, run: RunId) -> String {
        story(&self.engine, run).await
    }

    /// Waits until the run has said this.
    pub async fn said(&self, run: RunId, text: &str) {
        let mut follower = self.engine.follow_run(run, 0).await.unwrap();
        let mut heard = String::new();
        while !heard.contains(text) {
            let events = within(follower.next_events()).await.unwrap();
            let events = events.unwrap_or_else(|| panic!("the run ended without saying {text:?}: {heard}"));
            heard.extend(events.iter().filter_map(|followed| {
                let chunk: Value = serde_json::from_str(&followed.event).unwrap();
                chunk["delta"].as_str().map(str::to_owned)
            }));
        }
    }

    /// The parts of the messages of a session.
    pub async fn messages(&self, session: &str) -> Vec<(String, Value)> {
        let id: SessionId = session.parse().unwrap();
        let page = self.engine.list_messages(&id, MessageCursor::START, 500, true).await.unwrap();
        let read = |parts: &str| serde_json::from_str(parts).unwrap();
        page.messages.iter().map(|message| (message.role.as_str().to_owned(), read(message.parts.get()))).collect()
    }
}

pub async fn settled(engine: &Engine, run: RunId) -> Run {
    within(engine.wait_settled(run)).await.unwrap()
}

pub async fn story(engine: &Engine, run: RunId) -> String {
    let events = engine.run_events(run, 0, 10_000).await.unwrap();
    let chunks = events.iter().map(|event| serde_json::from_str::<Value>(event.event.get()).unwrap());
    tell(chunks)
}

pub fn tell(chunks: impl Iterator<Item = Value>) -> String {
    let word = |chunk: Value| {
        let kind = chunk["type"].as_str().unwrap().to_owned();
        let detail = ["delta", "errorText", "finishReason"].iter().find_map(|key| chunk[key].as_str());
        detail.map_or_else(|| kind.clone(), |detail| format!("{kind}={detail}"))
    };
    chunks.map(word).collect::<Vec<_>>().join(" ")
}

/// Reads a follower to its end.
pub async fn read_all(mut follower: Follower) -> Vec<(Option<i64>, String)> {
    let mut all = Vec::new();
    while let Some(events) = within(follower.next_events()).await.unwrap() {
        all.extend(events.into_iter().map(|followed| (followed.seq, followed.event)));
    }
    all
}

pub const NOTHING: [i32; 0] = [];

/// The processes that carry the marker of a run.
pub fn marked(run: RunId) -> Vec<i32> {
    testkit::marked(&run.to_string())
}

/// A directory with a config, for daemons, and an engine on the same file that only watches.
pub struct Camp {
    pub dir: tempfile::TempDir,
    pub db: PathBuf,
    pub config: PathBuf,
    pub watcher: Engine,
}

impl Camp {
    pub async fn new(agents: &[(&str, &str)], more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (db, path) = (dir.path().join("m.db"), dir.path().join("mainstay.toml"));
        let text = config(dir.path(), agents, more);
        std::fs::write(&path, &text).unwrap();
        let mut config = Config::load(&text, &path, dir.path()).unwrap();
        config.engine.shim_program = env!("CARGO_BIN_EXE_mainstay").into();
        let watcher = Engine::open(&db, config).await.unwrap();
        Self { dir, db, config: path, watcher }
    }

    /// Pauses a daemon, but not in the middle of a write, which would block all writers until it continues.
    pub fn pause(&self, daemon: &Daemon) {
        let other = rusqlite::Connection::open(&self.db).unwrap();
        other.busy_timeout(Duration::from_millis(100)).unwrap();
        loop {
            daemon.signal("STOP");
            while !daemon.is_stopped() {
                std::thread::yield_now();
            }
            if other.execute_batch("BEGIN IMMEDIATE; ROLLBACK").is_ok() {
                return;
            }
            daemon.signal("CONT");
        }
    }

    /// The log of the daemons.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.db.with_extension("log")).unwrap_or_default()
    }

    pub fn daemon(&self) -> Daemon {
        let mut command = testkit::command(env!("CARGO_BIN_EXE_mainstay"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json", "--db"]).arg(&self.db);
        command.arg("--config").arg(&self.config);
        Daemon::start(&mut command, &self.db, &self.db.with_extension("log"))
    }

    pub async fn send(&self, agent: &str, session: &str, text: &str) -> Run {
        let message = UserMessage::text(MessageId::generate(), text).unwrap();
        let mut send = SendMessage::new(session.parse().unwrap(), message);
        send.workspace = Some(agent.parse().unwrap());
        self.watcher.send(send).await.unwrap().run
    }

    /// Waits until the run has at least this many events.
    pub async fn grown(&self, run: RunId, events: usize) -> Vec<(Option<i64>, String)> {
        let mut follower = self.watcher.follow_run(run, 0).await.unwrap();
        let mut all = Vec::new();
        while all.len() < events {
            let more = within(follower.next_events()).await.unwrap().expect("the run ended early");
            all.extend(more.into_iter().map(|followed| (followed.seq, followed.event)));
        }
        all
    }
}

/// How often each value occurs.
pub fn counts<T: Ord>(values: impl IntoIterator<Item = T>) -> BTreeMap<T, usize> {
    let mut counts = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    counts
}
