//! The relay of a turn: it requests a run from the gateway, and copies the frames of that run to its stdout.
//!
//! Always: a run is requested under one idempotency key, and the turn ends when the gateway has answered how the run
//! ended. A broken connection ends nothing: the run continues in the gateway, and the relay reconnects and follows it.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::signal::unix::Signal;
use tokio::time::{Instant, sleep, sleep_until};

use super::connection::{Connection, Refused};
use super::frames::Own;
use super::{GatewayTurn, session_key_of};
use crate::driver::relay::pipes::{Input, Output};
use crate::failure::{AgentError, ErrorClass};
use crate::message::Attachment;

/// How long to wait for a gateway that is starting, or that went away during a turn.
const COMES_BACK_WITHIN: Duration = Duration::from_secs(120);
/// Pause between attempts to connect: the first one, and the longest.
const TRY_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long to wait for the run's answer after the event of its end: it comes at once or not at all.
const ANSWER_GRACE: Duration = Duration::from_secs(2);
/// How long one request lets the gateway wait for the end of a run.
const WAIT_MS: u64 = 30_000;

/// Runs as the relay of one turn.
///
/// # Errors
/// No turn arrives, or the output is not read.
pub async fn run(mut input: Input, output: Output, terminate: Signal) -> io::Result<ExitCode> {
    let mut relay = Relay::new(input.turn().await?, output);
    relay.run(terminate).await?;
    relay.output.write_all().await?;
    // The engine has to make sure that the run does not continue.
    Ok(if relay.is_left { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The state of a run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Requested; the gateway has not accepted it yet.
    Asked,
    /// Accepted and in progress.
    Accepted,
    /// The event of its end arrived; the answer may come until this instant.
    Told(Instant),
    /// It ended while the relay was not connected; its last messages are requested.
    Missed,
    /// Everything is written.
    Over,
}

struct Relay {
    asked: GatewayTurn,
    output: Output,
    session_key: String,
    progress: Progress,
    /// The gateway may know of the run.
    has_asked: bool,
    /// It is unknown whether the run continues.
    is_left: bool,
    cancelled: bool,
    knows_session: bool,
    requests: u64,
}

impl Relay {
    fn new(asked: GatewayTurn, output: Output) -> Self {
        let session_key = session_key_of(&asked.agent, &asked.turn.session);
        let progress = Progress::Asked;
        Self {
            asked,
            output,
            session_key,
            progress,
            has_asked: false,
            is_left: false,
            cancelled: false,
            knows_session: false,
            requests: 0,
        }
    }

    async fn run(&mut self, mut terminate: Signal) -> io::Result<()> {
        let Some(mut connection) = self.connect(&mut terminate, None).await? else { return Ok(()) };
        let mut asked = self.ask(&mut connection).await;
        loop {
            if asked.is_some() && self.follow(&mut connection, &mut terminate).await?.is_some() {
                return Ok(());
            }
            let boot = connection.boot.take();
            let Some(again) = self.connect(&mut terminate, boot).await? else { return Ok(()) };
            connection = again;
            self.output.say(&Own::Reconnected.to_line());
            asked = self.ask_again(&mut connection).await;
        }
    }

    /// Connects or reconnects. `None` if that fails, which is reported, or if the turn was cancelled first.
    async fn connect(&mut self, terminate: &mut Signal, boot: Option<String>) -> io::Result<Option<Connection>> {
        let give_up = Instant::now() + COMES_BACK_WITHIN;
        let is_first = !self.has_asked;
        let mut pause = TRY_AGAIN.0;
        loop {
            let open = Connection::open(&self.asked.turn.endpoint, self.asked.token.as_deref());
            let opened = tokio::select! {
                opened = self.output.write_during(open) => opened?,
                _ = terminate.recv(), if !self.cancelled => {
                    self.cancelled = true;
                    if is_first { return Ok(None) } else { continue }
                }
            };
            let refused = match opened {
                // The runs of a gateway end with it, and its successor must not be asked to start over.
                Ok(connection) if boot.is_some() && connection.boot != boot => {
                    let lost =
                        AgentError::of(ErrorClass::Crashed, "the gateway was restarted in the midst of the turn");
                    self.output.say(&Own::Failed(&lost).to_line());
                    return Ok(None);
                }
                Ok(connection) => return Ok(Some(connection)),
                Err(refused) => refused,
            };
            let may_come = match &refused {
                // A gateway that is not running is reported at once; one that is still starting is waited for.
                Refused::NotNow(error) | Refused::Absent(error) => {
                    !is_first || error.class == Some(ErrorClass::Overloaded)
                }
                Refused::ForGood(_) => false,
            };
            if !may_come || Instant::now() + pause >= give_up {
                self.is_left = self.has_asked;
                self.output.say(&Own::Failed(&refused.error()).to_line());
                return Ok(None);
            }
            tokio::select! {
                waited = self.output.write_during(sleep(pause)) => {
                    waited?;
                    pause = (pause * 2).min(TRY_AGAIN.1);
                }
                _ = terminate.recv(), if !self.cancelled => {
                    self.cancelled = true;
                    if is_first { return Ok(None) }
                }
            }
        }
    }

    /// Requests the run. A repeated request with the same key is the same run.
    async fn ask(&mut self, connection: &mut Connection) -> Option<()> {
        self.has_asked = true;
        let turn = &self.asked.turn;
        let names = || turn.attachments.iter().map(|file| file.filename.as_deref().unwrap_or(&file.media_type));
        let message = match turn.message.trim() {
            // The gateway accepts no message without text.
            "" => format!("Attached: {}", names().collect::<Vec<_>>().join(", ")),
            _ => turn.message.clone(),
        };
        let mut params = json!({
            "message": message,
            "agentId": self.asked.agent,
            "sessionKey": self.session_key,
            "idempotencyKey": self.asked.key,
            "timeout": self.asked.limit_s,
        });
        if !turn.attachments.is_empty() {
            params["attachments"] = turn.attachments.iter().filter_map(attached).collect();
        }
        connection.request("agent", "agent", params).await
    }

    /// The requests of a new connection for a run that may be in progress.
    async fn ask_again(&mut self, connection: &mut Connection) -> Option<()> {
        if self.progress == Progress::Asked && !self.cancelled {
            return self.ask(connection).await;
        }
        let session = json!({"key": self.session_key});
        connection.request("subscribe", "sessions.messages.subscribe", session).await?;
        if self.cancelled {
            self.abort(connection).await?;
        }
        self.wait(connection).await
    }

    async fn wait(&mut self, connection: &mut Connection) -> Option<()> {
        self.requests += 1;
        let params = json!({"runId": self.asked.key, "timeoutMs": WAIT_MS});
        connection.request(&format!("wait-{}", self.requests), "agent.wait", params).await
    }

    async fn abort(&mut self, connection: &mut Connection) -> Option<()> {
        let params = json!({"sessionKey": self.session_key, "runId": self.asked.key});
        connection.request("abort", "chat.abort", params).await
    }

    /// Follows the run until it is over; `None` if the connection is broken.
    async fn follow(&mut self, connection: &mut Connection, terminate: &mut Signal) -> io::Result<Option<()>> {
        while self.progress != Progress::Over {
            let told = async {
                match self.progress {
                    Progress::Told(until) => sleep_until(until).await,
                    _ => std::future::pending().await,
                }
            };
            let asked = tokio::select! {
                biased;
                _ = terminate.recv(), if !self.cancelled => {
                    self.cancelled = true;
                    self.abort(connection).await
                }
                written = self.output.write(), if !self.output.is_all_written() => {
                    if let Err(error) = written {
                        // The shim is gone: the run is not wanted any more.
                        self.abort(connection).await;
                        return Err(error);
                    }
                    Some(())
                }
                frame = connection.next_frame(), if self.output.has_room() => match frame {
                    Some(frame) => self.take(&frame, connection).await,
                    None => None,
                },
                // A frame that was not read yet may be the answer.
                () = told, if self.output.has_room() => {
                    self.progress = Progress::Over;
                    Some(())
                }
            };
            if asked.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(()))
    }

    /// Handles a frame. `None` if the connection is broken.
    async fn take(&mut self, text: &str, connection: &mut Connection) -> Option<()> {
        let Some(frame) = crate::driver::json::parse(text) else {
            // The parser counts it as malformed.
            self.output.say(text);
            return Some(());
        };
        let payload = &frame["payload"];
        match (frame["type"].as_str(), frame["event"].as_str(), frame["id"].as_str()) {
            (Some("event"), Some("agent" | "session.tool"), _) if payload["runId"] == self.asked.key.as_str() => {
                self.event(payload);
                self.output.say(text);
                if self.cancelled && payload["data"]["phase"] == "start" && payload["stream"] == "lifecycle" {
                    // An abort that was sent before the run began had no effect.
                    return self.abort(connection).await;
                }
            }
            (Some("res"), _, Some("agent")) => {
                if let Some(key) = payload["sessionKey"].as_str() {
                    key.clone_into(&mut self.session_key);
                }
                match payload["status"].as_str().filter(|_| frame["ok"] == true) {
                    Some("accepted") => {
                        self.progress = Progress::Accepted;
                        // An abort that was sent before the acceptance had no effect.
                        return if self.cancelled { self.abort(connection).await } else { Some(()) };
                    }
                    // It was accepted before, and its answer goes to a connection that is gone.
                    Some("in_flight") => {
                        self.progress = Progress::Accepted;
                        return self.wait(connection).await;
                    }
                    _ => {
                        self.progress = Progress::Over;
                        self.output.say(text);
                    }
                }
            }
            (Some("res"), _, Some("abort")) if payload["aborted"] == false => {
                // No run is left to abort.
                self.progress = Progress::Told(Instant::now() + ANSWER_GRACE);
            }
            (Some("res"), _, Some("history")) => {
                self.progress = Progress::Over;
                self.output.say(text);
            }
            (Some("res"), _, Some(id)) if id.starts_with("wait-") => {
                return self.waited(&frame, text, connection).await;
            }
            _ => {}
        }
        Some(())
    }

    /// Updates the state from an event of the run, before the event is passed on.
    fn event(&mut self, payload: &Value) {
        if let Some(id) = payload["sessionId"].as_str().filter(|_| !self.knows_session) {
            self.knows_session = true;
            let same = self.asked.turn.agent_session.as_deref() == Some(id);
            self.output.say(&Own::Session { id, same }.to_line());
        }
        let data = &payload["data"];
        let is_lifecycle = payload["stream"] == "lifecycle";
        self.progress = match data["phase"].as_str() {
            // After an error the gateway may try again, unless the execution is settled.
            Some("end") if is_lifecycle => Progress::Told(Instant::now() + ANSWER_GRACE),
            Some("error") if is_lifecycle && data["executionSettled"] == true => {
                Progress::Told(Instant::now() + ANSWER_GRACE)
            }
            _ if is_lifecycle || self.progress == Progress::Asked => Progress::Accepted,
            _ => self.progress,
        };
    }

    /// Handles the answer of `agent.wait`, which replaces the run's own answer after a reconnect.
    async fn waited(&mut self, frame: &Value, text: &str, connection: &mut Connection) -> Option<()> {
        if frame["ok"] != true {
            // A gateway without this method still sends the event of the end, if the connection lasts until then.
            return Some(());
        }
        if goes_on(&frame["payload"]) {
            return self.wait(connection).await;
        }
        self.output.say(text);
        if matches!(self.progress, Progress::Told(_)) {
            self.progress = Progress::Over;
            return Some(());
        }
        self.progress = Progress::Missed;
        let params = json!({"sessionKey": self.session_key, "limit": 4});
        connection.request("history", "chat.history", params).await
    }
}

/// Whether a run continues, by the answer of `agent.wait`: a run that timed out itself has an end.
pub(super) fn goes_on(waited: &Value) -> bool {
    let is_said = |key: &str| !waited[key].is_null();
    waited["status"] == "timeout" && !["endedAt", "stopReason", "error"].into_iter().any(is_said)
}

/// A file in the gateway's format: the content of its `data:` URL.
fn attached(file: &Attachment) -> Option<Value> {
    let (_, content) = file.url.split_once(";base64,")?;
    Some(json!({"type": "image", "mimeType": file.media_type, "fileName": file.filename, "content": content}))
}
