//! Errors of an ACP agent, and ends of a turn that are as good as one.
//!
//! Always: a class comes from a code or a typed field, never from the words.

use serde_json::Value;

use crate::failure::{AgentError, ErrorClass};

/// The agent needs somebody to log in.
const AUTH_REQUIRED: i64 = -32000;

/// The error that the agent answered the prompt with.
pub(super) fn read(error: &Value) -> AgentError {
    let data = &error["data"];
    let message = error["message"].as_str().unwrap_or("The agent reports an error.");
    let details = data.as_str().or(data["details"].as_str()).or(data["message"].as_str());
    let message = match details.filter(|details| !message.contains(details)) {
        Some(details) => format!("{message}: {details}"),
        None => message.to_owned(),
    };
    let code = error["code"].as_i64();
    let codes = [code, data["status"].as_i64(), data["statusCode"].as_i64(), data["code"].as_i64()];
    let kinds = [&data["errorKind"], &data["code"], &data["type"], &data["name"]];
    let class = kinds.into_iter().filter_map(Value::as_str).find_map(of_kind);
    let class = class.or_else(|| codes.into_iter().flatten().find_map(of_code));
    AgentError { message, class, retry_at: None }
}

/// Codes of JSON-RPC, of ACP, and those of HTTP that agents pass on.
fn of_code(code: i64) -> Option<ErrorClass> {
    match code {
        AUTH_REQUIRED | 401 | 403 => Some(ErrorClass::Authentication),
        429 => Some(ErrorClass::RateLimit),
        503 | 529 => Some(ErrorClass::Overloaded),
        -32700 | -32600 | -32601 | -32602 => Some(ErrorClass::Protocol),
        _ => None,
    }
}

/// Words by which agents and providers tell kinds of errors apart.
fn of_kind(kind: &str) -> Option<ErrorClass> {
    match kind {
        "authentication_failed" | "authentication_error" | "auth_required" => Some(ErrorClass::Authentication),
        "rate_limit" | "rate_limit_error" | "rate_limit_exceeded" => Some(ErrorClass::RateLimit),
        "overloaded" | "overloaded_error" => Some(ErrorClass::Overloaded),
        "context_length_exceeded" | "context_too_long" => Some(ErrorClass::ContextTooLong),
        _ => None,
    }
}

/// Whether ACP knows this as a reason for which a turn ends.
pub(super) fn is_stop_reason(reason: &str) -> bool {
    matches!(reason, "end_turn" | "cancelled") || of_stop_reason(reason).is_some()
}

/// What people have to know when a turn ended for this reason: nothing, when it was said to its end or was cancelled.
pub(super) fn of_stop_reason(reason: &str) -> Option<&'static str> {
    match reason {
        "max_tokens" => Some("The answer is cut off: the model may not write more at once."),
        "max_turn_requests" => Some("The turn is cut off: the agent may not ask the model more often in one turn."),
        "refusal" => Some("The model refused to go on."),
        _ => None,
    }
}
