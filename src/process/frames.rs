//! Finds JSON objects in a line that holds more than one object: escape sequences of a terminal, a banner or a warning
//! around it, several objects without a line break between them.
//!
//! Always: total, and linear in the length of the line.

use memchr::memchr;
use serde::de::IgnoredAny;

/// How often a text that only seems to hold objects is parsed at most, in multiples of its length.
const MAX_READINGS: usize = 4;

/// Takes each JSON object out of a line. Returns the text around them, without escape sequences.
pub(crate) fn take_objects<'a>(line: &'a str, mut take: impl FnMut(&'a str)) -> String {
    let mut noise = String::new();
    let (mut from, mut at) = (0, 0);
    let mut budget = line.len().saturating_mul(MAX_READINGS);
    while let Some(found) = memchr(b'{', &line.as_bytes()[at..]) {
        at += found;
        let mut values = serde_json::Deserializer::from_str(&line[at..]).into_iter::<IgnoredAny>();
        match values.next() {
            Some(Ok(IgnoredAny)) => {
                let end = at + values.byte_offset();
                noise.push_str(&line[from..at]);
                take(&line[at..end]);
                (from, at) = (end, end);
            }
            Some(Err(error)) if error.column() < budget => {
                budget -= error.column();
                at += 1;
            }
            _ => break,
        }
    }
    noise.push_str(&line[from..]);
    without_escapes(&noise).trim().to_owned()
}

/// The text without escape sequences (colours, cursor movement, titles) and byte order marks.
fn without_escapes(text: &str) -> String {
    let mut plain = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => skip_escape(&mut chars),
            '\u{9b}' => _ = chars.find(|c| ('@'..='~').contains(c)),
            '\u{feff}' => {}
            c => plain.push(c),
        }
    }
    plain
}

/// Skips the sequence behind an escape character.
fn skip_escape(chars: &mut std::str::Chars<'_>) {
    match chars.next() {
        // Parameters, then the final letter.
        Some('[') => _ = chars.find(|c| ('@'..='~').contains(c)),
        // A control string, up to BEL or ESC \.
        Some(']' | 'P' | 'X' | '^' | '_') => {
            while let Some(c) = chars.next() {
                match c {
                    '\u{7}' | '\u{9c}' => return,
                    '\u{1b}' => {
                        chars.next();
                        return;
                    }
                    _ => {}
                }
            }
        }
        // Selects a character set.
        Some(' '..='/') => _ = chars.next(),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(line: &str) -> (Vec<&str>, String) {
        let mut objects = Vec::new();
        let noise = take_objects(line, |object| objects.push(object));
        (objects, noise)
    }

    #[test]
    fn objects_are_found_whatever_stands_around_them() {
        for (line, objects, noise) in [
            ("", &[][..], ""),
            ("no object", &[], "no object"),
            (r#"{"a":1}"#, &[r#"{"a":1}"#], ""),
            (r#"{"a":1}{"b":{"c":"}{"}}"#, &[r#"{"a":1}"#, r#"{"b":{"c":"}{"}}"#], ""),
            ("\u{1b}]0;title\u{7}{\"a\":1}\u{1b}[0m", &[r#"{"a":1}"#], ""),
            ("\u{1b}]8;;http://x\u{1b}\\{\"a\":1}", &[r#"{"a":1}"#], ""),
            ("\u{feff}\u{1b}[?25l\u{1b}(B {\"a\":1}", &[r#"{"a":1}"#], ""),
            (r#"npm WARN {old} {"a":1} Debugger attached."#, &[r#"{"a":1}"#], "npm WARN {old}  Debugger attached."),
            (r#"{"half":{"a":1}"#, &[r#"{"a":1}"#], r#"{"half":"#),
            (r#"{"lone":"\ud83d"}"#, &[r#"{"lone":"\ud83d"}"#], ""),
            ("\u{0}\u{1}", &[], "\u{0}\u{1}"),
            ("\u{1b}[", &[], ""),
            ("\u{1b}", &[], ""),
        ] {
            assert_eq!(taken(line), (objects.to_vec(), noise.to_owned()), "{line:?}");
        }
    }

    #[test]
    fn a_line_that_only_seems_to_hold_objects_is_read_a_few_times() {
        let began = std::time::Instant::now();
        for piece in ["{", "{\"a\":[0,0,0,0,0,0,0,", "{\"a\":\"", "{\"a\":"] {
            let line = piece.repeat(1_000_000 / piece.len());
            let (objects, noise) = taken(&line);
            assert!(objects.is_empty() && noise.len() == line.len(), "{piece}");
        }
        assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
    }
}
