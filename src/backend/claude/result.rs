//! What Claude Code says of a turn when it is over, and of what went wrong on the way: `result`, `api_retry`,
//! `rate_limit_event`, and the error of an `assistant` message.
//!
//! Always: the subtype is not believed. A turn that the provider refused ends with `"subtype": "success"`, and
//! `"is_error": true` beside it.

use serde_json::Value;

use crate::backend::json::{items, text};
use crate::clock::Timestamp;
use crate::failure::{AgentError, ErrorClass};
use crate::usage::Usage;

/// What went wrong since the model answered last, and may be why the turn fails in the end.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    class: Option<ErrorClass>,
    /// The provider takes no more requests.
    is_limited: bool,
    retry_at: Option<Timestamp>,
}

impl Trouble {
    /// A line with the HTTP status of an error and a word for it. The newest counts.
    pub(super) fn hear(&mut self, line: &Value, status: &str) {
        self.class = class_of_status(line.get(status)).or_else(|| class_of_word(text(line, "error")));
    }

    /// A `rate_limit_event`.
    pub(super) fn hear_limit(&mut self, line: &Value) {
        let limit = line.get("rate_limit_info").unwrap_or(&Value::Null);
        if text(limit, "status") == "rejected" {
            self.is_limited = true;
            let seconds = limit.get("resetsAt").and_then(Value::as_i64);
            self.retry_at = seconds.and_then(|seconds| seconds.checked_mul(1000)).map(Timestamp::from_millis);
        }
    }

    /// The model answers again.
    pub(super) fn is_over(&mut self) {
        *self = Self::default();
    }

    /// What a `result` says of an error, if it says that there was one.
    pub(super) fn error(&self, result: &Value) -> Option<AgentError> {
        if result.get("is_error") != Some(&Value::Bool(true)) {
            return None;
        }
        let class = if text(result, "terminal_reason") == "prompt_too_long" {
            Some(ErrorClass::ContextTooLong)
        } else {
            let limited = self.is_limited.then_some(ErrorClass::RateLimit);
            class_of_status(result.get("api_error_status")).or(self.class).or(limited)
        };
        let retry_at = self.retry_at.filter(|_| class == Some(ErrorClass::RateLimit));
        Some(AgentError { message: message(result), class, retry_at })
    }
}

fn class_of_status(status: Option<&Value>) -> Option<ErrorClass> {
    match status.and_then(Value::as_i64)? {
        401..=403 => Some(ErrorClass::Authentication),
        429 => Some(ErrorClass::RateLimit),
        503 | 529 => Some(ErrorClass::Overloaded),
        _ => None,
    }
}

fn class_of_word(word: &str) -> Option<ErrorClass> {
    match word {
        "authentication_failed" | "oauth_org_not_allowed" | "billing_error" => Some(ErrorClass::Authentication),
        "rate_limit" => Some(ErrorClass::RateLimit),
        "overloaded" => Some(ErrorClass::Overloaded),
        _ => None,
    }
}

/// The words of a failed result.
fn message(result: &Value) -> String {
    if text(result, "terminal_reason").starts_with("aborted") {
        return "The turn was interrupted.".to_owned();
    }
    let errors: Vec<_> = items(result, "errors").iter().filter_map(Value::as_str).collect();
    let said = match text(result, "result") {
        "" => errors.join("\n"),
        said => said.to_owned(),
    };
    match (said.as_str(), text(result, "subtype")) {
        ("", "error_max_turns") => "The agent reached its limit of model calls.".to_owned(),
        ("", "error_max_budget_usd") => "The agent reached its limit of costs.".to_owned(),
        ("", _) => "The agent failed and did not say why.".to_owned(),
        _ => said,
    }
}

/// What the turn used. `usage` leaves out sub-agents and calls that failed, and `total_cost_usd` counts earlier turns of
/// the conversation: only the sums by model are those of this turn.
pub(super) fn usage(result: &Value, model: &str) -> Usage {
    let by_model = result.get("modelUsage").and_then(Value::as_object).filter(|models| !models.is_empty());
    let Some(by_model) = by_model else { return call(result.get("usage").unwrap_or(&Value::Null)) };
    let count = |key: &str| sum(by_model.values().filter_map(|used| used.get(key)?.as_i64()));
    Usage {
        input_tokens: count("inputTokens"),
        output_tokens: count("outputTokens"),
        cache_read_tokens: count("cacheReadInputTokens"),
        cache_write_tokens: count("cacheCreationInputTokens"),
        reasoning_tokens: count("thinkingTokens"),
        cost_usd: by_model.values().filter_map(|used| used.get("costUSD")?.as_f64()).reduce(|a, b| a + b),
        context_tokens: None,
        context_size: by_model.get(model).and_then(|used| used.get("contextWindow")?.as_i64()),
    }
}

/// The counts that the API gives of one call.
pub(super) fn call(usage: &Value) -> Usage {
    let count = |key: &str| usage.get(key).and_then(Value::as_i64);
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
