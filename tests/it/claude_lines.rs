//! Lines of Claude Code, as shell commands of an agent that prints them.

use serde_json::{Value, json};

pub fn says(line: Value) -> String {
    format!("printf '%s\\n' '{line}'\n")
}

pub fn tool(id: &str) -> String {
    let tool = json!({"type": "tool_use", "id": id, "name": "Bash", "input": {}});
    says(json!({"type": "assistant", "message": {"id": id, "role": "assistant", "content": [tool]}}))
}

pub fn asks(id: &str) -> String {
    let request = json!({"subtype": "can_use_tool", "tool_name": "Bash", "tool_use_id": id, "input": {}});
    says(json!({"type": "control_request", "request_id": id, "request": request}))
}

pub fn done(id: &str) -> String {
    let result = json!({"type": "tool_result", "tool_use_id": id, "content": "ok"});
    says(json!({"type": "user", "message": {"role": "user", "content": [result]}}))
}
