//! The frames of an OpenClaw gateway: events of a run, each with the whole message so far, and the response to the request.
//!
//! Always: the last frame of a turn is the response, without the id of the request.

use serde_json::{Value, json};

use super::openclaw::tool;
use super::{Encoder, Ending};
use crate::fake::gateway::{RunOf, agent_event};
use crate::record::Said;

#[derive(Debug)]
pub(crate) struct Gateway {
    run: String,
    agent: String,
    session: String,
    seq: u64,
    /// The number of the message; a tool call ends a message.
    message: u32,
    text: String,
    thinking: String,
    /// The newest message that has a text.
    last: String,
}

impl Gateway {
    /// The encoder of a run of one of the gateway's agents, in a session.
    pub(crate) fn new(run: String, agent: String, session: String) -> Self {
        let [text, thinking, last] = Default::default();
        Self { run, agent, session, seq: 0, message: 0, text, thinking, last }
    }

    fn event(&mut self, stream: &str, data: Value) -> Value {
        // Leaves out numbers: events in between went to other clients.
        self.seq += 1 + self.seq % 3;
        let session_id = format!("of-{}", self.session);
        let of = RunOf { run: &self.run, agent: &self.agent, session: &self.session, session_id: &session_id };
        agent_event(&of, self.seq, stream, data)
    }
}

impl Encoder for Gateway {
    fn begin(&mut self) -> Vec<Value> {
        vec![self.event("lifecycle", json!({"phase": "start", "startedAt": 1}))]
    }

    fn say(&mut self, said: &Said) -> Vec<Value> {
        let item = format!("{}:{}", self.run, self.message);
        vec![match said {
            Said::Text(word) => {
                self.text.push_str(word);
                self.last.clone_from(&self.text);
                let data = json!({"text": self.text, "delta": word, "itemId": item});
                self.event("assistant", data)
            }
            Said::Reasoning(word) => {
                self.thinking.push_str(word);
                let data = json!({"text": self.thinking, "delta": word, "itemId": item});
                self.event("thinking", data)
            }
            Said::ToolStarted { .. } => {
                self.message += 1;
                self.text.clear();
                self.thinking.clear();
                self.event("tool", tool(said))
            }
            Said::ToolFinished { .. } | Said::ToolFailed { .. } => self.event("tool", tool(said)),
        }]
    }

    fn cancelling(&mut self) -> Vec<Value> {
        let data = json!({"phase": "end", "status": "cancelled", "aborted": true, "stopReason": "rpc"});
        let end = self.event("lifecycle", data);
        // The numbers start again.
        self.seq = 0;
        vec![end]
    }

    fn end(&mut self, ending: Ending) -> Vec<Value> {
        let answer = |ok: bool, payload: Value| json!({"type": "res", "ok": ok, "payload": payload});
        let run = self.run.as_str();
        let (data, answer) = match ending {
            Ending::Well => {
                let reply = json!({"disposition": "visible", "text": self.last.trim_end()});
                let meta = json!({"finalAssistantVisibleText": self.last.trim_end()});
                let result = json!({"payloads": [], "meta": meta});
                let payload = json!({"runId": run, "status": "ok", "summary": "completed", "result": result});
                (json!({"phase": "end", "executionSettled": true, "terminalReply": reply}), answer(true, payload))
            }
            Ending::Failed => {
                let payload = json!({"runId": run, "status": "error", "summary": "it failed"});
                let mut failed = answer(false, payload);
                failed["error"] = json!({"code": "UNAVAILABLE", "message": "it failed"});
                (json!({"phase": "error", "error": "it failed", "executionSettled": true}), failed)
            }
            Ending::Cancelled => {
                let payload = json!({"runId": run, "status": "timeout", "summary": "aborted", "stopReason": "rpc"});
                let words = "This operation was aborted";
                let data = json!({"phase": "error", "error": words, "aborted": true, "executionSettled": true});
                (data, answer(true, payload))
            }
        };
        vec![self.event("lifecycle", data), answer]
    }
}
