//! JSON as agents write it.
//!
//! Always: total. Nothing here fails on any text, and what is nested deeper than `serde_json` reads (128) is no JSON.

use serde_json::Value;

/// Reads a JSON text. JavaScript cuts strings between the halves of a surrogate pair and writes the halves as escapes,
/// which no Rust string can hold: each becomes U+FFFD, and the rest of the text is kept.
pub(super) fn parse(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok().or_else(|| serde_json::from_str(&without_lone_surrogates(text)?).ok())
}

/// A string of an object; empty when there is none.
pub(super) fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The items of an array of an object; none when there is none.
pub(super) fn items<'a>(object: &'a Value, key: &str) -> &'a [Value] {
    object.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The text with every escape of half a surrogate pair replaced; none when there is none.
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
            // The backslash and what it escapes, so that an escaped backslash starts no escape.
            None => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
        };
        mended.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    mended.push_str(rest);
    found.then_some(mended)
}

/// The UTF-16 unit of a `\uXXXX` that the text begins with.
fn escaped_unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    // `from_str_radix` would take a sign.
    digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u16::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

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
