//! Errors of the server, told apart by its names for them.

use serde_json::Value;

use super::watch::text;
use crate::driver::provider;
use crate::failure::{AgentError, ErrorClass};

/// The server's name for an aborted turn.
const ABORTED: &str = "MessageAbortedError";

/// Whether it only reports that the turn was aborted.
pub(super) fn is_abort(error: &Value) -> bool {
    text(error, "/name") == Some(ABORTED)
}

/// Converts an error (`{name, data: {message, statusCode?, …}}`): its message, its class from its name or a code, and
/// when a limit resets.
pub(super) fn read(error: &Value) -> AgentError {
    let name = text(error, "/name").unwrap_or("UnknownError");
    let message = text(error, "/data/message").filter(|message| !message.trim().is_empty());
    let message = match (name, message) {
        (ABORTED, _) => "The turn was aborted in opencode.",
        // The rest is a stack trace.
        (_, Some(message)) => message.split("\n    at ").next().unwrap_or(message),
        ("MessageOutputLengthError", None) => "The answer is longer than the model may write at once.",
        (name, None) => name,
    };
    let known = provider::error(error, message.to_owned());
    AgentError { class: of_name(name).or(known.class), ..known }
}

fn of_name(name: &str) -> Option<ErrorClass> {
    match name {
        "ProviderAuthError" => Some(ErrorClass::Authentication),
        "ContextOverflowError" => Some(ErrorClass::ContextTooLong),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_error_has_a_class_when_its_name_or_status_says_so() {
        for (error, message, class) in [
            (
                json!({"name": "ProviderAuthError", "data": {"providerID": "x", "message": "no key"}}),
                "no key",
                Some(ErrorClass::Authentication),
            ),
            (
                json!({"name": "APIError", "data": {"message": "slow down", "statusCode": 429}}),
                "slow down",
                Some(ErrorClass::RateLimit),
            ),
            (
                json!({"name": "APIError", "data": {"message": "busy", "statusCode": 529}}),
                "busy",
                Some(ErrorClass::Overloaded),
            ),
            (json!({"name": "APIError", "data": {"message": "429"}}), "429", None),
            (
                json!({"name": "UnknownError", "data": {"message": "m", "responseBody": "{\"error\":{\"type\":\"rate_limit_error\"}}"}}),
                "m",
                Some(ErrorClass::RateLimit),
            ),
            (
                json!({"name": "ContextOverflowError", "data": {"message": "too long"}}),
                "too long",
                Some(ErrorClass::ContextTooLong),
            ),
            (json!({"name": "UnknownError", "data": {"message": "E: no\n    at f (x.js:1)\n    at g"}}), "E: no", None),
            (json!({"name": "ContentFilterError"}), "ContentFilterError", None),
            (json!(17), "UnknownError", None),
        ] {
            assert_eq!(read(&error), AgentError { message: message.to_owned(), class, retry_at: None }, "{error}");
        }
        let headers = json!({"retry-after": "Fri, 15 Jan 2027 08:00:00 GMT"});
        let data = json!({"message": "wait", "statusCode": 429, "responseHeaders": headers});
        let retry_at = read(&json!({"name": "APIError", "data": data})).retry_at;
        assert_eq!(retry_at.map(crate::clock::Timestamp::as_millis), Some(1_800_000_000_000));
    }
}
