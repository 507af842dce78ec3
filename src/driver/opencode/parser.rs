//! Parses the lines of a relayed turn: events of the server, and the relay's own lines.
//!
//! Always: a repeated event is not emitted twice: events may be repeated after the connection broke. An error counts
//! only if nothing follows it: the server retries by itself, and compacts a long conversation. No input makes the
//! parser fail.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::error;
use super::own::Own;
use super::speech::{Speech, Voice};
use super::tools::{Tools, file};
use super::watch::text;
use crate::agent_event::{Again, AgentEvent, LineParser};
use crate::clock::Timestamp;
use crate::driver::json;
use crate::failure::AgentError;
use crate::usage::Usage;

/// Prefix of a session's title, before a time, until the server has found one.
const UNTITLED: &str = "New session - ";

/// A parser for the lines of one turn.
pub fn parser() -> LineParser {
    let mut turn = Turn::default();
    Box::new(move |line| turn.read(line))
}

/// The state of a turn.
#[derive(Debug, Default)]
struct Turn {
    session: String,
    /// Messages of the agent, and whether each is for the user: a summary is for the agent itself.
    messages: HashMap<String, bool>,
    speech: Speech,
    tools: Tools,
    /// Parts that are handled only once.
    heard: HashSet<String>,
    /// The message whose step has begun and is not over.
    step: Option<String>,
    usage: Usage,
    title: Option<String>,
    /// The last error, and whether it only reports that the turn was aborted.
    error: Option<(AgentError, bool)>,
}

impl Turn {
    fn read(&mut self, line: &str) -> Option<Vec<AgentEvent>> {
        let line = json::parse(line)?;
        let mut events = Vec::new();
        if line.get("mainstay").is_some() {
            self.own(serde_json::from_value(line).ok()?, &mut events);
        } else {
            self.event(text(&line, "/type")?, line.get("properties").unwrap_or(&Value::Null), &mut events);
        }
        Some(events)
    }

    fn own(&mut self, own: Own, events: &mut Vec<AgentEvent>) {
        match own {
            Own::Session { id, origin } => {
                self.session.clone_from(&id);
                events.push(AgentEvent::Session { id, origin: origin.into() });
            }
            Own::Advertised { offer } => events.push(AgentEvent::Advertised(offer)),
            Own::Status { label } => events.push(AgentEvent::Status(label)),
            Own::Gap => self.speech.gap(),
            Own::CaughtUp => self.speech.caught_up(),
            Own::Error { class, message } => {
                self.error = None;
                events.push(AgentEvent::Error(AgentError { message, class, retry_at: None }));
            }
            Own::End { cancelled } => {
                if let Some((error, is_abort)) = self.error.take()
                    && !(cancelled && is_abort)
                {
                    events.push(AgentEvent::Error(error));
                }
                events.push(AgentEvent::Ended);
            }
        }
    }

    fn event(&mut self, kind: &str, properties: &Value, events: &mut Vec<AgentEvent>) {
        let session =
            text(properties, "/sessionID").or_else(|| text(properties, "/part/sessionID")).unwrap_or_default();
        let is_ours = session == self.session;
        let parent = self.tools.task_of(session).map(str::to_owned);
        match kind {
            "message.updated" => self.message(properties.get("info").unwrap_or(&Value::Null), is_ours),
            "message.part.updated" => {
                let part = properties.get("part").unwrap_or(&Value::Null);
                let is_for_person = text(part, "/messageID").and_then(|message| self.messages.get(message)).copied();
                if let Some(is_for_person) = is_for_person {
                    self.part(part, is_ours, is_for_person, parent, events);
                }
            }
            "message.part.delta" if is_ours && text(properties, "/field") == Some("text") => {
                if let (Some(part), Some(piece)) = (text(properties, "/partID"), text(properties, "/delta")) {
                    events.extend(self.speech.piece(part, piece));
                }
            }
            "permission.asked" => events.extend(self.tools.asked(properties, parent)),
            "question.asked" => events.push(status("opencode has a question, and is told that nobody answers.")),
            "todo.updated" if is_ours => events.extend(properties.get("todos").cloned().map(AgentEvent::Plan)),
            "session.status" if is_ours && text(properties, "/status/type") == Some("retry") => {
                let reason = text(properties, "/status/message").unwrap_or_default();
                events.push(AgentEvent::Status(format!("Trying again: {reason}")));
                // The server retries without limit. If the turn is ended meanwhile, this is the reason.
                let retry_at = properties.pointer("/status/next").and_then(count).map(Timestamp::from_millis);
                self.error = Some((AgentError { retry_at, ..AgentError::from(reason) }, false));
            }
            "session.updated" if is_ours => {
                let title = text(properties, "/info/title").filter(|title| !title.starts_with(UNTITLED));
                if let Some(title) = title.filter(|title| self.title.as_deref() != Some(title)) {
                    self.title = Some(title.to_owned());
                    events.push(AgentEvent::Title(title.to_owned()));
                }
            }
            "session.error" if is_ours => self.fail(properties.get("error")),
            _ => {}
        }
    }

    fn message(&mut self, info: &Value, is_ours: bool) {
        let Some(id) = text(info, "/id").filter(|_| text(info, "/role") == Some("assistant")) else { return };
        let is_new = !self.messages.contains_key(id);
        if is_new {
            let is_summary = info.get("summary") == Some(&Value::Bool(true));
            self.messages.insert(id.to_owned(), !is_summary);
        }
        if is_ours && is_new {
            // The server recovered from the error.
            self.error = None;
        }
        if is_ours {
            self.fail(info.get("error"));
        }
    }

    fn fail(&mut self, error: Option<&Value>) {
        // The same error arrives in several ways; the first text is the best.
        if let Some(error) = error.filter(|error| error.is_object()) {
            self.error.get_or_insert_with(|| (error::read(error), error::is_abort(error)));
        }
    }

    fn part(
        &mut self,
        part: &Value,
        is_ours: bool,
        is_for_person: bool,
        parent: Option<String>,
        events: &mut Vec<AgentEvent>,
    ) {
        let Some(id) = text(part, "/id") else { return };
        let (kind, message) = (text(part, "/type").unwrap_or_default(), text(part, "/messageID").unwrap_or_default());
        match kind {
            "text" | "reasoning" if is_ours && is_for_person => {
                let voice = if kind == "text" { Voice::Text } else { Voice::Reasoning };
                events.extend(self.speech.stands(id, voice, text(part, "/text").unwrap_or_default(), is_whole(part)));
            }
            "text" if !is_ours => {
                if let (Some(said), Some(id)) = (text(part, "/text").filter(|_| is_whole(part)), parent) {
                    events.push(AgentEvent::ToolProgress { id, output: said.into() });
                }
            }
            "tool" => events.extend(self.tools.stands(part, parent)),
            "step-start" if is_ours && self.heard.insert(id.to_owned()) => {
                self.error = None;
                if !is_for_person {
                    events.push(status("Making the conversation shorter..."));
                } else {
                    let is_again = self.step.as_deref() == Some(message);
                    events.push(AgentEvent::MessageBegan(if is_again { Again::Yes } else { Again::No }));
                }
                self.step = Some(message.to_owned());
            }
            "step-finish" if self.heard.insert(id.to_owned()) => {
                if is_ours {
                    self.step = None;
                }
                self.count(part, is_ours);
                events.push(AgentEvent::Usage(self.usage.clone()));
            }
            "file" if is_ours && is_for_person && self.heard.insert(id.to_owned()) => events.extend(file(part)),
            _ => {}
        }
    }

    /// Adds the usage of a step. Its output excludes reasoning, and its input excludes what came from a cache.
    fn count(&mut self, step: &Value, is_ours: bool) {
        let tokens = |name: &str| step.pointer(&format!("/tokens/{name}")).and_then(count).unwrap_or(0);
        let (input, output, reasoning) = (tokens("input"), tokens("output"), tokens("reasoning"));
        let (read, written) = (tokens("cache/read"), tokens("cache/write"));
        let add = |sum: &mut Option<i64>, more: i64| *sum = Some(sum.unwrap_or(0).saturating_add(more));
        let usage = &mut self.usage;
        add(&mut usage.input_tokens, input);
        add(&mut usage.output_tokens, output.saturating_add(reasoning));
        add(&mut usage.reasoning_tokens, reasoning);
        add(&mut usage.cache_read_tokens, read);
        add(&mut usage.cache_write_tokens, written);
        if let Some(cost) = step.get("cost").and_then(Value::as_f64) {
            usage.cost_usd = Some(usage.cost_usd.unwrap_or(0.0) + cost);
        }
        if is_ours {
            let context = [input, output, reasoning, read, written].into_iter().fold(0, i64::saturating_add);
            usage.context_tokens = Some(context);
        }
    }
}

/// Whether a part is complete.
fn is_whole(part: &Value) -> bool {
    part.pointer("/time/end").is_some_and(|end| !end.is_null())
}

/// A count of tokens; JavaScript may write it as a fraction.
fn count(number: &Value) -> Option<i64> {
    number.as_i64().or_else(|| number.as_f64().filter(|number| number.is_finite()).map(|number| number as i64))
}

fn status(label: &str) -> AgentEvent {
    AgentEvent::Status(label.to_owned())
}
