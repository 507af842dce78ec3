//! Finds the one readable sentence in what a failed process wrote to stderr.
//!
//! Deliberately absent: the decision whether it failed.

use serde_json::Value;

/// A longer last line is a dump rather than a sentence.
const MAX_LAST_LINE_CHARS: usize = 300;
/// A shorter rest of a line says nothing.
const MIN_SENTENCE_CHARS: usize = 6;
/// An error is shown in a chat and in a table: a few lines say what went wrong, a dump does not.
const TAIL_LINES: usize = 5;
const TAIL_CHARS: usize = 1000;

/// The cause in the text: an error body, else the first line that mentions an error, else a short last line.
pub fn cause(stderr: &str) -> Option<String> {
    let text = without_colours(stderr);
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let is_short = |line: &&str| line.chars().count() <= MAX_LAST_LINE_CHARS;
    lines()
        .find_map(message_in_body)
        .or_else(|| lines().filter(|line| speaks_of_error(line)).find_map(sentence).map(str::to_owned))
        .or_else(|| lines().next_back().filter(is_short).map(str::to_owned))
}

/// The last lines of the text, for a program whose error is nowhere else.
pub fn tail(stderr: &str) -> Option<String> {
    let text = without_colours(stderr);
    let mut lines: Vec<_> = text.lines().rev().filter(|line| !line.trim().is_empty()).take(TAIL_LINES).collect();
    lines.reverse();
    let tail = lines.join("\n");
    let surplus = tail.chars().count().saturating_sub(TAIL_CHARS);
    let tail = tail.chars().skip(surplus).collect::<String>().trim().to_owned();
    (!tail.is_empty()).then_some(tail)
}

/// The text without colour sequences (CSI: ESC, `[`, digits and semicolons, a letter).
fn without_colours(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("\u{1b}[") {
        plain.push_str(&rest[..at]);
        let sequence = &rest[at + 2..];
        let parameters = sequence.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        rest = match parameters.strip_prefix(|c: char| c.is_ascii_alphabetic()) {
            Some(after) => after,
            None => {
                plain.push_str("\u{1b}[");
                sequence
            }
        };
    }
    plain.push_str(rest);
    plain
}

/// The message of the first `{"error":{"message":…}}` in a line.
fn message_in_body(line: &str) -> Option<String> {
    line.match_indices(r#"{"error":{"#).find_map(|(at, _)| {
        let body = serde_json::Deserializer::from_str(&line[at..]).into_iter::<Value>().next()?.ok()?;
        let message = body.pointer("/error/message")?.as_str()?;
        (!message.trim().is_empty()).then(|| message.to_owned())
    })
}

fn speaks_of_error(line: &str) -> bool {
    let mut words = line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.any(|word| ["error", "failed", "fatal"].iter().any(|known| word.eq_ignore_ascii_case(known)))
}

/// The line without a leading program name in brackets and without a leading `Error:`.
fn sentence(line: &str) -> Option<&str> {
    let line = line.strip_prefix('[').and_then(|rest| rest.split_once(']')).map_or(line, |(_, rest)| rest.trim_start());
    let has_label = line.get(..6).is_some_and(|label| label.eq_ignore_ascii_case("error:"));
    let line = if has_label { line[6..].trim_start() } else { line };
    (line.chars().count() >= MIN_SENTENCE_CHARS).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_lines() {
        for (stderr, expected) in [
            ("", None),
            ("\n \n", None),
            ("one\n\n  two\n", Some("one\n  two")),
            ("1\n2\n3\n4\n5\n\u{1b}[31m6\u{1b}[0m", Some("2\n3\n4\n5\n6")),
        ] {
            assert_eq!(tail(stderr).as_deref(), expected, "{stderr:?}");
        }
        assert_eq!(tail(&"é".repeat(5000)), Some("é".repeat(TAIL_CHARS)));
    }

    #[test]
    fn the_sentence_in_stderr() {
        let long = "x".repeat(MAX_LAST_LINE_CHARS + 1);
        let long_error = format!("failed: {long}");
        for (stderr, expected) in [
            ("", None),
            (" \n\t\n", None),
            ("[openclaw] Error: cannot connect\n    at foo\n", Some("cannot connect")),
            ("\u{1b}[1;31merror:\u{1b}[0m no such model", Some("no such model")),
            ("warning\nFATAL out of memory\nerror later", Some("FATAL out of memory")),
            ("Error: no\nrequest failed with 500", Some("request failed with 500")),
            ("no terrors, 0 errors, unfailed\nlast line", Some("last line")),
            (r#"x {"error":{"type":"t","message":"quota"}} y"#, Some("quota")),
            ("{\"error\":{\"message\":5}} {\"error\":{\"message\":\"second\"}}", Some("second")),
            ("{\"error\":{\n\"message\":\"m\"}}", Some(r#"{"error":{"#)),
            ("[a] [b] Error: two brackets", Some("[b] Error: two brackets")),
            ("odd \u{1b}[5é escape", Some("odd \u{1b}[5é escape")),
            (&long, None),
            (&long_error, Some(&long_error)),
        ] {
            assert_eq!(cause(stderr).as_deref(), expected, "{stderr}");
        }
    }
}
