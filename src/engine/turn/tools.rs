//! What readers are told of tools, and of permission requests.
//!
//! Always: a call is one part, announced before its output. An id of the agent's means the newest call that has it: once that
//! is finished, another start with the id is another call, with an id of ours. A later result replaces the first one, unless
//! that was a failure.

use serde_json::{Value, json};

use super::Turn;
use super::progress::may_send_whole;
use crate::chunk::{Chunk, ToolMetadata, ToolOrigin};
use crate::engine::fold::{Tool, bytes_of};
use crate::permission::PermissionRequest;

/// The name of a tool that the agent does not name.
const UNNAMED_TOOL: &str = "tool";
/// Prefix of the ids of tool parts that are made for a question without a tool call.
const ASKED_ID: &str = "permission";

/// One use of a tool.
pub(super) struct Use {
    pub(super) name: String,
    pub(super) title: Option<String>,
    pub(super) input: Value,
    /// The call on whose behalf it is used.
    pub(super) parent: Option<String>,
}

impl Turn {
    /// The chunks that show a question which a person has to answer. Returns them with the tool call that is shown to wait.
    pub fn ask(&mut self, request: &PermissionRequest, approval_id: String) -> (String, Vec<Chunk>) {
        let mut said = Vec::new();
        if self.fold.is_finished() {
            return (request.tool_call.clone(), said);
        }
        // A chat client leaves the stream here and comes back with the answer: no block may be open.
        self.close_block(&mut said);
        let known = self.fold.call(&request.tool_call);
        if let Some(tool) = known {
            // The question is about a new call with this id, if the known one is finished.
            self.unannounced.remove(&tool.tool_call_id);
        }
        let waiting = known.filter(|tool| !tool.is_finished());
        let tool_call_id = match waiting.map(|tool| (tool.tool_call_id.clone(), tool.question().is_some())) {
            Some((id, false)) => id,
            asks => {
                let id = if request.tool_call.is_empty() || asks.is_some() {
                    self.unused(format!("{ASKED_ID}-{}", self.fold.len() + usize::from(!self.fold.is_step_open())))
                } else {
                    request.tool_call.clone()
                };
                let (name, title) = (request.tool.clone(), Some(request.title.clone()));
                let asked_for = Use { name, title, input: request.input.clone(), parent: None };
                self.start_tool(id, asked_for, &mut said)
            }
        };
        self.say(Chunk::ToolApprovalRequest { approval_id, tool_call_id: tool_call_id.clone() }, &mut said);
        (tool_call_id, said)
    }

    /// The chunks that show the answer; none if readers know it, or if the tool asks something else by now.
    pub fn answered(&mut self, approval_id: &str, allowed: bool) -> Vec<Chunk> {
        let mut said = Vec::new();
        let waiting = self.fold.unfinished_tools().find(|(_, tool)| tool.question() == Some(approval_id));
        let Some((part, tool)) = waiting.map(|(part, tool)| (part, tool.clone())) else { return said };
        let is_ours = tool.tool_call_id.trim_end_matches('_') == format!("{ASKED_ID}-{part}");
        let (tool_call_id, tool_name) = (tool.tool_call_id, tool.tool_name);
        // As in `ask`: another question may still be open.
        self.close_block(&mut said);
        let chunk = match (allowed, is_ours) {
            (false, _) => Chunk::ToolOutputDenied { tool_call_id },
            // Nothing else will be reported of it.
            (true, true) => tool_done(tool_call_id, json!({"allowed": true})),
            // Shows readers that the question is closed: the stream has no other chunk for that.
            (true, false) => tool_given(tool_call_id, tool_name, None, tool.input, None),
        };
        self.say(chunk, &mut said);
        said
    }

    /// Announces a tool call and returns its id, which is ours if the agent gave none or reuses one. For a known call without
    /// a result only a new input or title is emitted; it stays one part.
    pub(super) fn start_tool(&mut self, id: String, usage: Use, said: &mut Vec<Chunk>) -> String {
        let Use { name, title, input, parent } = usage;
        // A title that only repeats the name adds nothing.
        let title = title.filter(|title| !title.trim().is_empty() && *title != name);
        let known = if id.is_empty() { None } else { self.fold.call(&id) };
        if let Some(tool) = known.filter(|tool| tool.is_finished())
            && self.unannounced.remove(&tool.tool_call_id)
        {
            return tool.tool_call_id.clone();
        }
        let Some(tool) = known.filter(|tool| !tool.is_finished()) else {
            if parent.is_none() {
                self.end_repetition(said);
            }
            let made = self.begin_part("tool", said);
            let own = if id.is_empty() { self.unused(made) } else { self.not_used_before(&id) };
            let parent = parent.filter(|parent| !parent.is_empty());
            let origin = ToolOrigin {
                parent_tool_call_id: parent.map(|id| self.fold.call(&id).map_or(id, |it| it.tool_call_id.clone())),
                agent_tool_call_id: (!id.is_empty() && own != id).then_some(id),
            };
            let provider_metadata = (origin != ToolOrigin::default()).then_some(ToolMetadata { mainstay: origin });
            let name = if name.is_empty() { UNNAMED_TOOL.to_owned() } else { name };
            self.say(tool_given(own.clone(), name, title, input, provider_metadata), said);
            return own;
        };
        let own = tool.tool_call_id.clone();
        let is_same = tool.input == input;
        // A title that changes with each line of the output would cost the whole input each time.
        let has_title = title.is_some() && tool.title != title && may_send_whole(tool, bytes_of(&input));
        // What is shown of a tool does not change while it waits for an answer.
        if tool.question().is_some() || (is_same && (!has_title || tool.output().is_some())) {
            return own;
        }
        let shown = tool.output().cloned();
        let name = if name.is_empty() { tool.tool_name.clone() } else { name };
        self.say(tool_given(own.clone(), name, title, input, None), said);
        if let Some(output) = shown {
            self.show_progress(&id, output, said);
        }
        own
    }

    /// Makes an id unique: an agent may have used the very id that we make for a tool without one.
    fn unused(&self, mut id: String) -> String {
        while self.fold.tool(&id).is_some() {
            id.push('_');
        }
        id
    }

    /// An id for another call to which the agent gives this one.
    fn not_used_before(&self, id: &str) -> String {
        let numbered = (2_usize..).map(|number| format!("{id}#{number}"));
        let mut ids = std::iter::once(id.to_owned()).chain(numbered);
        // Some number is free: a message has finitely many parts.
        ids.find(|id| self.fold.tool(id).is_none()).unwrap_or_else(|| id.to_owned())
    }

    /// The newest unfinished tool that the agent gave no id; of this name, if the agent says it.
    pub(super) fn newest_without_id(&self, name: Option<&str>) -> Option<String> {
        let mut newest_first = self.fold.unfinished_tools().rev();
        let (_, tool) = newest_first.find(|(part, tool)| {
            let is_ours = tool.tool_call_id.trim_end_matches('_') == format!("tool-{part}");
            is_ours && name.is_none_or(|name| tool.tool_name == name)
        })?;
        Some(tool.tool_call_id.clone())
    }

    pub(super) fn finish_tool(
        &mut self,
        id: String,
        name: Option<String>,
        result: Result<Value, String>,
        said: &mut Vec<Chunk>,
    ) {
        let name = name.filter(|name| !name.is_empty());
        let id = if id.is_empty() { self.newest_without_id(name.as_deref()).unwrap_or(id) } else { id };
        let tool_call_id = match self.fold.call(&id) {
            Some(tool) if tool.is_finished() && !is_late_output(tool, &result) => return,
            Some(tool) => tool.tool_call_id.clone(),
            None => {
                let name = name.unwrap_or_default();
                let own = self.start_tool(id, Use { name, title: None, input: json!({}), parent: None }, said);
                self.unannounced.insert(own.clone());
                own
            }
        };
        // A message whose tool gave its result was complete.
        if self.fold.tool_part(&tool_call_id).is_some_and(|part| self.repetition.is_before(part)) {
            self.repetition.forget();
        }
        if self.fold.unfinished_tools().any(|(_, tool)| tool.question().is_some()) {
            // As in `ask`: if this was the last tool at work, only answers are waited for.
            self.close_block(said);
        }
        let asks = self.fold.tool(&tool_call_id).is_some_and(|tool| tool.question().is_some());
        let chunk = match result {
            // It failed while its question was open: its use was denied, no matter by whom.
            Err(_) if asks => Chunk::ToolOutputDenied { tool_call_id },
            Ok(output) => tool_done(tool_call_id, output),
            Err(error_text) => tool_failed(tool_call_id, error_text),
        };
        self.say(chunk, said);
    }
}

/// Whether a result says what the first one of the call did not.
fn is_late_output(tool: &Tool, result: &Result<Value, String>) -> bool {
    match (tool.output(), result) {
        (Some(known), Ok(output)) => !output.is_null() && known != output,
        _ => false,
    }
}

fn tool_given(
    tool_call_id: String,
    tool_name: String,
    title: Option<String>,
    input: Value,
    provider_metadata: Option<ToolMetadata>,
) -> Chunk {
    let (provider_executed, dynamic) = (true, true);
    Chunk::ToolInputAvailable { tool_call_id, tool_name, input, provider_executed, dynamic, title, provider_metadata }
}

pub(super) fn tool_done(tool_call_id: String, output: Value) -> Chunk {
    Chunk::ToolOutputAvailable { tool_call_id, output, provider_executed: true, dynamic: true, preliminary: None }
}

pub(super) fn tool_failed(tool_call_id: String, error_text: String) -> Chunk {
    Chunk::ToolOutputError { tool_call_id, error_text, provider_executed: true, dynamic: true }
}
