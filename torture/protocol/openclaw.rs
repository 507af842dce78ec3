//! OpenClaw's events, one per line.

use serde_json::{Value, json};

use super::{Encoder, Ending};
use crate::record::Said;

#[derive(Debug)]
pub(crate) struct Openclaw {
    /// All of the text so far, if it is repeated with every word.
    told: Option<String>,
}

impl Openclaw {
    pub(crate) fn new(retells: bool) -> Self {
        Self { told: retells.then(String::new) }
    }
}

impl Encoder for Openclaw {
    fn say(&mut self, said: &Said) -> Vec<Value> {
        let (stream, data) = match (said, &mut self.told) {
            (Said::Text(text), Some(told)) => {
                told.push_str(text);
                ("assistant", json!({"text": told}))
            }
            (Said::Text(text), None) => ("assistant", json!({"delta": text})),
            (Said::Reasoning(text), _) => ("thinking", json!({"delta": text})),
            _ => ("tool", tool(said)),
        };
        vec![json!({"event": "agent", "stream": stream, "data": data})]
    }

    fn end(&mut self, _: Ending) -> Vec<Value> {
        vec![json!({"event": "agent", "stream": "lifecycle", "data": {"phase": "end"}})]
    }

    fn may_omit_end(&self) -> bool {
        true
    }

    fn retells(&self) -> bool {
        self.told.is_some()
    }
}

/// The event of a tool call.
pub(super) fn tool(said: &Said) -> Value {
    let result = |text: &str| json!({"content": [{"type": "text", "text": text}]});
    match said {
        Said::ToolStarted { id, input } => {
            json!({"phase": "start", "toolCallId": id, "name": "work", "args": {"input": input}})
        }
        Said::ToolFinished { id, output } => json!({"phase": "result", "toolCallId": id, "result": result(output)}),
        Said::ToolFailed { id, error } => {
            json!({"phase": "result", "toolCallId": id, "isError": true, "result": result(error)})
        }
        Said::Text(_) | Said::Reasoning(_) => Value::Null,
    }
}
