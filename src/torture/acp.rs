//! An agent that speaks ACP: one process for many turns, of one session or of several, one turn at a time.
//!
//! Always: what it says in a turn is in the record of that turn's run, which the client names in `_meta`. What it says again
//! because it reads a session back is in no record.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context;
use procfs::process::Process;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, getpid, kill_process};
use rustix::time::Timespec;
use serde_json::{Value, json};

use super::agent::{End, Manners, Voice, claim, leave_behind};
use super::dialect::{Speech, update};
use super::record::{Identity, Line, MARK, Writer};

/// Between two looks whether a turn that hangs was cancelled.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Serves until its stdin is closed. Answers with its exit status.
///
/// # Errors
/// When a turn does not say which run it is of, or its record cannot be written.
pub(super) fn serve(records: &Path) -> anyhow::Result<u8> {
    let mut ears = Ears::default();
    let (mut words, mut sessions) = (0, 0);
    while let Some(request) = ears.next()? {
        let (id, params) = (&request["id"], &request["params"]);
        match request["method"].as_str().unwrap_or_default() {
            "initialize" => {
                let capabilities = json!({"loadSession": true, "promptCapabilities": {}});
                answer(id, json!({"protocolVersion": 1, "agentCapabilities": capabilities, "authMethods": []}))?;
            }
            "session/new" => {
                sessions += 1;
                answer(id, json!({"sessionId": format!("{}-{sessions}", std::process::id())}))?;
            }
            "session/load" => {
                let session = params["sessionId"].as_str().unwrap_or_default();
                let old = json!({"content": {"type": "text", "text": format!("{MARK}read back ")}});
                print(&update(session, "agent_message_chunk", old))?;
                answer(id, json!({}))?;
            }
            "session/prompt" => {
                let turn = Turn::of(params)?;
                match turn.take(records, &mut ears, &mut words)? {
                    Some(reason) => answer(id, json!({"stopReason": reason}))?,
                    None => return Ok(1),
                }
            }
            _ if id.is_null() => {}
            method => {
                let error = json!({"code": -32601, "message": format!("no method {method}")});
                print(&json!({"jsonrpc": "2.0", "id": id, "error": error}))?;
            }
        }
    }
    Ok(0)
}

fn answer(id: &Value, result: Value) -> io::Result<()> {
    print(&json!({"jsonrpc": "2.0", "id": id, "result": result}))
}

fn print(message: &Value) -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(format!("{message}\n").as_bytes())?;
    stdout.flush()
}

/// A prompt.
struct Turn {
    session: String,
    seed: u64,
    identity: Identity,
}

impl Turn {
    fn of(params: &Value) -> anyhow::Result<Self> {
        let meta = &params["_meta"]["mainstay"];
        let text = |value: &Value| value.as_str().map(str::to_owned).context("a prompt says which run it is of");
        let identity = Identity {
            run: text(&meta["run"])?,
            attempt: meta["attempt"].as_i64().context("a prompt says which try it is")?,
            session: text(&meta["session"])?,
            slot: text(&meta["slot"])?,
            pid: std::process::id(),
            started_at_ticks: Process::myself()?.stat()?.starttime,
        };
        let seed = params["prompt"][0]["text"].as_str().context("a prompt is a seed")?.trim().parse()?;
        Ok(Self { session: text(&params["sessionId"])?, seed, identity })
    }

    /// Takes it to its end; answers with the reason to stop, or with none when the process is to end with it.
    fn take(&self, records: &Path, ears: &mut Ears, words: &mut u32) -> anyhow::Result<Option<&'static str>> {
        let mut rng = fastrand::Rng::with_seed(self.seed);
        let manners = Manners::choose(&mut rng);
        if let Some(stray) = manners.stray {
            leave_behind(stray)?;
        }
        let mut record = Writer::create(records, &self.identity)?;
        let _places = [
            claim(records, &mut record, "session", &self.identity.session)?,
            claim(records, &mut record, "slot", &self.identity.slot)?,
        ];
        let speech = Speech::of_acp(self.session.clone());
        let mut voice =
            Voice { rng, record, pid: self.identity.pid, words: *words, speech, stdout: Some(io::stdout()) };
        voice.talk(&manners, || ears.is_cancelled(&self.session))?;
        *words = voice.words;
        while manners.end == End::Hang && !ears.is_cancelled(&self.session) {
            sleep(LOOK_AGAIN);
        }
        if ears.is_cancelled(&self.session) {
            ears.forget_cancel();
            return Ok(Some("cancelled"));
        }
        match manners.end {
            End::Well | End::Hang => {
                voice.record.write(&Line::Ended(0))?;
                return Ok(Some("end_turn"));
            }
            End::Code(code) => voice.record.write(&Line::Ended(code))?,
            End::Crash => {
                // It fails for nobody: we are there.
                let _ = kill_process(getpid(), Signal::KILL);
            }
        }
        Ok(None)
    }
}

/// What is read from stdin, line by line, also in the midst of a turn.
#[derive(Default)]
struct Ears {
    bytes: Vec<u8>,
    heard: VecDeque<Value>,
    closed: bool,
    cancelled: Option<String>,
}

impl Ears {
    /// The next message; none once stdin is closed.
    fn next(&mut self) -> io::Result<Option<Value>> {
        loop {
            match self.heard.pop_front() {
                Some(message) if message["method"] == "session/cancel" => {}
                Some(message) => return Ok(Some(message)),
                None if self.closed => return Ok(None),
                None => self.read(None)?,
            }
        }
    }

    /// Whether the turn of a session was cancelled, as far as it was said by now.
    fn is_cancelled(&mut self, session: &str) -> bool {
        // What cannot be read now is read when the turn is over.
        let _ = self.read(Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        let is_cancel = |message: &Value| {
            message["method"] == "session/cancel" && message["params"]["sessionId"].as_str() == Some(session)
        };
        if self.heard.iter().any(is_cancel) {
            self.heard.retain(|message| !is_cancel(message));
            self.cancelled = Some(session.to_owned());
        }
        self.closed || self.cancelled.as_deref() == Some(session)
    }

    fn forget_cancel(&mut self) {
        self.cancelled = None;
    }

    fn read(&mut self, patience: Option<&Timespec>) -> io::Result<()> {
        let stdin = io::stdin();
        if poll(&mut [PollFd::new(&stdin, PollFlags::IN)], patience)? == 0 {
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
