//! Shared by the tests: a bridge with an agent that follows its prompts, and relays to it, as processes.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use mainstay::agent::ProcessSpec;
use mainstay::agent_event::AgentEvent;
use mainstay::driver::acp::{Acp, parser};
use mainstay::driver::{Driver, Warm};
use mainstay::engine;
use mainstay::id::RunId;
use mainstay::process::Shims;
use mainstay::process::TurnPlace;
use mainstay::run::{Attempt, ExitReport, Outcome};
use serde_json::{Value, json};
use testkit::TIMEOUT;
pub use testkit::within;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// The agent that follows its prompts: `testkit/src/fake/acp/script.rs`.
pub const AGENT: [&str; 3] = [env!("CARGO_BIN_EXE_mainstay-torture"), "agent", "--scripted"];

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command.kill_on_drop(true).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A directory, and the bridge in it.
pub struct Scene {
    pub dir: tempfile::TempDir,
    can: String,
    access: Value,
    bridge: Option<Child>,
}

impl Scene {
    /// A bridge to an agent with these traits.
    pub async fn new(can: &str) -> Self {
        Self::with(can, json!({"read_files": false, "write_files": false, "terminals": false})).await
    }

    /// The same, with what the agent may do through the bridge.
    pub async fn with(can: &str, access: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Longer than the address of a Unix socket may be.
        std::fs::create_dir_all(dir.path().join("d".repeat(120))).unwrap();
        std::fs::create_dir(dir.path().join("work")).unwrap();
        let mut scene = Self { dir, can: can.to_owned(), access, bridge: None };
        scene.start().await;
        scene
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("d".repeat(120)).join("bridge")
    }

    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// Starts the bridge, and waits until it listens.
    pub async fn start(&mut self) {
        let mut bridge = program()
            .arg("bridge")
            .args(AGENT)
            .current_dir(self.work())
            .env("STUB_CAN", &self.can)
            .env("STUB_STORE", self.dir.path().join("store"))
            .env("STUB_LOG", self.dir.path().join("log"))
            .env("MAINSTAY_RUN", RunId::generate().to_string())
            .env("MAINSTAY_ATTEMPT", "1")
            .spawn()
            .unwrap();
        let setup = json!({"socket": self.socket(), "client": self.access, "max_line_bytes": 2_000_000});
        let mut stdin = bridge.stdin.take().unwrap();
        stdin.write_all(format!("{setup}\n").as_bytes()).await.unwrap();
        // The socket file exists a moment before the bridge listens.
        let (backend, socket) = (self.backend(), self.socket());
        within(async {
            while backend.probe(socket.to_str().unwrap()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        self.bridge = Some(bridge);
    }

    /// Sends a signal to the bridge, and waits until it has ended.
    pub async fn end(&mut self, signal: &str) {
        let bridge = self.bridge.as_ref().unwrap();
        let pid = bridge.id().unwrap().to_string();
        assert!(Command::new("kill").arg(signal).arg(pid).status().await.unwrap().success());
        self.ended().await;
    }

    /// Waits until the bridge has ended: its exit code, and its stderr.
    pub async fn ended(&mut self) -> (Option<i32>, String) {
        let mut bridge = self.bridge.take().unwrap();
        let status = within(bridge.wait()).await.unwrap();
        let mut stderr = String::new();
        within(bridge.stderr.take().unwrap().read_to_string(&mut stderr)).await.unwrap();
        std::fs::remove_file(self.socket()).unwrap();
        (status.code(), stderr)
    }

    /// The requests that the agent got with this method.
    pub fn sent(&self, method: &str) -> Vec<Value> {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap();
        let messages = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        messages.filter(|message| message["method"] == method).map(|message| message["params"].clone()).collect()
    }

    /// Waits until the agent gets a request with this method.
    pub async fn is_sent(&self, method: &str) {
        within(async {
            while self.sent(method).is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// The relay of a turn, whose parameters differ from the defaults by `changes`.
    pub async fn relay(&self, message: &str, changes: Value) -> Relay {
        let mut turn = json!({
            "session": "ours", "run": "run", "attempt": 1, "slot": "slot", "dir": self.work(), "agent_session": null,
            "message": message, "attachments": [], "options": {}, "oneshot": false, "endpoint": self.socket(),
        });
        turn.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let mut child = program().arg("relay").arg("acp").spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(format!("{turn}\n").as_bytes()).await.unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Relay { child, stdin, lines, said: Vec::new() }
    }

    /// The engine's handle of the agent.
    fn backend(&self) -> Acp {
        let process = ProcessSpec { command: Vec::new(), env: Default::default(), max_line_bytes: 1024 };
        let shims = Shims::new(env!("CARGO_BIN_EXE_mainstay").into(), self.dir.path().join("agents"));
        Acp::new(&process, false, TIMEOUT, &shims)
    }

    /// Ends the turn as an engine does whose relay was killed.
    pub async fn end_turn(&self) -> Result<(), String> {
        let place = TurnPlace {
            attempt: Attempt { run: RunId::generate(), number: 1 },
            session: "ours".parse().unwrap(),
            slot: "slot".to_owned(),
            workspace: "w".parse().unwrap(),
            dir: self.work(),
            agent_session: None,
            endpoint: Some(self.socket().to_str().unwrap().to_owned()),
        };
        within(self.backend().end_turn(&place)).await
    }

    /// A complete turn in a session of the agent.
    pub async fn turn(&self, message: &str, agent_session: Option<&str>) -> Turn {
        self.relay(message, json!({"agent_session": agent_session})).await.end().await
    }
}

/// A running relay.
pub struct Relay {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    said: Vec<Value>,
}

impl Relay {
    /// Reads up to a line that contains this, and returns it.
    pub async fn until(&mut self, what: &str) -> Value {
        while let Some(line) = within(self.lines.next_line()).await.unwrap() {
            self.said.push(message(&line));
            if line.contains(what) {
                return self.said.last().unwrap().clone();
            }
        }
        panic!("no {what} in {:#?}", self.said);
    }

    /// Waits until more output is there, without reading it.
    pub async fn says_more(&mut self) {
        assert!(!within(self.lines.get_mut().fill_buf()).await.unwrap().is_empty());
    }

    /// Answers a request for permission.
    pub async fn answer(&mut self, request: &Value, option: Option<&str>) {
        let answer = json!({"answer": {"request": request.to_string(), "option": option}});
        self.stdin.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
    }

    /// Cancels its turn, as a shim does.
    pub async fn cancel(&self) {
        let pid = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").arg("-TERM").arg(pid).status().await.unwrap().success());
    }

    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Reads to the end.
    pub async fn end(mut self) -> Turn {
        while let Some(line) = within(self.lines.next_line()).await.unwrap() {
            self.said.push(message(&line));
        }
        let code = within(self.child.wait()).await.unwrap().code();
        Turn { said: self.said, code }
    }
}

/// A line as JSON; if it is none, as a string.
fn message(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|_| line.into())
}

/// A turn that has ended.
#[derive(Debug)]
pub struct Turn {
    pub said: Vec<Value>,
    pub code: Option<i32>,
}

impl Turn {
    /// Mainstay's own line of this kind.
    pub fn own(&self, what: &str) -> &Value {
        self.said.iter().find(|line| line["mainstay"] == what).unwrap_or_else(|| panic!("no {what} in {self:#?}"))
    }

    /// The agent's session, and how the turn got it.
    pub fn session(&self) -> (String, String) {
        let session = self.own("session");
        let text = |key: &str| session[key].as_str().unwrap().to_owned();
        (text("id"), text("origin"))
    }

    /// The agent's text.
    pub fn text(&self) -> String {
        let updates = self.said.iter().map(|line| &line["params"]["update"]);
        let chunks = updates.filter(|update| update["sessionUpdate"] == "agent_message_chunk");
        chunks.map(|update| update["content"]["text"].as_str().unwrap()).collect()
    }

    /// The stop reason that the agent gave.
    pub fn stop_reason(&self) -> Option<&str> {
        self.said.iter().find_map(|line| line["result"]["stopReason"].as_str())
    }

    /// The lines that the parser ignores, and the outcome of a run with this output.
    pub fn outcome(&self) -> (Vec<String>, Outcome) {
        let (mut parser, mut turn, mut unread) = (parser(), engine::turn::Turn::default(), Vec::new());
        let mut class = None;
        for line in &self.said {
            let line = line.as_str().map_or_else(|| line.to_string(), str::to_owned);
            match parser(&line) {
                Some(events) => {
                    for event in events {
                        if let AgentEvent::Error(error) = &event {
                            class = class.or(error.class);
                        }
                        turn.hear(event);
                    }
                }
                None => unread.push(line),
            }
        }
        let malformed_lines = i64::try_from(unread.len()).unwrap();
        let exit = ExitReport { code: self.code, malformed_lines, ..ExitReport::default() };
        let outcome = engine::decide::decide(None, &turn, &exit, true);
        (unread, Outcome { class: outcome.class.or(class), ..outcome })
    }
}
