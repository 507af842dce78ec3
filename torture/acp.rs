//! An agent that speaks ACP: one process for many turns, of one session or of several, which go on at the same time.
//!
//! Always: one thread, so that it is dead when its locks are gone; which run a turn is of the client says in `_meta`. What
//! it says again because it reads a session back is in no record.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Instant;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use serde_json::{Value, json};

use super::agent::End;
use super::dialect::{Acp, update};
use super::live::{self, DAWDLES_FOR, Purpose, Turn};
use super::record::MARK;
use super::voice;

/// Serves until its stdin is closed. Answers with its exit status.
///
/// # Errors
/// When a turn does not say which run it is of, or its record cannot be written.
pub(super) fn serve(records: &Path) -> anyhow::Result<u8> {
    let mut agent =
        Agent { records: records.to_owned(), ears: Ears::default(), turns: Vec::new(), begun: 0, sessions: 0 };
    loop {
        while let Some(message) = agent.ears.heard.pop_front() {
            agent.take(&message)?;
        }
        if agent.ears.closed {
            if agent.turns.iter().any(|turn| turn.manners.dawdles) {
                sleep(DAWDLES_FOR);
            }
            return Ok(0);
        }
        agent.go_on()?;
        agent.ears.read(live::next_due(&agent.turns))?;
    }
}

/// The agent with its turns.
struct Agent {
    records: PathBuf,
    ears: Ears,
    turns: Vec<Turn>,
    begun: u32,
    sessions: u32,
}

impl Agent {
    fn take(&mut self, message: &Value) -> anyhow::Result<()> {
        let (id, params) = (&message["id"], &message["params"]);
        let session = params["sessionId"].as_str().unwrap_or_default();
        match message["method"].as_str() {
            Some("initialize") => {
                let capabilities = json!({"loadSession": true, "promptCapabilities": {}});
                answer(id, json!({"protocolVersion": 1, "agentCapabilities": capabilities, "authMethods": []}))?;
            }
            Some("session/new") => {
                self.sessions += 1;
                answer(id, json!({"sessionId": format!("{}-{}", std::process::id(), self.sessions)}))?;
            }
            Some("session/load") => {
                let old = json!({"content": {"type": "text", "text": format!("{MARK}read back ")}});
                print(&update(session, "agent_message_chunk", old))?;
                answer(id, json!({}))?;
            }
            Some("session/prompt") => self.begin(message)?,
            Some("session/cancel") => {
                // One that hangs and is deaf does not care.
                let is_deaf = |turn: &Turn| turn.manners.end == End::Hang && turn.manners.ignores_sigterm;
                let mut of_session =
                    self.turns.iter_mut().filter(|turn| turn.conversation == session && !is_deaf(turn));
                of_session.try_for_each(Turn::cancel)?;
            }
            Some(method) if !id.is_null() => {
                let error = json!({"code": -32601, "message": format!("no method {method}")});
                print(&json!({"jsonrpc": "2.0", "id": id, "error": error}))?;
            }
            Some(_) => {}
            None => {
                for turn in &mut self.turns {
                    turn.hear(message)?;
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, message: &Value) -> anyhow::Result<()> {
        let params = &message["params"];
        let seed = params["prompt"][0]["text"].as_str().context("a prompt is a seed")?.trim().parse()?;
        let conversation = params["sessionId"].as_str().context("a prompt is of a session")?.to_owned();
        let speech = Acp::new(conversation.clone(), message["id"].clone());
        let purpose = Purpose::told(&params["_meta"]["mainstay"], conversation, seed)?;
        self.turns.push(Turn::begin(&self.records, purpose, self.begun, Box::new(speech), voice::stdout())?);
        self.begun += 1;
        Ok(())
    }

    /// Those that ended are answered, and gone before that.
    fn go_on(&mut self) -> anyhow::Result<()> {
        for (turn, ending) in live::go_on(&mut self.turns)? {
            turn.over(ending).iter().try_for_each(print)?;
        }
        Ok(())
    }
}

fn answer(id: &Value, result: Value) -> io::Result<()> {
    print(&json!({"jsonrpc": "2.0", "id": id, "result": result}))
}

fn print(message: &Value) -> io::Result<()> {
    voice::stdout()(message).map(drop)
}

/// What is read from stdin, line by line.
#[derive(Default)]
struct Ears {
    bytes: Vec<u8>,
    heard: VecDeque<Value>,
    closed: bool,
}

impl Ears {
    /// Reads what is there, or comes until then.
    fn read(&mut self, until: Option<Instant>) -> anyhow::Result<()> {
        let stdin = io::stdin();
        let patience = until.map(|until| until.saturating_duration_since(Instant::now()));
        let patience = patience.map(Timespec::try_from).transpose()?;
        if poll(&mut [PollFd::new(&stdin, PollFlags::IN)], patience.as_ref())? == 0 {
            return Ok(());
        }
        let mut piece = [0; 64 * 1024];
        // Unbuffered: what is buffered is not seen by poll.
        let read = rustix::io::read(&stdin, &mut piece)?;
        self.closed = read == 0;
        self.bytes.extend_from_slice(&piece[..read]);
        while let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.bytes.drain(..=end).collect();
            self.heard.extend(serde_json::from_slice::<Value>(&line).ok());
        }
        Ok(())
    }
}
