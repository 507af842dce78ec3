//! What stands in a cell of a table: times, numbers and amounts, short enough to be read at a glance.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::usage::Usage;

/// What stands in a cell of which nothing is known.
pub(super) const NOTHING_KNOWN: &str = "-";

pub(super) fn or_dash(text: Option<impl ToString>) -> String {
    text.map_or_else(|| NOTHING_KNOWN.to_owned(), |text| text.to_string())
}

/// Tokens in and out, and money; none when nothing is known of them.
pub(super) fn used(usage: &Usage) -> Option<String> {
    let read = [usage.input_tokens, usage.cache_read_tokens, usage.cache_write_tokens];
    let read = read.into_iter().flatten().reduce(i64::saturating_add);
    let known = [
        read.map(|tokens| format!("{} in", short(tokens))),
        usage.output_tokens.map(|tokens| format!("{} out", short(tokens))),
        usage.cost_usd.map(|cost| format!("${cost:.4}")),
    ];
    let known: Vec<_> = known.into_iter().flatten().collect();
    (!known.is_empty()).then(|| known.join(", "))
}

/// A number with at most four digits, rounded down.
fn short(number: i64) -> String {
    match number {
        ..10_000 => number.to_string(),
        10_000..10_000_000 => format!("{}k", number / 1000),
        _ => format!("{}M", number / 1_000_000),
    }
}

/// How far away an instant is, in one unit.
pub(super) fn relative(at: Timestamp, now: Timestamp) -> String {
    let (past, future) = (now.since(at), at.since(now));
    if future >= Duration::from_secs(1) {
        format!("in {}", span(future))
    } else if past < Duration::from_secs(1) {
        "now".to_owned()
    } else {
        format!("{} ago", span(past))
    }
}

/// A duration in its greatest unit, rounded down.
pub(super) fn span(duration: Duration) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    match duration.as_secs() {
        0 => format!("{} ms", duration.as_millis()),
        seconds @ ..MINUTE => format!("{seconds} s"),
        seconds @ ..HOUR => format!("{} min", seconds / MINUTE),
        seconds @ ..DAY => format!("{} h", seconds / HOUR),
        seconds => format!("{} d", seconds / DAY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    #[test]
    fn what_was_used_is_short() {
        let usage = |input, output, cost_usd| Usage {
            input_tokens: input,
            cache_read_tokens: input,
            output_tokens: output,
            cost_usd,
            ..Usage::default()
        };
        assert_eq!(used(&usage(None, None, None)), None);
        assert_eq!(used(&usage(Some(600), Some(20), Some(0.012_34))).as_deref(), Some("1200 in, 20 out, $0.0123"));
        assert_eq!(used(&usage(Some(6_000), Some(12_000_000), None)).as_deref(), Some("12k in, 12M out"));
    }

    #[test]
    fn times_are_relative_in_one_unit() {
        for (seconds, expected) in [
            (0, "now"),
            (1, "1 s ago"),
            (59, "59 s ago"),
            (60, "1 min ago"),
            (3599, "59 min ago"),
            (3600, "1 h ago"),
            (86_399, "23 h ago"),
            (86_400, "1 d ago"),
            (86_400 * 400, "400 d ago"),
        ] {
            assert_eq!(relative(NOW - Duration::from_secs(seconds), NOW), expected);
        }
        assert_eq!(relative(NOW + Duration::from_secs(90), NOW), "in 1 min");
        assert_eq!(span(Duration::from_millis(250)), "250 ms");
    }
}
