//! Requests of Claude Code on its stdout.
//!
//! Always: each request gets one answer, as its protocol requires. The exception is `request_user_dialog`, which needs
//! none from a client without dialogs: an answer would count as the user's.

use serde_json::{Value, json};

use crate::driver::json::text;
use crate::permission::{PermissionOption, PermissionRequest, ToolKind};

/// A request to use a tool.
pub(super) fn permission(line: &Value, options: Vec<PermissionOption>) -> Option<PermissionRequest> {
    let request = line.get("request").filter(|request| text(request, "subtype") == "can_use_tool")?;
    let tool = text(request, "tool_name");
    let title = match (text(request, "title"), text(request, "description")) {
        ("", "") => tool,
        ("", description) => description,
        (title, _) => title,
    };
    Some(PermissionRequest {
        request: text(line, "request_id").to_owned(),
        tool_call: text(request, "tool_use_id").to_owned(),
        tool: tool.to_owned(),
        kind: kind_of(tool),
        title: title.to_owned(),
        input: request.get("input").cloned().unwrap_or_else(|| json!({})),
        options,
    })
}

/// The line that refuses an unsupported request.
pub(super) fn refused(line: &Value) -> Option<String> {
    let id = line.get("request_id").filter(|id| !id.is_null())?;
    let kind = line.get("request").map(|request| text(request, "subtype")).unwrap_or_default();
    let response = match kind {
        "request_user_dialog" => return None,
        // An MCP server continues once it is declined.
        "elicitation" => json!({"subtype": "success", "request_id": id, "response": {"action": "decline"}}),
        kind => {
            let kind: String = kind.chars().take(60).collect();
            json!({"subtype": "error", "request_id": id, "error": format!("Unsupported control request: {kind}")})
        }
    };
    Some(json!({"type": "control_response", "response": response}).to_string())
}

fn kind_of(tool: &str) -> ToolKind {
    match tool {
        "Read" | "NotebookRead" => ToolKind::Read,
        "Edit" | "MultiEdit" | "NotebookEdit" | "Write" => ToolKind::Edit,
        "Glob" | "Grep" | "LS" | "ToolSearch" => ToolKind::Search,
        "Bash" | "BashOutput" | "KillShell" | "Monitor" => ToolKind::Execute,
        "WebFetch" | "WebSearch" => ToolKind::Fetch,
        "Agent" | "Task" => ToolKind::Think,
        "EnterPlanMode" | "ExitPlanMode" => ToolKind::SwitchMode,
        _ => ToolKind::Other,
    }
}
