//! A tool call in a message, and how each chunk changes it.

use serde::Serialize;
use serde_json::Value;

use crate::chunk::{Chunk, ToolMetadata};

/// A tool call in the message.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tool {
    /// The tool.
    pub tool_name: String,
    /// The call.
    pub tool_call_id: String,
    /// What this call does, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    state: ToolState,
    /// What it was given.
    pub input: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    preliminary: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approval: Option<Approval>,
    provider_executed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    call_provider_metadata: Option<ToolMetadata>,
    /// Bytes of the newest output that was sent whole while the tool was at work.
    #[serde(skip)]
    pub(in crate::engine) whole_bytes: usize,
    /// Bytes of all that was sent whole while it was at work.
    #[serde(skip)]
    pub(in crate::engine) sent_bytes: usize,
}

/// What was asked before a tool was used. The stream does not say how that was answered: the end of the tool shows it. The
/// validation of the AI SDK refuses a message without the answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Approval {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    approved: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum ToolState {
    InputAvailable,
    ApprovalRequested,
    OutputAvailable,
    OutputError,
    OutputDenied,
}

impl Tool {
    /// The call that a `tool-input-available` announces.
    pub(super) fn announced_by(chunk: &Chunk) -> Option<Self> {
        let Chunk::ToolInputAvailable {
            tool_call_id,
            tool_name,
            input,
            provider_executed,
            title,
            provider_metadata,
            dynamic: _,
        } = chunk
        else {
            return None;
        };
        Some(Self {
            tool_name: tool_name.clone(),
            tool_call_id: tool_call_id.clone(),
            title: title.clone(),
            state: ToolState::InputAvailable,
            input: input.clone(),
            output: None,
            error_text: None,
            preliminary: None,
            approval: None,
            provider_executed: *provider_executed,
            call_provider_metadata: provider_metadata.clone(),
            whole_bytes: 0,
            sent_bytes: 0,
        })
    }

    /// The call is announced again: what is not repeated stays.
    pub(super) fn announce_again(&mut self, announced: Self) {
        self.answered(true);
        let title = announced.title.clone().or(self.title.take());
        let call_provider_metadata = announced.call_provider_metadata.clone().or(self.call_provider_metadata.take());
        let sent_bytes = self.sent_bytes + bytes_of(&announced.input);
        let approval = self.approval.take();
        *self = Self { title, approval, call_provider_metadata, sent_bytes, ..announced };
    }

    /// Takes a chunk about it.
    pub(super) fn apply(&mut self, chunk: &Chunk) {
        match chunk {
            Chunk::ToolOutputAvailable { output, provider_executed, preliminary, .. } => {
                self.answered(true);
                self.state = ToolState::OutputAvailable;
                if *preliminary == Some(true) {
                    self.whole_bytes = bytes_of(output);
                    self.sent_bytes += self.whole_bytes;
                }
                self.output = Some(output.clone());
                self.error_text = None;
                self.preliminary = *preliminary;
                self.provider_executed = *provider_executed;
            }
            Chunk::ToolOutputError { error_text, provider_executed, .. } => {
                self.answered(true);
                self.state = ToolState::OutputError;
                self.output = None;
                self.error_text = Some(error_text.clone());
                self.preliminary = None;
                self.provider_executed = *provider_executed;
            }
            Chunk::ToolApprovalRequest { approval_id, .. } => {
                self.state = ToolState::ApprovalRequested;
                self.approval = Some(Approval { id: approval_id.clone(), approved: None });
            }
            Chunk::ToolOutputDenied { .. } => {
                self.answered(false);
                self.state = ToolState::OutputDenied;
            }
            _ => {}
        }
    }

    /// Adds text to the output that the tool has shown; returns whether that output can be extended.
    pub(super) fn grow(&mut self, delta: &str) -> bool {
        let (Some(Value::String(shown)), Some(true)) = (&mut self.output, self.preliminary) else { return false };
        shown.push_str(delta);
        true
    }

    /// The agent's id of the call.
    pub fn agent_id(&self) -> &str {
        let metadata = self.call_provider_metadata.as_ref();
        metadata.and_then(|it| it.mainstay.agent_tool_call_id.as_deref()).unwrap_or(&self.tool_call_id)
    }

    /// Whether it gave its last result.
    pub fn is_finished(&self) -> bool {
        match self.state {
            ToolState::InputAvailable | ToolState::ApprovalRequested => false,
            ToolState::OutputAvailable => self.preliminary != Some(true),
            ToolState::OutputError | ToolState::OutputDenied => true,
        }
    }

    /// The question that it waits for an answer to.
    pub fn question(&self) -> Option<&str> {
        let asks = self.state == ToolState::ApprovalRequested;
        self.approval.as_ref().filter(|_| asks).map(|approval| approval.id.as_str())
    }

    /// The output that it has shown, the last one or one before; none while it waits for an answer, or when it failed.
    pub fn output(&self) -> Option<&Value> {
        self.output.as_ref().filter(|_| self.state == ToolState::OutputAvailable)
    }

    /// Records the answer: the tool continues, or does not.
    fn answered(&mut self, approved: bool) {
        if let Some(approval) = &mut self.approval {
            approval.approved.get_or_insert(approved);
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let values = bytes_of(&self.input) + self.output.as_ref().map_or(0, bytes_of);
        self.tool_name.len()
            + self.tool_call_id.len()
            + self.title.as_deref().map_or(0, encoded_bytes)
            + self.error_text.as_deref().map_or(0, encoded_bytes)
            + values
    }
}

/// How long a text is as JSON, without its quotes.
pub(in crate::engine) fn encoded_bytes(text: &str) -> usize {
    let escaped = text.bytes().map(|byte| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 8 | 12 => 1,
        0..=31 => 5,
        _ => 0,
    });
    text.len() + escaped.sum::<usize>()
}

/// About how long a value is as JSON, in bytes.
pub(in crate::engine) fn bytes_of(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
        Value::String(text) => encoded_bytes(text) + 2,
        Value::Array(items) => items.iter().map(|item| 1 + bytes_of(item)).sum(),
        Value::Object(map) => map.iter().map(|(key, item)| encoded_bytes(key) + 4 + bytes_of(item)).sum(),
    }
}
