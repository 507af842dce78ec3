//! What a reader hears of tools, and of what is asked before they are used.
//!
//! Always: a call is one part, announced before its output, and its first result is its result.

use serde_json::{Value, json};

use super::Turn;
use crate::chunk::{Chunk, ToolMetadata, ToolOrigin};
use crate::permission::PermissionRequest;

/// For a tool that the agent does not name.
const UNNAMED_TOOL: &str = "tool";
/// The ids of tool parts begin with this when they are there for a question that names no tool call.
const ASKED_ID: &str = "permission";

/// What a tool is used for.
pub(super) struct Use {
    pub(super) name: String,
    pub(super) title: Option<String>,
    pub(super) input: Value,
    /// The call on whose behalf it is used.
    pub(super) parent: Option<String>,
}

impl Turn {
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
            let (name, title) = (request.tool.clone(), Some(request.title.clone()));
            self.start_tool(id, Use { name, title, input: request.input.clone(), parent: None }, &mut said)
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
                let (input, title, provider_metadata) = (tool.input, None, None);
                Chunk::ToolInputAvailable {
                    tool_call_id,
                    tool_name,
                    input,
                    provider_executed,
                    dynamic,
                    title,
                    provider_metadata,
                }
            }
        };
        self.say(chunk, &mut said);
        said
    }

    /// Announces a tool call and gives its id, which is ours when the agent gave none. Of a call that is known and has
    /// no result only a new input is said; it stays one part.
    pub(super) fn start_tool(&mut self, id: String, usage: Use, said: &mut Vec<Chunk>) -> String {
        let Use { name, title, input, parent } = usage;
        // A title that only repeats the name says nothing.
        let title = title.filter(|title| !title.trim().is_empty() && *title != name);
        let known = if id.is_empty() { None } else { self.fold.tool(&id) };
        let (id, name) = match known {
            // One that waits for an answer is not shown otherwise before it has one.
            Some(tool) if tool.is_finished() || tool.question().is_some() => return id,
            Some(tool) if tool.input == input && (title.is_none() || tool.title == title) => return id,
            Some(tool) => (id, if name.is_empty() { tool.tool_name.clone() } else { name }),
            None => {
                if parent.is_none() {
                    self.end_repetition(said);
                }
                let made = self.begin_part("tool", said);
                let id = if id.is_empty() { self.unused(made) } else { id };
                (id, if name.is_empty() { UNNAMED_TOOL.to_owned() } else { name })
            }
        };
        let (tool_call_id, tool_name) = (id.clone(), name);
        let parent = parent.filter(|parent| !parent.is_empty());
        let provider_metadata =
            parent.map(|parent_tool_call_id| ToolMetadata { mainstay: ToolOrigin { parent_tool_call_id } });
        self.say(
            Chunk::ToolInputAvailable {
                tool_call_id,
                tool_name,
                input,
                provider_executed: true,
                dynamic: true,
                title,
                provider_metadata,
            },
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

    pub(super) fn show_progress(&mut self, id: &str, output: Value, said: &mut Vec<Chunk>) {
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

    pub(super) fn finish_tool(
        &mut self,
        id: String,
        name: Option<String>,
        result: Result<Value, String>,
        said: &mut Vec<Chunk>,
    ) {
        let name = name.filter(|name| !name.is_empty());
        let id = if id.is_empty() { self.newest_without_id(name.as_deref()).unwrap_or(id) } else { id };
        let tool_call_id = match self.fold.tool(&id) {
            // The first result is the result.
            Some(tool) if tool.is_finished() => return,
            Some(_) => id,
            None => {
                let name = name.unwrap_or_default();
                self.start_tool(id, Use { name, title: None, input: json!({}), parent: None }, said)
            }
        };
        // A message whose tool gave its result was whole.
        if self.fold.tool_part(&tool_call_id).is_some_and(|part| self.repetition.is_before(part)) {
            self.repetition.forget();
        }
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

pub(super) fn tool_failed(tool_call_id: String, error_text: String) -> Chunk {
    Chunk::ToolOutputError { tool_call_id, error_text, provider_executed: true, dynamic: true }
}
