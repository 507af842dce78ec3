//! An agent that speaks ACP: one process for many turns, of one session or of several, which go on at the same time.
//!
//! Always: one thread, so that it is dead when its locks are gone; what it says in a turn is in the record of that turn's run, which the client names in `_meta`. What it says again
//! because it reads a session back is in no record.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context;
use procfs::process::Process;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, getpid, kill_process};
use rustix::time::Timespec;
use serde_json::{Value, json};

use super::agent::{End, Manners, Next, Voice, claim, leave_behind};
use super::dialect::{Speech, update};
use super::record::{Identity, Line, MARK, Writer};

/// One that dawdles ends a turn so late.
const DAWDLES_FOR: Duration = Duration::from_millis(400);
/// Words of one turn; those of a process are numbered through.
const WORDS_OF_TURN: u32 = 1000;

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
        let due = agent.turns.iter().filter_map(|turn| turn.due).min();
        agent.ears.read(due.map(|due| due.saturating_duration_since(Instant::now())))?;
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
            Some("session/prompt") => {
                self.turns.push(Turn::begin(&self.records, message, self.begun * WORDS_OF_TURN)?);
                self.begun += 1;
            }
            Some("session/cancel") => {
                let of_session = self.turns.iter_mut().filter(|turn| turn.session == session);
                of_session.for_each(Turn::cancel);
            }
            Some(method) if !id.is_null() => fail(id, -32601, &format!("no method {method}"))?,
            Some(_) => {}
            None => {
                for turn in &mut self.turns {
                    turn.hear(message)?;
                }
            }
        }
        Ok(())
    }

    /// Every turn that is due says one thing. Those that ended are answered, and gone before that: with the answer the next
    /// turn may come.
    fn go_on(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let mut ended = Vec::new();
        for turn in self.turns.iter_mut().filter(|turn| turn.due.is_some_and(|due| due <= now)) {
            if let Some(reason) = turn.step()? {
                ended.push((turn.request.clone(), reason));
            }
        }
        self.turns.retain(|turn| !ended.iter().any(|(request, _)| *request == turn.request));
        for (request, reason) in ended {
            match reason {
                Reason::Stop(reason) => answer(&request, json!({"stopReason": reason}))?,
                Reason::Failed => fail(&request, -32603, "it failed")?,
            }
        }
        Ok(())
    }
}

fn fail(id: &Value, code: i32, message: &str) -> io::Result<()> {
    print(&json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}}))
}

fn answer(id: &Value, result: Value) -> io::Result<()> {
    print(&json!({"jsonrpc": "2.0", "id": id, "result": result}))
}

fn print(message: &Value) -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(format!("{message}\n").as_bytes())?;
    stdout.flush()
}

/// Why a turn is over.
enum Reason {
    Stop(&'static str),
    Failed,
}

/// A prompt that was not answered so far.
struct Turn {
    request: Value,
    session: String,
    manners: Manners,
    voice: Voice,
    _places: [File; 3],
    /// When it goes on; none while it waits to be answered or cancelled.
    due: Option<Instant>,
    is_cancelled: bool,
}

impl Turn {
    fn begin(records: &Path, message: &Value, words: u32) -> anyhow::Result<Self> {
        let params = &message["params"];
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
        let mut rng = fastrand::Rng::with_seed(seed);
        let manners = Manners::choose(&mut rng);
        if let Some(stray) = manners.stray {
            leave_behind(stray)?;
        }
        let session = text(&params["sessionId"])?;
        let mut record = Writer::create(records, &identity)?;
        let places = [
            claim(records, &mut record, "session", &identity.session)?,
            claim(records, &mut record, "slot", &identity.slot)?,
            claim(records, &mut record, "conversation", &session)?,
        ];
        let voice = Voice::new(rng, record, words, Speech::of_acp(session.clone()));
        let (request, due) = (message["id"].clone(), Some(Instant::now()));
        Ok(Self { request, session, manners, voice, _places: places, due, is_cancelled: false })
    }

    fn hear(&mut self, message: &Value) -> io::Result<()> {
        if self.voice.hear(message)? {
            self.due = Some(Instant::now());
        }
        Ok(())
    }

    /// One that hangs and is deaf does not care.
    fn cancel(&mut self) {
        self.is_cancelled = self.manners.end != End::Hang || !self.manners.ignores_sigterm;
        if self.is_cancelled {
            self.due = Some(Instant::now() + if self.manners.dawdles { DAWDLES_FOR } else { Duration::ZERO });
        }
    }

    /// Says one thing. Answers when it is over.
    fn step(&mut self) -> anyhow::Result<Option<Reason>> {
        if self.is_cancelled {
            return Ok(Some(Reason::Stop("cancelled")));
        }
        self.due = match self.voice.step(&self.manners)? {
            Next::Pause(pause) => Some(Instant::now() + pause),
            Next::Answer => None,
            Next::End => return self.end(),
        };
        Ok(None)
    }

    fn end(&mut self) -> anyhow::Result<Option<Reason>> {
        match self.manners.end {
            End::Hang => {
                self.due = None;
                return Ok(None);
            }
            // It takes the other turns of the process with it.
            End::Crash if self.voice.is_in_the_mood() => drop(kill_process(getpid(), Signal::KILL)),
            End::Code(code) => {
                self.voice.record.write(&Line::Ended(code))?;
                return Ok(Some(Reason::Failed));
            }
            End::Well | End::Crash => {}
        }
        self.voice.record.write(&Line::Ended(0))?;
        Ok(Some(Reason::Stop("end_turn")))
    }
}

/// What is read from stdin, line by line.
#[derive(Default)]
struct Ears {
    bytes: Vec<u8>,
    heard: VecDeque<Value>,
    closed: bool,
}

impl Ears {
    /// Reads what is there, or comes within this time.
    fn read(&mut self, patience: Option<Duration>) -> anyhow::Result<()> {
        let stdin = io::stdin();
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
