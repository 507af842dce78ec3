//! ACP: updates of a session, ended by the response to the prompt.

use serde_json::{Value, json};

use super::{Encoder, Ending};
use crate::fake::acp::update;
use crate::record::Said;

#[derive(Debug)]
pub(crate) struct Acp {
    session: String,
    /// The id of the prompt request.
    prompt: Value,
}

impl Acp {
    pub(crate) fn new(session: String, prompt: Value) -> Self {
        Self { session, prompt }
    }
}

impl Encoder for Acp {
    fn say(&mut self, said: &Said) -> Vec<Value> {
        let text = |text: &str| json!({"type": "text", "text": text});
        let ended = |id: &str, words: &str, status: &str| {
            let content = [json!({"type": "content", "content": text(words)})];
            json!({"toolCallId": id, "status": status, "content": content})
        };
        let (kind, said) = match said {
            Said::Text(words) => ("agent_message_chunk", json!({"content": text(words)})),
            Said::Reasoning(words) => ("agent_thought_chunk", json!({"content": text(words)})),
            Said::ToolStarted { id, input } => {
                let input = json!({"input": input});
                let status = "in_progress";
                (
                    "tool_call",
                    json!({"toolCallId": id, "title": "work", "kind": "other", "status": status, "rawInput": input}),
                )
            }
            Said::ToolFinished { id, output } => ("tool_call_update", ended(id, output, "completed")),
            Said::ToolFailed { id, error } => ("tool_call_update", ended(id, error, "failed")),
        };
        vec![update(&self.session, kind, said)]
    }

    fn ask(&mut self, question: &str, tool: &str, input: &str) -> Option<Value> {
        let option = |id: &str, kind: &str| json!({"optionId": id, "name": id, "kind": kind});
        let options = [option("yes", "allow_once"), option("no", "reject_once")];
        let input = json!({"input": input});
        let call = json!({"toolCallId": tool, "title": "work", "kind": "other", "rawInput": input});
        let params = json!({"sessionId": self.session, "toolCall": call, "options": options});
        Some(json!({"jsonrpc": "2.0", "id": question, "method": "session/request_permission", "params": params}))
    }

    fn answers(&self, line: &Value, question: &str) -> bool {
        line["method"].is_null() && line["id"] == question
    }

    fn end(&mut self, ending: Ending) -> Vec<Value> {
        let mut answer = json!({"jsonrpc": "2.0", "id": self.prompt});
        match ending {
            Ending::Well => answer["result"] = json!({"stopReason": "end_turn"}),
            Ending::Cancelled => answer["result"] = json!({"stopReason": "cancelled"}),
            Ending::Failed => answer["error"] = json!({"code": -32603, "message": "it failed"}),
        }
        vec![answer]
    }
}
