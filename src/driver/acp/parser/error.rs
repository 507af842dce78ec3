//! Errors of an ACP agent, and stop reasons that amount to one.
//!
//! Always: a class comes from a code or a typed field, never from the words. The words come from wherever agents put them.

use serde_json::Value;

use crate::driver::provider;
use crate::failure::{AgentError, ErrorClass};

/// The user has to log in to the agent.
const AUTH_REQUIRED: i64 = -32000;
/// Where agents put readable text in the `data` of an error, the best first.
const WORDS: [&str; 9] =
    ["error", "details", "detail", "message", "errorMessage", "reason", "cause", "body", "responseBody"];
/// How deeply the text may be nested.
const MAX_DEPTH: usize = 6;
/// Longer texts are cut off.
const MAX_CHARS: usize = 2000;

/// The error that the agent answered a request with.
pub(in crate::driver::acp) fn read(error: &Value) -> AgentError {
    let message = error["message"].as_str().map(str::trim).filter(|message| !message.is_empty());
    let message = match (message, words(&error["data"], 0)) {
        (Some(message), Some(words)) if !message.contains(&words) => format!("{message}: {words}"),
        (Some(message), _) => message.to_owned(),
        (None, Some(words)) => words,
        (None, None) => "The agent reports an error.".to_owned(),
    };
    let message = message.chars().take(MAX_CHARS).collect();
    let known = provider::error(error, message);
    let class = error["code"].as_f64().and_then(of_code);
    AgentError { class: known.class.or(class), ..known }
}

/// The readable text in the data of an error; JSON in a text is read like other JSON.
fn words(data: &Value, depth: usize) -> Option<String> {
    if depth == MAX_DEPTH {
        return None;
    }
    match data {
        Value::String(text) => {
            let body = provider::body(text).and_then(|(_, body)| words(&body, depth + 1));
            body.or_else(|| Some(text.trim().to_owned()).filter(|text| !text.is_empty()))
        }
        Value::Object(fields) => WORDS.iter().find_map(|key| words(fields.get(*key)?, depth + 1)),
        Value::Array(items) => items.iter().find_map(|item| words(item, depth + 1)),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

/// Codes of JSON-RPC and of ACP.
fn of_code(code: f64) -> Option<ErrorClass> {
    #[expect(clippy::cast_possible_truncation, reason = "a cast of a float goes to the nearest number that fits")]
    match code as i64 {
        AUTH_REQUIRED => Some(ErrorClass::Authentication),
        -32700 | -32600 | -32601 | -32602 => Some(ErrorClass::Protocol),
        _ => None,
    }
}

/// The error to show for the stop reason of a turn that was not cancelled; none if the answer is complete.
pub(super) fn of_stop_reason(reason: &str) -> Option<AgentError> {
    let sentence = match reason {
        "end_turn" => return None,
        "max_tokens" => "The answer is cut off: the model may not write more at once.",
        "max_turn_requests" => "The turn is cut off: the agent may not ask the model more often in one turn.",
        "refusal" => "The model refused to go on.",
        "cancelled" => "The agent cancelled the turn by itself.",
        _ => {
            let reason: String = reason.chars().take(80).collect();
            let message = format!("The agent ended the turn for a reason that its protocol does not know: {reason:?}.");
            return Some(AgentError::of(ErrorClass::Protocol, message));
        }
    };
    Some(sentence.into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_and_class_are_found_wherever_agents_put_them() {
        let limit = Some(ErrorClass::RateLimit);
        for (data, words, class) in [
            (json!(null), "Internal error", None),
            (json!("no such model"), "Internal error: no such model", None),
            (json!({"error": "Session not found: x"}), "Internal error: Session not found: x", None),
            (json!({"details": "d"}), "Internal error: d", None),
            (json!({"message": "Internal error"}), "Internal error", None),
            (
                json!(r#"{"error":{"type":"rate_limit_error","message":"Slow down"}}"#),
                "Internal error: Slow down",
                limit,
            ),
            (
                json!({"error": {"type": "rate_limit_error", "message": "Slow down"}}),
                "Internal error: Slow down",
                limit,
            ),
            (json!({"details": "429 {\"error\":{\"message\":\"wait\"}}"}), "Internal error: wait", limit),
            (json!({"statusCode": 529}), "Internal error", Some(ErrorClass::Overloaded)),
            (json!({"errorKind": "rate_limit"}), "Internal error", limit),
            (json!([{"reason": "too big"}]), "Internal error: too big", None),
        ] {
            let error = read(&json!({"code": -32603, "message": "Internal error", "data": data}));
            assert_eq!((error.message.as_str(), error.class), (words, class), "{data}");
        }
        let error = read(&json!({"code": -32000, "message": "Log in", "data": {"retry_after": 5}}));
        assert_eq!((error.class, error.retry_at), (Some(ErrorClass::Authentication), None));
        let error = read(&json!({"code": -32603, "message": "m", "data": {"status": 429, "resets_at": 1_800_000_000}}));
        assert_eq!(error.retry_at.map(crate::clock::Timestamp::as_millis), Some(1_800_000_000_000));
    }

    #[test]
    fn only_a_known_good_end_completes_a_turn() {
        assert_eq!(of_stop_reason("end_turn"), None);
        for reason in ["max_tokens", "max_turn_requests", "refusal", "cancelled", "error", "END_TURN", ""] {
            assert!(of_stop_reason(reason).is_some(), "{reason}");
        }
    }
}
