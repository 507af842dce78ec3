//! What is written to Claude Code's stdin: the message, answers to its questions, and the wish that it stops.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::message::Attachment;
use crate::permission::{Decision, OptionKind, PermissionOption, PermissionRequest};
use crate::process::Prompt;

/// What a denied tool call is told.
const DENIED: &str = "The person does not allow this.";

/// The line of a message. Files come first: models look at them better before they read what is asked of them.
pub(super) fn message(prompt: &Prompt) -> String {
    let mut content: Vec<_> = prompt.attachments.iter().map(block).collect();
    // The model refuses an empty text; there are files then.
    if !prompt.message.trim().is_empty() {
        content.push(json!({"type": "text", "text": prompt.message}));
    }
    let message = json!({"role": "user", "content": content});
    format!("{}\n", json!({"type": "user", "message": message, "parent_tool_use_id": null, "session_id": ""}))
}

/// A file as a block of a message. What no block can hold is named, so that the agent can look at it with its tools.
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

/// The answers that it takes. What it suggests to allow for longer would end with the process of the turn.
pub(super) fn options() -> Vec<PermissionOption> {
    let option = |id: &str, name: &str, kind| PermissionOption { id: id.to_owned(), name: name.to_owned(), kind };
    vec![option("allow", "Allow", OptionKind::AllowOnce), option("deny", "Deny", OptionKind::RejectOnce)]
}

/// The line that answers a question.
pub(super) fn answer(request: &PermissionRequest, decision: &Decision) -> String {
    let answer = if decision.allows() {
        json!({"behavior": "allow", "updatedInput": request.input})
    } else {
        json!({"behavior": "deny", "message": DENIED})
    };
    let response = json!({"subtype": "success", "request_id": request.request, "response": answer});
    json!({"type": "control_response", "response": response}).to_string()
}

/// The line that stops a turn.
pub(super) fn interrupt() -> String {
    json!({"type": "control_request", "request_id": "stop", "request": {"subtype": "interrupt"}}).to_string()
}
