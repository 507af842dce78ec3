//! Claude Code's stream: messages in blocks, one block after the other.

use serde_json::{Value, json};

use super::{Encoder, Ending};
use crate::record::Said;

#[derive(Debug, Default)]
pub(crate) struct Claude {
    /// The block that is open.
    open: Option<&'static str>,
    block: u32,
}

impl Encoder for Claude {
    fn begin(&mut self) -> Vec<Value> {
        vec![
            json!({"type": "system", "subtype": "init", "session_id": "00000000-0000-4000-8000-000000000000"}),
            event(json!({"type": "message_start", "message": {"id": "msg_0", "role": "assistant", "content": []}})),
        ]
    }

    fn say(&mut self, said: &Said) -> Vec<Value> {
        let result = |id: &str, text: &str, is_error: bool| {
            let content = [json!({"type": "tool_result", "tool_use_id": id, "content": text, "is_error": is_error})];
            json!({"type": "user", "message": {"role": "user", "content": content}, "parent_tool_use_id": null})
        };
        match said {
            Said::Text(text) => self.grow("text", json!({"type": "text_delta", "text": text})),
            Said::Reasoning(text) => self.grow("thinking", json!({"type": "thinking_delta", "thinking": text})),
            Said::ToolStarted { id, input } => {
                let mut lines = self.close();
                let index = self.block;
                let tool = json!({"type": "tool_use", "id": id, "name": "Work", "input": {}});
                let partial = json!({"input": input}).to_string();
                let delta = json!({"type": "input_json_delta", "partial_json": partial});
                lines.push(event(json!({"type": "content_block_start", "index": index, "content_block": tool})));
                lines.push(event(json!({"type": "content_block_delta", "index": index, "delta": delta})));
                lines.push(event(json!({"type": "content_block_stop", "index": index})));
                self.block += 1;
                lines
            }
            Said::ToolFinished { id, output } => vec![result(id, output, false)],
            Said::ToolFailed { id, error } => vec![result(id, error, true)],
        }
    }

    fn ask(&mut self, question: &str, tool: &str, input: &str) -> Option<Value> {
        let request = json!({"subtype": "can_use_tool", "tool_name": "Work", "tool_use_id": tool,
            "input": {"input": input}});
        Some(json!({"type": "control_request", "request_id": question, "request": request}))
    }

    fn answers(&self, line: &Value, question: &str) -> bool {
        line["type"] == "control_response" && line["response"]["request_id"] == question
    }

    fn end(&mut self, _: Ending) -> Vec<Value> {
        let mut lines = self.close();
        lines.push(event(json!({"type": "message_stop"})));
        lines.push(json!({"type": "result", "subtype": "success", "is_error": false, "num_turns": 1}));
        lines
    }
}

impl Claude {
    /// A delta of the open block; a block of another kind is closed and a new one opened.
    fn grow(&mut self, kind: &'static str, delta: Value) -> Vec<Value> {
        let mut lines = Vec::new();
        if self.open != Some(kind) {
            lines.extend(self.close());
            let block = json!({"type": kind, kind: ""});
            lines.push(event(json!({"type": "content_block_start", "index": self.block, "content_block": block})));
            self.open = Some(kind);
        }
        lines.push(event(json!({"type": "content_block_delta", "index": self.block, "delta": delta})));
        lines
    }

    fn close(&mut self) -> Vec<Value> {
        let stop = event(json!({"type": "content_block_stop", "index": self.block}));
        self.open.take().map(|_| self.block += 1).map(|()| stop).into_iter().collect()
    }
}

fn event(event: Value) -> Value {
    json!({"type": "stream_event", "event": event, "parent_tool_use_id": null})
}
