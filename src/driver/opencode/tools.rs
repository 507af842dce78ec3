//! The tool calls of a turn: converts the states of a part into the start, progress and end of a call.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::watch::text;
use crate::agent_event::AgentEvent;
use crate::permission::{OptionKind, PermissionOption, PermissionRequest, ToolKind};

#[derive(Debug, Default)]
struct Call {
    id: String,
    name: String,
    /// The input of the last start event.
    input: Option<Value>,
    output_bytes: usize,
    is_over: bool,
}

/// The calls of a turn, by the part of each.
#[derive(Debug, Default)]
pub(super) struct Tools {
    calls: HashMap<String, Call>,
    /// Their parts, by message and the provider's id, which is unique only within a message.
    parts: HashMap<(String, String), String>,
    /// The provider's ids in use, with the part of each.
    taken: HashMap<String, String>,
    /// The call that each sub-agent works for, by the sub-agent's session.
    tasks: HashMap<String, String>,
}

impl Tools {
    /// The call that a sub-agent's session works for.
    pub(super) fn task_of(&self, session: &str) -> Option<&str> {
        self.tasks.get(session).map(String::as_str)
    }

    /// Handles the current state of a tool part. `parent` is the call that its session works for.
    pub(super) fn stands(&mut self, part: &Value, parent: Option<String>) -> Vec<AgentEvent> {
        let mut events = Vec::new();
        let (Some(part_id), Some(state)) = (text(part, "/id"), part.get("state")) else { return events };
        self.announce(part_id, part);
        let Some(call) = self.calls.get_mut(part_id).filter(|call| !call.is_over) else { return events };
        if let Some(session) = text(state, "/metadata/sessionId") {
            self.tasks.insert(session.to_owned(), call.id.clone());
        }
        let status = text(state, "/status");
        if matches!(status, Some("running" | "completed" | "error")) {
            let input = state.get("input").cloned().unwrap_or_else(|| json!({}));
            events.extend(call.start(input, parent));
        }
        match status {
            Some("running") => {
                let output = text(state, "/metadata/output").unwrap_or_default();
                if output.len() > call.output_bytes {
                    call.output_bytes = output.len();
                    events.push(AgentEvent::ToolProgress { id: call.id.clone(), output: output.into() });
                }
            }
            Some("completed") => {
                let output = text(state, "/output").unwrap_or_default().into();
                events.push(call.finish(Ok(output)));
                let files = state.get("attachments").and_then(Value::as_array).into_iter().flatten();
                events.extend(files.filter_map(file));
            }
            Some("error") => {
                let error = text(state, "/error").unwrap_or("The tool failed.").to_owned();
                events.push(call.finish(Err(error)));
            }
            _ => {}
        }
        events
    }

    /// Handles a permission request: the call that waits for it is announced first.
    pub(super) fn asked(&mut self, asked: &Value, parent: Option<String>) -> Vec<AgentEvent> {
        let Some(request) = text(asked, "/id") else { return Vec::new() };
        let word = text(asked, "/permission").unwrap_or_default();
        let input = asked.get("metadata").cloned().unwrap_or_else(|| json!({}));
        let message = text(asked, "/tool/messageID").unwrap_or_default();
        let named = text(asked, "/tool/callID").unwrap_or_default();
        let part = self.parts.get(&(message.to_owned(), named.to_owned()));
        let call = part.and_then(|part| self.calls.get_mut(part));
        let mut events = Vec::new();
        let (tool_call, tool) = match call {
            Some(call) => {
                if call.input.is_none() {
                    events.extend(call.start(input.clone(), parent));
                }
                (call.id.clone(), call.name.clone())
            }
            None => (named.to_owned(), word.to_owned()),
        };
        let patterns = asked.get("patterns").and_then(Value::as_array).into_iter().flatten();
        let patterns: Vec<_> = patterns.filter_map(Value::as_str).collect();
        let title = if patterns.is_empty() { word.to_owned() } else { format!("{word}: {}", patterns.join(", ")) };
        let (request, kind) = (request.to_owned(), kind_of(word));
        let options = OPTIONS
            .map(|(id, name, kind)| PermissionOption { id: id.to_owned(), name: name.to_owned(), kind })
            .to_vec();
        let request = PermissionRequest { request, tool_call, tool, kind, title, input, options };
        events.push(AgentEvent::Permission(request));
        events
    }

    fn announce(&mut self, part_id: &str, part: &Value) {
        if self.calls.contains_key(part_id) {
            return;
        }
        let named = text(part, "/callID").filter(|named| !named.is_empty()).unwrap_or(part_id);
        let message = text(part, "/messageID").unwrap_or_default();
        // Some providers restart their numbering in each answer.
        let is_free = self.taken.insert(named.to_owned(), part_id.to_owned()).is_none();
        let id = if is_free { named } else { part_id }.to_owned();
        self.parts.insert((message.to_owned(), named.to_owned()), part_id.to_owned());
        let name = text(part, "/tool").unwrap_or_default().to_owned();
        self.calls.insert(part_id.to_owned(), Call { id, name, ..Call::default() });
    }
}

impl Call {
    fn start(&mut self, input: Value, parent: Option<String>) -> Option<AgentEvent> {
        if self.input.as_ref() == Some(&input) {
            return None;
        }
        self.input = Some(input.clone());
        Some(AgentEvent::ToolStarted { id: self.id.clone(), name: self.name.clone(), title: None, input, parent })
    }

    fn finish(&mut self, result: Result<Value, String>) -> AgentEvent {
        self.is_over = true;
        self.input = None;
        AgentEvent::ToolFinished { id: self.id.clone(), name: Some(self.name.clone()), result }
    }
}

/// A file that a message or a tool created.
pub(super) fn file(part: &Value) -> Option<AgentEvent> {
    let (media_type, url) = (text(part, "/mime")?.to_owned(), text(part, "/url")?.to_owned());
    Some(AgentEvent::File { media_type, url })
}

/// The answers that the server accepts. `always` covers similar requests for as long as the server runs.
const OPTIONS: [(&str, &str, OptionKind); 3] = [
    ("once", "Allow once", OptionKind::AllowOnce),
    ("always", "Always allow", OptionKind::AllowAlways),
    ("reject", "Reject", OptionKind::RejectOnce),
];

fn kind_of(permission: &str) -> ToolKind {
    match permission {
        "bash" => ToolKind::Execute,
        "edit" | "write" | "patch" => ToolKind::Edit,
        "read" => ToolKind::Read,
        "glob" | "grep" | "list" | "codesearch" => ToolKind::Search,
        "webfetch" | "websearch" => ToolKind::Fetch,
        _ => ToolKind::Other,
    }
}
