//! Shared by the tests: a model server, a daemon that can be killed, an agent with a home of its own, and an engine on
//! the same file that only watches.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use mainstay::config::Config;
use mainstay::engine::{Engine, PermissionFilter, SendMessage};
use mainstay::id::{MessageId, RunId};
use mainstay::message::UserMessage;
use mainstay::permission::Permission;
use mainstay::run::Run;
use serde_json::Value;
use testkit::{Daemon, first_line};
pub use testkit::{TIMEOUT, within};

/// The program of an agent, if it is installed; otherwise reports that the test is skipped.
pub fn installed(agent: &str) -> Option<PathBuf> {
    let found = std::env::var_os("MAINSTAY_TEST_AGENTS").map(|dir| Path::new(&dir).join(agent));
    let found = found.filter(|program| program.exists());
    if found.is_none() {
        testkit::skipped(&format!("{agent} is not installed"));
    }
    found
}

/// A model server that answers as the message says: `[[text:words]]`, `[[tool:command]]`, `[[slow:COUNT:MS]]`, ….
pub struct Model {
    child: Child,
    log: PathBuf,
    pub url: String,
}

impl Model {
    pub fn start(dir: &Path) -> Self {
        let log = dir.join("model.log");
        let mut child = Command::new("node")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/agents/model.mjs"))
            .arg("0")
            .arg(&log)
            .env("FAKE_LLM_BODIES", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node is needed");
        let said: Value = serde_json::from_str(&first_line(&mut child)).unwrap();
        Self { child, log, url: format!("http://127.0.0.1:{}", said["listening"]) }
    }

    /// The newest request to the model with this script: `{model, turns, body, …}`.
    pub fn asked(&self, script: &str) -> Value {
        let log = std::fs::read_to_string(&self.log).unwrap();
        let mut asked = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        asked.rfind(|line| line["scenario"] == script).unwrap_or_else(|| panic!("not asked for {script}: {log}"))
    }

    /// The number of turns in the newest request to the model with this script.
    pub fn turns(&self, script: &str) -> i64 {
        self.asked(script)["turns"].as_i64().unwrap()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // The test may have ended it already.
    let _ = child.kill();
    let _ = child.wait();
}

pub struct Scene {
    pub model: Model,
    pub engine: Engine,
    daemon: Option<Daemon>,
    db: PathBuf,
    config: PathBuf,
    pub dir: tempfile::TempDir,
}

impl Scene {
    /// A daemon whose sessions have the agent that `agent` describes: the keys of its config section, given the directory of the
    /// test and the address of the model. It works in `work` and has `home` for its home.
    pub async fn new(agent: impl Fn(&Path, &str) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["work", "home"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let model = Model::start(dir.path());
        let (db, config) = (dir.path().join("m.db"), dir.path().join("mainstay.toml"));
        let keys = agent(dir.path(), &model.url);
        let text = format!(
            "[engine]\nlease = \"1s\"\nsweep_interval = \"1s\"\n[agents.it]\n{keys}\n\
             [workspaces.default]\nagent = \"it\"\ndir = \"work\"\n"
        );
        std::fs::write(&config, &text).unwrap();
        let mut read = Config::load(&text, &config, dir.path()).unwrap();
        read.engine.shim_program = env!("CARGO_BIN_EXE_mainstay").into();
        let engine = Engine::open(&db, read).await.unwrap();
        let mut scene = Self { model, engine, daemon: None, db, config, dir };
        scene.start();
        scene
    }

    /// Starts the daemon.
    pub fn start(&mut self) {
        let mut command = testkit::command(env!("CARGO_BIN_EXE_mainstay"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--db"]).arg(&self.db).arg("--config").arg(&self.config);
        self.daemon = Some(Daemon::start(&mut command, &self.db, &self.dir.path().join("log")));
    }

    /// Kills the daemon, as in a crash.
    pub fn kill(&mut self) {
        self.daemon.take().unwrap().kill();
    }

    /// Stops the daemon, and waits until it has exited.
    pub fn stop(&mut self) {
        self.daemon.take().unwrap().stop();
    }

    /// Sends a message.
    pub async fn send(&self, session: &str, text: &str) -> RunId {
        let message = UserMessage::text(MessageId::generate(), text).unwrap();
        self.engine.send(SendMessage::new(session.parse().unwrap(), message)).await.unwrap().run.id
    }

    /// Waits until a run is settled.
    pub async fn settled(&self, run: RunId) -> Run {
        within(self.engine.wait_settled(run)).await.unwrap()
    }

    /// The question that an agent asks in a run, once it does.
    pub async fn asked(&self, run: RunId) -> Permission {
        self.chunks_until(run, "tool-approval-request").await;
        let filter = PermissionFilter { run: Some(run), ..PermissionFilter::default() };
        let mut asked = self.engine.list_permissions(&filter, 10).await.unwrap();
        assert_eq!(asked.len(), 1);
        asked.remove(0).1
    }

    /// Sends a message and waits for the end of its run.
    pub async fn turn(&self, session: &str, text: &str) -> Run {
        let run = self.send(session, text).await;
        self.settled(run).await
    }

    /// The chunks of a run up to one that contains this, or up to the run's end.
    pub async fn chunks_until(&self, run: RunId, what: &str) -> Vec<Value> {
        let mut follower = self.engine.follow_run(run, 0).await.unwrap();
        let mut chunks = Vec::new();
        while let Some(events) = within(follower.next_events()).await.unwrap() {
            let found = events.iter().any(|event| event.event.contains(what));
            chunks.extend(events.iter().map(|event| serde_json::from_str::<Value>(&event.event).unwrap()));
            if found {
                return chunks;
            }
        }
        panic!("the run ended without {what}: {chunks:#?}\n{}", self.log());
    }

    /// All chunks of an ended run.
    pub async fn chunks(&self, run: RunId) -> Vec<Value> {
        let events = self.engine.run_events(run, 0, 100_000).await.unwrap();
        events.iter().map(|event| serde_json::from_str(event.event.get()).unwrap()).collect()
    }

    /// The whole text of a run.
    pub async fn text(&self, run: RunId) -> String {
        text_of(&self.chunks(run).await)
    }

    /// A value from the database.
    pub fn value(&self, query: &str) -> String {
        let other = rusqlite::Connection::open(&self.db).unwrap();
        other.busy_timeout(TIMEOUT).unwrap();
        let value = other.query_row(query, [], |row| row.get::<_, rusqlite::types::Value>(0)).unwrap();
        match value {
            rusqlite::types::Value::Text(text) => text,
            rusqlite::types::Value::Integer(number) => number.to_string(),
            rusqlite::types::Value::Real(number) => number.to_string(),
            other => format!("{other:?}"),
        }
    }

    /// The log of the daemons.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

/// The deltas of the text in some chunks.
pub fn text_of(chunks: &[Value]) -> String {
    let deltas = chunks.iter().filter(|chunk| chunk["type"] == "text-delta");
    deltas.map(|chunk| chunk["delta"].as_str().unwrap()).collect()
}

/// The first chunk of a type.
pub fn first<'a>(chunks: &'a [Value], kind: &str) -> &'a Value {
    chunks.iter().find(|chunk| chunk["type"] == kind).unwrap_or_else(|| panic!("no {kind} in {chunks:#?}"))
}

/// The words that `[[slow:COUNT:MS]]` makes the model say.
pub fn slow_words(count: usize) -> String {
    (0..count).map(|number| format!("w{number} ")).collect()
}

/// How many processes of a run are left.
pub fn left_of(run: RunId) -> usize {
    testkit::marked(&run.to_string()).len()
}
