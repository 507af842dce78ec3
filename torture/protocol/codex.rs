//! The items of `codex exec`, each one complete.

use serde_json::{Value, json};

use super::{Encoder, Ending};
use crate::record::Said;

#[derive(Debug, Default)]
pub(crate) struct Codex {
    /// The number of items so far.
    things: u32,
}

impl Encoder for Codex {
    fn begin(&mut self) -> Vec<Value> {
        vec![
            json!({"type": "thread.started", "thread_id": "00000000-0000-4000-8000-000000000000"}),
            json!({"type": "turn.started"}),
        ]
    }

    fn say(&mut self, said: &Said) -> Vec<Value> {
        self.things += 1;
        let command = |id: &str, words: &str| json!({"id": id, "type": "command_execution", "command": words});
        let ended = |id: &str, words: &str, code: i32, status: &str| {
            let mut item = command(id, "work");
            item["aggregated_output"] = words.into();
            item["exit_code"] = code.into();
            item["status"] = status.into();
            json!({"type": "item.completed", "item": item})
        };
        let item = |kind: &str, text: &str| {
            let item = json!({"id": format!("item_{}", self.things), "type": kind, "text": text});
            json!({"type": "item.completed", "item": item})
        };
        vec![match said {
            Said::Text(text) => item("agent_message", text),
            Said::Reasoning(text) => item("reasoning", text),
            Said::ToolStarted { id, input } => {
                let mut item = command(id, input);
                item["status"] = "in_progress".into();
                json!({"type": "item.started", "item": item})
            }
            Said::ToolFinished { id, output } => ended(id, output, 0, "completed"),
            Said::ToolFailed { id, error } => ended(id, error, 1, "failed"),
        }]
    }

    fn end(&mut self, _: Ending) -> Vec<Value> {
        vec![json!({"type": "turn.completed", "usage": {"input_tokens": 1, "output_tokens": self.things}})]
    }
}
