//! JSON as agents write it, with their usual mistakes.
//!
//! Always: total; no text makes it fail. A value that Rust cannot hold or that JSON does not allow is lost alone, not
//! the text.

use serde_json::Value;

use super::json_bounded;

/// Values nested deeper become null. `serde_json` parses 128 levels, and a stored value is nested inside others.
const MAX_DEPTH: usize = 100;

/// Parses a JSON text. JavaScript cuts strings between the halves of a surrogate pair and writes the halves as escapes,
/// which no Rust string can hold: each becomes U+FFFD. Python writes `NaN` and `Infinity`: they become null, as do
/// values nested too deeply. The rest of the text is kept. A value with too many nodes for the memory is kept as its
/// text.
pub(super) fn parse(text: &str) -> Option<Value> {
    json_bounded::parse(text).or_else(|| {
        let whole = without_lone_surrogates(text);
        let whole = whole.as_deref().unwrap_or(text);
        json_bounded::parse(&without_odd_values(whole))
    })
}

/// A string member of an object; empty if missing.
pub(super) fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// A number member of an object, in any notation (`1`, `1.0`, `1e3`); none if missing.
pub(super) fn number(object: &Value, key: &str) -> Option<f64> {
    object.get(key).and_then(Value::as_f64).filter(|number| number.is_finite())
}

/// The same as an integer: truncated, and clamped to the range of an `i64`.
pub(super) fn integer(object: &Value, key: &str) -> Option<i64> {
    let value = object.get(key)?;
    value.as_i64().or_else(|| number(object, key).map(whole))
}

#[expect(clippy::cast_possible_truncation, reason = "a cast of a float goes to the nearest number that fits")]
fn whole(number: f64) -> i64 {
    number.trunc() as i64
}

/// The items of an array member of an object; empty if missing.
pub(super) fn items<'a>(object: &'a Value, key: &str) -> &'a [Value] {
    object.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The text with every escaped half of a surrogate pair replaced; none if there is none.
fn without_lone_surrogates(text: &str) -> Option<String> {
    let mut mended = String::new();
    let mut rest = text;
    let mut found = false;
    while let Some(at) = rest.find('\\') {
        mended.push_str(&rest[..at]);
        rest = &rest[at..];
        let taken = match escaped_unit(rest) {
            Some(0xD800..=0xDBFF) if matches!(escaped_unit(&rest[6..]), Some(0xDC00..=0xDFFF)) => 12,
            Some(0xD800..=0xDFFF) => {
                mended.push_str("\\ufffd");
                found = true;
                rest = &rest[6..];
                continue;
            }
            Some(_) => 6,
            // The backslash and the character that it escapes, so that an escaped backslash starts no escape.
            None => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
        };
        mended.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    mended.push_str(rest);
    found.then_some(mended)
}

/// The text with null in place of `NaN`, infinities and values nested too deeply.
fn without_odd_values(text: &str) -> String {
    let mut mended = String::new();
    let (mut from, mut at, mut depth) = (0, 0, 0_usize);
    while let Some(byte) = text.as_bytes().get(at) {
        let odd = match byte {
            b'"' => {
                at = end_of_string(text, at);
                continue;
            }
            b'{' | b'[' if depth == MAX_DEPTH => end_of_value(text, at),
            b'{' | b'[' => {
                depth += 1;
                at
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                at
            }
            b'N' | b'I' | b'-' => {
                let words = ["NaN", "Infinity", "-Infinity"];
                words.iter().find(|word| text[at..].starts_with(**word)).map_or(at, |word| at + word.len())
            }
            _ => at,
        };
        if odd > at {
            mended.push_str(&text[from..at]);
            mended.push_str("null");
            (from, at) = (odd, odd);
        } else {
            // Always at a character boundary: only ASCII is searched for.
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    mended.push_str(&text[from..]);
    mended
}

/// The position behind the string that begins here.
fn end_of_string(text: &str, at: usize) -> usize {
    let mut bytes = text.bytes().enumerate().skip(at + 1);
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'\\' => _ = bytes.next(),
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The position behind the object or array that begins here.
fn end_of_value(text: &str, mut at: usize) -> usize {
    let mut depth = 0_usize;
    while let Some(byte) = text.as_bytes().get(at) {
        match byte {
            b'"' => {
                at = end_of_string(text, at);
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth <= 1 => return at + 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    text.len()
}

/// The UTF-16 unit of a leading `\uXXXX`.
fn escaped_unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    // `from_str_radix` would take a sign.
    digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u16::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_json_allows_costs_only_itself() {
        for (json, mended) in [
            (
                r#"{"a": NaN, "b": [-Infinity, Infinity], "c": "NaN \" é"}"#,
                r#"{"a": null, "b": [null, null], "c": "NaN \" é"}"#,
            ),
            (r#"{"a": -1, "é": "\\", "b": NaN}"#, r#"{"a": -1, "é": "\\", "b": null}"#),
        ] {
            assert_eq!(parse(json), serde_json::from_str(mended).ok(), "{json}");
        }
        let deep = |depth: usize, inner: &str| format!("{}{inner}{}", "{\"a\":[".repeat(depth), "]}".repeat(depth));
        let read = parse(&format!("{{\"deep\": {}, \"b\": 1}}", deep(200, "\"}]\""))).unwrap();
        assert_eq!(read["b"], 1);
        assert_eq!(read["deep"].to_string().matches("null").count(), 1);
        assert_eq!(parse(&deep(60, "1").replace(']', "")), None);
    }

    #[test]
    fn a_number_is_read_however_it_is_written() {
        for (json, expected) in [
            ("5", Some(5)),
            ("5.0", Some(5)),
            ("-5.9", Some(-5)),
            ("5e3", Some(5000)),
            ("1e300", Some(i64::MAX)),
            ("9223372036854775807", Some(i64::MAX)),
            ("18446744073709551615", Some(i64::MAX)),
            ("\"5\"", None),
            ("null", None),
        ] {
            assert_eq!(integer(&parse(&format!("{{\"n\": {json}}}")).unwrap(), "n"), expected, "{json}");
        }
    }

    #[test]
    fn half_a_surrogate_pair_does_not_spoil_a_line() {
        for (json, text) in [
            (r#""a\ud83d""#, "a\u{fffd}"),
            (r#""\ud83d\ud83e\udd9e\udd9e""#, "\u{fffd}🦞\u{fffd}"),
            (r#""\\ud83d \ud83d\n""#, "\\ud83d \u{fffd}\n"),
        ] {
            assert_eq!(parse(json), Some(Value::from(text)), "{json}");
        }
        for broken in [r#""\ud83d"#, r#""\u+123\ud83d""#, r"\", r"\é", r"\ud8é9"] {
            assert_eq!(parse(broken), None, "{broken}");
        }
    }
}
