//! The lines for Claude Code's stdin: the message, answers to its requests, and the interrupt.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::message::Attachment;
use crate::permission::{Decision, OptionKind, PermissionOption, PermissionRequest};
use crate::process::Prompt;

/// The reason that Claude Code gets for a denied tool call.
const DENIED: &str = "The person does not allow this.";

/// The line of a message. Files come first: models read them better before the instructions.
pub(super) fn message(prompt: &Prompt) -> String {
    let mut content: Vec<_> = prompt.attachments.iter().map(block).collect();
    // The model refuses an empty text; the message has files then.
    if !prompt.message.trim().is_empty() {
        content.push(json!({"type": "text", "text": prompt.message}));
    }
    let message = json!({"role": "user", "content": content});
    format!("{}\n", json!({"type": "user", "message": message, "parent_tool_use_id": null, "session_id": ""}))
}

/// A file as a block of a message. A file that no block can hold is named, so that the agent can open it with its tools.
fn block(file: &Attachment) -> Value {
    let name = file.filename.as_deref().unwrap_or("file");
    embedded(file, name).unwrap_or_else(|| json!({"type": "text", "text": format!("{name}: {}", file.url)}))
}

fn embedded(file: &Attachment, name: &str) -> Option<Value> {
    let base64 = file.url.strip_prefix("data:")?.split_once(";base64,")?.1;
    let source = json!({"type": "base64", "media_type": file.media_type, "data": base64});
    match file.media_type.split_once('/')? {
        ("image", _) => Some(json!({"type": "image", "source": source})),
        ("application", "pdf") => Some(json!({"type": "document", "title": name, "source": source})),
        ("text", _) => {
            let bytes = STANDARD.decode(base64).ok()?;
            let text = String::from_utf8_lossy(&bytes);
            let source = json!({"type": "text", "media_type": "text/plain", "data": text});
            Some(json!({"type": "document", "title": name, "source": source}))
        }
        _ => None,
    }
}

/// The answers to a permission request. Its suggestions for lasting permissions are not offered: they would end with
/// the process of the turn.
pub(super) fn options() -> Vec<PermissionOption> {
    let option = |id: &str, name: &str, kind| PermissionOption { id: id.to_owned(), name: name.to_owned(), kind };
    vec![option("allow", "Allow", OptionKind::AllowOnce), option("deny", "Deny", OptionKind::RejectOnce)]
}

/// The line that answers a permission request.
pub(super) fn answer(request: &PermissionRequest, decision: &Decision) -> String {
    let answer = if decision.allows() {
        json!({"behavior": "allow", "updatedInput": request.input})
    } else {
        json!({"behavior": "deny", "message": DENIED})
    };
    let response = json!({"subtype": "success", "request_id": request.request, "response": answer});
    json!({"type": "control_response", "response": response}).to_string()
}

/// The line that interrupts a turn.
pub(super) fn interrupt() -> String {
    json!({"type": "control_request", "request_id": "stop", "request": {"subtype": "interrupt"}}).to_string()
}
