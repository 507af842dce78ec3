//! The events of an opencode server: a message in parts; texts grow by deltas and are repeated whole at their end.

use serde_json::{Value, json};

use super::{Encoder, Ending};
use crate::fake::opencode::event;
use crate::record::Said;

#[derive(Debug)]
pub(crate) struct Opencode {
    session: String,
    /// The ids of the person's message and of the agent's.
    asked: String,
    message: String,
    /// The person's message.
    text: String,
    parts: u32,
    /// The part that grows, and its text so far.
    open: Option<(&'static str, String)>,
    /// The part of the running tool call, with the fields that each of its events has.
    tool: Value,
}

impl Opencode {
    /// Message ids grow: the answer's is after the question's.
    pub(crate) fn new(session: String, asked: String, message: String, text: String) -> Self {
        Self { session, asked, message, text, parts: 0, open: None, tool: Value::Null }
    }

    fn event(&self, kind: &str, mut properties: Value) -> Value {
        properties["sessionID"] = self.session.as_str().into();
        event(kind, properties)
    }

    fn message(&self, id: &str, role: &str, more: &[(&str, Value)]) -> Value {
        let mut info = json!({"id": id, "role": role, "sessionID": self.session, "time": {"created": 1}});
        for (key, value) in more {
            info[*key] = value.clone();
        }
        self.event("message.updated", json!({"info": info}))
    }

    fn part(&self, id: &str, mut part: Value) -> Value {
        part["id"] = id.into();
        part["sessionID"] = self.session.as_str().into();
        if part["messageID"].is_null() {
            part["messageID"] = self.message.as_str().into();
        }
        self.event("message.part.updated", json!({"part": part}))
    }

    /// The id of the newest part.
    fn newest(&self) -> String {
        format!("prt_{}_{}", self.message, self.parts)
    }

    /// The next delta of the growing part; if that is of another kind, a new part is begun.
    fn grow(&mut self, kind: &'static str, piece: &str) -> Vec<Value> {
        let mut events = Vec::new();
        if self.open.as_ref().is_none_or(|(open, _)| *open != kind) {
            events.extend(self.close());
            self.parts += 1;
            events.push(self.part(&self.newest(), json!({"type": kind, "text": "", "time": {"start": 1}})));
            self.open = Some((kind, String::new()));
        }
        if let Some((_, said)) = &mut self.open {
            said.push_str(piece);
        }
        let delta = json!({"messageID": self.message, "partID": self.newest(), "field": "text", "delta": piece});
        events.push(self.event("message.part.delta", delta));
        events
    }

    fn close(&mut self) -> Option<Value> {
        let (kind, said) = self.open.take()?;
        Some(self.part(&self.newest(), json!({"type": kind, "text": said, "time": {"start": 1, "end": 2}})))
    }

    fn tool(&self, status: &str, more: (&str, &str)) -> Value {
        let mut part = self.tool.clone();
        part["state"]["status"] = status.into();
        part["state"][more.0] = more.1.into();
        self.part(part["id"].as_str().unwrap_or_default(), part.clone())
    }

    fn idle(&self) -> [Value; 2] {
        [self.event("session.status", json!({"status": {"type": "idle"}})), self.event("session.idle", json!({}))]
    }
}

impl Encoder for Opencode {
    fn begin(&mut self) -> Vec<Value> {
        let text = json!({"type": "text", "text": self.text, "messageID": self.asked});
        vec![
            self.message(&self.asked, "user", &[]),
            self.part(&format!("prt_{}", self.asked), text),
            self.event("session.status", json!({"status": {"type": "busy"}})),
            self.message(&self.message, "assistant", &[]),
            self.part(&self.newest(), json!({"type": "step-start"})),
        ]
    }

    fn say(&mut self, said: &Said) -> Vec<Value> {
        match said {
            Said::Text(text) => self.grow("text", text),
            Said::Reasoning(text) => self.grow("reasoning", text),
            Said::ToolStarted { id, input } => {
                let closed = self.close();
                self.parts += 1;
                self.tool = json!({"type": "tool", "id": self.newest(), "callID": id, "tool": "work",
                    "state": {"input": {"input": input}}});
                closed.into_iter().chain([self.tool("running", ("title", "work"))]).collect()
            }
            Said::ToolFinished { output, .. } => vec![self.tool("completed", ("output", output))],
            Said::ToolFailed { error, .. } => vec![self.tool("error", ("error", error))],
        }
    }

    fn ask(&mut self, question: &str, tool: &str, input: &str) -> Option<Value> {
        let tool = json!({"messageID": self.message, "callID": tool});
        let asked = json!({"id": question, "permission": "work", "patterns": [], "metadata": {"input": input},
            "tool": tool});
        Some(self.event("permission.asked", asked))
    }

    fn answers(&self, line: &Value, question: &str) -> bool {
        line["permission"] == question
    }

    fn cancelling(&mut self) -> Vec<Value> {
        let failed = self.event("session.error", json!({"error": aborted()}));
        std::iter::once(failed).chain(self.idle()).collect()
    }

    fn end(&mut self, ending: Ending) -> Vec<Value> {
        let completed = ("time", json!({"created": 1, "completed": 2}));
        let error = match ending {
            Ending::Well => None,
            Ending::Failed => Some(json!({"name": "UnknownError", "data": {"message": "it failed"}})),
            Ending::Cancelled => Some(aborted()),
        };
        let mut events: Vec<_> = self.close().into_iter().collect();
        match error {
            None => {
                self.parts += 1;
                events.push(self.part(&self.newest(), json!({"type": "step-finish", "reason": "stop", "cost": 0})));
                events.push(self.message(&self.message, "assistant", &[completed]));
            }
            Some(error) => {
                if ending == Ending::Failed {
                    events.push(self.event("session.error", json!({"error": error})));
                }
                events.push(self.message(&self.message, "assistant", &[completed, ("error", error)]));
            }
        }
        events.extend(self.idle());
        events
    }
}

fn aborted() -> Value {
    json!({"name": "MessageAbortedError", "data": {"message": "Aborted"}})
}
