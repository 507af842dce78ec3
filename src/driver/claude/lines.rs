//! Parses Claude Code's lines.
//!
//! Always: a sub-agent's output stays with the tool call that it works for (`parent_tool_use_id`); a turn is over when
//! a `result` says so and no background task runs any more.

use std::collections::VecDeque;

use serde_json::Value;

use super::input;
use super::message::{Message, finished, of_helper};
use super::notices::{self, Report};
use super::requests::{permission, refused};
use super::result::{self, Trouble, usage};
use super::tasks::Tasks;
use crate::agent_event::{AgentEvent, LineParser, SessionOrigin};
use crate::chunk::Notice;
use crate::driver::json::{self, text};
use crate::usage::Usage;

/// How many lines are remembered so that their blocks can be withdrawn. A refused answer is withdrawn right behind its
/// last line.
const MAX_LINES_KNOWN: usize = 4096;

/// Parses the lines of a turn.
pub fn parser() -> LineParser {
    let mut lines = Lines::default();
    Box::new(move |line| lines.read(line))
}

#[derive(Default)]
struct Lines {
    /// The session in which it has begun to work on the message.
    session: Option<String>,
    model: String,
    message: Message,
    /// The blocks of recent lines, by the line's `uuid`.
    lines: VecDeque<(String, Vec<u64>)>,
    trouble: Trouble,
    report: Report,
    tasks: Tasks,
    /// Whether the last line was a result.
    is_over: bool,
}

impl Lines {
    fn read(&mut self, line: &str) -> Option<Vec<AgentEvent>> {
        let line = json::parse(line)?;
        let kind = line.get("type")?.as_str()?;
        let mut events = Vec::new();
        let said = &mut events;
        let parent = line.get("parent_tool_use_id").and_then(Value::as_str);
        match (kind, parent) {
            ("system", _) => self.system(&line, said),
            ("stream_event", None) => {
                self.go_on(said);
                self.message.stream(&line, &mut self.trouble, said);
            }
            ("assistant", None) => self.assistant(&line, said),
            ("assistant", Some(parent)) => {
                said.extend(blocks(&line).iter().filter_map(|block| of_helper(block, parent)));
            }
            ("user", _) => said.extend(blocks(&line).iter().filter_map(finished)),
            ("control_request", _) => {
                let asked = permission(&line, input::options()).map(AgentEvent::Permission);
                said.extend(asked.or_else(|| refused(&line).map(AgentEvent::Refused)));
            }
            ("control_cancel_request", _) => {
                said.push(AgentEvent::PermissionWithdrawn(text(&line, "request_id").to_owned()));
            }
            ("rate_limit_event", _) => self.trouble.hear_limit(&line),
            ("conversation_reset", _) => {
                let id = ["new_conversation_id", "session_id"].map(|key| text(&line, key));
                self.announce(id.into_iter().find(|id| !id.is_empty()).unwrap_or_default(), said);
                self.report.hear_reset();
            }
            ("auth_status", _) => said.extend(notices::of_login(&line).map(AgentEvent::Notice)),
            ("result", _) => self.result(&line, said),
            _ => {}
        }
        Some(events)
    }

    fn system(&mut self, line: &Value, said: &mut Vec<AgentEvent>) {
        match text(line, "subtype") {
            "init" => self.init(line, said),
            "task_started" | "task_notification" | "task_updated" | "background_tasks_changed" => {
                said.extend(self.tasks.hear(line).map(AgentEvent::Tasks));
            }
            "session_state_changed" => match text(line, "state") {
                "running" => self.go_on(said),
                // It is idle, so no task runs, whatever task events were missed.
                "idle" if self.is_over => said.extend([self.tasks.forget(), AgentEvent::Ended]),
                _ => {}
            },
            "api_retry" => {
                self.trouble.hear(line, "error_status");
                said.push(AgentEvent::Status(notices::retrying(line)));
            }
            "local_command_output" => self.message.say(text(line, "content"), said),
            "model_refusal_fallback" => {
                self.withdraw(json::items(line, "retracted_message_uuids"), said);
                said.extend(self.report.hear(line));
            }
            _ => said.extend(self.report.hear(line)),
        }
    }

    fn init(&mut self, line: &Value, said: &mut Vec<AgentEvent>) {
        let is_first = self.session.is_none();
        self.go_on(said);
        self.announce(text(line, "session_id"), said);
        if is_first {
            text(line, "model").clone_into(&mut self.model);
            said.push(AgentEvent::Advertised(notices::offers(line)));
            said.extend(notices::of_failed_parts(line).map(|text| AgentEvent::Notice(Notice::warning(text))));
        }
    }

    /// Records that it is in this session from here on.
    fn announce(&mut self, id: &str, said: &mut Vec<AgentEvent>) {
        if self.session.as_deref() != Some(id) {
            self.session = Some(id.to_owned());
            said.push(AgentEvent::Session { id: id.to_owned(), origin: SessionOrigin::New });
        }
    }

    /// Records that it works, although it may have reported a result.
    fn go_on(&mut self, said: &mut Vec<AgentEvent>) {
        if std::mem::take(&mut self.is_over) {
            said.push(AgentEvent::Continued);
        }
    }

    fn assistant(&mut self, line: &Value, said: &mut Vec<AgentEvent>) {
        self.go_on(said);
        self.withdraw(json::items(line, "supersedes"), said);
        if line.get("error").is_some_and(|error| !error.is_null()) {
            // Its text is the error, which the result repeats.
            self.trouble.hear(line, "api_error_status");
            let blocks = blocks(line);
            let words: Vec<_> = blocks.iter().map(|block| text(block, "text")).collect();
            return said.extend(self.trouble.error(&words.join("\n")).map(AgentEvent::Trouble));
        }
        let numbers = self.message.whole(line, &blocks(line), &mut self.trouble, said);
        if !numbers.is_empty() {
            self.lines.push_back((text(line, "uuid").to_owned(), numbers));
            if self.lines.len() > MAX_LINES_KNOWN {
                self.lines.pop_front();
            }
        }
    }

    /// Withdraws the blocks of the lines with these ids.
    fn withdraw(&mut self, ids: &[Value], said: &mut Vec<AgentEvent>) {
        let is_named = |id: &str| ids.iter().any(|named| named.as_str() == Some(id));
        let named: Vec<_> = self.lines.iter().filter(|(id, _)| !id.is_empty() && is_named(id)).collect();
        let numbers: Vec<_> = named.into_iter().flat_map(|(_, numbers)| numbers).copied().collect();
        if !numbers.is_empty() {
            self.message.forget(&numbers);
            said.push(AgentEvent::Withdrawn(numbers));
        }
    }

    fn result(&mut self, line: &Value, said: &mut Vec<AgentEvent>) {
        if self.session.is_none() {
            // The turn did not begin, because it cannot.
            return said.extend(result::failed_to_start(line));
        }
        if text(line, "subtype").is_empty() && line.get("is_error") != Some(&Value::Bool(true)) {
            // It reports nothing about the turn.
            return;
        }
        let usage = usage(line, &self.model);
        said.push(AgentEvent::Usage(Usage { context_tokens: self.message.context(), ..usage }));
        let has_spoken = self.message.end_turn();
        let report = std::mem::take(&mut self.report);
        let error = match result::failure(line) {
            Some(message) => self.trouble.error_of(line, message),
            None if has_spoken => None,
            None => report.into_answer(text(line, "result")).map_or_else(
                |error| Some(error.into()),
                |answer| {
                    self.message.say(&answer, said);
                    self.message.end_turn();
                    None
                },
            ),
        };
        let is_error = error.is_some();
        said.extend(error.map(AgentEvent::Error));
        let goes_on = json::integer(line, "queued_turn_count").is_some_and(|turns| turns > 0);
        if is_error {
            said.push(self.tasks.forget());
        }
        if is_error || !goes_on {
            said.push(AgentEvent::Ended);
            self.is_over = true;
        }
    }
}

/// The blocks of the message in a line; a plain string becomes a block of text.
fn blocks(line: &Value) -> Vec<Value> {
    match line.get("message").and_then(|message| message.get("content")) {
        Some(Value::Array(blocks)) => blocks.clone(),
        Some(Value::String(text)) => vec![serde_json::json!({"type": "text", "text": text})],
        _ => Vec::new(),
    }
}
