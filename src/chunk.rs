//! The AI SDK v6 UI message stream: what a reader gets, chunk by chunk.
//!
//! Always: only chunks and fields that the strictest v6 client accepts (clients before 6.0.231 end the whole stream on an
//! unknown field or an explicit `null`). What an agent does not report is left out.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::failure::ErrorClass;
use crate::id::{MessageId, RunId, SessionId};
use crate::run::{Cause, Status};
use crate::usage::Usage;

/// One chunk of a UI message stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", rename_all_fields = "camelCase")]
#[expect(missing_docs, reason = "the names and fields are the AI SDK's")]
pub enum Chunk {
    Start {
        message_id: String,
        message_metadata: Value,
    },
    StartStep,
    FinishStep,
    TextStart {
        id: String,
    },
    TextDelta {
        id: String,
        delta: String,
    },
    TextEnd {
        id: String,
    },
    ReasoningStart {
        id: String,
    },
    ReasoningDelta {
        id: String,
        delta: String,
    },
    ReasoningEnd {
        id: String,
    },
    ToolInputAvailable {
        tool_call_id: String,
        tool_name: String,
        input: Value,
        provider_executed: bool,
        dynamic: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        title: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        provider_metadata: Option<ToolMetadata>,
    },
    ToolOutputAvailable {
        tool_call_id: String,
        output: Value,
        provider_executed: bool,
        dynamic: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        preliminary: Option<bool>,
    },
    ToolOutputError {
        tool_call_id: String,
        error_text: String,
        provider_executed: bool,
        dynamic: bool,
    },
    ToolApprovalRequest {
        approval_id: String,
        tool_call_id: String,
    },
    ToolOutputDenied {
        tool_call_id: String,
    },
    File {
        url: String,
        media_type: String,
    },
    SourceUrl {
        source_id: String,
        url: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
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
    DataToolOutput {
        data: ToolOutputDelta,
        transient: bool,
    },
    DataStatus {
        data: StatusLabel,
        transient: bool,
    },
    MessageMetadata {
        message_metadata: Value,
    },
    Error {
        error_text: String,
    },
    Abort,
    Finish {
        finish_reason: FinishReason,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message_metadata: Option<Value>,
    },
}

/// What the agent is doing, for display; not part of the message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusLabel {
    /// A short sentence.
    pub label: String,
}

/// Text that a running tool appends to its shown output. An AI SDK client that does not know this chunk shows the text a little
/// later, with the next complete output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolOutputDelta {
    /// The call.
    pub tool_call_id: String,
    /// The appended text.
    pub delta: String,
}

/// Parts that the agent withdrew, such as those of an answer that was requested from the model again. They keep their positions,
/// because a v6 stream cannot remove them, and are stored as empty texts; a client that shows the stream hides them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retracted {
    /// Positions in the parts of the message.
    pub parts: Vec<usize>,
}

/// A notice for the person that is not part of the answer: a warning, a hook's message, a lost context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// Plain text.
    pub text: String,
    /// How prominently it should be shown; none is an ordinary line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<NoticeLevel>,
}

impl Notice {
    /// An ordinary line.
    pub fn info(text: impl Into<String>) -> Self {
        Self { text: text.into(), level: None }
    }

    /// Something that the person should know.
    pub fn warning(text: impl Into<String>) -> Self {
        Self { text: text.into(), level: Some(NoticeLevel::Warning) }
    }
}

/// How prominently a notice should be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the words say it")]
pub enum NoticeLevel {
    Warning,
}

/// Metadata of a tool call that the AI SDK does not define, in the field that it provides for such data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolMetadata {
    /// The part that belongs to Mainstay.
    pub mainstay: ToolOrigin,
}

/// Where a tool call comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolOrigin {
    /// The parent call, if a sub-agent makes this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_tool_call_id: Option<String>,
    /// The agent's own id of the call, if an earlier call of the message has the same id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_tool_call_id: Option<String>,
}

/// How a run ended, as metadata of its answer. Unknown fields are left out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ending {
    status: Status,
    cause: Cause,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_class: Option<ErrorClass>,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

impl Ending {
    /// A class and its advice belong to failed runs only.
    pub fn new(cause: Cause, class: Option<ErrorClass>, usage: Usage) -> Self {
        let status = cause.status();
        let error_class = class.filter(|_| status == Status::Failed);
        Self {
            status,
            cause,
            error_class,
            advice: error_class.map(ErrorClass::advice),
            usage: Some(usage).filter(|usage| *usage != Usage::default()),
        }
    }

    /// The metadata as JSON.
    pub fn to_json(&self) -> Value {
        // It consists of words and numbers, which always serialise.
        serde_json::to_value(self).unwrap_or_default()
    }

    /// Adds this as message metadata to the last chunks of a run. A v6 client applies nothing after `error`, so it is also sent
    /// before that.
    pub fn label(&self, chunks: Vec<Chunk>) -> Vec<Chunk> {
        let mut labelled = Vec::with_capacity(chunks.len() + 1);
        for chunk in chunks {
            match chunk {
                Chunk::Error { .. } => {
                    labelled.extend([Chunk::MessageMetadata { message_metadata: self.to_json() }, chunk]);
                }
                Chunk::Finish { finish_reason, .. } => {
                    labelled.push(Chunk::Finish { finish_reason, message_metadata: Some(self.to_json()) });
                }
                chunk => labelled.push(chunk),
            }
        }
        labelled
    }
}

/// Why a stream ended, in the AI SDK's words (which have none for "cancelled").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names are the AI SDK's")]
pub enum FinishReason {
    Stop,
    Error,
    Other,
}

impl Chunk {
    /// The chunk that opens every run's stream. The store writes the same text when a run is claimed
    /// (`run_span_grows` in `migrations/`).
    pub fn start(run: RunId, session: &SessionId, response: &MessageId) -> Self {
        Self::Start {
            message_id: response.to_string(),
            message_metadata: serde_json::json!({"run_id": run, "session_id": session}),
        }
    }

    /// What follows `start` if a run is cancelled before it began.
    pub fn end_of_a_run_cancelled_in_the_queue() -> Vec<Self> {
        let end = vec![Self::Abort, Self::Finish { finish_reason: FinishReason::Other, message_metadata: None }];
        Ending::new(Cause::Cancelled, None, Usage::default()).label(end)
    }

    /// The last chunks of a run whose output cannot be stored, with a notice that says so.
    pub fn bare_end(status: Status, sentence: &str) -> Vec<Self> {
        // No other part has this id: the ids of a turn's parts end with their position.
        let notice = Self::DataNotice { id: "notice-end".into(), data: Notice::warning(sentence) };
        let (end, finish_reason) = match status {
            Status::Cancelled => (Some(Self::Abort), FinishReason::Other),
            Status::Failed | Status::TimedOut | Status::Interrupted => {
                (Some(Self::Error { error_text: sentence.to_owned() }), FinishReason::Error)
            }
            Status::Queued | Status::Running | Status::Completed => (None, FinishReason::Stop),
        };
        let finish = Self::Finish { finish_reason, message_metadata: None };
        [Some(notice), end, Some(finish)].into_iter().flatten().collect()
    }

    /// Whether this chunk counts as output of the agent: it is neither `start` nor transient.
    pub fn is_said(&self) -> bool {
        !matches!(self, Self::Start { .. } | Self::DataStatus { transient: true, .. })
    }

    /// Whether this chunk belongs to a tool call: start, progress, permission request or end.
    pub fn is_of_tool(&self) -> bool {
        matches!(
            self,
            Self::ToolInputAvailable { .. }
                | Self::ToolOutputAvailable { .. }
                | Self::ToolOutputError { .. }
                | Self::ToolApprovalRequest { .. }
                | Self::ToolOutputDenied { .. }
        )
    }

    /// The chunk as the JSON text that is stored and sent.
    pub fn to_json(&self) -> String {
        // A chunk consists of strings, booleans and JSON values, which always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_written_in_the_words_of_the_ai_sdk() {
        let status = Chunk::DataStatus { data: StatusLabel { label: "Thinking".into() }, transient: true };
        assert_eq!(status.to_json(), r#"{"type":"data-status","data":{"label":"Thinking"},"transient":true}"#);
        let text = Chunk::TextDelta { id: "text-1".into(), delta: "é\n".into() };
        assert_eq!(text.to_json(), r#"{"type":"text-delta","id":"text-1","delta":"é\n"}"#);
        let output = Chunk::ToolOutputAvailable {
            tool_call_id: "t".into(),
            output: serde_json::json!({"a": 1}),
            provider_executed: true,
            dynamic: true,
            preliminary: None,
        };
        assert_eq!(
            output.to_json(),
            r#"{"type":"tool-output-available","toolCallId":"t","output":{"a":1},"providerExecuted":true,"dynamic":true}"#
        );
        let retracted = Chunk::DataRetracted { id: "retracted-3".into(), data: Retracted { parts: vec![1, 2] } };
        assert_eq!(retracted.to_json(), r#"{"type":"data-retracted","id":"retracted-3","data":{"parts":[1,2]}}"#);
        let notice = Chunk::DataNotice { id: "notice-1".into(), data: Notice::warning("w") };
        assert_eq!(notice.to_json(), r#"{"type":"data-notice","id":"notice-1","data":{"text":"w","level":"warning"}}"#);
        let notice = Chunk::DataNotice { id: "notice-1".into(), data: Notice::info("i") };
        assert_eq!(notice.to_json(), r#"{"type":"data-notice","id":"notice-1","data":{"text":"i"}}"#);
        let source = Chunk::SourceUrl { source_id: "s".into(), url: "u".into(), title: None };
        assert_eq!(source.to_json(), r#"{"type":"source-url","sourceId":"s","url":"u"}"#);
        let data = ToolOutputDelta { tool_call_id: "t".into(), delta: "d".into() };
        assert_eq!(
            Chunk::DataToolOutput { data, transient: true }.to_json(),
            r#"{"type":"data-tool-output","data":{"toolCallId":"t","delta":"d"},"transient":true}"#
        );
        let file = Chunk::File { url: "data:,x".into(), media_type: "text/plain".into() };
        assert_eq!(file.to_json(), r#"{"type":"file","url":"data:,x","mediaType":"text/plain"}"#);
        let request = Chunk::ToolApprovalRequest { approval_id: "a".into(), tool_call_id: "t".into() };
        assert_eq!(request.to_json(), r#"{"type":"tool-approval-request","approvalId":"a","toolCallId":"t"}"#);
        let denied = Chunk::ToolOutputDenied { tool_call_id: "t".into() };
        assert_eq!(denied.to_json(), r#"{"type":"tool-output-denied","toolCallId":"t"}"#);
        assert_eq!(
            Chunk::Finish { finish_reason: FinishReason::Stop, message_metadata: None }.to_json(),
            r#"{"type":"finish","finishReason":"stop"}"#
        );
    }

    #[test]
    fn the_last_chunks_carry_the_outcome() {
        let end = vec![
            Chunk::FinishStep,
            Chunk::Error { error_text: "no".into() },
            Chunk::Finish { finish_reason: FinishReason::Error, message_metadata: None },
        ];
        let usage = Usage { input_tokens: Some(3), ..Usage::default() };
        let ending = Ending::new(Cause::AgentError, Some(ErrorClass::Overloaded), usage);
        let metadata = serde_json::json!({"status": "failed", "cause": "agent_error", "error_class": "overloaded",
            "advice": ErrorClass::Overloaded.advice(), "usage": {"input_tokens": 3}});
        let labelled = ending.label(end.clone());
        assert_eq!(labelled[..1], end[..1]);
        assert_eq!(labelled[1], Chunk::MessageMetadata { message_metadata: metadata.clone() });
        assert_eq!(labelled[2], end[1]);
        let finish = Chunk::Finish { finish_reason: FinishReason::Error, message_metadata: Some(metadata) };
        assert_eq!(labelled[3..], [finish]);
        // No nulls, and no class where nothing failed.
        let cancelled = Ending::new(Cause::Cancelled, Some(ErrorClass::Crashed), Usage::default());
        assert_eq!(cancelled.to_json(), serde_json::json!({"status": "cancelled", "cause": "cancelled"}));
    }
}
