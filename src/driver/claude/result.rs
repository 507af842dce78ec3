//! Claude Code's reports about a turn's end and about errors during it: `result`, `api_retry`, `rate_limit_event`, and
//! the error of an `assistant` message.
//!
//! Always: a turn is completed only if everything in a `result` agrees: the subtype, `is_error`, `terminal_reason` and
//! `stop_reason`. A turn that the provider refused ends with `"subtype": "success"`, one that was interrupted with
//! `"is_error": false`.

use serde_json::Value;

use crate::agent_event::AgentEvent;
use crate::clock::Timestamp;
use crate::driver::json::{integer, items, number, text};
use crate::failure::{AgentError, ErrorClass};
use crate::usage::Usage;

/// The beginning of the error for a session that no longer exists.
const NO_CONVERSATION: &str = "No conversation found with session ID";

/// Whether the text says that the session no longer exists.
pub(super) fn is_session_gone(words: &str, _session: &str) -> bool {
    words.lines().any(|line| line.trim_start().starts_with(NO_CONVERSATION))
}

/// What went wrong since the model's last answer, and may be why the turn fails in the end.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    class: Option<ErrorClass>,
    /// The provider accepts no more requests.
    is_limited: bool,
    retry_at: Option<Timestamp>,
}

impl Trouble {
    /// Handles a line with the HTTP status and the name of an error. The newest one counts.
    pub(super) fn hear(&mut self, line: &Value, status: &str) {
        self.class = class_of_status(integer(line, status)).or_else(|| class_of_word(text(line, "error")));
    }

    /// Handles a `rate_limit_event`, which comes with most calls of the model. `allowed_warning` is not a rejection.
    pub(super) fn hear_limit(&mut self, line: &Value) {
        let limit = line.get("rate_limit_info").unwrap_or(&Value::Null);
        let is_true = |key: &str| limit.get(key) == Some(&Value::Bool(true));
        let is_rejected = text(limit, "status") == "rejected";
        // A rejected overage that is not in use is the normal state of many accounts.
        let is_overage = is_true("isUsingOverage") && text(limit, "overageStatus") == "rejected";
        self.is_limited = is_rejected || is_overage;
        let resets_at = if is_rejected { full_window(limit).or(number(limit, "resetsAt")) } else { None };
        let resets_at = resets_at.or_else(|| number(limit, "overageResetsAt").filter(|_| is_overage));
        self.retry_at = resets_at.filter(|_| self.is_limited).map(of_seconds);
    }

    /// The model answers again.
    pub(super) fn is_over(&mut self) {
        *self = Self::default();
    }

    /// An error with this text, unless the text is empty.
    pub(super) fn error(&self, words: &str) -> Option<AgentError> {
        let class = self.class.or(self.is_limited.then_some(ErrorClass::RateLimit));
        (!words.trim().is_empty()).then(|| self.of_class(words.to_owned(), class))
    }

    /// The error of a failed turn.
    pub(super) fn error_of(&self, result: &Value, message: String) -> Option<AgentError> {
        let class = if text(result, "terminal_reason") == "prompt_too_long" {
            Some(ErrorClass::ContextTooLong)
        } else {
            let limited = self.is_limited.then_some(ErrorClass::RateLimit);
            class_of_status(integer(result, "api_error_status")).or(self.class).or(limited)
        };
        Some(self.of_class(message, class))
    }

    fn of_class(&self, message: String, class: Option<ErrorClass>) -> AgentError {
        AgentError { message, class, retry_at: self.retry_at.filter(|_| class == Some(ErrorClass::RateLimit)) }
    }
}

/// When the exhausted window resets: another window may reset days later.
fn full_window(limit: &Value) -> Option<f64> {
    let windows = limit.get("unifiedWindows")?.as_object()?.values();
    let full = windows.filter(|window| number(window, "utilization").is_some_and(|used| used >= 1.0));
    full.filter_map(|window| number(window, "resetsAt")).reduce(f64::max)
}

#[expect(clippy::cast_possible_truncation, reason = "a cast of a float goes to the nearest number that fits")]
fn of_seconds(seconds: f64) -> Timestamp {
    Timestamp::from_millis((seconds * 1000.0) as i64)
}

fn class_of_status(status: Option<i64>) -> Option<ErrorClass> {
    match status? {
        401..=403 => Some(ErrorClass::Authentication),
        429 => Some(ErrorClass::RateLimit),
        503 | 529 => Some(ErrorClass::Overloaded),
        _ => None,
    }
}

fn class_of_word(word: &str) -> Option<ErrorClass> {
    match word {
        "authentication_failed"
        | "oauth_org_not_allowed"
        | "account_on_hold"
        | "verification_required"
        | "billing_error"
        | "cloud_credential_error" => Some(ErrorClass::Authentication),
        "rate_limit" => Some(ErrorClass::RateLimit),
        "overloaded" => Some(ErrorClass::Overloaded),
        _ => None,
    }
}

/// The events of a result that comes before anything else: the turn cannot begin.
pub(super) fn failed_to_start(result: &Value) -> Vec<AgentEvent> {
    let error = failure(result).unwrap_or_else(|| "The agent ended the turn before it began.".to_owned());
    let gone = is_session_gone(&error, text(result, "session_id")).then_some(AgentEvent::SessionGone);
    let class = class_of_status(integer(result, "api_error_status"));
    let error = AgentError { message: error, class, retry_at: None };
    gone.into_iter().chain([AgentEvent::Error(error), AgentEvent::Ended]).collect()
}

/// Why a result is not a completion. A missing field does not count against one.
pub(super) fn failure(result: &Value) -> Option<String> {
    let is_error = result.get("is_error") == Some(&Value::Bool(true));
    let (subtype, reason, stop) =
        (text(result, "subtype"), text(result, "terminal_reason"), text(result, "stop_reason"));
    // A hook that stops the agent, or a user who sends it to the background, is a regular end of the turn.
    let is_end = matches!(reason, "" | "completed" | "stop_hook_prevented" | "hook_stopped" | "background_requested");
    let of_stop = match stop {
        // A hook may stop the agent right after a tool.
        "tool_use" | "pause_turn" if matches!(reason, "" | "completed") => {
            Some("The turn ended in the midst of a tool call.")
        }
        "max_tokens" | "model_context_window_exceeded" => {
            Some("The answer is cut off: the model may not write more at once.")
        }
        "refusal" => Some("The model refused to answer."),
        _ => None,
    };
    if !is_error && subtype == "success" && is_end && of_stop.is_none() {
        return None;
    }
    if reason.starts_with("aborted") {
        return Some("The turn was interrupted.".to_owned());
    }
    let errors: Vec<_> = items(result, "errors").iter().filter_map(Value::as_str).collect();
    let said = match text(result, "result") {
        said if is_error && !said.is_empty() => said.to_owned(),
        _ => errors.join("\n"),
    };
    let known = match (subtype, reason) {
        ("error_max_turns", _) | (_, "max_turns") => Some("The agent reached its limit of model calls."),
        ("error_max_budget_usd", _) | (_, "budget_exhausted") => Some("The agent reached its limit of costs."),
        _ => of_stop,
    };
    Some(match (said.as_str(), known) {
        ("", Some(known)) => known.to_owned(),
        ("", None) if !reason.is_empty() && !is_end => {
            format!("The agent ended the turn: {}.", reason.replace('_', " "))
        }
        ("", None) => "The agent failed and did not say why.".to_owned(),
        _ => said,
    })
}

/// The usage of the turn. `usage` omits sub-agents and failed calls, and `total_cost_usd` includes earlier turns of the
/// conversation: only the sums by model are those of this turn.
pub(super) fn usage(result: &Value, model: &str) -> Usage {
    let by_model = result.get("modelUsage").and_then(Value::as_object).filter(|models| !models.is_empty());
    let Some(by_model) = by_model else { return call(result.get("usage").unwrap_or(&Value::Null)) };
    let count = |key: &str| sum(by_model.values().filter_map(|used| integer(used, key)));
    Usage {
        input_tokens: count("inputTokens"),
        output_tokens: count("outputTokens"),
        cache_read_tokens: count("cacheReadInputTokens"),
        cache_write_tokens: count("cacheCreationInputTokens"),
        reasoning_tokens: count("thinkingTokens"),
        cost_usd: by_model.values().filter_map(|used| number(used, "costUSD")).reduce(|a, b| a + b),
        context_tokens: None,
        context_size: by_model.get(model).and_then(|used| integer(used, "contextWindow")),
    }
}

/// The usage that the API reports for one call.
pub(super) fn call(usage: &Value) -> Usage {
    let count = |key: &str| integer(usage, key);
    Usage {
        input_tokens: count("input_tokens"),
        output_tokens: count("output_tokens"),
        cache_read_tokens: count("cache_read_input_tokens"),
        cache_write_tokens: count("cache_creation_input_tokens"),
        ..Usage::default()
    }
}

fn sum(counts: impl Iterator<Item = i64>) -> Option<i64> {
    counts.reduce(i64::saturating_add)
}
