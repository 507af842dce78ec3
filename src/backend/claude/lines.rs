//! What Claude Code's lines mean.
//!
//! A message of the model comes twice: as `stream_event`s, word by word, and as `assistant` lines, block by block as each
//! is whole. Text is taken from the first, unless there were none (commands of its own; a model that is asked again
//! without a stream); tool calls from the second, unless there was none.
//!
//! Always: what a sub-agent says stays with the tool call that it works for (`parent_tool_use_id`). A message whose stream
//! broke is void once the next one begins.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::input;
use super::result::{Trouble, call, usage};
use crate::backend::json::{self, items, text};
use crate::backend::{Again, AgentEvent, LineParser, SessionOrigin};
use crate::permission::{PermissionRequest, ToolKind};
use crate::usage::Usage;

/// The input of a tool call that is longer is taken from the whole message only.
const MAX_INPUT_BYTES: usize = 16 * 1024 * 1024;

/// The modes that it may be in, with their names for people.
const MODES: [(&str, &str); 6] = [
    ("default", "Ask before changes"),
    ("acceptEdits", "Edit without asking"),
    ("plan", "Plan only"),
    ("auto", "Decide by itself what to ask"),
    ("dontAsk", "Refuse instead of asking"),
    ("bypassPermissions", "Ask nothing"),
];

/// Reads the lines of a turn.
pub fn parser() -> LineParser {
    let mut lines = Lines::default();
    Box::new(move |line| lines.read(line))
}

#[derive(Default)]
struct Lines {
    /// It has begun to work on the message.
    began: bool,
    model: String,
    message: Message,
    trouble: Trouble,
    /// Sub-agents that work in the background. It goes on when they are done, although it said a result.
    helpers: HashSet<String>,
    /// Tokens that the newest call of the model read.
    read: Option<i64>,
    /// Tokens in its context.
    context: Option<i64>,
}

/// A message of the model, not of a sub-agent's.
#[derive(Default)]
struct Message {
    id: String,
    /// Its words came in a stream.
    streamed: bool,
    /// The stream broke, as far as is known.
    broken: bool,
    /// The tool call that is being streamed: its id, name, and the JSON of its input so far.
    tool: Option<(String, String, String)>,
}

impl Lines {
    fn read(&mut self, line: &str) -> Option<Vec<AgentEvent>> {
        let line = json::parse(line)?;
        let kind = line.get("type")?.as_str()?;
        let mut events = Vec::new();
        let said = &mut events;
        let parent = line.get("parent_tool_use_id").and_then(Value::as_str);
        let content = line.get("message").map_or(&[][..], |message| items(message, "content"));
        match (kind, parent) {
            ("system", _) => self.system(&line, said),
            ("stream_event", None) => self.stream(&line, said),
            ("assistant", None) => self.assistant(&line, content, said),
            ("assistant", Some(parent)) => {
                said.extend(content.iter().filter_map(|block| of_helper(block, parent)));
            }
            ("user", _) => said.extend(content.iter().filter_map(finished)),
            ("control_request", _) => said.extend(permission(&line).map(AgentEvent::Permission)),
            ("rate_limit_event", _) => self.trouble.hear_limit(&line),
            ("result", _) => self.result(&line, said),
            _ => {}
        }
        Some(events)
    }

    fn system(&mut self, line: &Value, said: &mut Vec<AgentEvent>) {
        match text(line, "subtype") {
            "init" if !self.began => {
                self.began = true;
                text(line, "model").clone_into(&mut self.model);
                let id = text(line, "session_id").to_owned();
                said.push(AgentEvent::Session { id, origin: SessionOrigin::New });
                said.push(AgentEvent::Advertised(offers(line)));
            }
            "task_started" if text(line, "task_type") == "local_agent" => {
                self.helpers.insert(text(line, "task_id").to_owned());
            }
            "task_notification" => _ = self.helpers.remove(text(line, "task_id")),
            "api_retry" => {
                self.trouble.hear(line, "error_status");
                said.push(AgentEvent::Status(retrying(line)));
            }
            "status" if text(line, "status") == "compacting" => {
                said.push(AgentEvent::Status("Compacting the conversation…".to_owned()));
            }
            "compact_boundary" => said.push(AgentEvent::Status("The conversation was compacted.".to_owned())),
            _ => {}
        }
    }

    fn stream(&mut self, line: &Value, said: &mut Vec<AgentEvent>) {
        let event = line.get("event").unwrap_or(&Value::Null);
        let within = |key: &str| event.get(key).unwrap_or(&Value::Null);
        match text(event, "type") {
            "message_start" => {
                let message = within("message");
                said.push(self.begin(text(message, "id"), true));
                self.count(message);
            }
            "content_block_start" => {
                let block = within("content_block");
                self.message.tool = (text(block, "type") == "tool_use")
                    .then(|| (text(block, "id").to_owned(), text(block, "name").to_owned(), String::new()));
            }
            "content_block_delta" => {
                let delta = within("delta");
                match text(delta, "type") {
                    "text_delta" => said.push(AgentEvent::Text(text(delta, "text").to_owned())),
                    "thinking_delta" => said.push(AgentEvent::Reasoning(text(delta, "thinking").to_owned())),
                    "input_json_delta" => self.message.grow_input(text(delta, "partial_json")),
                    _ => {}
                }
            }
            "content_block_stop" => said.extend(self.message.streamed_tool()),
            "message_delta" => self.count(event),
            // Newer versions end a broken stream and say so.
            "message_stop" => self.message.broken = line.get("abandoned_blocks").is_some(),
            _ => {}
        }
    }

    /// A message begins. The one before is void when its stream broke.
    fn begin(&mut self, id: &str, streamed: bool) -> AgentEvent {
        let again = if self.message.broken { Again::Yes } else { Again::No };
        self.message = Message { id: id.to_owned(), streamed, broken: streamed, tool: None };
        self.trouble.is_over();
        AgentEvent::MessageBegan(again)
    }

    /// Blocks of a message that are whole.
    fn assistant(&mut self, line: &Value, content: &[Value], said: &mut Vec<AgentEvent>) {
        if line.get("error").is_some_and(|error| !error.is_null()) {
            // Its text stands for the error, which the result says again.
            return self.trouble.hear(line, "api_error_status");
        }
        let message = line.get("message").unwrap_or(&Value::Null);
        if text(message, "id") != self.message.id {
            said.push(self.begin(text(message, "id"), false));
            self.count(message);
        }
        for block in content {
            match text(block, "type") {
                "text" if !self.message.streamed => said.push(AgentEvent::Text(text(block, "text").to_owned())),
                "thinking" if !self.message.streamed => {
                    said.push(AgentEvent::Reasoning(text(block, "thinking").to_owned()));
                }
                _ => {
                    self.message.tool.take_if(|(id, ..)| id == text(block, "id"));
                    said.extend(started(block, None).or_else(|| finished(block)));
                }
            }
        }
    }

    fn result(&mut self, line: &Value, said: &mut Vec<AgentEvent>) {
        if !self.began {
            // It did not even begin, because it cannot: how its process ends says why.
            return;
        }
        let usage = usage(line, &self.model);
        said.push(AgentEvent::Usage(Usage { context_tokens: self.context, ..usage }));
        self.message = Message::default();
        let error = self.trouble.error(line);
        let more = line.get("queued_turn_count").and_then(Value::as_i64).is_some_and(|turns| turns > 0);
        let goes_on = more || !self.helpers.is_empty();
        if error.is_some() || !goes_on {
            said.extend(error.map(AgentEvent::Error));
            said.push(AgentEvent::Ended);
        }
    }

    /// What the newest call of the model read and wrote is what its context holds.
    fn count(&mut self, message: &Value) {
        let usage = call(message.get("usage").unwrap_or(&Value::Null));
        if let Some(read) = usage.input_tokens {
            let cached = usage.cache_read_tokens.unwrap_or(0).saturating_add(usage.cache_write_tokens.unwrap_or(0));
            self.read = Some(read.saturating_add(cached));
        }
        self.context = self.read.map(|read| read.saturating_add(usage.output_tokens.unwrap_or(0)));
    }
}

impl Message {
    fn grow_input(&mut self, more: &str) {
        if let Some((.., input)) = &mut self.tool
            && input.len() + more.len() <= MAX_INPUT_BYTES
        {
            input.push_str(more);
        }
    }

    /// The tool call that was streamed to its end, unless it was said as a whole.
    fn streamed_tool(&mut self) -> Option<AgentEvent> {
        let (id, name, input) = self.tool.take()?;
        let input = json::parse(&input).unwrap_or_else(|| json!({}));
        Some(AgentEvent::ToolStarted { id, name, title: None, input, parent: None })
    }
}

/// A tool call; those that the provider makes itself are none of ours, but are shown like others.
fn started(block: &Value, parent: Option<&str>) -> Option<AgentEvent> {
    matches!(text(block, "type"), "tool_use" | "server_tool_use" | "mcp_tool_use").then(|| AgentEvent::ToolStarted {
        id: text(block, "id").to_owned(),
        name: text(block, "name").to_owned(),
        title: None,
        input: block.get("input").cloned().unwrap_or_else(|| json!({})),
        parent: parent.map(str::to_owned),
    })
}

/// The result of a tool call.
fn finished(block: &Value) -> Option<AgentEvent> {
    if !text(block, "type").ends_with("tool_result") {
        return None;
    }
    let output = output(block.get("content").unwrap_or(&Value::Null));
    let failed = block.get("is_error") == Some(&Value::Bool(true));
    let result =
        if failed { Err(output.as_str().map_or_else(|| output.to_string(), str::to_owned)) } else { Ok(output) };
    Some(AgentEvent::ToolFinished { id: text(block, "tool_use_id").to_owned(), name: None, result })
}

/// What a tool gave: a text if it is only text, however it was cut.
fn output(content: &Value) -> Value {
    let Value::Array(blocks) = content else { return content.clone() };
    let texts: Option<Vec<_>> =
        blocks.iter().map(|block| (text(block, "type") == "text").then(|| text(block, "text"))).collect();
    texts.map_or_else(|| content.clone(), |texts| texts.join("\n").into())
}

/// What a sub-agent says and does. Its words are the progress of the call that it works for.
fn of_helper(block: &Value, parent: &str) -> Option<AgentEvent> {
    match text(block, "type") {
        "text" => Some(AgentEvent::ToolProgress { id: parent.to_owned(), output: text(block, "text").into() }),
        _ => started(block, Some(parent)).or_else(|| finished(block)),
    }
}

/// A request to use a tool.
fn permission(line: &Value) -> Option<PermissionRequest> {
    let request = line.get("request").filter(|request| text(request, "subtype") == "can_use_tool")?;
    let tool = text(request, "tool_name");
    let title = match (text(request, "title"), text(request, "description")) {
        ("", "") => tool,
        ("", description) => description,
        (title, _) => title,
    };
    Some(PermissionRequest {
        request: text(line, "request_id").to_owned(),
        tool_call: text(request, "tool_use_id").to_owned(),
        tool: tool.to_owned(),
        kind: kind_of(tool),
        title: title.to_owned(),
        input: request.get("input").cloned().unwrap_or_else(|| json!({})),
        options: input::options(),
    })
}

fn kind_of(tool: &str) -> ToolKind {
    match tool {
        "Read" | "NotebookRead" => ToolKind::Read,
        "Edit" | "MultiEdit" | "NotebookEdit" | "Write" => ToolKind::Edit,
        "Glob" | "Grep" | "LS" | "ToolSearch" => ToolKind::Search,
        "Bash" | "BashOutput" | "KillShell" | "Monitor" => ToolKind::Execute,
        "WebFetch" | "WebSearch" => ToolKind::Fetch,
        "Agent" | "Task" => ToolKind::Think,
        "EnterPlanMode" | "ExitPlanMode" => ToolKind::SwitchMode,
        _ => ToolKind::Other,
    }
}

/// The modes and commands that it has.
fn offers(init: &Value) -> Value {
    let modes = MODES.map(|(id, name)| json!({"id": id, "name": name}));
    let commands = items(init, "slash_commands").iter().filter_map(Value::as_str);
    json!({
        "modes": {"currentModeId": text(init, "permissionMode"), "availableModes": modes},
        "commands": commands.map(|name| json!({"name": name})).collect::<Vec<_>>(),
    })
}

/// Why it tries again, and when.
fn retrying(line: &Value) -> String {
    let number = |key: &str| json::integer(line, key).unwrap_or(0);
    let why = match (text(line, "error"), number("error_status")) {
        ("rate_limit", _) => "The provider's rate limit is reached".to_owned(),
        ("overloaded", _) => "The provider is overloaded".to_owned(),
        (_, 0) => "The connection to the model broke".to_owned(),
        (_, status) => format!("The provider answered with status {status}"),
    };
    let seconds = (json::number(line, "retry_delay_ms").unwrap_or(0.0) / 1000.0).ceil();
    format!("{why}. Retrying in {seconds} s ({} of {})…", number("attempt"), number("max_retries"))
}
