//! What a reader hears of an agent: (turn, agent event) → chunks. Pure: no I/O, no clock.
//!
//! Always: after `start`, which is written when the run is claimed, the chunks of [`Turn::hear`] and then of
//! [`Turn::close`] are a stream that every v6 client takes: one step, at most one block open, every tool announced
//! before its output, one end. All that is needed to go on is in the chunks, so that [`Turn::replay`] goes on where a
//! dead process stopped, with ids that were not used.
//! Proof: `tests/turn_properties.rs`, `tests/turn_cases.rs`.
//!
//! Deliberately absent: why a run ends (`decide.rs`), and what is stored when.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::fold::{Block, Fold};
use crate::backend::AgentEvent;
use crate::chunk::{Chunk, FinishReason, StatusLabel};
use crate::permission::PermissionRequest;
use crate::run::{Outcome, Status};

/// The state of a turn.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Turn {
    fold: Fold,
    /// The label that was shown last, when nothing came after it.
    label: Option<String>,
    first_error: Option<String>,
    errors: HashSet<String>,
    ended: bool,
}

/// Before the text of an error in a message, for people.
const ERROR_MARK: &str = "[error] ";
/// The ids of text parts begin with this when the agent reported an error in them; no other text is taken for one.
const ERROR_ID: &str = "error";
/// For a tool that the agent does not name.
const UNNAMED_TOOL: &str = "tool";
/// The ids of tool parts begin with this when they are there for a question that names no tool call.
const ASKED_ID: &str = "permission";

impl Turn {
    /// The turn after the chunks that are stored of it. That the agent said its end is no chunk and not known again.
    pub fn replay(chunks: impl Iterator<Item = Chunk>) -> Self {
        let mut turn = Self::default();
        chunks.for_each(|chunk| turn.apply(&chunk));
        turn
    }

    /// What to tell readers of an agent event.
    pub fn hear(&mut self, event: AgentEvent) -> Vec<Chunk> {
        let mut said = Vec::new();
        if self.fold.is_finished() {
            return said;
        }
        match event {
            AgentEvent::Status(label) => self.show(label, &mut said),
            AgentEvent::Reasoning(delta) => self.speak(Block::Reasoning, delta, &mut said),
            AgentEvent::Text(delta) => self.speak(Block::Text, delta, &mut said),
            AgentEvent::ToolStarted { id, name, input, .. } => {
                self.start_tool(id, name, input, &mut said);
            }
            AgentEvent::ToolProgress { id, output } => self.show_progress(&id, output, &mut said),
            AgentEvent::ToolFinished { id, name, result } => self.finish_tool(id, name, result, &mut said),
            AgentEvent::Error(error) => self.report(error.message, &mut said),
            AgentEvent::Ended => self.ended = true,
            AgentEvent::MessageBegan(_)
            | AgentEvent::File { .. }
            | AgentEvent::Plan(_)
            | AgentEvent::Permission(_)
            | AgentEvent::Session { .. }
            | AgentEvent::SessionLost
            | AgentEvent::Title(_)
            | AgentEvent::Advertised(_)
            | AgentEvent::Usage(_)
            | AgentEvent::TotalUsage(_) => {}
        }
        said
    }

    /// What to tell readers when somebody has to answer what the agent asks. Answers with the call of the tool that is
    /// shown to wait.
    pub fn ask(&mut self, request: &PermissionRequest, approval_id: String) -> (String, Vec<Chunk>) {
        let mut said = Vec::new();
        if self.fold.is_finished() {
            return (request.tool_call.clone(), said);
        }
        // A chat client leaves the stream here and comes back with the answer: nothing may be open.
        self.close_block(&mut said);
        let known = self.fold.tool(&request.tool_call).map(|tool| tool.is_finished());
        let tool_call_id = if known == Some(false) {
            request.tool_call.clone()
        } else {
            let id = match known {
                None if !request.tool_call.is_empty() => request.tool_call.clone(),
                _ => self.unused(format!("{ASKED_ID}-{}", self.fold.len() + usize::from(!self.fold.is_step_open()))),
            };
            self.start_tool(id, request.tool.clone(), request.input.clone(), &mut said)
        };
        self.say(Chunk::ToolApprovalRequest { approval_id, tool_call_id: tool_call_id.clone() }, &mut said);
        (tool_call_id, said)
    }

    /// What to tell readers when that was answered; nothing when they know, or when the tool asks something else by now.
    pub fn answered(&mut self, approval_id: &str, allowed: bool) -> Vec<Chunk> {
        let mut said = Vec::new();
        let waiting = self.fold.unfinished_tools().find(|(_, tool)| tool.question() == Some(approval_id));
        let Some((part, tool)) = waiting.map(|(part, tool)| (part, tool.clone())) else { return said };
        let is_ours = tool.tool_call_id.trim_end_matches('_') == format!("{ASKED_ID}-{part}");
        let (tool_call_id, tool_name) = (tool.tool_call_id, tool.tool_name);
        // As in `ask`: another question may still be open.
        self.close_block(&mut said);
        let (provider_executed, dynamic) = (true, true);
        let chunk = match (allowed, is_ours) {
            (false, _) => Chunk::ToolOutputDenied { tool_call_id },
            // Nothing else will be heard of it.
            (true, true) => {
                let output = json!({"allowed": true});
                Chunk::ToolOutputAvailable { tool_call_id, output, provider_executed, dynamic, preliminary: None }
            }
            // Whoever looks on sees that nothing is asked any more: the stream has no other word for that.
            (true, false) => {
                let input = tool.input.unwrap_or(Value::Null);
                Chunk::ToolInputAvailable { tool_call_id, tool_name, input, provider_executed, dynamic }
            }
        };
        self.say(chunk, &mut said);
        said
    }

    /// The end of the stream; nothing when it has ended.
    pub fn close(&mut self, outcome: &Outcome) -> Vec<Chunk> {
        let mut said = Vec::new();
        if self.fold.is_finished() {
            return said;
        }
        let status = outcome.status();
        self.close_block(&mut said);
        let unfinished = self.fold.unfinished_tools();
        let unfinished: Vec<_> =
            unfinished.map(|(_, tool)| (tool.tool_call_id.clone(), tool.question().is_some())).collect();
        for (tool_call_id, asks) in unfinished {
            let end = if asks {
                Chunk::ToolOutputDenied { tool_call_id }
            } else {
                tool_failed(tool_call_id, without_result(status).to_owned())
            };
            self.say(end, &mut said);
        }
        let sentence = outcome.error.as_deref().unwrap_or("The run failed.");
        if status == Status::Failed && self.first_error.is_none() {
            self.say_block("text", format!("{ERROR_MARK}{sentence}"), &mut said);
        }
        if self.fold.is_step_open() {
            self.say(Chunk::FinishStep, &mut said);
        }
        let finish_reason = match status {
            Status::Cancelled => {
                self.say(Chunk::Abort, &mut said);
                FinishReason::Other
            }
            Status::Failed | Status::TimedOut | Status::Interrupted => {
                self.say(Chunk::Error { error_text: sentence.to_owned() }, &mut said);
                FinishReason::Error
            }
            Status::Queued | Status::Running | Status::Completed => FinishReason::Stop,
        };
        self.say(Chunk::Finish { finish_reason }, &mut said);
        said
    }

    /// Whether the message has begun: a run that has spoken is never run again.
    pub fn has_said(&self) -> bool {
        !self.fold.is_empty()
    }

    /// Whether the agent gave any output or said its end. What it says to be busy with is no output.
    pub fn heard_anything(&self) -> bool {
        self.has_said() || self.ended
    }

    /// Whether a tool works: no progress is expected of the agent then.
    pub fn is_tool_running(&self) -> bool {
        self.fold.unfinished_tools().next().is_some()
    }

    /// The first error that the agent reported.
    pub fn agent_error(&self) -> Option<&str> {
        self.first_error.as_deref()
    }

    /// Whether the agent said that the turn is over.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The message so far.
    pub fn fold(&self) -> &Fold {
        &self.fold
    }

    /// The one way that a chunk changes the turn, whether it is said now or was said before.
    fn apply(&mut self, chunk: &Chunk) {
        self.fold.apply(chunk);
        self.label = match chunk {
            Chunk::DataStatus { data, .. } => Some(data.label.clone()),
            _ => None,
        };
        if let Chunk::TextDelta { id, delta } = chunk
            && id.starts_with(ERROR_ID)
            && let Some(message) = delta.strip_prefix(ERROR_MARK)
        {
            self.first_error.get_or_insert_with(|| message.to_owned());
            self.errors.insert(message.to_owned());
        }
    }

    fn say(&mut self, chunk: Chunk, said: &mut Vec<Chunk>) {
        self.apply(&chunk);
        said.push(chunk);
    }

    fn show(&mut self, label: String, said: &mut Vec<Chunk>) {
        if !label.is_empty() && self.label.as_ref() != Some(&label) {
            self.say(Chunk::DataStatus { data: StatusLabel { label }, transient: true }, said);
        }
    }

    fn speak(&mut self, block: Block, delta: String, said: &mut Vec<Chunk>) {
        if delta.is_empty() {
            return;
        }
        let id = match self.fold.open_block() {
            Some((open, id)) if open == block => id.to_owned(),
            _ => {
                let id = self.begin_part(if block == Block::Text { "text" } else { "reasoning" }, said);
                self.say(start_of(block, id.clone()), said);
                id
            }
        };
        self.say(
            match block {
                Block::Text => Chunk::TextDelta { id, delta },
                Block::Reasoning => Chunk::ReasoningDelta { id, delta },
            },
            said,
        );
    }

    /// Each error is said once: agents report one in several ways.
    fn report(&mut self, message: String, said: &mut Vec<Chunk>) {
        if !self.errors.contains(&message) {
            self.say_block(ERROR_ID, format!("{ERROR_MARK}{message}"), said);
        }
    }

    /// A text part of its own.
    fn say_block(&mut self, prefix: &str, text: String, said: &mut Vec<Chunk>) {
        let id = self.begin_part(prefix, said);
        self.say(Chunk::TextStart { id: id.clone() }, said);
        self.say(Chunk::TextDelta { id: id.clone(), delta: text }, said);
        self.say(Chunk::TextEnd { id }, said);
    }

    /// Makes room for a part and gives an id for it: its position in the message, which no other part has.
    fn begin_part(&mut self, prefix: &str, said: &mut Vec<Chunk>) -> String {
        self.close_block(said);
        if !self.fold.is_step_open() {
            self.say(Chunk::StartStep, said);
        }
        format!("{prefix}-{}", self.fold.len())
    }

    fn close_block(&mut self, said: &mut Vec<Chunk>) {
        if let Some((block, id)) = self.fold.open_block() {
            let id = id.to_owned();
            self.say(
                match block {
                    Block::Text => Chunk::TextEnd { id },
                    Block::Reasoning => Chunk::ReasoningEnd { id },
                },
                said,
            );
        }
    }

    /// Announces a tool call and gives its id, which is ours when the agent gave none. Of a call that is known and has
    /// no result only a new input is said; it stays one part.
    fn start_tool(&mut self, id: String, name: String, input: Value, said: &mut Vec<Chunk>) -> String {
        let known = if id.is_empty() { None } else { self.fold.tool(&id) };
        let (id, name) = match known {
            // One that waits for an answer is not shown otherwise before it has one.
            Some(tool) if tool.is_finished() || tool.question().is_some() || tool.input.as_ref() == Some(&input) => {
                return id;
            }
            Some(tool) => (id, if name.is_empty() { tool.tool_name.clone() } else { name }),
            None => {
                let made = self.begin_part("tool", said);
                let id = if id.is_empty() { self.unused(made) } else { id };
                let name = if name.is_empty() { UNNAMED_TOOL.to_owned() } else { name };
                let (tool_call_id, tool_name) = (id.clone(), name.clone());
                self.say(
                    Chunk::ToolInputStart { tool_call_id, tool_name, provider_executed: true, dynamic: true },
                    said,
                );
                (id, name)
            }
        };
        let (tool_call_id, tool_name) = (id.clone(), name);
        self.say(
            Chunk::ToolInputAvailable { tool_call_id, tool_name, input, provider_executed: true, dynamic: true },
            said,
        );
        id
    }

    /// An agent may have used the very id that we make for a tool without one.
    fn unused(&self, mut id: String) -> String {
        while self.fold.tool(&id).is_some() {
            id.push('_');
        }
        id
    }

    /// The newest working tool that the agent gave no id, of this name if the agent says it.
    fn newest_without_id(&self, name: Option<&str>) -> Option<String> {
        let mut newest_first = self.fold.unfinished_tools().rev();
        let (_, tool) = newest_first.find(|(part, tool)| {
            let is_ours = tool.tool_call_id.trim_end_matches('_') == format!("tool-{part}");
            is_ours && name.is_none_or(|name| tool.tool_name == name)
        })?;
        Some(tool.tool_call_id.clone())
    }

    fn show_progress(&mut self, id: &str, output: Value, said: &mut Vec<Chunk>) {
        let id = if id.is_empty() { self.newest_without_id(None) } else { Some(id.to_owned()) };
        if let Some(tool_call_id) = id
            && self.fold.tool(&tool_call_id).is_some_and(|tool| !tool.is_finished() && tool.question().is_none())
        {
            let preliminary = Some(true);
            self.say(
                Chunk::ToolOutputAvailable {
                    tool_call_id,
                    output,
                    provider_executed: true,
                    dynamic: true,
                    preliminary,
                },
                said,
            );
        }
    }

    fn finish_tool(&mut self, id: String, name: Option<String>, result: Result<Value, String>, said: &mut Vec<Chunk>) {
        let name = name.filter(|name| !name.is_empty());
        let id = if id.is_empty() { self.newest_without_id(name.as_deref()).unwrap_or(id) } else { id };
        let tool_call_id = match self.fold.tool(&id) {
            // The first result is the result.
            Some(tool) if tool.is_finished() => return,
            Some(_) => id,
            None => self.start_tool(id, name.unwrap_or_default(), json!({}), said),
        };
        if self.fold.unfinished_tools().any(|(_, tool)| tool.question().is_some()) {
            // As in `ask`: when this was the last one at work, all that is left waits for answers.
            self.close_block(said);
        }
        let asks = self.fold.tool(&tool_call_id).is_some_and(|tool| tool.question().is_some());
        let chunk = match result {
            // It was not to be used, whoever decided so.
            Err(_) if asks => Chunk::ToolOutputDenied { tool_call_id },
            Ok(output) => Chunk::ToolOutputAvailable {
                tool_call_id,
                output,
                provider_executed: true,
                dynamic: true,
                preliminary: None,
            },
            Err(error_text) => tool_failed(tool_call_id, error_text),
        };
        self.say(chunk, said);
    }
}

fn start_of(block: Block, id: String) -> Chunk {
    match block {
        Block::Text => Chunk::TextStart { id },
        Block::Reasoning => Chunk::ReasoningStart { id },
    }
}

fn tool_failed(tool_call_id: String, error_text: String) -> Chunk {
    Chunk::ToolOutputError { tool_call_id, error_text, provider_executed: true, dynamic: true }
}

/// What is said of a tool that was at work when the run ended.
fn without_result(status: Status) -> &'static str {
    match status {
        Status::Cancelled => "The run was cancelled.",
        Status::TimedOut => "The run timed out.",
        Status::Interrupted => "The run was interrupted.",
        Status::Queued | Status::Running | Status::Completed | Status::Failed => "The tool reported no result.",
    }
}

#[cfg(test)]
mod tests;
