//! A message of the model.
//!
//! It arrives twice: as `stream_event`s, word by word, and as `assistant` lines, block by block once each is complete.
//! Text is taken from the stream, and from the lines what the stream left out; tool calls come from whichever completes
//! them first.
//!
//! Always: each block of text has a number of its own, so that it can be withdrawn. A message whose stream broke is
//! withdrawn when the next one begins.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::result::{Trouble, call};
use crate::agent_event::{Again, AgentEvent};
use crate::driver::json::{self, text};

/// A longer input of a tool call is taken from the complete message only.
const MAX_INPUT_BYTES: usize = 16 * 1024 * 1024;

/// How much of a block is kept to find what its stream left out.
const MAX_WORDS_BYTES: usize = 16 * 1024 * 1024;

/// The newest message of the model, not of a sub-agent.
#[derive(Default)]
pub(super) struct Message {
    id: String,
    /// Whether the stream broke, as far as is known.
    broken: bool,
    /// Its blocks of text and thinking.
    blocks: Vec<u64>,
    /// Blocks that were streamed and have not arrived as a whole yet.
    streamed: Vec<Streamed>,
    /// Whether the newest of them is still being streamed.
    is_open: bool,
    /// The tool call that is being streamed: its id, its name, and the JSON of its input so far.
    tool: Option<(String, String, String)>,
    /// Tool calls that were streamed to their end and have not arrived as a whole yet.
    streamed_tools: Vec<String>,
    /// How many blocks the turn had so far.
    count: u64,
    /// Blocks of text since the turn began, or since the last result.
    said: HashSet<u64>,
    /// Input tokens of the model's newest call.
    read: Option<i64>,
    /// Tokens in its context.
    context: Option<i64>,
}

/// A block of text or thinking that was streamed.
struct Streamed {
    number: u64,
    kind: Words,
    text: String,
    /// The block is longer than the line of a whole block may be, so there is nothing to compare it with.
    is_too_long: bool,
}

impl Streamed {
    fn keep(&mut self, words: &str) {
        self.is_too_long |= self.text.len() + words.len() > MAX_WORDS_BYTES;
        if self.is_too_long {
            self.text = String::new();
        } else {
            self.text.push_str(words);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Words {
    Text,
    Thinking,
}

impl Words {
    fn event(self, words: &str) -> AgentEvent {
        match self {
            Self::Text => AgentEvent::Text(words.to_owned()),
            Self::Thinking => AgentEvent::Reasoning(words.to_owned()),
        }
    }

    /// The kind and text of a complete block.
    fn of(block: &Value) -> Option<(Self, &str)> {
        match text(block, "type") {
            "text" => Some((Self::Text, text(block, "text"))),
            "thinking" => Some((Self::Thinking, text(block, "thinking"))),
            _ => None,
        }
    }
}

impl Message {
    /// Tokens in the context of the model.
    pub(super) fn context(&self) -> Option<i64> {
        self.context
    }

    /// Handles a `stream_event`.
    pub(super) fn stream(&mut self, line: &Value, trouble: &mut Trouble, said: &mut Vec<AgentEvent>) {
        let event = line.get("event").unwrap_or(&Value::Null);
        let within = |key: &str| event.get(key).unwrap_or(&Value::Null);
        match text(event, "type") {
            "message_start" => {
                let message = within("message");
                self.begin(text(message, "id"), true, trouble, said);
                self.count(message);
            }
            "content_block_start" => {
                let block = within("content_block");
                self.is_open = false;
                self.tool = (text(block, "type") == "tool_use")
                    .then(|| (text(block, "id").to_owned(), text(block, "name").to_owned(), String::new()));
                if let Some((kind, words)) = Words::of(block) {
                    self.grow(kind, words, said);
                }
            }
            "content_block_delta" => {
                let delta = within("delta");
                match text(delta, "type") {
                    "text_delta" => self.grow(Words::Text, text(delta, "text"), said),
                    "thinking_delta" => self.grow(Words::Thinking, text(delta, "thinking"), said),
                    "input_json_delta" => self.grow_input(text(delta, "partial_json")),
                    _ => {}
                }
            }
            "content_block_stop" => {
                self.is_open = false;
                said.extend(self.streamed_tool());
            }
            "message_delta" => self.count(event),
            // Newer versions end a broken stream and say so.
            "message_stop" => self.broken = line.get("abandoned_blocks").is_some(),
            _ => {}
        }
    }

    /// Handles an `assistant` line: complete blocks. Returns the numbers of its blocks of text and thinking.
    pub(super) fn whole(
        &mut self,
        line: &Value,
        blocks: &[Value],
        trouble: &mut Trouble,
        said: &mut Vec<AgentEvent>,
    ) -> Vec<u64> {
        let message = line.get("message").unwrap_or(&Value::Null);
        if text(message, "id") != self.id {
            self.begin(text(message, "id"), false, trouble, said);
            self.count(message);
        }
        let mut numbers = Vec::new();
        for block in blocks {
            if let Some((kind, words)) = Words::of(block) {
                numbers.extend(self.words(kind, words, said));
            } else if let Some(known) = self.streamed_tools.iter().position(|id| id == text(block, "id")) {
                self.streamed_tools.remove(known);
            } else {
                self.tool.take_if(|(id, ..)| id == text(block, "id"));
                said.extend(started(block, None).or_else(|| finished(block)));
            }
        }
        numbers
    }

    /// Emits text outside any message, such as the output of a command.
    pub(super) fn say(&mut self, words: &str, said: &mut Vec<AgentEvent>) {
        if !words.trim().is_empty() {
            said.push(AgentEvent::MessageBegan(Again::No));
            self.add(Words::Text, words, said);
        }
    }

    /// Removes withdrawn blocks.
    pub(super) fn forget(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.said.remove(number);
            self.blocks.retain(|block| block != number);
        }
    }

    /// Handles a result. Returns whether there was any text since the last one.
    pub(super) fn end_turn(&mut self) -> bool {
        let has_spoken = !self.said.is_empty();
        *self = Self { count: self.count, read: self.read, context: self.context, ..Self::default() };
        has_spoken
    }

    fn begin(&mut self, id: &str, streamed: bool, trouble: &mut Trouble, said: &mut Vec<AgentEvent>) {
        let blocks = std::mem::take(&mut self.blocks);
        if self.broken && !blocks.is_empty() {
            self.forget(&blocks);
            said.push(AgentEvent::Withdrawn(blocks));
        }
        id.clone_into(&mut self.id);
        self.broken = streamed;
        self.streamed.clear();
        self.streamed_tools.clear();
        (self.is_open, self.tool) = (false, None);
        trouble.is_over();
        said.push(AgentEvent::MessageBegan(Again::No));
    }

    /// Begins a block.
    fn add(&mut self, kind: Words, words: &str, said: &mut Vec<AgentEvent>) -> u64 {
        self.count += 1;
        self.blocks.push(self.count);
        said.push(AgentEvent::BlockBegan(self.count));
        self.note(kind, self.count, words);
        said.push(kind.event(words));
        self.count
    }

    fn note(&mut self, kind: Words, number: u64, words: &str) {
        if kind == Words::Text && !words.trim().is_empty() {
            self.said.insert(number);
        }
    }

    /// Handles more text in the stream.
    fn grow(&mut self, kind: Words, words: &str, said: &mut Vec<AgentEvent>) {
        if words.is_empty() {
            return;
        }
        if let Some(open) = self.streamed.last_mut().filter(|open| self.is_open && open.kind == kind) {
            open.keep(words);
            let number = open.number;
            self.note(kind, number, words);
            return said.push(kind.event(words));
        }
        let number = self.add(kind, words, said);
        let mut streamed = Streamed { number, kind, text: String::new(), is_too_long: false };
        streamed.keep(words);
        self.streamed.push(streamed);
        self.is_open = true;
    }

    /// Handles a complete block: emits it, or only what its stream left out.
    fn words(&mut self, kind: Words, words: &str, said: &mut Vec<AgentEvent>) -> Option<u64> {
        let Some(known) = self.streamed.iter().position(|streamed| streamed.kind == kind) else {
            return (!words.is_empty()).then(|| self.add(kind, words, said));
        };
        let is_newest = known + 1 == self.streamed.len();
        let streamed = self.streamed.remove(known);
        if is_newest
            && !streamed.is_too_long
            && let Some(rest) = words.strip_prefix(streamed.text.as_str()).filter(|rest| !rest.is_empty())
        {
            self.note(kind, streamed.number, rest);
            said.push(kind.event(rest));
        }
        Some(streamed.number)
    }

    fn grow_input(&mut self, more: &str) {
        if let Some((.., input)) = &mut self.tool
            && input.len() + more.len() <= MAX_INPUT_BYTES
        {
            input.push_str(more);
        }
    }

    /// The tool call whose stream has ended, unless it has arrived as a whole.
    fn streamed_tool(&mut self) -> Option<AgentEvent> {
        let (id, name, input) = self.tool.take()?;
        let input = json::parse(&input).unwrap_or_else(|| json!({}));
        self.streamed_tools.push(id.clone());
        Some(AgentEvent::ToolStarted { id, name, title: None, input, parent: None })
    }

    /// Updates the context: it holds what the model's newest call read and wrote.
    fn count(&mut self, message: &Value) {
        let usage = call(message.get("usage").unwrap_or(&Value::Null));
        if let Some(read) = usage.input_tokens {
            let cached = usage.cache_read_tokens.unwrap_or(0).saturating_add(usage.cache_write_tokens.unwrap_or(0));
            self.read = Some(read.saturating_add(cached));
        }
        self.context = self.read.map(|read| read.saturating_add(usage.output_tokens.unwrap_or(0)));
    }
}

/// A tool call. Calls that the provider executes are shown like the agent's own.
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
pub(super) fn finished(block: &Value) -> Option<AgentEvent> {
    if !text(block, "type").ends_with("tool_result") {
        return None;
    }
    let output = output(block.get("content").unwrap_or(&Value::Null));
    let failed = block.get("is_error") == Some(&Value::Bool(true));
    let result =
        if failed { Err(output.as_str().map_or_else(|| output.to_string(), str::to_owned)) } else { Ok(output) };
    Some(AgentEvent::ToolFinished { id: text(block, "tool_use_id").to_owned(), name: None, result })
}

/// The output of a tool: a string if it consists only of text, however that is split.
fn output(content: &Value) -> Value {
    let Value::Array(blocks) = content else { return content.clone() };
    let texts: Option<Vec<_>> =
        blocks.iter().map(|block| (text(block, "type") == "text").then(|| text(block, "text"))).collect();
    texts.map_or_else(|| content.clone(), |texts| texts.join("\n").into())
}

/// What a sub-agent says and does. Its text is the progress of the call that it works for.
pub(super) fn of_helper(block: &Value, parent: &str) -> Option<AgentEvent> {
    match text(block, "type") {
        "text" => Some(AgentEvent::ToolProgress { id: parent.to_owned(), output: text(block, "text").into() }),
        _ => started(block, Some(parent)).or_else(|| finished(block)),
    }
}
