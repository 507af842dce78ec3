//! The rules of an AI SDK v6 client for a stream, and Mainstay's own: what may follow `start`.

use std::collections::{HashMap, HashSet};

use mainstay::chunk::Chunk;

/// The state of a stream while it is read.
#[derive(Default)]
struct Rules {
    in_step: bool,
    open: Option<String>,
    used: HashSet<String>,
    /// How many parts the message has, and which of them are retracted.
    parts: usize,
    retracted: HashSet<usize>,
    /// Each announced tool call, and whether it has its final result.
    tools: HashMap<String, bool>,
    /// The tool calls that failed or were denied.
    failed: HashSet<String>,
    /// The tool calls that wait for an answer.
    asking: HashSet<String>,
    over: bool,
    finished: bool,
}

/// Checks a whole stream.
///
/// # Errors
/// The first chunk that breaks a rule, and which rule.
pub fn check(chunks: &[Chunk]) -> Result<(), String> {
    let mut rules = Rules::default();
    for (index, chunk) in chunks.iter().enumerate() {
        rules.next(chunk).map_err(|rule| format!("{rule}: chunk {index}, {}", chunk.to_json()))?;
    }
    rule(rules.finished, "a stream is finished")
}

fn rule(holds: bool, text: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(text.to_owned()) }
}

impl Rules {
    fn next(&mut self, chunk: &Chunk) -> Result<(), String> {
        rule(!self.finished, "nothing after finish")?;
        let again: Chunk = serde_json::from_str(&chunk.to_json()).map_err(|error| error.to_string())?;
        rule(again == *chunk, "a chunk is what its JSON is")?;
        if !matches!(chunk, Chunk::StartStep | Chunk::DataStatus { .. } | Chunk::Finish { .. })
            && !matches!(chunk, Chunk::MessageMetadata { .. } | Chunk::Error { .. } | Chunk::Abort)
        {
            rule(self.in_step, "parts are in a step")?;
        }
        match chunk {
            Chunk::Start { .. } => return Err("a stream starts once".to_owned()),
            Chunk::StartStep => {
                rule(!self.in_step && self.used.is_empty() && self.tools.is_empty(), "one step")?;
                self.in_step = true;
                self.parts += 1;
            }
            Chunk::FinishStep => {
                rule(self.open.is_none(), "no block is open at the end")?;
                rule(self.tools.values().all(|finished| *finished), "every tool has a result at the end")?;
                self.in_step = false;
            }
            Chunk::TextStart { id } | Chunk::ReasoningStart { id } => {
                rule(self.open.is_none(), "one block at a time")?;
                rule(self.used.insert(id.clone()), "ids are new")?;
                self.open = Some(id.clone());
                self.parts += 1;
            }
            Chunk::TextDelta { id, delta } | Chunk::ReasoningDelta { id, delta } => {
                rule(self.open.as_ref() == Some(id), "deltas go to the open block")?;
                rule(!delta.is_empty(), "deltas are not empty")?;
            }
            Chunk::TextEnd { id } | Chunk::ReasoningEnd { id } => {
                rule(self.open.take().as_ref() == Some(id), "the open block ends")?;
            }
            Chunk::ToolApprovalRequest { approval_id, tool_call_id: id } => {
                rule(self.open.is_none() && !approval_id.is_empty(), "a question closes what is open")?;
                rule(self.tools.get(id) == Some(&false), "a question is about a tool at work")?;
                self.asking.insert(id.clone());
            }
            Chunk::ToolOutputDenied { tool_call_id: id } => {
                rule(self.asking.remove(id), "only what was asked for is denied")?;
                rule(self.open.is_none(), "a stream can pause at a question")?;
                self.tools.insert(id.clone(), true);
                self.failed.insert(id.clone());
            }
            Chunk::ToolInputAvailable { tool_call_id: id, tool_name, .. } => {
                rule(!id.is_empty() && !tool_name.is_empty(), "tools have ids and names")?;
                match self.tools.insert(id.clone(), false) {
                    None => {
                        rule(self.open.is_none(), "a tool closes what is open")?;
                        self.parts += 1;
                    }
                    Some(finished) => rule(!finished, "input is for a tool at work")?,
                }
                self.asking.remove(id);
            }
            Chunk::ToolOutputAvailable { tool_call_id: id, preliminary, .. } => {
                rule(preliminary.is_none_or(|preliminary| preliminary), "preliminary is true or absent")?;
                let last = preliminary.is_none();
                rule(!last || self.asking.is_empty() || self.open.is_none(), "a stream can pause at a question")?;
                rule(last || !self.asking.contains(id), "a tool that asks does not work")?;
                self.asking.remove(id);
                let before = self.tools.insert(id.clone(), last);
                let is_late = last && before == Some(true) && !self.failed.contains(id);
                rule(before == Some(false) || is_late, "output is of a tool at work, or of one that gave an output")?;
            }
            Chunk::ToolOutputError { tool_call_id: id, .. } => {
                rule(self.asking.is_empty() || self.open.is_none(), "a stream can pause at a question")?;
                rule(!self.asking.contains(id), "what was asked for is denied")?;
                rule(self.tools.insert(id.clone(), true) == Some(false), "failures are of a tool at work")?;
                self.failed.insert(id.clone());
            }
            Chunk::File { .. } => {
                rule(self.open.is_none(), "a file closes what is open")?;
                self.parts += 1;
            }
            Chunk::SourceUrl { source_id, url, .. } => {
                rule(self.open.is_none(), "a source closes what is open")?;
                rule(self.used.insert(source_id.clone()) && !url.is_empty(), "ids are new")?;
                self.parts += 1;
            }
            Chunk::DataPlan { id, .. } => self.parts += usize::from(self.used.insert(id.clone())),
            Chunk::DataRetracted { id, data } => {
                rule(self.open.is_none(), "what is retracted is over")?;
                rule(self.used.insert(id.clone()), "ids are new")?;
                rule(data.parts.iter().all(|part| *part < self.parts), "what was said is retracted")?;
                rule(data.parts.iter().all(|part| self.retracted.insert(*part)), "a part is retracted once")?;
                rule(!data.parts.is_empty(), "something is retracted")?;
                self.parts += 1;
            }
            Chunk::DataNotice { id, data } => {
                rule(self.open.is_none(), "a notice closes what is open")?;
                rule(self.used.insert(id.clone()), "ids are new")?;
                rule(!data.text.is_empty(), "a notice says something")?;
                self.parts += 1;
            }
            Chunk::DataToolOutput { data, transient } => {
                rule(*transient && !data.delta.is_empty(), "a difference is transient and says something")?;
                rule(self.tools.get(&data.tool_call_id) == Some(&false), "a difference is of a tool at work")?;
                rule(!self.asking.contains(&data.tool_call_id), "a tool that asks does not work")?;
            }
            Chunk::DataStatus { data, transient } => {
                rule(*transient && !data.label.is_empty(), "a status is transient and says something")?;
            }
            Chunk::MessageMetadata { .. } => {
                rule(!self.in_step && !self.over, "an outcome is told after the step, before the end")?;
            }
            Chunk::Error { .. } | Chunk::Abort => {
                rule(!self.in_step && !self.over, "one end, after the step")?;
                self.over = true;
            }
            Chunk::Finish { .. } => {
                rule(!self.in_step, "the step is finished")?;
                self.finished = true;
            }
        }
        Ok(())
    }
}
