//! The relay of a turn against a fake server that misbehaves as real ones do.
//!
//! Always: tests wait for requests to the server, for the relay's output, or for its end.

mod cancelling;
mod connection;
mod hostile;
mod sessions;

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use mainstay::agent::ProcessSpec;
use mainstay::agent_event::AgentEvent;
use mainstay::driver::opencode;
use mainstay::driver::relay::RelayedTurn;
use mainstay::failure::AgentError;
use mainstay::message::Attachment;
use mainstay::options::SessionOptions;
use mainstay::process::{Shims, decode};
use serde_json::{Value, json};
use testkit::fake::opencode::{Follower, SESSION};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// A relay that was given a turn.
struct Relay {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    said: Vec<u8>,
}

fn turn(endpoint: &str, agent_session: Option<&str>, options: SessionOptions) -> RelayedTurn {
    let file = Attachment {
        media_type: "text/plain".to_owned(),
        filename: Some("a.txt".to_owned()),
        url: "data:text/plain,a".to_owned(),
    };
    RelayedTurn {
        session: "s".to_owned(),
        run: "r".to_owned(),
        attempt: 1,
        slot: "w".to_owned(),
        dir: "/a dir".into(),
        agent_session: agent_session.map(str::to_owned),
        message: "hello".to_owned(),
        attachments: vec![file],
        options,
        rules: Default::default(),
        oneshot: false,
        endpoint: endpoint.to_owned(),
    }
}

fn options() -> SessionOptions {
    SessionOptions::default()
}

fn backend() -> Arc<opencode::Opencode> {
    let process = ProcessSpec { command: vec!["opencode".to_owned()], env: Default::default(), max_line_bytes: 1024 };
    let shims = Shims::new(env!("CARGO_BIN_EXE_mainstay").into(), "/nonexistent".into());
    Arc::new(opencode::Opencode::new(&process, Duration::ZERO, &shims))
}

impl Relay {
    async fn start(turn: RelayedTurn) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        command.args(["relay", "opencode"]).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(turn.to_line().as_bytes()).await.unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, stdin, lines, said: Vec::new() }
    }

    /// Waits for a line that contains these words.
    async fn says(&mut self, words: &str) {
        loop {
            let line = self.lines.next_line().await.unwrap().unwrap_or_else(|| panic!("it ended without {words}"));
            self.said.extend(format!("{line}\n").into_bytes());
            if line.contains(words) {
                return;
            }
        }
    }

    /// Waits until more output is there, without reading it.
    async fn says_more(&mut self) {
        assert!(!self.lines.get_mut().fill_buf().await.unwrap().is_empty());
    }

    fn terminate(&self) {
        let pid = rustix::process::Pid::from_raw(self.child.id().unwrap().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Its output up to its end, which must be a success.
    async fn end(self) -> Vec<AgentEvent> {
        self.ends().await.0
    }

    /// The same, and the lines that the parser ignores.
    async fn ends(mut self) -> (Vec<AgentEvent>, Vec<String>) {
        let mut rest = Vec::new();
        let mut reader = self.lines.into_inner();
        reader.read_to_end(&mut rest).await.unwrap();
        self.said.extend(rest);
        assert_eq!(self.child.wait().await.unwrap().code(), Some(0));
        let records = decode([&self.said[..]], 32 * 1024 * 1024, opencode::parser());
        let (mut parser, said) = (opencode::parser(), String::from_utf8(self.said).unwrap());
        let unread = said.lines().filter(|line| parser(line).is_none()).map(str::to_owned).collect();
        (records.into_iter().flat_map(|record| record.events).collect(), unread)
    }
}

fn message(id: &str, role: &str, completed: bool) -> Value {
    let time = if completed { json!({"created": 1, "completed": 2}) } else { json!({"created": 1}) };
    json!({"sessionID": SESSION, "id": id, "role": role, "time": time})
}

fn text_part(text: &str, whole: bool) -> Value {
    let time = if whole { json!({"start": 1, "end": 2}) } else { json!({"start": 1}) };
    json!({"id": "prt_1", "messageID": "msg_2", "sessionID": SESSION, "type": "text", "text": text, "time": time})
}

fn delta(text: &str) -> Value {
    json!({"messageID": "msg_2", "partID": "prt_1", "field": "text", "delta": text})
}

/// The server accepts the prompt, and the agent begins to write.
async fn begins(follower: &Follower) {
    follower.of_session("message.updated", json!({"info": message("msg_1", "user", false)})).await;
    follower.of_session("session.status", json!({"status": {"type": "busy"}})).await;
    follower.of_session("message.updated", json!({"info": message("msg_2", "assistant", false)})).await;
    follower.of_session("message.part.updated", json!({"part": text_part("", false)})).await;
    follower.of_session("message.part.delta", delta("one ")).await;
}

async fn ends(follower: &Follower, text: &str) {
    follower.of_session("message.part.updated", json!({"part": text_part(text, true)})).await;
    follower.of_session("message.updated", json!({"info": message("msg_2", "assistant", true)})).await;
    follower.of_session("session.status", json!({"status": {"type": "idle"}})).await;
}

fn text_of(events: &[AgentEvent]) -> String {
    let texts = events.iter().filter_map(|event| match event {
        AgentEvent::Text(text) => Some(text.as_str()),
        _ => None,
    });
    texts.collect()
}

fn error_of(events: &[AgentEvent]) -> Option<&AgentError> {
    events.iter().find_map(|event| match event {
        AgentEvent::Error(error) => Some(error),
        _ => None,
    })
}

fn session_of(events: &[AgentEvent]) -> (String, &'static str) {
    let session = events.iter().find_map(|event| match event {
        AgentEvent::Session { id, origin } => Some((id.clone(), origin.as_str())),
        _ => None,
    });
    session.expect("no session")
}
