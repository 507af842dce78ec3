//! Tells which lines belong to the protocol, whether they have events or not. Any other line counts as malformed: an
//! agent that misspells a key would otherwise be silent without any sign.

use serde_json::Value;

use super::fields::{Fields, text};

/// Whether a line belongs to the protocol; `event` is the content of its frame.
pub(super) fn is_known(frame: &Fields, event: &Fields) -> bool {
    match (text(frame, "type"), text(frame, "event")) {
        // A gateway sends its clients much that is not about their turn.
        (Some("event" | "res"), _) => true,
        (_, Some("agent" | "session.tool")) => event.get("data").and_then(Value::as_object).is_some_and(|data| {
            let phase = text(data, "phase");
            let has_text = text(data, "delta").or(text(data, "text")).is_some();
            match text(event, "stream") {
                Some("lifecycle") => matches!(phase, Some("start" | "model" | "finishing" | "end" | "error")),
                Some("assistant") => {
                    has_text || data.get("mediaUrls").is_some_and(Value::is_array) || text(data, "stopReason").is_some()
                }
                Some("thinking") => has_text,
                Some("tool") => matches!(phase, Some("start" | "update" | "result" | "end")),
                Some("compaction") => matches!(phase, Some("start" | "end")),
                Some("usage") => data.get("outputTokens").is_some_and(Value::is_number),
                // Not shown to the user.
                Some("item" | "command_output" | "plan" | "approval" | "patch") => true,
                _ => false,
            }
        }),
        // `chat` repeats the text as a whole.
        (_, Some("error" | "chat")) => true,
        _ => false,
    }
}
