//! Parses the lines of a turn: the agent's ACP messages as they came, and the bridge's own lines ([`Own`]).
//!
//! Always: unknown messages are skipped. A tool is announced before any other event about it, even if the agent asks
//! for permission first or announces nothing.
//! Proof: `tests/transcripts/acp`.

pub(super) mod error;
mod message;
mod tool;

use std::collections::HashMap;

use serde_json::{Map, Value};

use self::message::Message;
use self::tool::Tool;
use super::wire::Own;
use crate::agent_event::{AgentEvent, LineParser};
use crate::chunk::Notice;
use crate::clock::Timestamp;
use crate::driver::json;
use crate::failure::{AgentError, ErrorClass};
use crate::permission::{OptionKind, PermissionOption, PermissionRequest};
use crate::usage::Usage;

/// Agents send long texts with their commands; the beginning says what a command is for.
const DESCRIPTION_CHARS: usize = 200;

/// Maximum output of a sub-agent shown while it works: its result is in the result of its call.
const MAX_HELPER_BYTES: usize = 256 * 1024;

/// Parses one turn.
pub fn parser() -> LineParser {
    let mut reader = Reader::default();
    Box::new(move |line| {
        let message = json::parse(line)?;
        let mut events = Vec::new();
        reader.read(&message, &mut events)?;
        Some(events)
    })
}

/// The state of a turn.
#[derive(Default)]
struct Reader {
    /// The model's current message.
    message: Message,
    tools: HashMap<String, Tool>,
    /// The output of sub-agents so far, by the call that each works for.
    helpers: HashMap<String, String>,
    /// How often each id of a permission request was used.
    asked: HashMap<String, usize>,
    /// What the agent offers, as last reported.
    advertised: Map<String, Value>,
    /// The cost of the session before the turn.
    cost_before: Option<f64>,
    /// The agent was told to stop.
    is_cancelling: bool,
    has_ended: bool,
}

impl Reader {
    /// None if the line belongs to no known protocol.
    fn read(&mut self, message: &Value, events: &mut Vec<AgentEvent>) -> Option<()> {
        if message.get("mainstay").is_some() {
            let own = serde_json::from_value(message.clone()).ok()?;
            self.own(own, events);
            return Some(());
        }
        match message.get("method").and_then(Value::as_str) {
            Some("session/update") => self.update(&message["params"]["update"], events),
            Some("session/request_permission") => self.permission(message, events),
            Some(_) => {}
            None => self.answer(message, events)?,
        }
        Some(())
    }

    fn own(&mut self, own: Own, events: &mut Vec<AgentEvent>) {
        match own {
            Own::Session { id, origin, cost_before, modes, config_options } => {
                self.cost_before = cost_before;
                events.push(AgentEvent::Session { id, origin });
                let modes = modes.map(|modes| ("modes", modes));
                self.advertise(modes.into_iter().chain(config_options.map(|it| ("config_options", it))), events);
            }
            Own::Cancelling => self.is_cancelling = true,
            Own::Error { class, message, retry_at } => {
                let retry_at = retry_at.map(Timestamp::from_millis);
                events.push(AgentEvent::Error(AgentError { message, class, retry_at }));
            }
            Own::Notice { text } => events.push(AgentEvent::Notice(Notice::warning(text))),
            Own::Ended | Own::Left => self.end(events),
            Own::Ready => {}
        }
    }

    fn end(&mut self, events: &mut Vec<AgentEvent>) {
        if !std::mem::replace(&mut self.has_ended, true) {
            events.push(AgentEvent::Ended);
        }
    }

    fn update(&mut self, update: &Value, events: &mut Vec<AgentEvent>) {
        match update["sessionUpdate"].as_str().unwrap_or_default() {
            kind @ ("agent_message_chunk" | "agent_thought_chunk") => self.chunk(kind, update, events),
            kind @ ("tool_call" | "tool_call_update") => self.tool(kind == "tool_call", update, events),
            "plan" if update["entries"].is_array() => events.push(AgentEvent::Plan(update["entries"].clone())),
            "usage_update" => events.push(AgentEvent::Usage(self.usage(update))),
            "session_info_update" => {
                if let Some(title) = update["title"].as_str().filter(|title| !title.trim().is_empty()) {
                    events.push(AgentEvent::Title(title.to_owned()));
                }
            }
            "current_mode_update" => {
                let known = self.advertised.get("modes").filter(|modes| modes.is_object());
                let mut modes = known.cloned().unwrap_or_else(|| serde_json::json!({}));
                modes["currentModeId"] = update["currentModeId"].clone();
                self.advertise([("modes", modes)], events);
            }
            "config_option_update" => {
                self.advertise([("config_options", update["configOptions"].clone())], events);
            }
            "available_commands_update" => {
                let commands = update["availableCommands"].as_array().into_iter().flatten().map(command).collect();
                self.advertise([("commands", Value::Array(commands))], events);
            }
            _ => {}
        }
    }

    fn chunk(&mut self, kind: &str, update: &Value, events: &mut Vec<AgentEvent>) {
        let content = &update["content"];
        // A sub-agent's words are the progress of the call that it works for, and not part of the answer.
        if let Some(parent) = parent_of(update).filter(|parent| self.tools.contains_key(*parent)) {
            let said = self.helpers.entry(parent.to_owned()).or_default();
            if let Some(text) = content["text"].as_str().filter(|_| kind == "agent_message_chunk") {
                let room = MAX_HELPER_BYTES.saturating_sub(said.len());
                said.push_str(&text[..text.floor_char_boundary(room)]);
                events.push(AgentEvent::ToolProgress { id: parent.to_owned(), output: said.as_str().into() });
            }
            return;
        }
        let said = match content["text"].as_str().filter(|_| content["type"] == "text") {
            Some(text) if kind == "agent_thought_chunk" => AgentEvent::Reasoning(text.to_owned()),
            Some(text) => AgentEvent::Text(text.to_owned()),
            None => match said(content) {
                Some(said) => said,
                None => return,
            },
        };
        self.message.add(update["messageId"].as_str(), said, events);
    }

    fn tool(&mut self, is_call: bool, update: &Value, events: &mut Vec<AgentEvent>) {
        let id = update["toolCallId"].as_str().unwrap_or_default();
        let tool = self.tools.entry(id.to_owned()).or_default();
        if is_call {
            tool.begin(id);
        }
        tool.update(update, parent_of(update));
        tool.tell(id, self.is_cancelling, events);
    }

    fn permission(&mut self, message: &Value, events: &mut Vec<AgentEvent>) {
        let params = &message["params"];
        let options = options(params);
        // Without options it cannot be decided, so it was answered at once.
        if options.is_empty() {
            return;
        }
        let call = &params["toolCall"];
        let id = call["toolCallId"].as_str().unwrap_or_default();
        let tool = self.tools.entry(id.to_owned()).or_default();
        tool.begin_if_finished();
        tool.ask(call);
        // A question without a call id has no further updates.
        if !id.is_empty() {
            tool.announce(id, events);
        }
        let request = message["id"].to_string();
        // Some agents reuse request ids. White space, which means nothing in JSON, tells the requests apart.
        let used = self.asked.entry(request.clone()).or_default();
        let request = format!("{request}{}", " ".repeat(*used));
        *used += 1;
        events.push(AgentEvent::Permission(PermissionRequest {
            request,
            tool_call: id.to_owned(),
            tool: tool.name(),
            kind: tool.kind(),
            title: call["title"].as_str().map_or_else(|| tool.title(), str::to_owned),
            input: tool.input(),
            options,
        }));
    }

    /// Handles the answer to the prompt.
    fn answer(&mut self, message: &Value, events: &mut Vec<AgentEvent>) -> Option<()> {
        if let Some(error) = message.get("error") {
            events.push(AgentEvent::Error(error::read(error)));
            self.end(events);
            return Some(());
        }
        let result = message.get("result")?;
        let Some(reason) = result["stopReason"].as_str() else {
            if !self.is_cancelling {
                let message =
                    "The agent's answer to the prompt is none: it does not say why the turn ended.".to_owned();
                let class = Some(ErrorClass::Protocol);
                events.push(AgentEvent::Error(AgentError { message, class, retry_at: None }));
            }
            self.end(events);
            return Some(());
        };
        let tokens = |key: &str| result["usage"][key].as_i64();
        let usage = Usage {
            input_tokens: tokens("inputTokens"),
            output_tokens: tokens("outputTokens"),
            cache_read_tokens: tokens("cachedReadTokens"),
            cache_write_tokens: tokens("cachedWriteTokens"),
            reasoning_tokens: tokens("thoughtTokens"),
            ..Usage::default()
        };
        if usage != Usage::default() {
            events.push(AgentEvent::Usage(usage));
        }
        // A cancelled turn ends for that reason, whatever the agent calls it.
        let failure = if self.is_cancelling { None } else { error::of_stop_reason(reason) };
        events.extend(failure.map(AgentEvent::Error));
        self.end(events);
        Some(())
    }

    /// The reported cost is that of the whole session.
    fn usage(&self, update: &Value) -> Usage {
        let cost = update["cost"]["amount"].as_f64().filter(|_| update["cost"]["currency"] == "USD");
        Usage {
            context_tokens: update["used"].as_i64(),
            context_size: update["size"].as_i64(),
            cost_usd: cost.zip(self.cost_before).map(|(cost, before)| (cost - before).max(0.0)),
            ..Usage::default()
        }
    }

    fn advertise(&mut self, news: impl IntoIterator<Item = (&'static str, Value)>, events: &mut Vec<AgentEvent>) {
        let before = self.advertised.clone();
        self.advertised.extend(news.into_iter().map(|(key, value)| (key.to_owned(), value)));
        if self.advertised != before {
            events.push(AgentEvent::Advertised(Value::Object(self.advertised.clone())));
        }
    }
}

/// The tool call for which a sub-agent works. Agents put it in vendor-specific places.
fn parent_of(update: &Value) -> Option<&str> {
    let makers = update["_meta"].as_object()?.values();
    makers.filter_map(|maker| maker["parentToolUseId"].as_str()).find(|parent| !parent.is_empty())
}

/// The options of a permission request whose kind is known.
pub(super) fn options(params: &Value) -> Vec<PermissionOption> {
    let offered = params["options"].as_array().into_iter().flatten();
    let known = offered.filter_map(|option| {
        let kind: OptionKind = serde_json::from_value(option["kind"].clone()).ok()?;
        let id = option["optionId"].as_str()?.to_owned();
        let name = option["name"].as_str().unwrap_or(&id).to_owned();
        Some(PermissionOption { id, name, kind })
    });
    known.collect()
}

/// Content that is not plain text.
fn said(content: &Value) -> Option<AgentEvent> {
    let text = |key: &str| content[key].as_str();
    let data = |media_type: &str, data: &str| AgentEvent::File {
        media_type: media_type.to_owned(),
        url: format!("data:{media_type};base64,{data}"),
    };
    match text("type")? {
        "image" | "audio" => Some(data(text("mimeType")?, text("data")?)),
        "resource_link" => {
            let title = text("title").or(text("name")).map(str::to_owned);
            Some(AgentEvent::Source { url: text("uri")?.to_owned(), title })
        }
        "resource" => {
            let resource = &content["resource"];
            match (resource["text"].as_str(), resource["blob"].as_str()) {
                (Some(text), _) => Some(AgentEvent::Text(text.to_owned())),
                (None, Some(blob)) => {
                    Some(data(resource["mimeType"].as_str().unwrap_or("application/octet-stream"), blob))
                }
                (None, None) => None,
            }
        }
        _ => None,
    }
}

/// A command that the agent offers, shortened.
fn command(command: &Value) -> Value {
    let description = command["description"].as_str().unwrap_or_default();
    let mut short = serde_json::json!({
        "name": command["name"],
        "description": description.chars().take(DESCRIPTION_CHARS).collect::<String>(),
    });
    if let Some(hint) = command["input"]["hint"].as_str() {
        short["hint"] = hint.into();
    }
    short
}
