//! Tells from an agent's errors whether a session is gone, and converts errors for the turn.
//!
//! Always: a session is gone only if the agent says so. An error that could mean anything else proves nothing.

use agent_client_protocol::{Error, ErrorCode, is_incoming_transport_closed};

use crate::driver::acp::parser::error::read;
use crate::driver::acp::wire::Own;
use crate::failure::{AgentError, ErrorClass};

/// What agents call a session.
const NOUNS: [&str; 3] = ["session", "conversation", "thread"];
/// Words that may stand between the noun and the rest of the phrase.
const FILLERS: [&str; 4] = ["id", "with", "was", "the"];

/// Whether an error of restoring a session may be temporary. None if the session is gone, or the agent does not support
/// the method at all.
///
/// # Errors
/// An error that a retry would not change.
pub(super) fn may_pass(error: Error, session: &str) -> Result<Option<Error>, Error> {
    if error.code == ErrorCode::AUTH_REQUIRED || is_incoming_transport_closed(&error) {
        return Err(error);
    }
    let is_gone = error.code == ErrorCode::RESOURCE_NOT_FOUND || says_unknown(&error, session);
    let is_no_method = error.code == ErrorCode::METHOD_NOT_FOUND;
    Ok(Some(error).filter(|_| !is_gone && !is_no_method))
}

/// Whether an answer to a prompt says that its session is gone: it has to name the session.
pub(super) fn is_gone(error: &Error, session: &str) -> bool {
    says_unknown(error, session) && words_of(error).contains(&session.to_lowercase())
}

/// Whether a failed prompt may succeed in the same session once that is restored.
pub(super) fn may_be_the_session(error: &Error) -> bool {
    error.code != ErrorCode::AUTH_REQUIRED
        && !is_incoming_transport_closed(error)
        && matches!(told(error).class, None | Some(ErrorClass::Protocol))
}

/// Whether the noun and the words for "unknown" stand together: a host, a file or a model may be missing as well.
fn says_unknown(error: &Error, session: &str) -> bool {
    let text = words_of(error).replace(&session.to_lowercase(), " ");
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '\'');
    let text: Vec<_> = words.filter(|word| !word.is_empty() && !FILLERS.contains(word)).collect();
    let text = format!(" {} ", text.join(" "));
    NOUNS.iter().any(|noun| {
        [
            format!(" {noun} not found "),
            format!(" {noun}notfound"),
            format!(" no such {noun} "),
            format!(" no {noun} found "),
            format!(" unknown {noun} "),
            format!(" {noun} does not exist "),
            format!(" {noun} doesn't exist "),
        ]
        .iter()
        .any(|phrase| text.contains(phrase))
    })
}

fn words_of(error: &Error) -> String {
    let data = error.data.as_ref().map(ToString::to_string).unwrap_or_default();
    format!("{} {data}", error.message).to_lowercase()
}

/// The error that an agent answered to any request but the prompt.
pub(super) fn own_error(error: &Error) -> Own {
    if is_incoming_transport_closed(error) {
        return Own::error(ErrorClass::Crashed, error.message.clone());
    }
    Own::from(told(error))
}

/// The error if a session could not be restored but may still exist.
pub(super) fn not_restored(error: &Error) -> Own {
    match own_error(error) {
        Own::Error { class, message, retry_at } => {
            let message = format!("The agent could not go on in its conversation, which is kept: {message}");
            Own::Error { class, message, retry_at }
        }
        own => own,
    }
}

fn told(error: &Error) -> AgentError {
    // An error is a code, a text and JSON: it always serialises.
    read(&serde_json::to_value(error).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn error(code: i32, message: &str, data: serde_json::Value) -> Error {
        Error::new(code, message).data(data)
    }

    #[test]
    fn only_the_agents_word_proves_that_a_session_is_gone() {
        for (error, passes) in [
            (error(-32002, "no such session", json!(null)), false),
            (error(-32603, "Internal error", json!({"details": "Session not found: S1"})), false),
            (error(-32602, "Invalid params", json!({"message": "Unknown session"})), false),
            (error(-32601, "Method not found", json!(null)), false),
            (error(-32603, "Internal error: disk busy", json!(null)), true),
            (error(-32603, "Internal error", json!(null)), true),
            (error(-32603, "ETIMEDOUT", json!({"session": "S1"})), true),
            (error(-32603, "ENOENT: no such file or directory, open 'sessions/S1.json'", json!(null)), true),
            (error(-32603, "model not found", json!(null)), true),
            (error(-32603, "Internal error", json!({"details": "model not found", "sessionId": "S1"})), true),
            (error(-32603, "Failed to load session: getaddrinfo ENOTFOUND api.example.com", json!(null)), true),
            (error(-32603, "Failed to resume session S1: model m-4 not found", json!(null)), true),
            (error(-32603, "No session found with id S1", json!(null)), false),
        ] {
            let text = format!("{error:?}");
            assert_eq!(may_pass(error, "S1").unwrap().is_some(), passes, "{text}");
        }
        assert!(may_pass(error(-32000, "Log in", json!(null)), "S1").is_err());
        assert!(is_gone(&error(-32603, "Internal error", json!({"details": "Session not found: S1"})), "S1"));
        assert!(!is_gone(&error(-32603, "Internal error", json!({"error": "Session not found: x"})), "S1"));
        assert!(!may_be_the_session(&error(-32603, "m", json!({"status": 429}))));
        assert!(may_be_the_session(&error(-32603, "Internal error", json!(null))));
    }
}
