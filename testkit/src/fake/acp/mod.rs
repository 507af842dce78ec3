//! An agent that speaks ACP over its stdin and stdout: one process, many sessions, with turns at the same time.
//!
//! Always: one thread, unless its output needs another. Requests outside of a turn are answered here, as the agent's
//! [`Traits`] say; [`Turns`] decide what a turn does.

pub mod script;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::time::sleep;

/// Where lines go.
pub type Output = Rc<dyn Fn(&str) -> io::Result<()>>;

/// The delay of the trait `load-late`.
const LATE: Duration = Duration::from_millis(500);

/// A prompt to the agent.
#[derive(Debug)]
pub struct Prompt {
    /// The id of the request; its response ends the turn.
    pub id: Value,
    pub session: String,
    /// The parameters of the request.
    pub params: Value,
}

/// What the agent does in its turns.
pub trait Turns {
    /// A turn begins in an open session. `past` has the messages before it.
    ///
    /// # Errors
    /// Why the agent fails as a whole.
    fn begin(&mut self, client: &Client, prompt: Prompt, past: &mut Vec<String>) -> anyhow::Result<()>;

    /// Cancels the turns of a session.
    ///
    /// # Errors
    /// Why the agent fails as a whole.
    fn cancel(&mut self, session: &str) -> anyhow::Result<()>;

    /// The client has sent a response.
    ///
    /// # Errors
    /// Why the agent fails as a whole.
    fn answered(&mut self, answer: &Value) -> anyhow::Result<()>;

    /// A session was loaded.
    fn reopened(&mut self, session: &str);

    /// Waits until something is due, and does it. May be dropped while it waits.
    fn go_on(&mut self, client: &Client) -> impl Future<Output = anyhow::Result<()>>;
}

/// The agent's properties, one word each.
#[derive(Debug, Default)]
pub struct Traits {
    /// Its capabilities (load resume resume-fails close modes config auth images), its defects (in-yolo login-first
    /// nonsense version-2 silent load-busy load-busy-once load-late), and the form of its lines (noise pretty framed).
    pub words: Vec<String>,
    /// The file with its sessions. Without one it accepts any session that it is told of.
    pub store: Option<PathBuf>,
    /// Receives every line that is sent to the agent.
    pub log: Option<PathBuf>,
    /// What it repeats for each turn when it loads a session.
    pub read_back: String,
}

impl Traits {
    fn is(&self, word: &str) -> bool {
        self.words.iter().any(|it| it == word)
    }
}

/// The connection to the client.
#[derive(Clone)]
pub struct Client {
    output: Output,
}

impl Client {
    /// Writes a line as it is.
    ///
    /// # Errors
    /// If the client has gone.
    pub fn write(&self, line: &str) -> io::Result<()> {
        (self.output)(&format!("{line}\n"))
    }

    /// Writes a message.
    ///
    /// # Errors
    /// If the client has gone.
    pub fn send(&self, message: &Value) -> io::Result<()> {
        self.write(&message.to_string())
    }

    /// Responds to a request.
    ///
    /// # Errors
    /// If the client has gone.
    pub fn answer(&self, id: &Value, result: Value) -> io::Result<()> {
        self.send(&json!({"jsonrpc": "2.0", "id": id, "result": result}))
    }

    /// Responds to a request with an error.
    ///
    /// # Errors
    /// If the client has gone.
    pub fn refuse(&self, id: &Value, error: Value) -> io::Result<()> {
        self.send(&json!({"jsonrpc": "2.0", "id": id, "error": error}))
    }

    /// Sends an update of a session.
    ///
    /// # Errors
    /// If the client has gone.
    pub fn update(&self, session: &str, kind: &str, fields: Value) -> io::Result<()> {
        self.send(&update(session, kind, fields))
    }

    /// Sends a piece of a message.
    ///
    /// # Errors
    /// If the client has gone.
    pub fn say(&self, session: &str, text: &str) -> io::Result<()> {
        self.update(session, "agent_message_chunk", json!({"content": {"type": "text", "text": text}}))
    }
}

/// The notification of an update of a session.
pub fn update(session: &str, kind: &str, mut update: Value) -> Value {
    update["sessionUpdate"] = kind.into();
    json!({"jsonrpc": "2.0", "method": "session/update", "params": {"sessionId": session, "update": update}})
}

/// Writes to stdout, and blocks while the reader is slow.
///
/// # Errors
/// If the reader has gone.
pub fn to_stdout(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Runs as an agent until its stdin is closed. Must run on one thread.
///
/// # Errors
/// Why its turns fail, or that its stdin is no pipe.
pub async fn serve(traits: Traits, turns: &mut impl Turns, output: Output) -> anyhow::Result<()> {
    let stdin = pipe::Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)?;
    let mut lines = BufReader::new(stdin).lines();
    let log = traits.log.as_deref().map(appended).transpose()?;
    let sessions = traits.store.as_deref().map(read_sessions).transpose()?.unwrap_or_default();
    let mut agent = Agent { traits, client: Client { output }, log, sessions, busy: Vec::new() };
    loop {
        tokio::select! {
            line = lines.next_line() => match line? {
                Some(line) => agent.take(&line, turns).await?,
                None => return Ok(()),
            },
            went_on = turns.go_on(&agent.client) => went_on?,
        }
    }
}

fn appended(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn read_sessions(path: &Path) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    match std::fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error.into()),
    }
}

struct Agent {
    traits: Traits,
    client: Client,
    log: Option<File>,
    /// The messages of each session.
    sessions: BTreeMap<String, Vec<String>>,
    /// Sessions that refused a load once.
    busy: Vec<String>,
}

impl Agent {
    async fn take(&mut self, line: &str, turns: &mut impl Turns) -> anyhow::Result<()> {
        if let Some(log) = &mut self.log {
            writeln!(log, "{line}")?;
        }
        // A client that is killed may leave an incomplete line.
        let Ok(message) = serde_json::from_str::<Value>(line) else { return Ok(()) };
        let session = message["params"]["sessionId"].as_str().unwrap_or_default();
        match message["method"].as_str() {
            Some("session/cancel") => turns.cancel(session),
            Some("session/prompt") => {
                let (id, params) = (message["id"].clone(), message["params"].clone());
                let past = self.sessions.entry(session.to_owned()).or_default();
                let prompt = Prompt { id, session: session.to_owned(), params };
                turns.begin(&self.client, prompt, past)?;
                self.keep()
            }
            Some(method) if !message["id"].is_null() => self.answer(&message["id"], method, session, turns).await,
            Some(_) => Ok(()),
            None => turns.answered(&message),
        }
    }

    fn keep(&self) -> anyhow::Result<()> {
        let Some(store) = &self.traits.store else { return Ok(()) };
        Ok(std::fs::write(store, serde_json::to_string(&self.sessions)?)?)
    }

    async fn answer(&mut self, id: &Value, method: &str, session: &str, turns: &mut impl Turns) -> anyhow::Result<()> {
        let Self { traits, client, .. } = self;
        let no_login = |data: Option<&str>| {
            let mut error = json!({"code": -32000, "message": "Authentication required"});
            if let Some(data) = data {
                error["data"] = data.into();
            }
            error
        };
        match method {
            "initialize" => self.initialize(id)?,
            "session/new" if traits.is("auth") => client.refuse(id, no_login(None))?,
            "session/new" => {
                let session = format!("s{}-{}", self.sessions.len(), std::process::id());
                self.sessions.insert(session.clone(), Vec::new());
                client.update(&session, "session_info_update", json!({"title": "An early title"}))?;
                self.open(id, Some(&session))?;
            }
            "session/load" | "session/resume" => {
                let is_known = traits.store.is_none() || self.sessions.contains_key(session);
                if !is_known || (method == "session/resume" && traits.is("resume-fails")) {
                    client.refuse(id, json!({"code": -32002, "message": "no such session"}))?;
                    return Ok(());
                }
                let is_first = !self.busy.iter().any(|busy| busy == session);
                if traits.is("load-busy") || (traits.is("load-busy-once") && is_first) {
                    self.busy.push(session.to_owned());
                    client.refuse(id, json!({"code": -32603, "message": "Internal error: disk busy"}))?;
                    return Ok(());
                }
                turns.reopened(session);
                if traits.is("load-late") {
                    self.open(id, None)?;
                    sleep(LATE).await;
                    return Ok(self.tell_late(session)?);
                }
                if method == "session/load" {
                    let past = self.sessions.get(session).map(Vec::as_slice).unwrap_or_default();
                    // Without a store, any session counts as having had one turn.
                    let something = [String::new()];
                    for text in if traits.store.is_none() { &something[..] } else { past } {
                        let content = json!({"content": {"type": "text", "text": text}});
                        client.update(session, "user_message_chunk", content)?;
                        client.say(session, &traits.read_back)?;
                    }
                }
                self.open(id, None)?;
            }
            "session/close" | "session/set_mode" | "session/set_config_option" | "authenticate" => {
                client.answer(id, json!({}))?;
            }
            _ => client.refuse(id, json!({"code": -32601, "message": format!("no method {method}")}))?,
        }
        Ok(())
    }

    fn initialize(&self, id: &Value) -> anyhow::Result<()> {
        let Self { traits, client, .. } = self;
        if traits.is("login-first") {
            let error = json!({"code": -32000, "message": "Authentication required", "data": "run `stub login`"});
            return Ok(client.refuse(id, error)?);
        } else if traits.is("nonsense") {
            return Ok(client.answer(id, "hello".into())?);
        } else if traits.is("version-2") {
            return Ok(client.answer(id, json!({"protocolVersion": 2}))?);
        } else if traits.is("silent") {
            return Ok(client.write("I only talk to people.")?);
        }
        let abilities = ["resume", "close"].into_iter().filter(|word| traits.is(word));
        let abilities: serde_json::Map<_, _> = abilities.map(|word| (word.to_owned(), json!({}))).collect();
        let capabilities = json!({"loadSession": traits.is("load"), "promptCapabilities": {"image": traits.is("images")},
            "sessionCapabilities": abilities});
        let result = json!({"protocolVersion": 1, "agentCapabilities": capabilities, "authMethods": []});
        let answer = json!({"jsonrpc": "2.0", "id": id, "result": result});
        if traits.is("noise") {
            client.write("Welcome to the stub\n")?;
            client.write(&format!("\u{1b}]0;stub\u{7}\u{1b}[?25l{answer}\u{1b}[0m"))?;
        } else if traits.is("pretty") {
            client.write(&serde_json::to_string_pretty(&answer)?)?;
        } else if traits.is("framed") {
            let answer = answer.to_string();
            (client.output)(&format!("Content-Length: {}\r\n\r\n{answer}", answer.len()))?;
        } else {
            client.send(&answer)?;
        }
        Ok(())
    }

    /// Responds that a session is open, with its options.
    fn open(&self, id: &Value, session: Option<&str>) -> io::Result<()> {
        let mut result = json!({});
        if let Some(session) = session {
            result["sessionId"] = session.into();
        }
        if self.traits.is("modes") {
            let mode = if self.traits.is("in-yolo") { "yolo" } else { "ask" };
            result["modes"] = json!({"currentModeId": mode,
                "availableModes": [{"id": "ask", "name": "Ask"}, {"id": "plan", "name": "Plan"}]});
        }
        if self.traits.is("config") {
            // The first option's category says more than its id.
            result["configOptions"] = json!([
                {"id": "style", "name": "Style", "category": "mode", "type": "select", "currentValue": "careful",
                 "options": [{"value": "careful", "name": "Careful"}, {"value": "quick", "name": "Quick"},
                             {"value": "yolo", "name": "All"}]},
                {"id": "allow-all", "name": "All", "category": "misc", "type": "boolean", "currentValue": false},
            ]);
        }
        self.client.answer(id, result)
    }

    /// Sends the part of a load that comes after its response.
    fn tell_late(&self, session: &str) -> io::Result<()> {
        let text = |text: &str| json!({"type": "text", "text": text});
        self.client.update(session, "user_message_chunk", json!({"content": text("old")}))?;
        let late = json!({"content": text("told late"), "messageId": "m1"});
        self.client.update(session, "agent_message_chunk", late)?;
        let call = json!({"toolCallId": "old", "title": "old", "status": "completed"});
        self.client.update(session, "tool_call", call)
    }
}

/// The text of a prompt.
///
/// # Errors
/// If there is none.
pub fn text_of(params: &Value) -> anyhow::Result<&str> {
    params["prompt"][0]["text"].as_str().context("a prompt begins with a text")
}
