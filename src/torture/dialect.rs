//! How an agent of a torture speaks: what it says, in the lines of each kind of agent that writes lines.
//!
//! Always: one thing said is a handful of whole lines; what only frames it says nothing.

use serde_json::{Value, json};

use super::record::Said;

/// The protocols that an agent of a torture knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Dialect {
    /// OpenClaw's events.
    #[default]
    Openclaw,
    /// Claude Code's stream.
    Claude,
    /// The items of `codex exec`.
    Codex,
    /// ACP, to many turns.
    Acp,
}

impl Dialect {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Openclaw, Self::Claude, Self::Codex, Self::Acp];

    /// The word on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Openclaw => "openclaw",
            Self::Claude => "claude",
            Self::Codex => "codex",
            Self::Acp => "acp",
        }
    }
}

impl std::str::FromStr for Dialect {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|dialect| dialect.as_str() == text).ok_or("openclaw, claude, codex or acp is needed")
    }
}

/// An agent's speech in one turn.
#[derive(Debug)]
pub(super) struct Speech {
    dialect: Dialect,
    /// All of the text so far, if it is said again with every word.
    told: Option<String>,
    /// How many things were said.
    things: u32,
    /// The block that is open, in a message of Claude's.
    open: Option<&'static str>,
    block: u32,
    /// The conversation, in ACP.
    session: String,
}

impl Speech {
    /// The speech of a turn. `retells`: all of the text is said again with every word, where the protocol has that.
    pub(super) fn new(dialect: Dialect, retells: bool) -> Self {
        let told = (retells && dialect == Dialect::Openclaw).then(String::new);
        Self { dialect, told, things: 0, open: None, block: 0, session: String::new() }
    }

    /// The speech of a turn in ACP.
    pub(super) fn of_acp(session: String) -> Self {
        Self { session, ..Self::new(Dialect::Acp, false) }
    }

    /// Whether all of the text is said again with every word.
    pub(super) fn retells(&self) -> bool {
        self.told.is_some()
    }

    /// What comes before all else.
    pub(super) fn begin(&self) -> Vec<Value> {
        match self.dialect {
            Dialect::Openclaw | Dialect::Acp => Vec::new(),
            Dialect::Claude => vec![
                json!({"type": "system", "subtype": "init", "session_id": "00000000-0000-4000-8000-000000000000"}),
                event(json!({"type": "message_start", "message": {"id": "msg_0", "role": "assistant", "content": []}})),
            ],
            Dialect::Codex => vec![
                json!({"type": "thread.started", "thread_id": "00000000-0000-4000-8000-000000000000"}),
                json!({"type": "turn.started"}),
            ],
        }
    }

    /// One thing.
    pub(super) fn say(&mut self, said: &Said) -> Vec<Value> {
        self.things += 1;
        match self.dialect {
            Dialect::Openclaw => vec![self.openclaw(said)],
            Dialect::Claude => self.claude(said),
            Dialect::Codex => vec![self.codex(said)],
            Dialect::Acp => vec![self.acp(said)],
        }
    }

    /// A question whether a tool may be used, where the protocol has that; and no other line is like its answer.
    pub(super) fn ask(&self, question: &str, tool: &str, input: &str) -> Option<Value> {
        let input = json!({"input": input});
        match self.dialect {
            Dialect::Openclaw | Dialect::Codex => None,
            Dialect::Claude => {
                let request =
                    json!({"subtype": "can_use_tool", "tool_name": "Work", "tool_use_id": tool, "input": input});
                Some(json!({"type": "control_request", "request_id": question, "request": request}))
            }
            Dialect::Acp => {
                let option = |id: &str, kind: &str| json!({"optionId": id, "name": id, "kind": kind});
                let options = [option("yes", "allow_once"), option("no", "reject_once")];
                let call = json!({"toolCallId": tool, "title": "work", "kind": "other", "rawInput": input});
                let params = json!({"sessionId": self.session, "toolCall": call, "options": options});
                Some(request(question, "session/request_permission", &params))
            }
        }
    }

    /// Whether a line is the answer to a question.
    pub(super) fn answers(&self, line: &Value, question: &str) -> bool {
        match self.dialect {
            Dialect::Openclaw | Dialect::Codex => false,
            Dialect::Claude => line["type"] == "control_response" && line["response"]["request_id"] == question,
            Dialect::Acp => line["method"].is_null() && line["id"] == question,
        }
    }

    /// The end of a turn that went well, when the agent says that it is one.
    pub(super) fn end(&mut self) -> Vec<Value> {
        match self.dialect {
            Dialect::Openclaw => vec![json!({"event": "agent", "stream": "lifecycle", "data": {"phase": "end"}})],
            Dialect::Claude => {
                let mut lines = self.close();
                lines.push(event(json!({"type": "message_stop"})));
                lines.push(json!({"type": "result", "subtype": "success", "is_error": false, "num_turns": 1}));
                lines
            }
            // The answer to the prompt says it.
            Dialect::Acp => Vec::new(),
            Dialect::Codex => {
                vec![json!({"type": "turn.completed", "usage": {"input_tokens": 1, "output_tokens": self.things}})]
            }
        }
    }

    fn openclaw(&mut self, said: &Said) -> Value {
        let result = |text: &str| json!({"content": [{"type": "text", "text": text}]});
        let (stream, data) = match said {
            Said::Text(text) => match &mut self.told {
                Some(told) => {
                    told.push_str(text);
                    ("assistant", json!({"text": told}))
                }
                None => ("assistant", json!({"delta": text})),
            },
            Said::Reasoning(text) => ("thinking", json!({"delta": text})),
            Said::ToolStarted { id, input } => {
                ("tool", json!({"phase": "start", "toolCallId": id, "name": "work", "args": {"input": input}}))
            }
            Said::ToolFinished { id, output } => {
                ("tool", json!({"phase": "result", "toolCallId": id, "result": result(output)}))
            }
            Said::ToolFailed { id, error } => {
                ("tool", json!({"phase": "result", "toolCallId": id, "isError": true, "result": result(error)}))
            }
        };
        json!({"event": "agent", "stream": stream, "data": data})
    }

    fn claude(&mut self, said: &Said) -> Vec<Value> {
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

    /// A delta of the open block, which is opened if another one is.
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

    fn acp(&self, said: &Said) -> Value {
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
        update(&self.session, kind, said)
    }

    fn codex(&self, said: &Said) -> Value {
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
        match said {
            Said::Text(text) => item("agent_message", text),
            Said::Reasoning(text) => item("reasoning", text),
            Said::ToolStarted { id, input } => {
                let mut item = command(id, input);
                item["status"] = "in_progress".into();
                json!({"type": "item.started", "item": item})
            }
            Said::ToolFinished { id, output } => ended(id, output, 0, "completed"),
            Said::ToolFailed { id, error } => ended(id, error, 1, "failed"),
        }
    }
}

fn request(id: &str, method: &str, params: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
}

/// A notification of ACP.
pub(super) fn update(session: &str, kind: &str, mut update: Value) -> Value {
    update["sessionUpdate"] = kind.into();
    json!({"jsonrpc": "2.0", "method": "session/update", "params": {"sessionId": session, "update": update}})
}

fn event(event: Value) -> Value {
    json!({"type": "stream_event", "event": event, "parent_tool_use_id": null})
}
