//! The relay of a turn: prompts a session of a running server, and writes the events of the turn to its stdout as they
//! arrive, one JSON object a line, with its own lines ([`Own`]) among them.
//!
//! Always: events are followed before the prompt is sent. If the connection breaks and the server lives, the current
//! state is fetched and written as the events that were missed. The last line says that the turn is over.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::signal::unix::Signal;
use tokio::time::{Instant, sleep, sleep_until};

use super::own::{Origin, Own};
use super::prompt;
use super::server::{Events, Failure, Server};
use super::trouble::{ANSWERS_WITHIN, Trouble};
use super::watch::{Watch, text};
use crate::driver::json;
use crate::driver::relay::RelayedTurn;
use crate::driver::relay::pipes::{Input, Output};
use crate::failure::ErrorClass;
use crate::process::lines::unreadable;

/// Limit for requests that need no preparation.
const PROMPTLY: Duration = Duration::from_secs(10);
/// Pause between attempts to reach a server that exists but does not answer, or to see that it is idle.
const TRY_AGAIN: Duration = Duration::from_millis(200);
/// How long an idle server may take to report how its message ended.
const SETTLES_WITHIN: Duration = Duration::from_secs(3);
/// How long an aborted turn may take to end before it is left: somewhat less than the time until the relay is killed.
const STOPS_WITHIN: Duration = Duration::from_secs(4);
/// How often an answer is sent if the connection breaks: the server waits for it without limit.
const REPLIES: u32 = 5;
/// More messages than a turn has; otherwise the oldest are not repeated after a broken connection.
const MESSAGES_FETCHED: u32 = 200;

/// Runs as the relay of one turn.
///
/// # Errors
/// No turn arrives, or the output is not read.
pub(in crate::driver) async fn run(mut input: Input, mut output: Output, mut stop: Signal) -> io::Result<ExitCode> {
    let turn: RelayedTurn = input.turn().await?;
    let invalid = |problem| io::Error::new(io::ErrorKind::InvalidInput, problem);
    let server = Server::at(&turn.endpoint).map_err(invalid)?.in_directory(&turn.dir.to_string_lossy());

    let begun = tokio::select! {
        biased;
        _ = stop.recv() => None,
        begun = begin(&server, &turn, &mut output) => Some(begun),
    };
    let mut code = ExitCode::SUCCESS;
    let (cancelled, ended) = match begun {
        None => (true, Ok(())),
        Some(Err(trouble)) => (false, Err(trouble)),
        Some(Ok(begun)) => {
            let mut course = Course::new(&server, input, &mut output, stop, begun);
            let ended = course.run().await;
            course.clean_up(turn.oneshot).await;
            if course.is_left {
                // The engine has to make sure that the turn does not continue.
                code = ExitCode::FAILURE;
            }
            (course.cancelled, ended)
        }
    };
    if let Err(Trouble { class, message }) = ended {
        output.say(&Own::Error { class, message }.to_line());
    }
    output.say(&Own::End { cancelled }.to_line());
    output.write_all().await?;
    Ok(code)
}

/// A turn that is ready to be prompted.
struct Begun {
    session: String,
    prompt: Value,
    events: Events,
    watch: Watch,
}

async fn begin(server: &Server, turn: &RelayedTurn, output: &mut Output) -> Result<Begun, Trouble> {
    let (session, origin) = session(server, turn.agent_session.as_deref()).await?;
    output.say(&Own::Session { id: session.clone(), origin }.to_line());
    let mut before = None;
    if origin == Origin::Resumed {
        end_earlier_turn(server, &session).await?;
        before = last_message(server, &session).await?;
    }
    let (prompt, advice) = prompt::of(server, turn, origin, output).await?;
    for label in advice {
        output.say(&Own::Status { label }.to_line());
    }
    let events = server.events(ANSWERS_WITHIN).await?;
    let watch = Watch::new(&session, before);
    // The engine needs the session's id to end the turn if this relay is killed.
    output.write_all().await.map_err(|error| Trouble::new(format!("nobody reads what the turn says: {error}")))?;
    Ok(Begun { session, prompt, events, watch })
}

/// Makes sure that a turn whose relay was killed does not continue.
pub(super) async fn end_turn(server: &Server, session: Option<&str>) -> Result<(), Trouble> {
    // The session's id is reported before the prompt is sent, so without an id there was no prompt.
    let Some(session) = session.filter(is_session) else { return Ok(()) };
    // Even if the session is not busy: the last prompt may be about to begin.
    server.post(&format!("/session/{session}/abort"), None, PROMPTLY).await?;
    sleep(TRY_AGAIN).await;
    end_earlier_turn(server, session).await
}

/// Whether an id looks like one of the server's. Any other text could change the path that it becomes part of.
fn is_session(id: &&str) -> bool {
    id.starts_with("ses") && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// The session of the conversation: the known one, if it still exists on the server, otherwise a new one.
async fn session(server: &Server, known: Option<&str>) -> Result<(String, Origin), Trouble> {
    if let Some(id) = known.filter(is_session) {
        match server.get(&format!("/session/{id}"), ANSWERS_WITHIN).await {
            Ok(_) => return Ok((id.to_owned(), Origin::Resumed)),
            Err(Failure::Refused { status: 404, .. }) => {}
            Err(failure) => return Err(failure.into()),
        }
    }
    let made = server.post("/session", Some(&json!({})), ANSWERS_WITHIN).await?;
    let id = text(&made, "/id").filter(is_session);
    let id = id.ok_or_else(|| Trouble {
        class: Some(ErrorClass::Protocol),
        ..Trouble::new("opencode: a new session has no id")
    })?;
    Ok((id.to_owned(), Origin::New))
}

/// Ends a turn that a killed relay left behind.
async fn end_earlier_turn(server: &Server, session: &str) -> Result<(), Trouble> {
    let mut asked = false;
    let give_up = Instant::now() + STOPS_WITHIN;
    while is_busy(server, session).await? {
        if Instant::now() > give_up {
            return Err(Trouble::new("opencode: an earlier turn of the session does not stop"));
        }
        if !asked {
            asked = true;
            server.post(&format!("/session/{session}/abort"), None, PROMPTLY).await?;
        }
        sleep(TRY_AGAIN).await;
    }
    Ok(())
}

async fn last_message(server: &Server, session: &str) -> Result<Option<String>, Trouble> {
    let last = server.get(&format!("/session/{session}/message?limit=1"), ANSWERS_WITHIN).await?;
    Ok(text(&last, "/0/info/id").map(str::to_owned))
}

async fn is_busy(server: &Server, session: &str) -> Result<bool, Failure> {
    let statuses = server.get("/session/status", PROMPTLY).await?;
    let status = statuses.get(session).and_then(|status| text(status, "/type"));
    Ok(status.is_some_and(|status| status != "idle"))
}

/// A turn in progress.
struct Course<'a> {
    server: &'a Server,
    input: Input,
    output: &'a mut Output,
    stop: Signal,
    cancelled: bool,
    /// When to leave a cancelled turn as it is.
    give_up: Option<Instant>,
    /// The turn was left, or it is unknown whether it continues.
    is_left: bool,
    /// When the turn counts as over although a message is incomplete.
    settle_by: Option<Instant>,
    begun: Begun,
}

impl<'a> Course<'a> {
    fn new(server: &'a Server, input: Input, output: &'a mut Output, stop: Signal, begun: Begun) -> Self {
        Self { server, input, output, stop, cancelled: false, give_up: None, is_left: false, settle_by: None, begun }
    }

    async fn run(&mut self) -> Result<(), Trouble> {
        // Not cancellable: an accepted prompt must be followed or aborted.
        let path = format!("/session/{}/prompt_async", self.begun.session);
        if let Err(failure) = self.server.post(&path, Some(&self.begun.prompt), PROMPTLY).await {
            if matches!(failure, Failure::Silent(_) | Failure::Broken(_)) {
                self.abort().await;
                self.is_left = true;
            }
            return Err(failure.into());
        }
        let followed = self.follow().await;
        // A server that exists but does not report its state may continue the turn.
        self.is_left |= followed.as_ref().is_err_and(|failure| !matches!(failure, Failure::Gone(_)));
        Ok(followed?)
    }

    async fn follow(&mut self) -> Result<(), Failure> {
        loop {
            let deadline = [self.give_up, self.settle_by].into_iter().flatten().min();
            tokio::select! {
                biased;
                _ = self.stop.recv(), if !self.cancelled => self.abort().await,
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    self.is_left = self.give_up.is_some_and(|at| at <= Instant::now());
                    return Ok(());
                }
                written = self.output.write(), if !self.output.is_all_written() => {
                    if written.is_err() {
                        // The shim is gone: the turn is not wanted any more.
                        self.abort().await;
                        return Ok(());
                    }
                }
                line = self.input.next(), if self.input.is_open() => {
                    if let Some(line) = line {
                        self.answer(&line).await;
                    }
                }
                event = self.begun.events.next(), if self.output.has_room() => {
                    match event {
                        Ok(event) => self.hear(event).await,
                        Err(_) => self.catch_up().await?,
                    }
                    if self.is_over().await? {
                        return Ok(());
                    }
                    let settle_by = || self.settle_by.unwrap_or_else(|| Instant::now() + SETTLES_WITHIN);
                    self.settle_by = self.begun.watch.is_idling().then(settle_by);
                }
            }
        }
    }

    async fn abort(&mut self) {
        self.cancelled = true;
        self.give_up = Some(Instant::now() + STOPS_WITHIN);
        // If it fails, the turn is left at the limit.
        let _ = self.server.post(&format!("/session/{}/abort", self.begun.session), None, STOPS_WITHIN).await;
    }

    async fn hear(&mut self, data: String) {
        let Some(event) = json::parse(&data).filter(|event| text(event, "/type").is_some()) else {
            if self.begun.watch.may_be_of_turn(&data) {
                self.output.say(&unreadable(&data));
            }
            return;
        };
        if !self.begun.watch.see(&event) {
            return;
        }
        self.output.say(&data);
        if self.cancelled && text(&event, "/properties/status/type") == Some("busy") {
            // The turn was not busy before, and an abort of an idle session has no effect.
            self.abort().await;
        }
        if text(&event, "/type") == Some("question.asked")
            && let Some(id) = text(&event, "/properties/id").filter(|id| is_request(id))
        {
            // If it fails, the question is gone.
            let _ = self.server.post(&format!("/question/{id}/reject"), None, PROMPTLY).await;
        }
    }

    /// Passes the answer to a permission request on.
    async fn answer(&mut self, line: &str) {
        let answer: Value = serde_json::from_str(line).unwrap_or_default();
        let (Some(id), Some(reply)) = (text(&answer, "/permission"), text(&answer, "/reply")) else { return };
        self.reply(id, reply).await;
    }

    async fn reply(&self, id: &str, reply: &str) {
        if !is_request(id) {
            return;
        }
        let (path, reply) = (format!("/permission/{id}/reply"), json!({"reply": reply}));
        for _ in 0..REPLIES {
            // A refusal means that it is answered already, or that the turn is over.
            let Err(Failure::Broken(_)) = self.server.post(&path, Some(&reply), PROMPTLY).await else { return };
            sleep(TRY_AGAIN).await;
        }
    }

    async fn is_over(&mut self) -> Result<bool, Failure> {
        if !self.begun.watch.may_be_over() {
            return Ok(false);
        }
        match is_busy(self.server, &self.begun.session).await {
            Ok(true) => {
                self.begun.watch.goes_on();
                Ok(false)
            }
            Ok(false) => Ok(true),
            Err(_) if self.begun.watch.is_idling() => Ok(true),
            Err(Failure::Silent(_) | Failure::Broken(_)) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Reconnects to the events, and writes what was missed. Waits as long as the server exists; the engine decides
    /// whether to end it.
    async fn catch_up(&mut self) -> Result<(), Failure> {
        while self.give_up.is_none_or(|at| Instant::now() < at) {
            let events = tokio::select! {
                biased;
                _ = self.stop.recv(), if !self.cancelled => {
                    self.abort().await;
                    continue;
                }
                events = self.server.events(PROMPTLY) => events,
            };
            match events {
                Ok(events) => {
                    self.begun.events = events;
                    self.output.say(&Own::Gap.to_line());
                    let told = self.tell_again().await;
                    self.output.say(&Own::CaughtUp.to_line());
                    match told {
                        Ok(()) => return Ok(()),
                        Err(failure @ (Failure::Gone(_) | Failure::Refused { .. })) => return Err(failure),
                        Err(Failure::Silent(_) | Failure::Broken(_)) => {}
                    }
                }
                Err(failure @ (Failure::Gone(_) | Failure::Refused { .. })) => return Err(failure),
                Err(Failure::Silent(_) | Failure::Broken(_)) => {}
            }
            sleep(TRY_AGAIN).await;
        }
        Ok(())
    }

    /// Fetches the current state, and writes it as the events that would have reported it.
    async fn tell_again(&mut self) -> Result<(), Failure> {
        let session = self.begun.session.clone();
        let children = self.server.get(&format!("/session/{session}/children"), PROMPTLY).await?;
        for child in children.as_array().into_iter().flatten() {
            self.tell("session.created", json!({"sessionID": child.get("id"), "info": child}));
        }
        let path = format!("/session/{session}/message?limit={MESSAGES_FETCHED}");
        let messages = self.server.get(&path, ANSWERS_WITHIN).await?;
        for message in messages.as_array().into_iter().flatten() {
            self.tell("message.updated", json!({"sessionID": session, "info": message.get("info")}));
            for part in message.get("parts").and_then(Value::as_array).into_iter().flatten() {
                self.tell("message.part.updated", json!({"sessionID": session, "part": part}));
            }
        }
        let todos = self.server.get(&format!("/session/{session}/todo"), PROMPTLY).await?;
        if todos.as_array().is_some_and(|todos| !todos.is_empty()) {
            self.tell("todo.updated", json!({"sessionID": session, "todos": todos}));
        }
        let permissions = self.server.get("/permission", PROMPTLY).await?;
        for permission in permissions.as_array().into_iter().flatten() {
            if self.begun.watch.is_news(permission) {
                self.tell("permission.asked", permission.clone());
            }
        }
        let word = if is_busy(self.server, &session).await? { "busy" } else { "idle" };
        self.tell("session.status", json!({"sessionID": session, "status": {"type": word}}));
        Ok(())
    }

    fn tell(&mut self, kind: &str, properties: Value) {
        let event = json!({"type": kind, "properties": properties});
        if self.begun.watch.see(&event) {
            self.output.say(&event.to_string());
        }
    }

    /// The server keeps listing the requests of an aborted turn until they are answered.
    async fn clean_up(&mut self, oneshot: bool) {
        for id in self.begun.watch.unanswered() {
            self.reply(id, "reject").await;
        }
        if oneshot {
            // If it fails, an unused session is left.
            let _ = self.server.delete(&format!("/session/{}", self.begun.session), PROMPTLY).await;
        }
    }
}

/// Whether an id can be one of a request: it becomes part of a path.
fn is_request(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
