//! The message that a client of the AI SDK (6.0.326) has after the chunks of a run, part for part and field for field.
//!
//! Always: a function of the chunks alone, so that a message can be rebuilt from what is stored; a delta costs its own length.
//! A chunk that the client would refuse (a delta to a part that is not open) changes nothing.
//!
//! Unlike in the client, a part that was withdrawn (`data-retracted`) is an empty text, so that a reader of the stored message
//! needs no rule of its own.
//!
//! Deliberately absent: tools that are not dynamic. No turn makes them.

#[cfg(test)]
mod tests;
mod tool;

use std::collections::{BTreeSet, HashMap};

use serde::Serialize;
use serde_json::Value;

pub use self::tool::Tool;
pub(in crate::engine) use self::tool::{bytes_of, encoded_bytes};
use crate::chunk::{Chunk, Notice, Retracted};

/// A message while it grows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fold {
    parts: Vec<Part>,
    /// Text and reasoning parts that take deltas; a turn keeps one open at most.
    open: Vec<OpenBlock>,
    /// The part of each tool call.
    tools: HashMap<String, usize>,
    /// The newest part for each id of the agent's: agents reuse an id for several calls.
    calls: HashMap<String, usize>,
    /// The parts of the tools that gave no result yet.
    unfinished: BTreeSet<usize>,
    step_open: bool,
    finished: bool,
    bytes: usize,
}

/// The two kinds of part that grow by deltas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// What the agent says.
    Text,
    /// What it thinks.
    Reasoning,
}

#[derive(Debug, Clone, PartialEq)]
struct OpenBlock {
    block: Block,
    id: String,
    part: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Part {
    StepStart,
    Text {
        text: String,
        state: BlockState,
    },
    Reasoning {
        id: String,
        text: String,
        state: BlockState,
    },
    DynamicTool(Box<Tool>),
    #[serde(rename_all = "camelCase")]
    File {
        media_type: String,
        url: String,
    },
    #[serde(rename_all = "camelCase")]
    SourceUrl {
        source_id: String,
        url: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        title: Option<String>,
    },
    DataPlan {
        id: String,
        data: Value,
    },
    DataRetracted {
        id: String,
        data: Retracted,
    },
    DataNotice {
        id: String,
        data: Notice,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum BlockState {
    Streaming,
    Done,
}

/// The overhead of a part beside its texts.
const PART_BYTES: usize = 64;

impl Fold {
    /// Takes the next chunk.
    pub fn apply(&mut self, chunk: &Chunk) {
        match chunk {
            Chunk::StartStep => {
                self.push(Part::StepStart);
                self.step_open = true;
            }
            Chunk::FinishStep => {
                self.step_open = false;
                self.open.clear();
            }
            Chunk::TextStart { id } => self.start(Block::Text, id),
            Chunk::TextDelta { id, delta } => self.extend(Block::Text, id, delta),
            Chunk::TextEnd { id } => self.end(Block::Text, id),
            Chunk::ReasoningStart { id } => self.start(Block::Reasoning, id),
            Chunk::ReasoningDelta { id, delta } => self.extend(Block::Reasoning, id, delta),
            Chunk::ReasoningEnd { id } => self.end(Block::Reasoning, id),
            Chunk::ToolInputAvailable { .. } => {
                if let Some(tool) = Tool::announced_by(chunk) {
                    self.announce(tool);
                }
            }
            Chunk::ToolOutputAvailable { tool_call_id, .. }
            | Chunk::ToolOutputError { tool_call_id, .. }
            | Chunk::ToolApprovalRequest { tool_call_id, .. }
            | Chunk::ToolOutputDenied { tool_call_id } => self.update(tool_call_id, |tool| tool.apply(chunk)),
            Chunk::DataToolOutput { data, .. } => self.grow(&data.tool_call_id, &data.delta),
            Chunk::File { url, media_type } => {
                self.bytes += encoded_bytes(url) + media_type.len();
                self.push(Part::File { media_type: media_type.clone(), url: url.clone() });
            }
            Chunk::SourceUrl { source_id, url, title } => {
                self.bytes += url.len() + title.as_ref().map_or(0, String::len);
                let (source_id, url, title) = (source_id.clone(), url.clone(), title.clone());
                self.push(Part::SourceUrl { source_id, url, title });
            }
            Chunk::DataPlan { id, data } => self.plan(id, data),
            Chunk::DataNotice { id, data } => {
                self.bytes += encoded_bytes(&data.text);
                self.push(Part::DataNotice { id: id.clone(), data: data.clone() });
            }
            Chunk::DataRetracted { id, data } => {
                self.bytes += data.parts.len() * size_of::<usize>();
                data.parts.iter().for_each(|part| self.withdraw(*part));
                self.push(Part::DataRetracted { id: id.clone(), data: data.clone() });
            }
            Chunk::Finish { .. } => self.finished = true,
            Chunk::Start { .. }
            | Chunk::DataStatus { .. }
            | Chunk::MessageMetadata { .. }
            | Chunk::Error { .. }
            | Chunk::Abort => {}
        }
    }

    /// The parts of an answer that has ended, as the JSON that is stored. One without a part is stored as a step, because
    /// `validateUIMessages` of the AI SDK refuses a message without parts; its metadata says how it ended.
    pub fn ended_parts_json(&self) -> String {
        if self.is_empty() { r#"[{"type":"step-start"}]"#.to_owned() } else { self.parts_json() }
    }

    /// The parts as the JSON that is stored and sent.
    pub fn parts_json(&self) -> String {
        // Parts are strings, booleans and JSON values: none of them can fail to serialise.
        serde_json::to_string(&self.parts).unwrap_or_default()
    }

    /// What the agent said, part by part, without what is retracted.
    pub fn texts(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Text { text, .. } if !text.is_empty() => Some(text.as_str()),
            _ => None,
        })
    }

    /// Whether the message has no parts.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// How many parts the message has.
    pub fn len(&self) -> usize {
        self.parts.len()
    }

    /// About how long the message is as JSON, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The part that takes deltas, the newest when there are several.
    pub fn open_block(&self) -> Option<(Block, &str)> {
        self.open.last().map(|open| (open.block, open.id.as_str()))
    }

    /// A text or reasoning part.
    pub fn block(&self, part: usize) -> Option<(Block, &str)> {
        match self.parts.get(part)? {
            Part::Text { text, .. } => Some((Block::Text, text)),
            Part::Reasoning { text, .. } => Some((Block::Reasoning, text)),
            _ => None,
        }
    }

    /// The plan of this id.
    pub fn plan_of(&self, id: &str) -> Option<&Value> {
        self.parts.iter().find_map(|part| match part {
            Part::DataPlan { id: known, data } if known == id => Some(data),
            _ => None,
        })
    }

    /// Whether a step is open.
    pub fn is_step_open(&self) -> bool {
        self.step_open
    }

    /// Whether the stream is over.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// A tool call.
    pub fn tool(&self, id: &str) -> Option<&Tool> {
        self.tool_at(*self.tools.get(id)?)
    }

    /// The newest tool call that has this id of the agent's.
    pub fn call(&self, agent_id: &str) -> Option<&Tool> {
        self.tool_at(*self.calls.get(agent_id)?)
    }

    /// Where a tool call stands in the message.
    pub fn tool_part(&self, id: &str) -> Option<usize> {
        self.tools.get(id).copied()
    }

    /// The tools that gave no result yet, oldest first, each with its position in the message.
    pub fn unfinished_tools(&self) -> impl DoubleEndedIterator<Item = (usize, &Tool)> {
        self.unfinished.iter().filter_map(|part| Some((*part, self.tool_at(*part)?)))
    }

    fn tool_at(&self, part: usize) -> Option<&Tool> {
        match self.parts.get(part) {
            Some(Part::DynamicTool(tool)) => Some(tool),
            _ => None,
        }
    }

    fn push(&mut self, part: Part) {
        self.bytes += PART_BYTES;
        self.parts.push(part);
    }

    fn start(&mut self, block: Block, id: &str) {
        // The client knows an open part by its id alone: a second start takes the deltas away from the first.
        self.open.retain(|open| (open.block, open.id.as_str()) != (block, id));
        self.open.push(OpenBlock { block, id: id.to_owned(), part: self.parts.len() });
        let (text, state) = (String::new(), BlockState::Streaming);
        self.push(match block {
            Block::Text => Part::Text { text, state },
            Block::Reasoning => Part::Reasoning { id: id.to_owned(), text, state },
        });
    }

    fn extend(&mut self, block: Block, id: &str, delta: &str) {
        let Some(open) = self.open.iter().find(|open| (open.block, open.id.as_str()) == (block, id)) else { return };
        if let Some(Part::Text { text, .. } | Part::Reasoning { text, .. }) = self.parts.get_mut(open.part) {
            text.push_str(delta);
            self.bytes += encoded_bytes(delta);
        }
    }

    fn end(&mut self, block: Block, id: &str) {
        let ended = self.open.iter().position(|open| (open.block, open.id.as_str()) == (block, id));
        let Some(open) = ended.map(|index| self.open.remove(index)) else { return };
        if let Some(Part::Text { state, .. } | Part::Reasoning { state, .. }) = self.parts.get_mut(open.part) {
            *state = BlockState::Done;
        }
    }

    /// The text of a part does not count any more; its position is kept.
    fn withdraw(&mut self, part: usize) {
        if let Some(Part::Text { text, .. } | Part::Reasoning { text, .. }) = self.parts.get_mut(part) {
            self.bytes -= encoded_bytes(text);
            *text = String::new();
        }
    }

    /// A tool call begins, or its input changes. A call that is known already starts over.
    fn announce(&mut self, announced: Tool) {
        let id = announced.tool_call_id.clone();
        if self.tools.contains_key(&id) {
            self.update(&id, |tool| tool.announce_again(announced));
        } else {
            let part = self.parts.len();
            self.calls.insert(announced.agent_id().to_owned(), part);
            self.tools.insert(id, part);
            self.unfinished.insert(part);
            self.bytes += announced.bytes();
            self.push(Part::DynamicTool(announced.into()));
        }
    }

    /// A plan replaces the one with its id.
    fn plan(&mut self, id: &str, data: &Value) {
        let known = self.parts.iter_mut().find_map(|part| match part {
            Part::DataPlan { id: known, data } if known == id => Some(data),
            _ => None,
        });
        self.bytes += bytes_of(data);
        if let Some(known) = known {
            self.bytes -= bytes_of(known);
            known.clone_from(data);
        } else {
            self.push(Part::DataPlan { id: id.to_owned(), data: data.clone() });
        }
    }

    /// A tool at work adds to its output; what it has shown is not examined again.
    fn grow(&mut self, id: &str, delta: &str) {
        let Some(part) = self.tools.get(id) else { return };
        if let Some(Part::DynamicTool(tool)) = self.parts.get_mut(*part)
            && tool.grow(delta)
        {
            self.bytes += encoded_bytes(delta);
        }
    }

    fn update(&mut self, id: &str, change: impl FnOnce(&mut Tool)) {
        let Some(part) = self.tools.get(id).copied() else { return };
        let Some(Part::DynamicTool(tool)) = self.parts.get_mut(part) else { return };
        let before = tool.bytes();
        change(tool);
        self.bytes = self.bytes + tool.bytes() - before;
        if tool.is_finished() {
            self.unfinished.remove(&part);
        } else {
            self.unfinished.insert(part);
        }
    }
}
