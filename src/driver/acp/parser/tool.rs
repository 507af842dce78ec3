//! A tool call of an ACP agent, assembled from its updates.
//!
//! Always: a field that an update omits keeps its value. A tool keeps the name under which it was announced.

use serde_json::{Value, json};

use crate::agent_event::AgentEvent;
use crate::permission::ToolKind;

/// A longer title is cut off when it serves as the name.
const NAME_CHARS: usize = 80;
/// The name of a tool that the agent does not name.
const UNNAMED: &str = "tool";

/// The state of a tool call.
#[derive(Default)]
pub(super) struct Tool {
    name: Option<String>,
    title: Option<String>,
    kind: ToolKind,
    /// The call of the sub-agent that uses it.
    parent: Option<String>,
    input: Option<Value>,
    content: Option<Value>,
    raw_output: Option<Value>,
    status: Option<String>,
    /// The name, the title and the input of the announcement.
    announced: Option<(String, Option<String>, Value)>,
    /// The agent reported its beginning.
    has_begun: bool,
    is_finished: bool,
    has_news: bool,
}

impl Tool {
    /// The agent reports that a call begins. If this one is finished, or calls have no ids, it is a new one.
    pub(super) fn begin(&mut self, id: &str) {
        if self.has_begun && (self.is_finished || id.is_empty()) {
            *self = Self::default();
        }
        self.has_begun = true;
    }

    /// A permission request for a finished call is about a new one with the same id.
    pub(super) fn begin_if_finished(&mut self) {
        if self.is_finished {
            *self = Self::default();
        }
    }

    /// Applies an update.
    pub(super) fn update(&mut self, update: &Value, parent: Option<&str>) {
        self.parent = self.parent.take().or_else(|| parent.map(str::to_owned));
        let text = |key: &str| update[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        self.name = self.name.take().or_else(|| text("name")).or_else(|| named_in(&update["_meta"]));
        self.title = text("title").or(self.title.take());
        // A permission request reports the kind less precisely than the call.
        if let Ok(kind) = serde_json::from_value(update["kind"].clone())
            && kind != ToolKind::Other
        {
            self.kind = kind;
        }
        if let Some(input) = update.get("rawInput").filter(|input| !is_empty(input)) {
            self.input = Some(input.clone());
        }
        if let Some(content) = update.get("content").filter(|content| !is_empty(content)) {
            self.has_news |= self.content.as_ref() != Some(content);
            self.content = Some(content.clone());
        }
        if let Some(output) = update.get("rawOutput").filter(|output| !output.is_null()) {
            self.raw_output = Some(output.clone());
        }
        if !self.is_finished {
            self.status = text("status").or(self.status.take());
        }
    }

    /// Applies a permission request. Its input and title may be less complete than what is known.
    pub(super) fn ask(&mut self, call: &Value) {
        let (known, title) = (self.input.take(), self.title.take());
        self.update(call, None);
        self.title = title.or(self.title.take());
        if let (Some(Value::Object(known)), Some(Value::Object(input))) = (&known, &mut self.input) {
            for (key, value) in known {
                input.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        self.input = self.input.take().or(known);
    }

    /// Emits what is new. The status of a cancelled tool is not reliable: its output becomes the error.
    pub(super) fn tell(&mut self, id: &str, is_cancelled: bool, events: &mut Vec<AgentEvent>) {
        // Some agents report the completion first, and the output later.
        let is_over = self.is_over();
        let is_late = std::mem::replace(&mut self.is_finished, is_over);
        if !is_late {
            self.announce(id, events);
        } else if self.content.is_none() && self.raw_output.is_none() {
            return;
        }
        let id = id.to_owned();
        match self.status.as_deref() {
            Some(status @ ("completed" | "failed")) => {
                let output = self.output();
                let result = if status == "completed" && !is_cancelled { Ok(output) } else { Err(failure(&output)) };
                events.push(AgentEvent::ToolFinished { id, name: None, result });
                (self.content, self.raw_output, self.input) = (None, None, None);
            }
            _ if self.has_news => events.push(AgentEvent::ToolProgress { id, output: self.output() }),
            _ => {}
        }
        self.has_news = false;
    }

    fn is_over(&self) -> bool {
        self.is_finished || matches!(self.status.as_deref(), Some("completed" | "failed"))
    }

    /// Announces it, or its new input or title.
    pub(super) fn announce(&mut self, id: &str, events: &mut Vec<AgentEvent>) {
        let input = self.input();
        let title = self.title.clone();
        let name = match &self.announced {
            Some((_, known_title, known)) if (known, known_title) == (&input, &title) => return,
            // Without an id it would be taken for another call.
            Some(_) if id.is_empty() => return,
            Some((name, ..)) => name.clone(),
            None => self.name(),
        };
        self.announced = Some((name.clone(), title.clone(), input.clone()));
        let (id, parent) = (id.to_owned(), self.parent.clone());
        events.push(AgentEvent::ToolStarted { id, name, title, input, parent });
    }

    /// Its name: as the agent names it, else its title if that is one word, else its kind.
    pub(super) fn name(&self) -> String {
        if let Some((name, ..)) = &self.announced {
            return name.clone();
        }
        let word = || self.title.clone().filter(|title| !title.contains(char::is_whitespace));
        let kind = || (self.kind != ToolKind::Other).then(|| self.kind.as_str().to_owned());
        let title = || Some(self.title.as_ref()?.chars().take(NAME_CHARS).collect());
        self.name.clone().or_else(word).or_else(kind).or_else(title).unwrap_or_else(|| UNNAMED.to_owned())
    }

    pub(super) fn kind(&self) -> ToolKind {
        self.kind
    }

    pub(super) fn title(&self) -> String {
        self.title.clone().unwrap_or_else(|| self.name())
    }

    pub(super) fn input(&self) -> Value {
        self.input.clone().unwrap_or_else(|| json!({}))
    }

    /// Its output: text as a string, anything else as JSON.
    fn output(&self) -> Value {
        let Some(content) = self.content.as_ref().and_then(Value::as_array) else {
            return self.raw_output.clone().unwrap_or(Value::Null);
        };
        let texts: Option<Vec<&str>> = content.iter().map(|item| item["content"]["text"].as_str()).collect();
        match texts {
            Some(texts) => Value::String(texts.join("\n")),
            None => Value::Array(content.iter().map(rendered).collect()),
        }
    }
}

/// A piece of output: `{type: "text" | "image" | "diff" | "terminal" | …, …}`.
fn rendered(item: &Value) -> Value {
    match item["type"].as_str() {
        Some("content") => item["content"].clone(),
        _ => item.clone(),
    }
}

/// Agents put the name of a tool in vendor-specific places: `_meta.….toolName`.
fn named_in(meta: &Value) -> Option<String> {
    let makers = meta.as_object()?.values();
    let places = makers.flat_map(|maker| [&maker["toolName"], &maker["toolCall"]["toolName"]]);
    places.filter_map(Value::as_str).find(|name| !name.is_empty()).map(str::to_owned)
}

fn failure(output: &Value) -> String {
    match output {
        Value::String(text) if !text.is_empty() => text.clone(),
        Value::Null | Value::String(_) => "The tool failed.".to_owned(),
        output => output["error"].as_str().map_or_else(|| output.to_string(), str::to_owned),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}
