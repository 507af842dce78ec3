//! The message of an error that OpenClaw reports.
//!
//! Always: there is one. An error whose message is nested deeply, or missing, is still an error.

use serde_json::Value;

use super::js;
use crate::driver::{json, provider};
use crate::failure::AgentError;

/// Where a message is searched for, in this order.
const KEYS: [&str; 3] = ["error", "message", "errorMessage"];

/// The error in a payload: its message, and what its codes say.
pub fn read(payload: &Value) -> AgentError {
    provider::error(payload, message(payload))
}

/// The message of an error payload.
pub fn message(payload: &Value) -> String {
    find(payload).unwrap_or_else(|| match payload {
        Value::Null => "Agent reported an error.".to_owned(),
        payload => format!("Agent reported an error: {}", js::stringify(payload)),
    })
}

/// Searches strings first, as they are meant for the user; then objects and lists; then any other value.
fn find(payload: &Value) -> Option<String> {
    match payload {
        Value::String(text) => (!js::trim(text).is_empty()).then(|| body(text)),
        Value::Array(items) => items.iter().find_map(find),
        Value::Object(_) => {
            let values = || KEYS.iter().filter_map(|key| payload.get(*key));
            let texts = values().filter(|value| value.is_string()).find_map(find);
            let nested = || values().filter(|value| value.is_object() || value.is_array()).find_map(find);
            let any = || values().find(|value| js::is_truthy(value) && !value.is_string()).map(js::stringify);
            texts.or_else(nested).or_else(any)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

/// The message in the body of a failed request, which providers put behind a status: `500 {"error":{"message":…}}`. A
/// text without one stays unchanged.
pub fn body(text: &str) -> String {
    let message = || {
        let json = json::parse(&text[text.find('{')?..])?;
        let candidates = [json.pointer("/error/message"), json.get("message"), json.get("error")];
        // The first value present decides, even if it is not a string: the other keys mean something else then.
        let first = candidates.into_iter().flatten().find(|value| !value.is_null())?;
        first.as_str().filter(|message| !js::trim(message).is_empty()).map(str::to_owned)
    };
    message().unwrap_or_else(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bodies() {
        for (text, expected) in [
            ("boom", "boom"),
            (r#"500 {"error":{"message":"Upstream"}}"#, "Upstream"),
            (r#"{"message":"m"}"#, "m"),
            (r#"{"error":"e","message":null}"#, "e"),
            (r#"x {"error":{"message":5},"message":"m2"}"#, r#"x {"error":{"message":5},"message":"m2"}"#),
            (r#"{"error":{"code":5}}"#, r#"{"error":{"code":5}}"#),
            (r#"{"message":""}"#, r#"{"message":""}"#),
            ("half { a body", "half { a body"),
        ] {
            assert_eq!(body(text), expected, "{text}");
        }
    }

    #[test]
    fn no_payload_is_without_words() {
        for (payload, expected) in [
            (json!({"phase": "error", "error": "boom"}), "boom"),
            (json!({"error": {"code": 1}, "message": "m"}), "m"),
            (json!({"error": {"message": "deep"}}), "deep"),
            (json!({"error": {"error": [{"code": 1}, {"message": "429 {\"message\":\"slow down\"}"}]}}), "slow down"),
            (json!({"error": " ", "errorMessage": "third"}), "third"),
            (json!({"error": {"code": 5}}), r#"{"code":5}"#),
            (json!({"error": 42}), "42"),
            (json!({"error": null, "code": 7}), r#"Agent reported an error: {"error":null,"code":7}"#),
            (json!(["a", 1]), "a"),
            (json!(1.0), "Agent reported an error: 1"),
            (json!(null), "Agent reported an error."),
        ] {
            assert_eq!(message(&payload), expected, "{payload}");
        }
    }
}
