//! Texts from outside, by kind: which characters each may contain, whether from a client or an agent.
//!
//! Always: an illegal text of a client is refused; an illegal text of an agent is sanitised or dropped. A line has no control
//! characters and nothing that changes the writing direction; a text of several lines may also have line ends and tabs. The text
//! of an answer, of reasoning or of a tool is content: it is stored unchanged and made safe where it is shown (`cli/plain.rs`).

use std::borrow::Cow;

use crate::id::shorten;

/// Longest title of a session, in characters.
pub const MAX_TITLE_CHARS: usize = 500;
/// Longest name of a tool.
pub const MAX_TOOL_CHARS: usize = 200;

/// A text that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {problem}")]
pub struct InvalidText {
    what: &'static str,
    problem: String,
}

/// Whether a terminal acts on a character, or reorders the text after it: controls, and embeddings, overrides and isolates of
/// writing direction.
pub fn is_active(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether a character would begin a new line, or a terminal would act on it.
fn breaks_line(c: char) -> bool {
    is_active(c) || matches!(c, '\u{2028}' | '\u{2029}')
}

/// Whether a character is invisible: white space, or of zero width.
fn is_invisible(c: char) -> bool {
    c.is_whitespace()
        || breaks_line(c)
        || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

/// Checks a line from a client and trims it.
///
/// # Errors
/// What is wrong with it, by the name of the field.
pub fn given_line(what: &'static str, text: &str, max_chars: usize) -> Result<String, InvalidText> {
    let invalid = |problem: String| Err(InvalidText { what, problem });
    let text = without_isolates(text);
    let line = text.trim();
    if !line.contains(|c| !is_invisible(c)) {
        return invalid("must not be empty".to_owned());
    }
    if line.chars().count() > max_chars {
        return invalid(format!("must have at most {max_chars} characters"));
    }
    match line.chars().find(|c| breaks_line(*c)) {
        Some(c) => invalid(format!("must not have the character U+{:04X} in it: one line is needed", u32::from(c))),
        None => Ok(line.to_owned()),
    }
}

/// Checks a text from a client, which may have several lines.
///
/// # Errors
/// As for a line. It may be empty.
pub fn given_text(what: &'static str, text: &str, max_chars: usize) -> Result<String, InvalidText> {
    let invalid = |problem: String| Err(InvalidText { what, problem });
    let text = without_isolates(text);
    if text.chars().count() > max_chars {
        return invalid(format!("may have at most {max_chars} characters"));
    }
    match text.chars().find(|c| is_active(*c) && !"\n\r\t".contains(*c)) {
        Some(c) => invalid(format!("must not have the character U+{:04X} in it", u32::from(c))),
        None => Ok(text.into_owned()),
    }
}

/// Removes balanced isolates of writing direction, which translation libraries put around the values that they insert. An
/// unbalanced one stays, so that the text is refused.
fn without_isolates(text: &str) -> Cow<'_, str> {
    let mut open = 0_usize;
    for c in text.chars() {
        match c {
            '\u{2066}'..='\u{2068}' => open += 1,
            '\u{2069}' if open == 0 => return text.into(),
            '\u{2069}' => open -= 1,
            _ => {}
        }
    }
    let is_isolate = |c: char| matches!(c, '\u{2066}'..='\u{2069}');
    match open == 0 && text.contains(is_isolate) {
        true => text.replace(is_isolate, "").into(),
        false => text.into(),
    }
}

/// Sanitises a line from an agent; none when nothing visible is left.
pub fn heard_line(text: &str, max_chars: usize) -> Option<String> {
    let blank = |c: char| if breaks_line(c) { ' ' } else { c };
    // Reads no more than could matter, even if most of it is white space.
    let words: String = text.chars().map(blank).take(max_chars.saturating_mul(8)).collect();
    let mut line = words.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(max_chars) {
        line.truncate(end);
        line.truncate(line.trim_end().len());
    }
    line.contains(|c| !is_invisible(c)).then_some(line)
}

/// Sanitises a text of an agent about itself, which may have several lines: characters that a terminal would act on are
/// replaced.
pub fn heard_text(text: &str) -> Cow<'_, str> {
    let is_wrong = |c: char| is_active(c) && !"\n\r\t".contains(c);
    match text.contains(is_wrong) {
        true => text.chars().map(|c| if is_wrong(c) { '\u{fffd}' } else { c }).collect::<String>().into(),
        false => text.into(),
    }
}

/// An agent's own id of a conversation: safe to use as an argument of its process, in a request and as a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AgentSessionId(String);

/// The id of an agent is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} {problem}")]
pub struct InvalidAgentSessionId {
    given: String,
    problem: &'static str,
}

impl AgentSessionId {
    /// Maximum length in bytes; known agents use up to 200.
    pub const MAX_BYTES: usize = 1024;

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for AgentSessionId {
    type Err = InvalidAgentSessionId;
    fn from_str(text: &str) -> Result<Self, InvalidAgentSessionId> {
        let problem = if text.is_empty() {
            "is empty"
        } else if text.len() > Self::MAX_BYTES {
            "has more than 1024 bytes"
        } else if text.starts_with('-') {
            "begins with a hyphen, as an option does"
        } else if text.trim() != text {
            "begins or ends with white space"
        } else if text.contains(|c| c != ' ' && is_invisible(c)) {
            "has a character that cannot be seen"
        } else {
            return Ok(Self(text.to_owned()));
        };
        Err(InvalidAgentSessionId { given: shorten(text), problem })
    }
}

impl std::fmt::Display for AgentSessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_clients_are_trimmed_or_refused() {
        let given = |text: &str| given_line("title", text, 10).map_err(|error| error.to_string());
        assert_eq!(given("  Hello é 漢 "), Ok("Hello é 漢".to_owned()));
        for (text, problem) in [
            ("", "title must not be empty"),
            (" \n", "title must not be empty"),
            ("12345678901", "title must have at most 10 characters"),
            ("a\u{1b}[2J", "U+001B"),
            ("a\nb", "U+000A"),
            ("a\u{9b}b", "U+009B"),
            ("a\u{202e}b", "U+202E"),
            ("a\u{2028}b", "U+2028"),
            ("a\0b", "U+0000"),
        ] {
            assert!(given(text).unwrap_err().contains(problem), "{text:?}");
        }
        assert_eq!(given_text("reason", "a\n\tb\r\n", 10).unwrap(), "a\n\tb\r\n");
        assert_eq!(given("Hi \u{2068}a\u{2067}b\u{2069}\u{2069}!"), Ok("Hi ab!".to_owned()));
        assert_eq!(given_text("reason", "\u{2068}a\u{2069}\n", 10).unwrap(), "a\n");
        assert!(given("\u{2068}\u{2069}").is_err() && given("\u{2069}a\u{2068}").is_err());
        assert!(given_text("reason", "a\u{2066}", 10).is_err() && given_text("reason", "\0", 10).is_err());
    }

    #[test]
    fn lines_of_agents_are_made_legal_or_left_out() {
        for (text, line) in [
            ("  a \n\u{1b} b\0c ", Some("a b c")),
            ("x\u{202e}y", Some("x y")),
            ("12345678901", Some("1234567890")),
            ("123456789 1", Some("123456789")),
            ("👩‍👩‍👧", Some("👩‍👩‍👧")),
            (" \n\u{200b}\u{9b}", None),
            ("", None),
        ] {
            assert_eq!(heard_line(text, 10).as_deref(), line, "{text:?}");
        }
        assert_eq!(heard_text("a\n\tb"), "a\n\tb");
        assert_eq!(heard_text("a\0\u{1b}b\u{202e}"), "a\u{fffd}\u{fffd}b\u{fffd}");
    }

    #[test]
    fn ids_of_agents_can_be_arguments_and_keys() {
        for good in ["ses_1", "0192f0c1-2345", "agent:main:web:1", "a/b", "é", "{\"id\": 1}", "a b", &"x".repeat(1024)]
        {
            assert!(good.parse::<AgentSessionId>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-",
            "--resume",
            "a\0b",
            " ",
            " a",
            "a ",
            "a\u{a0}b",
            "a\nb",
            "\u{200b}",
            "a\u{202e}b",
            "a\u{9b}",
            &"x".repeat(1025),
        ] {
            assert!(bad.parse::<AgentSessionId>().is_err(), "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_heard_can_be_given(text in "(?s).{0,60}") {
            if let Some(line) = heard_line(&text, 20) {
                proptest::prop_assert_eq!(given_line("line", &line, 20), Ok(line.clone()));
            }
            proptest::prop_assert!(given_text("text", &heard_text(&text), 60).is_ok());
        }
    }
}
