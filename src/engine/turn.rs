//! What readers are told of an agent: (turn, agent event) → chunks. Pure: no I/O, no clock.
//!
//! Always: after `start`, which is written when the run is claimed, the chunks of [`Turn::hear`] and then of [`Turn::close`]
//! are a stream that every v6 client accepts: one step, at most one block open, every tool announced before its output, one
//! end. The chunks hold what is needed to continue, so that [`Turn::replay`] continues where a dead process stopped, with ids
//! that were not used; what no chunk says is heard again ([`Turn::hear_again`]).
//! Proof: `tests/it/turn_properties.rs`, `tests/it/turn_cases.rs`.
//!
//! Deliberately absent: why a run ends (`decide.rs`), and what is stored when.

mod blocks;
mod progress;
mod repetition;
#[cfg(test)]
mod tests;
mod tools;

use std::collections::HashSet;

use serde_json::Value;

use self::blocks::Blocks;
use self::repetition::{Heard, Repetition};
use self::tools::{Use, tool_done, tool_failed};
use super::fold::{Block, Fold, Tool};
use crate::agent_event::{Again, AgentEvent};
use crate::chunk::{Chunk, FinishReason, Notice, Retracted, StatusLabel};
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
    /// Background tasks ran when the agent said its end.
    held_open: bool,
    /// How many tasks run in the agent's background.
    tasks: usize,
    blocks: Blocks,
    repetition: Repetition,
    /// Calls that were announced only by their result: their own announcement may come late.
    unannounced: HashSet<String>,
    /// The turn as it was heard before, while that is heard again.
    past: Option<Box<Turn>>,
}

/// How a turn stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnState {
    /// The agent works on it, or tasks in its background do.
    Working,
    /// It said its end while tasks ran, and they are done: it may speak once more.
    Idle,
    /// It is over.
    Over,
}

/// Marks the text of an error in a message, for people.
const ERROR_MARK: &str = "[error] ";
/// Prefix of the ids of text parts that hold an error of the agent; no other text is taken for one.
const ERROR_ID: &str = "error";
/// A turn has one plan: a new one replaces the old one.
const PLAN_ID: &str = "plan";
const NOTICE_ID: &str = "notice";
/// Longer text goes out in pieces: SQLite reads a row whole, also to pass over it.
pub const MAX_DELTA_BYTES: usize = 64 * 1024;

impl Turn {
    /// The turn after the chunks that are stored of it. What no chunk says is not known: that the agent said its end, and
    /// where the newest message of its model begins.
    pub fn replay(chunks: impl Iterator<Item = Chunk>) -> Self {
        let mut turn = Self::default();
        turn.replay_more(chunks);
        turn
    }

    /// Applies the next stored chunks.
    pub fn replay_more(&mut self, chunks: impl Iterator<Item = Chunk>) {
        chunks.for_each(|chunk| self.apply(&chunk));
    }

    /// Hears events again whose chunks are among those of [`Turn::replay`]; no chunks are emitted for them. With `all` of them
    /// heard, what no chunk says is known too. If they make another message than the one that is stored, what is stored
    /// counts.
    pub fn hear_again(&mut self, events: Vec<AgentEvent>, all: bool) {
        let past = self.past.get_or_insert_default();
        for event in events {
            past.hear(event);
        }
        if all && let Some(past) = self.past.take() {
            (self.ended, self.held_open, self.tasks) = (past.ended, past.held_open, past.tasks);
            self.blocks.goes_on_with(&past.blocks);
            self.unannounced = past.unannounced;
            self.repetition = past.repetition.found_in(&past.fold, &self.fold);
        }
    }

    /// The chunks for readers of an agent event.
    pub fn hear(&mut self, event: AgentEvent) -> Vec<Chunk> {
        let mut said = Vec::new();
        if self.fold.is_finished() {
            return said;
        }
        match event {
            AgentEvent::Status(label) => self.show(label, &mut said),
            AgentEvent::Reasoning(delta) => self.speak(Block::Reasoning, delta, &mut said),
            AgentEvent::Text(delta) => self.speak(Block::Text, delta, &mut said),
            AgentEvent::MessageBegan(again) => self.begin_message(again, &mut said),
            AgentEvent::ToolStarted { id, name, title, input, parent } => {
                self.start_tool(id, Use { name, title, input, parent }, &mut said);
            }
            AgentEvent::ToolProgress { id, output } => self.show_progress(&id, output, &mut said),
            AgentEvent::ToolFinished { id, name, result } => self.finish_tool(id, name, result, &mut said),
            AgentEvent::Error(error) => self.report(error.message, &mut said),
            AgentEvent::File { media_type, url } => self.show_file(media_type, url, &mut said),
            AgentEvent::Source { url, title } => self.show_source(url, title, &mut said),
            AgentEvent::Plan(plan) => self.show_plan(plan, &mut said),
            AgentEvent::Notice(notice) => self.show_notice(notice, &mut said),
            AgentEvent::BlockBegan(block) => self.begin_block(block, &mut said),
            AgentEvent::Withdrawn(blocks) => self.withdraw(&blocks, &mut said),
            AgentEvent::Tasks(count) => self.tasks = count,
            AgentEvent::Ended => (self.ended, self.held_open) = (true, self.tasks > 0),
            AgentEvent::Continued => self.ended = false,
            AgentEvent::Permission(_)
            | AgentEvent::PermissionWithdrawn(_)
            | AgentEvent::Refused(_)
            | AgentEvent::SessionGone
            | AgentEvent::Trouble(_)
            | AgentEvent::Session { .. }
            | AgentEvent::Title(_)
            | AgentEvent::Advertised(_)
            | AgentEvent::Usage(_)
            | AgentEvent::TotalUsage(_) => {}
        }
        said
    }

    /// The end of the stream; nothing if it has ended.
    pub fn close(&mut self, outcome: &Outcome) -> Vec<Chunk> {
        let mut said = Vec::new();
        if self.fold.is_finished() {
            return said;
        }
        let status = outcome.status();
        if status == Status::Completed {
            self.end_repetition(&mut said);
        }
        self.close_block(&mut said);
        let unfinished = self.fold.unfinished_tools();
        let ends: Vec<_> = unfinished.map(|(_, tool)| end_of_unfinished(tool, status)).collect();
        for end in ends {
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
        self.say(Chunk::Finish { finish_reason, message_metadata: None }, &mut said);
        said
    }

    /// Whether the message has begun: a run that has spoken is never run again.
    pub fn has_said(&self) -> bool {
        !self.fold.is_empty()
    }

    /// Whether the agent gave any output or said its end. A status is no output.
    pub fn heard_anything(&self) -> bool {
        self.has_said() || self.ended
    }

    /// Whether a tool or a background task is at work: no progress is expected of the agent then.
    pub fn is_tool_running(&self) -> bool {
        self.tasks > 0 || self.fold.unfinished_tools().next().is_some()
    }

    /// The id in the message of the newest call that has this id of the agent's.
    pub fn call_id<'a>(&'a self, agent_id: &'a str) -> &'a str {
        self.fold.call(agent_id).map_or(agent_id, |tool| &tool.tool_call_id)
    }

    /// The first error that the agent reported.
    pub fn agent_error(&self) -> Option<&str> {
        self.first_error.as_deref()
    }

    /// Whether the agent said that the turn is over.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// How the turn stands, after all that the agent said.
    pub fn state(&self) -> TurnState {
        match (self.ended, self.tasks, self.held_open) {
            (true, 0, false) => TurnState::Over,
            (true, 0, true) => TurnState::Idle,
            _ => TurnState::Working,
        }
    }

    /// About how much it keeps, in bytes.
    pub fn bytes(&self) -> usize {
        self.fold.bytes() + self.past.as_ref().map_or(0, |past| past.fold.bytes())
    }

    /// The parts of the message of a turn that is closed, as JSON; the turn is not kept beside it.
    pub fn into_parts_json(self) -> std::sync::Arc<str> {
        let parts = self.fold.ended_parts_json();
        drop(self);
        parts.into()
    }

    /// The message so far.
    pub fn fold(&self) -> &Fold {
        &self.fold
    }

    /// The one way that a chunk changes the turn, whether it is said now or was said before.
    fn apply(&mut self, chunk: &Chunk) {
        self.blocks.take(chunk, self.fold.len());
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

    /// What the model says. Words that it repeats when asked again are not emitted twice.
    fn speak(&mut self, block: Block, mut delta: String, said: &mut Vec<Chunk>) {
        if delta.is_empty() {
            return;
        }
        match self.repetition.hear(block, &delta, &self.fold) {
            Heard::New(from) => delta.replace_range(..from, ""),
            Heard::Repeated => return,
            Heard::Different => self.end_repetition(said),
        }
        self.write(block, delta, said);
    }

    fn write(&mut self, block: Block, delta: String, said: &mut Vec<Chunk>) {
        let id = match self.fold.open_block() {
            Some((open, id)) if open == block => id.to_owned(),
            _ => {
                let id = self.begin_part(if block == Block::Text { "text" } else { "reasoning" }, said);
                let id = self.blocks.name(id);
                self.repetition.add(self.fold.len());
                self.say(start_of(block, id.clone()), said);
                id
            }
        };
        let mut rest = delta.as_str();
        while rest.len() > MAX_DELTA_BYTES {
            let (piece, more) = rest.split_at(rest.floor_char_boundary(MAX_DELTA_BYTES));
            self.say(delta_of(block, id.clone(), piece.to_owned()), said);
            rest = more;
        }
        let delta = if rest.len() == delta.len() { delta } else { rest.to_owned() };
        self.say(delta_of(block, id, delta), said);
    }

    /// A message that is asked for again continues in the open block.
    fn begin_message(&mut self, again: Again, said: &mut Vec<Chunk>) {
        if !self.repetition.begin(again) {
            self.end_repetition(said);
            self.repetition.forget();
            self.close_block(said);
            self.blocks.none();
        }
    }

    /// Emits text that was held back as a suspected repetition, if it was none.
    fn end_repetition(&mut self, said: &mut Vec<Chunk>) {
        let Some(other) = self.repetition.end(&self.fold) else { return };
        self.close_block(said);
        let id = self.begin_part("retracted", said);
        self.say(Chunk::DataRetracted { id, data: Retracted { parts: other.void } }, said);
        for (block, text) in other.said {
            self.write(block, text, said);
        }
    }

    fn show_file(&mut self, media_type: String, url: String, said: &mut Vec<Chunk>) {
        self.end_repetition(said);
        self.begin_part("file", said);
        self.say(Chunk::File { url, media_type }, said);
    }

    fn show_source(&mut self, url: String, title: Option<String>, said: &mut Vec<Chunk>) {
        self.end_repetition(said);
        let source_id = self.begin_part("source", said);
        self.say(Chunk::SourceUrl { source_id, url, title }, said);
    }

    fn show_plan(&mut self, plan: Value, said: &mut Vec<Chunk>) {
        match self.fold.plan_of(PLAN_ID) {
            Some(known) if *known == plan => return,
            Some(_) => {}
            None => {
                self.begin_part(PLAN_ID, said);
            }
        }
        self.say(Chunk::DataPlan { id: PLAN_ID.to_owned(), data: plan }, said);
    }

    fn show_notice(&mut self, notice: Notice, said: &mut Vec<Chunk>) {
        if !notice.text.trim().is_empty() {
            let id = self.begin_part(NOTICE_ID, said);
            self.say(Chunk::DataNotice { id, data: notice }, said);
        }
    }

    /// Each error is emitted once: agents report one in several ways.
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
}

/// How a tool that reported no result ends with the run: what it has shown stays.
fn end_of_unfinished(tool: &Tool, status: Status) -> Chunk {
    let tool_call_id = tool.tool_call_id.clone();
    match tool.output() {
        _ if tool.question().is_some() => Chunk::ToolOutputDenied { tool_call_id },
        Some(output) => tool_done(tool_call_id, output.clone()),
        None => tool_failed(tool_call_id, without_result(status).to_owned()),
    }
}

fn delta_of(block: Block, id: String, delta: String) -> Chunk {
    match block {
        Block::Text => Chunk::TextDelta { id, delta },
        Block::Reasoning => Chunk::ReasoningDelta { id, delta },
    }
}

fn start_of(block: Block, id: String) -> Chunk {
    match block {
        Block::Text => Chunk::TextStart { id },
        Block::Reasoning => Chunk::ReasoningStart { id },
    }
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
