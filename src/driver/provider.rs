//! Errors of model providers, as agents pass them on: their class, and when to retry.
//!
//! Always: derived from codes, types and headers, never from the words of a message.

use chrono::DateTime;
use serde_json::Value;

use super::json;
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::failure::{AgentError, ErrorClass};

/// How deeply errors may be nested in their causes.
const MAX_DEPTH: usize = 6;
/// Tells seconds from milliseconds since 1970: a smaller number is in seconds, up to the year 2286; a larger one is in
/// milliseconds, from April 1970.
const SECONDS_BELOW: f64 = 1e10;
/// Longer than any rate limit lasts: a longer wait is not one.
const LONGEST_WAIT_SECONDS: f64 = 60.0 * 24.0 * 3600.0;

/// What the codes of an error say.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Codes {
    pub class: Option<ErrorClass>,
    /// When to retry; only a rate limit says that.
    pub retry_at: Option<Timestamp>,
}

/// The error in a payload, with this message.
pub(super) fn error(payload: &Value, message: String) -> AgentError {
    let Codes { class, retry_at } = codes(payload);
    AgentError { message, class, retry_at }
}

/// The codes in a payload, at any depth: a text in it may be a status followed by a response body.
pub(super) fn codes(payload: &Value) -> Codes {
    let mut found = Found::default();
    found.look(payload, 0);
    let is_limit = found.class == Some(ErrorClass::RateLimit);
    Codes { class: found.class, retry_at: found.retry_at.filter(|_| is_limit) }
}

/// The response body in a text, such as `429 {"error": …}`, and the status before it.
pub(super) fn body(text: &str) -> Option<(Option<i64>, Value)> {
    let (before, body) = text.split_at(text.find('{')?);
    let body = json::parse(body.trim_end())?;
    let status = before.trim().trim_end_matches(':').rsplit(' ').next()?.parse().ok();
    Some((status.filter(|status| (400..600).contains(status)), body))
}

#[derive(Default)]
struct Found {
    class: Option<ErrorClass>,
    retry_at: Option<Timestamp>,
}

impl Found {
    fn look(&mut self, value: &Value, depth: usize) {
        if depth == MAX_DEPTH {
            return;
        }
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    let key: String = key.chars().filter(char::is_ascii_alphanumeric).take(40).collect();
                    self.take(&key.to_ascii_lowercase(), value);
                }
                fields.values().for_each(|value| self.look(value, depth + 1));
            }
            Value::Array(items) => items.iter().for_each(|item| self.look(item, depth + 1)),
            Value::String(text) => {
                if let Some((status, body)) = body(text) {
                    self.class = self.class.or(status.and_then(of_status));
                    self.look(&body, depth + 1);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn take(&mut self, key: &str, value: &Value) {
        let class = match key {
            "status" | "statuscode" | "httpstatus" | "httpcode" | "apierrorstatus" | "code" | "errorcode" => {
                let number = value.as_f64().or_else(|| value.as_str()?.parse().ok());
                number.and_then(of_number).or_else(|| of_word(value.as_str()?))
            }
            "type" | "kind" | "reason" | "errortype" | "errorkind" | "name" => value.as_str().and_then(of_word),
            _ => None,
        };
        self.class = self.class.or(class);
        let now = || SystemClock.now().as_millis();
        let after = |seconds: f64| {
            (0.0..=LONGEST_WAIT_SECONDS).contains(&seconds).then(|| at(millis(seconds * 1000.0).saturating_add(now())))
        };
        let number = || value.as_f64().or_else(|| value.as_str()?.trim().parse().ok());
        let retry_at = match key {
            "retryafterms" => number().and_then(|ms| after(ms / 1000.0)),
            "retryafter" | "retryafterseconds" | "retryafters" => {
                number().and_then(after).or_else(|| date(value.as_str()?))
            }
            "resetsinseconds" | "resetinseconds" => number().and_then(after),
            "resetsat" | "resetat" | "retryat" | "anthropicratelimitunifiedreset" | "xcodexprimaryresetat" => {
                number().and_then(instant).or_else(|| date(value.as_str()?))
            }
            _ => None,
        };
        self.retry_at = self.retry_at.or(retry_at);
    }
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millis(ms)
}

#[expect(clippy::cast_possible_truncation, reason = "a cast of a float goes to the nearest number that fits")]
fn millis(ms: f64) -> i64 {
    ms as i64
}

/// A time since 1970, in seconds or milliseconds.
fn instant(time: f64) -> Option<Timestamp> {
    let ms = if time < SECONDS_BELOW { time * 1000.0 } else { time };
    (ms > 0.0).then(|| at(millis(ms)))
}

/// A date in the format of HTTP or JSON.
fn date(text: &str) -> Option<Timestamp> {
    let date = DateTime::parse_from_rfc2822(text).or_else(|_| DateTime::parse_from_rfc3339(text)).ok()?;
    Some(at(date.timestamp_millis()))
}

fn of_number(status: f64) -> Option<ErrorClass> {
    of_status(millis(status))
}

fn of_status(status: i64) -> Option<ErrorClass> {
    match status {
        401..=403 => Some(ErrorClass::Authentication),
        429 => Some(ErrorClass::RateLimit),
        503 | 529 => Some(ErrorClass::Overloaded),
        _ => None,
    }
}

/// The error types of providers.
fn of_word(word: &str) -> Option<ErrorClass> {
    match word {
        "authentication_error" | "authentication_failed" | "permission_error" | "invalid_api_key" | "auth_required" => {
            Some(ErrorClass::Authentication)
        }
        "rate_limit" | "rate_limit_error" | "rate_limit_exceeded" | "usage_limit_reached" | "too_many_requests" => {
            Some(ErrorClass::RateLimit)
        }
        "overloaded" | "overloaded_error" => Some(ErrorClass::Overloaded),
        "context_length_exceeded" | "context_too_long" => Some(ErrorClass::ContextTooLong),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_class_comes_from_codes_at_any_depth() {
        for (payload, class) in [
            (json!({"error": "429 Too Many Requests, rate limit"}), None),
            (json!({"status": 429}), Some(ErrorClass::RateLimit)),
            (json!({"error": {"statusCode": "429"}}), Some(ErrorClass::RateLimit)),
            (json!({"error": "429 {\"message\": \"slow down\"}"}), Some(ErrorClass::RateLimit)),
            (json!({"error": "HTTP 529: {\"error\": {\"message\": \"busy\"}}"}), Some(ErrorClass::Overloaded)),
            (json!({"error": "x {\"error\": {\"type\": \"overloaded_error\"}}"}), Some(ErrorClass::Overloaded)),
            (json!([{"cause": {"response": {"status": 401.0}}}]), Some(ErrorClass::Authentication)),
            (json!({"code": "context_length_exceeded"}), Some(ErrorClass::ContextTooLong)),
            (json!({"status": 500, "type": "api_error"}), None),
            (json!({"a": {"a": {"a": {"a": {"a": {"a": {"a": {"status": 429}}}}}}}}), None),
            (json!(429), None),
        ] {
            assert_eq!(codes(&payload).class, class, "{payload}");
        }
    }

    #[test]
    fn a_limit_says_when_it_is_over() {
        let limit = |more: Value| {
            let mut payload = json!({"status": 429});
            payload.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            codes(&payload).retry_at.map(Timestamp::as_millis)
        };
        for absolute in [
            json!({"resets_at": 1_800_000_000}),
            json!({"error": {"resetsAt": 1_800_000_000_000_i64}}),
            json!({"headers": {"Retry-After": "Fri, 15 Jan 2027 08:00:00 GMT"}}),
            json!({"retryAt": "2027-01-15T08:00:00Z"}),
            json!({"headers": {"anthropic-ratelimit-unified-reset": "1800000000"}}),
        ] {
            assert_eq!(limit(absolute.clone()), Some(1_800_000_000_000), "{absolute}");
        }
        let before = SystemClock.now().as_millis();
        for relative in [
            json!({"headers": {"retry-after": "30"}}),
            json!({"retry_after": 30}),
            json!({"retryAfterMs": 30_000.0}),
            json!({"error": "429 {\"resets_in_seconds\": 30}"}),
        ] {
            let wait = limit(relative.clone()).unwrap() - before;
            assert!((30_000..90_000).contains(&wait), "{relative}: {wait}");
        }
        for none in [json!({}), json!({"retry_after": -1}), json!({"retry_after": 1e300}), json!({"resets_at": "soon"})]
        {
            assert_eq!(limit(none.clone()), None, "{none}");
        }
        assert_eq!(codes(&json!({"status": 529, "retry_after": 30})).retry_at, None);
    }
}
