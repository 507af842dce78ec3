//! Durations as the config writes them: `500ms`, `30s`, `1m30s`, `2h`, `7d`. Whole numbers, greater units first.

use std::time::Duration;

const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Parses a duration; none if the text is not one.
pub fn parse(text: &str) -> Option<Duration> {
    let mut total: u64 = 0;
    let mut rest = text;
    // The search continues after the last unit found, so "30m1h" and "1s1s" fail.
    let mut units = UNITS.iter();
    loop {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let (unit, tail) = tail.split_at(tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len()));
        let (_, ms) = units.find(|(name, _)| *name == unit)?;
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(*ms)?)?;
        rest = tail;
        if rest.is_empty() {
            return Some(Duration::from_millis(total));
        }
    }
}

/// The duration in the notation of the config, to the millisecond.
pub fn show(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (name, ms) in UNITS {
        if rest >= ms {
            text.push_str(&format!("{}{name}", rest / ms));
            rest %= ms;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_numbers_with_units() {
        for (text, ms) in [
            ("0s", 0),
            ("500ms", 500),
            ("30s", 30_000),
            ("1m30s", 90_000),
            ("2h", 7_200_000),
            ("7d", 604_800_000),
            ("1d2h3m4s5ms", 93_784_005),
            ("90m", 5_400_000),
        ] {
            assert_eq!(parse(text), Some(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn refuses_what_could_mean_something_else() {
        for text in [
            "",
            "30",
            "s",
            "30 s",
            " 30s",
            "30s ",
            "-1s",
            "+1s",
            "1.5h",
            "1S",
            "1min",
            "30m1h",
            "1s1s",
            "1h30",
            "٣s",
            "1ｓ",
            "99999999999999999999s",
            "999999999999999999d",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn reads_what_it_shows(ms in 0..u64::MAX) {
            let duration = Duration::from_millis(ms);
            proptest::prop_assert_eq!(parse(&show(duration)), Some(duration));
        }

        #[test]
        fn never_panics(text in "\\PC*|[0-9dhms]{0,30}") {
            let _ = parse(&text);
        }
    }
}
