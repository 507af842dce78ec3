//! Text from outside (agents, clients, files) made safe for a person's terminal.
//!
//! Always: no control sequence reaches the terminal, not even in JSON. Otherwise an agent, or a web page that it quotes, could
//! retitle the window, rewrite what was shown, fill the clipboard, or show text in another order than it is stored in.

use std::borrow::Cow;

use crate::text::is_active;

/// The text with line feeds and tabs as they are and every other control character made visible or dropped.
pub fn plain(text: &str) -> String {
    text.chars().filter_map(plain_char).collect()
}

/// The text on one line of at most `max` characters, with its end cut off when it is longer.
pub fn one_line(text: &str, max: usize) -> String {
    let mut line: Vec<char> = Vec::new();
    let mut gap = false;
    for c in text.chars() {
        if c.is_whitespace() {
            gap = !line.is_empty();
        } else if let Some(c) = plain_char(c) {
            if line.len() + usize::from(gap) >= max {
                line.truncate(max.saturating_sub(1));
                return line.iter().collect::<String>().trim_end().to_owned() + "…";
            }
            line.extend(gap.then_some(' '));
            line.push(c);
            gap = false;
        }
    }
    line.iter().collect()
}

/// JSON in which every character is escaped that a terminal would interpret or that is invisible; its value stays the same.
/// Outside its strings JSON has no such character but line ends.
pub fn plain_json(json: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c == '\n' || !(is_active(c) || is_invisible(c));
    if json.chars().all(is_plain) {
        return json.into();
    }
    let mut plain = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if is_plain(c) {
            plain.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            plain.push_str(&format!("\\u{unit:04x}"));
        }
    }
    plain.into()
}

/// Joiners, direction marks, and other characters without width.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}' | '\u{2029}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

fn plain_char(c: char) -> Option<char> {
    match c {
        '\n' | '\t' => Some(c),
        // The other half of a Windows line end.
        '\r' => None,
        // The Control Pictures block repeats C0 in order: ESC becomes ␛.
        '\0'..='\u{1f}' => char::from_u32(0x2400 + u32::from(c)),
        '\u{7f}' => Some('␡'),
        // C1, in which U+009B begins a sequence as ESC [ does; embeddings, overrides and isolates of writing direction.
        c if is_active(c) => Some('\u{fffd}'),
        _ => Some(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown_instead() {
        for (text, expected) in [
            ("a\tb\r\nc", "a\tb\nc"),
            ("\u{1b}[2J\u{1b}]0;title\u{7}", "␛[2J␛]0;title␇"),
            ("\u{9b}31m", "\u{fffd}31m"),
            ("abc\u{8}\u{7f}\0", "abc␈␡␀"),
            ("\u{202e}cba\u{202c} \u{2066}x\u{2069}", "\u{fffd}cba\u{fffd} \u{fffd}x\u{fffd}"),
            ("שלום é 漢 👩‍👩‍👧", "שלום é 漢 👩‍👩‍👧"),
        ] {
            assert_eq!(plain(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_line_is_one_line_and_short() {
        for (text, expected) in [
            ("", ""),
            (" a\n\n  b\tc\r\n", "a b c"),
            ("1234567890", "1234567890"),
            ("12345678901", "123456789…"),
            ("12345678 0 2", "12345678…"),
            ("\u{1b}[31mred", "␛[31mred"),
        ] {
            assert_eq!(one_line(text, 10), expected, "{text:?}");
        }
        assert_eq!(one_line(&" ".repeat(1000), 10), "");
        assert_eq!(one_line(&format!("x{}y", " ".repeat(1000)), 10), "x y");
        assert_eq!(one_line(&"é".repeat(100), 10), "ééééééééé…");
    }

    #[test]
    fn json_says_the_same_without_what_a_terminal_obeys() {
        let text = "a\u{9b}31m\u{7f}\u{202e}b\u{200d}\u{feff}é\n\u{1b}";
        let json = plain_json(&serde_json::to_string(text).unwrap()).into_owned();
        assert_eq!(json, r#""a\u009b31m\u007f\u202eb\u200d\ufeffé\n\u001b""#);
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_a_terminal_obeys_gets_through(text in "(?s).{0,100}", max in 1..50_usize) {
            proptest::prop_assert!(!plain(&text).contains(|c: char| c.is_control() && c != '\n' && c != '\t'));
            let line = one_line(&text, max);
            proptest::prop_assert!(!line.contains(char::is_control) && line.chars().count() <= max.max(1), "{line:?}");
        }
    }
}
