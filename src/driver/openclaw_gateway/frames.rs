//! Parses the lines of a relay: the gateway's frames as they came, and the relay's own lines.
//!
//! Always: nothing is emitted twice. What was lost while the connection was broken is taken from what the gateway
//! reports at the end, as far as it reports it.

use serde_json::{Value, json};

use super::connection::class_of;
use crate::agent_event::{AgentEvent, LineParser, SessionOrigin};
use crate::driver::openclaw::{Lines, error};
use crate::driver::provider;
use crate::failure::{AgentError, ErrorClass};
use crate::usage::Usage;

/// A parser for the lines of one turn.
pub fn parser() -> LineParser {
    let mut frames = Frames::default();
    Box::new(move |line| frames.read(line))
}

/// A line of the relay's own.
pub(super) enum Own<'a> {
    /// The gateway's id of the conversation, and whether it is the one of the turn before.
    Session { id: &'a str, same: bool },
    /// The connection was broken, and is restored.
    Reconnected,
    /// The turn cannot be taken to the gateway, or cannot be followed.
    Failed(&'a AgentError),
}

impl Own<'_> {
    /// Encodes it as a line.
    pub(super) fn to_line(&self) -> String {
        let said = match self {
            Self::Session { id, same } => json!({"type": "relay", "session": id, "same": same}),
            Self::Reconnected => json!({"type": "relay", "reconnected": true}),
            Self::Failed(error) => {
                json!({"type": "relay", "error": error.message, "class": error.class.map(ErrorClass::as_str)})
            }
        };
        said.to_string()
    }
}

#[derive(Default)]
struct Frames {
    lines: Lines,
    /// Whether frames may have been missed.
    lost: bool,
    failed: bool,
    /// An error from which the gateway may still recover, with another model.
    held: Option<AgentEvent>,
}

impl Frames {
    fn read(&mut self, line: &str) -> Option<Vec<AgentEvent>> {
        let frame = crate::driver::json::parse(line)?;
        let events = match frame["type"].as_str()? {
            "event" => {
                let data = &frame["payload"]["data"];
                let words = data["terminalReply"]["text"].as_str().filter(|_| self.lost && data["phase"] == "end");
                let missed = words.and_then(|words| self.lines.complete(words));
                let said = self.lines.read(line)?;
                let said = if data["executionSettled"] == true { said } else { self.hold(said) };
                missed.into_iter().chain(said).collect()
            }
            "res" => self.answer(&frame),
            "relay" => self.own(&frame),
            _ => return None,
        };
        self.failed |= events.iter().any(|event| matches!(event, AgentEvent::Error(_)));
        Some(events)
    }

    fn hold(&mut self, mut events: Vec<AgentEvent>) -> Vec<AgentEvent> {
        let error = events.iter().position(|event| matches!(event, AgentEvent::Error(_)));
        self.held = error.map(|at| events.remove(at)).or(self.held.take());
        events
    }

    fn own(&mut self, said: &Value) -> Vec<AgentEvent> {
        self.lost |= said["reconnected"] == true;
        let session = said["session"].as_str().map(|id| {
            let origin = if said["same"] == true { SessionOrigin::Resumed } else { SessionOrigin::New };
            AgentEvent::Session { id: id.to_owned(), origin }
        });
        let error = said["error"].as_str().map(|message| {
            let class = said["class"].as_str().and_then(|word| word.parse().ok());
            AgentEvent::Error(AgentError { message: message.to_owned(), class, retry_at: None })
        });
        session.into_iter().chain(error).collect()
    }

    /// The answer to a request of the relay: how the run ended, or the session's last messages.
    fn answer(&mut self, frame: &Value) -> Vec<AgentEvent> {
        let (payload, mut events) = (&frame["payload"], Vec::new());
        if payload["status"] != "ok" {
            events.extend(self.held.take());
            self.failed |= !events.is_empty();
        }
        if frame["ok"] == false {
            let message = error::message(frame.get("error").unwrap_or(&Value::Null));
            let error = provider::error(&frame["error"], message);
            self.fail(AgentError { class: class_of(&frame["error"]).or(error.class), ..error }, &mut events);
            return events;
        }
        if self.lost {
            events.extend(last_words(payload).and_then(|words| self.lines.complete(words)));
        }
        events.extend(usage(&payload["result"]["meta"]).map(AgentEvent::Usage));
        match payload["status"].as_str() {
            Some("ok") => events.push(AgentEvent::Ended),
            Some("error" | "timeout") => {
                let summary = payload["summary"].as_str();
                let message = match payload["error"].as_str().or(summary) {
                    Some(words) => error::body(words),
                    None => "The gateway ended the run.".to_owned(),
                };
                self.fail(message.into(), &mut events);
                events.push(AgentEvent::Ended);
            }
            _ => {}
        }
        events
    }

    /// Emits an error unless there was one: the answer repeats, in other words, the error of an event.
    fn fail(&self, error: AgentError, events: &mut Vec<AgentEvent>) {
        if !self.failed {
            events.push(AgentEvent::Error(error));
        }
    }
}

/// The agent's last message: in the result of a run, or in the history of its session.
fn last_words(payload: &Value) -> Option<&str> {
    let result = payload["result"]["meta"]["finalAssistantVisibleText"].as_str();
    result.or_else(|| {
        let last = payload["messages"].as_array()?.last().filter(|message| message["role"] == "assistant")?;
        let content = &last["content"];
        let texts = content.as_array().into_iter().flatten();
        content.as_str().or_else(|| texts.filter_map(|part| part["text"].as_str()).next_back())
    })
}

/// The usage of a run, from its result.
fn usage(meta: &Value) -> Option<Usage> {
    let agent = &meta["agentMeta"];
    let used = agent.get("usage")?;
    Some(Usage {
        input_tokens: used["input"].as_i64(),
        output_tokens: used["output"].as_i64(),
        cache_read_tokens: used["cacheRead"].as_i64(),
        cache_write_tokens: used["cacheWrite"].as_i64(),
        cost_usd: agent["costUsd"].as_f64().or_else(|| used["cost"]["total"].as_f64()),
        context_tokens: agent["lastCallUsage"]["total"].as_i64(),
        context_size: agent["contextTokens"].as_i64(),
        ..Usage::default()
    })
}
