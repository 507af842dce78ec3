//! The lines of an OpenClaw agent: flat events, or the frames of its gateway, which nest the same event in `payload`.
//!
//! Always: a known line yields only events of this run, and each once; any other line is counted as malformed, JSON or
//! not, and never ends anything. No input makes the parser fail.
//!
//! Deliberately absent: what a stream of the AI SDK needs (ids for tools without one, starts for results without one).
//! The turn adds that for every agent.

pub(super) mod error;
mod fields;
mod js;
mod known;
mod result;
mod source;
#[cfg(test)]
mod tests;

use serde_json::{Value, json};

use self::fields::{Fields, text};
use self::source::{Said, Source};
use super::{json, provider};
use crate::agent_event::{AgentEvent, LineParser};
use crate::usage::Usage;

/// A parser for the lines of one turn.
pub fn parser() -> LineParser {
    let mut lines = Lines { judges_end: true, ..Lines::default() };
    Box::new(move |line| lines.read(line))
}

/// The state of a turn.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// Whether the status of an end event counts; a gateway reports the outcome in its answer.
    judges_end: bool,
    source: Source,
    text: Said,
    thinking: Said,
}

impl Lines {
    /// The missing rest of the last message, if some events were lost; `message` is its complete text.
    pub(super) fn complete(&mut self, message: &str) -> Option<AgentEvent> {
        self.text.rest_of(message).map(|rest| AgentEvent::Text(rest.to_owned()))
    }

    pub(super) fn read(&mut self, line: &str) -> Option<Vec<AgentEvent>> {
        let line = js::trim(line);
        if line.is_empty() {
            return Some(Vec::new());
        }
        let Value::Object(frame) = json::parse(line)? else { return None };
        let event = match frame.get("payload") {
            Some(Value::Object(payload)) if !frame.contains_key("stream") => payload,
            _ => &frame,
        };
        // Checked before the event is recorded as seen.
        if !known::is_known(&frame, event) {
            return None;
        }
        let mut events = Vec::new();
        match text(&frame, "event") {
            Some("agent" | "session.tool" | "error") if !self.source.is_news(event) => {}
            // `session.tool` is the form of tool events for a client that connected after the run began.
            Some("agent" | "session.tool") => self.agent(event, &mut events),
            Some("error") => {
                events.push(AgentEvent::Error(match event.get("data").filter(|data| !data.is_null()) {
                    Some(data) => error::read(data),
                    None => error::read(&Value::Object(event.clone())),
                }));
            }
            _ => {}
        }
        Some(events)
    }

    fn agent(&mut self, event: &Fields, events: &mut Vec<AgentEvent>) {
        let nothing = Fields::new();
        let data = event.get("data").and_then(Value::as_object).unwrap_or(&nothing);
        match (text(event, "stream"), text(data, "phase")) {
            (Some("lifecycle"), phase) => self.lifecycle(phase, data, events),
            (Some("thinking"), _) => {
                events.extend(self.thinking.news(data).map(|news| AgentEvent::Reasoning(news.to_owned())));
            }
            (Some("assistant"), _) => self.assistant(data, events),
            (Some("tool"), phase) => self.tool(phase, data, events),
            (Some("usage"), _) => {
                let output_tokens = json::integer(event.get("data").unwrap_or(&Value::Null), "outputTokens");
                events.extend(output_tokens.map(|_| AgentEvent::Usage(Usage { output_tokens, ..Usage::default() })));
            }
            (Some("compaction"), Some("start")) => events.push(status("Optimizing session context...")),
            (Some("compaction"), Some("end")) if data.get("willRetry") == Some(&Value::Bool(true)) => {
                events.push(status("Retrying with compacted context..."));
            }
            _ => {}
        }
    }

    fn lifecycle(&mut self, phase: Option<&str>, data: &Fields, events: &mut Vec<AgentEvent>) {
        match phase {
            Some("start") => {
                self.next_message();
                events.push(status("Preparing response..."));
            }
            Some("end") => {
                self.source.restart();
                let status = text(data, "status").unwrap_or_default();
                let is_failure =
                    matches!(status, "cancelled" | "canceled" | "aborted" | "error" | "failed" | "timeout");
                if self.judges_end && is_failure {
                    events.push(AgentEvent::Error(format!("The agent ended the run: {status}.").into()));
                }
                events.push(AgentEvent::Ended);
            }
            // Not an end: the agent may try again.
            Some("error") => {
                self.source.restart();
                events.push(AgentEvent::Error(error::read(&Value::Object(data.clone()))));
            }
            _ => {}
        }
    }

    fn assistant(&mut self, data: &Fields, events: &mut Vec<AgentEvent>) {
        events.extend(self.text.news(data).map(|news| AgentEvent::Text(news.to_owned())));
        let urls = data.get("mediaUrls").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let urls = urls.map(js::trim).filter(|url| !url.is_empty());
        events.extend(urls.map(|url| AgentEvent::Text(format!("\n![media]({url})\n"))));
        if text(data, "stopReason") == Some("error") {
            let message = error::message(data.get("errorMessage").unwrap_or(&Value::Null));
            events.push(AgentEvent::Error(provider::error(&Value::Object(data.clone()), message)));
        }
    }

    fn tool(&mut self, phase: Option<&str>, data: &Fields, events: &mut Vec<AgentEvent>) {
        let id = text(data, "toolCallId").unwrap_or_default().to_owned();
        let name = text(data, "name").filter(|name| !name.is_empty()).map(str::to_owned);
        match phase {
            Some("start") => {
                self.next_message();
                let input = data.get("args").filter(|args| args.is_object() || args.is_array());
                let input = input.cloned().unwrap_or_else(|| json!({}));
                events.push(AgentEvent::ToolStarted {
                    id,
                    name: name.unwrap_or_default(),
                    title: None,
                    input,
                    parent: None,
                });
            }
            Some("update") => {
                if let Some(partial) = data.get("partialResult").filter(|partial| !partial.is_null()) {
                    events.push(AgentEvent::ToolProgress { id, output: result::output(partial) });
                }
            }
            Some("result") => {
                let raw = data.get("result").unwrap_or(&Value::Null);
                let failed = data.get("isError") == Some(&Value::Bool(true));
                let result = if failed { Err(result::failure(raw)) } else { Ok(result::output(raw)) };
                events.push(AgentEvent::ToolFinished { id, name, result });
            }
            _ => {}
        }
    }

    /// What the agent says from here on is a new message.
    fn next_message(&mut self) {
        self.text.next_message();
        self.thinking.next_message();
    }
}

fn status(label: &str) -> AgentEvent {
    AgentEvent::Status(label.to_owned())
}
