//! The cells of a table: times, numbers and amounts, short enough to be read at a glance.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::usage::Usage;

/// The content of a cell without a value.
pub(super) const NOTHING_KNOWN: &str = "-";

pub(super) fn or_dash(text: Option<impl ToString>) -> String {
    text.map_or_else(|| NOTHING_KNOWN.to_owned(), |text| text.to_string())
}

/// Tokens in and out, and cost; none if nothing is known.
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

/// A number with at most four digits, rounded.
fn short(number: i64) -> String {
    let rounded = |unit: i64| number.saturating_add(unit / 2) / unit;
    match number {
        ..10_000 => number.to_string(),
        _ if rounded(1000) < 10_000 => format!("{}k", rounded(1000)),
        _ => format!("{}M", rounded(1_000_000)),
    }
}

/// How far away an instant is, rounded to one unit.
pub(super) fn relative(at: Timestamp, now: Timestamp) -> String {
    let (past, future) = (now.since(at), at.since(now));
    if future >= Duration::from_secs(1) {
        format!("in {}", rounded(future))
    } else if past < Duration::from_secs(1) {
        "now".to_owned()
    } else {
        format!("{} ago", rounded(past))
    }
}

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// A duration in the greatest unit of which it has at least one once it is rounded: 59.6 s are a minute.
fn rounded(duration: Duration) -> String {
    let seconds = in_units(duration, Duration::from_secs(1));
    let [minutes, hours, days] = [MINUTE, HOUR, DAY].map(|unit| in_units(duration, Duration::from_secs(unit)));
    match (seconds, minutes, hours) {
        (..MINUTE, ..) => format!("{seconds}s"),
        (_, ..60, _) => format!("{minutes}m"),
        (_, _, ..24) => format!("{hours}h"),
        _ => format!("{days}d"),
    }
}

/// A duration in its two greatest units, rounded to the lesser one.
pub(super) fn span(duration: Duration) -> String {
    let millis = in_units(duration, Duration::from_millis(1));
    let tenths = in_units(duration, Duration::from_millis(100));
    let seconds = in_units(duration, Duration::from_secs(1));
    let minutes = in_units(duration, Duration::from_secs(MINUTE));
    let hours = in_units(duration, Duration::from_secs(HOUR));
    if millis < 1000 {
        format!("{millis}ms")
    } else if tenths < 100 {
        format!("{}.{}s", tenths / 10, tenths % 10)
    } else if seconds < MINUTE {
        format!("{seconds}s")
    } else if seconds < HOUR {
        format!("{}m {}s", seconds / 60, seconds % 60)
    } else if minutes < 24 * 60 {
        format!("{}h {}m", minutes / 60, minutes % 60)
    } else {
        format!("{}d {}h", hours / 24, hours % 24)
    }
}

/// How many of a unit, rounded.
fn in_units(duration: Duration, unit: Duration) -> u64 {
    let units = (duration.as_nanos() + unit.as_nanos() / 2) / unit.as_nanos();
    u64::try_from(units).unwrap_or(u64::MAX)
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
        assert_eq!(used(&usage(Some(6_300), Some(12_000_000), None)).as_deref(), Some("13k in, 12M out"));
        assert_eq!([9_999, 10_499, 9_999_499, 9_999_500].map(short), ["9999", "10k", "9999k", "10M"]);
    }

    #[test]
    fn times_are_relative_in_one_unit() {
        for (seconds, expected) in [
            (0, "now"),
            (1, "1s ago"),
            (59, "59s ago"),
            (60, "1m ago"),
            (89, "1m ago"),
            (90, "2m ago"),
            (3569, "59m ago"),
            (3570, "1h ago"),
            (3600, "1h ago"),
            (86_399, "1d ago"),
            (86_400 * 400, "400d ago"),
        ] {
            assert_eq!(relative(NOW - Duration::from_secs(seconds), NOW), expected);
        }
        // It was to expire in three days a moment ago.
        assert_eq!(relative(NOW + Duration::from_millis(3 * 86_400_000 - 5), NOW), "in 3d");
        assert_eq!(relative(NOW + Duration::from_millis(59_960), NOW), "in 1m");
    }

    #[test]
    fn durations_change_their_unit_once_rounded() {
        for (millis, expected) in [
            (0, "0ms"),
            (250, "250ms"),
            (999, "999ms"),
            (1000, "1.0s"),
            (1960, "2.0s"),
            (9_949, "9.9s"),
            (9_950, "10s"),
            (59_499, "59s"),
            (59_960, "1m 0s"),
            (119_600, "2m 0s"),
            (3_599_600, "1h 0m"),
            (3_600_000 + 89_000, "1h 1m"),
            (86_399_000, "1d 0h"),
            (90_000_000, "1d 1h"),
        ] {
            assert_eq!(span(Duration::from_millis(millis)), expected, "{millis}");
        }
        assert_eq!(span(Duration::from_micros(999_600)), "1.0s");
    }
}
