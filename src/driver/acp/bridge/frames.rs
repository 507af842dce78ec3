//! Finds messages in an agent's stdout: one JSON object a line, as ACP requires, or nearly so.
//! Always: noise around a message loses nothing of it: escape sequences, a banner, headers, several objects on a line,
//! an object on several lines. What belongs to no object is returned as noise.

use std::collections::VecDeque;

use serde::de::IgnoredAny;
use serde_json::Value;

use crate::driver::json;
use crate::process::frames::take_objects;

/// A piece of an agent's output.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// A JSON object.
    Message(String),
    /// Text outside any object, or the beginning of a line that is too long.
    Noise(String),
}

/// Finds messages in an output, line by line.
#[derive(Debug)]
pub struct Frames {
    max_bytes: usize,
    /// An object without its end so far: some agents print objects over several lines.
    begun: String,
    heard: VecDeque<Heard>,
}

impl Frames {
    /// Finds objects of at most `max_bytes`.
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes, begun: String::new(), heard: VecDeque::new() }
    }

    /// The next piece that was found.
    pub fn pop(&mut self) -> Option<Heard> {
        self.heard.pop_front()
    }

    /// Processes a line.
    pub fn line(&mut self, line: &str) {
        if is_object(line) && (self.begun.is_empty() || is_message(line)) {
            self.give_up_begun();
            self.heard.push_back(Heard::Message(line.to_owned()));
        } else if !self.begun.is_empty() {
            self.go_on(line);
        } else if let Some(message) = json::parse(line).filter(Value::is_object) {
            self.heard.push_back(Heard::Message(message.to_string()));
        } else {
            self.take(line);
        }
    }

    /// Processes the beginning of a line that is too long.
    pub fn too_long(&mut self, beginning: String) {
        self.give_up_begun();
        self.heard.push_back(Heard::Noise(beginning));
    }

    /// Processes an unfinished line if it already is complete. Returns whether it was.
    pub fn unfinished(&mut self, line: &[u8]) -> bool {
        let Ok(line) = std::str::from_utf8(line) else { return false };
        let is_whole = line.ends_with('}') && {
            let mut objects = 0;
            let noise = take_objects(line, |_| objects += 1);
            objects > 0 && !noise.contains(['{', '}'])
        };
        if is_whole {
            self.line(line);
        }
        is_whole
    }

    fn take(&mut self, line: &str) {
        let begins = line.find('{').filter(|at| is_begun(&line[*at..]));
        let (before, begun) = line.split_at(begins.unwrap_or(line.len()));
        begun.clone_into(&mut self.begun);
        let heard = &mut self.heard;
        let noise = take_objects(before, |object| heard.push_back(Heard::Message(object.to_owned())));
        self.noise(&noise);
    }

    fn go_on(&mut self, line: &str) {
        self.begun.push('\n');
        self.begun.push_str(line);
        if self.begun.len() > self.max_bytes || !is_begun(&self.begun) {
            let whole = std::mem::take(&mut self.begun);
            let heard = &mut self.heard;
            let noise = take_objects(&whole, |object| heard.push_back(Heard::Message(one_line(object))));
            self.noise(&noise);
        }
    }

    fn give_up_begun(&mut self) {
        let begun = std::mem::take(&mut self.begun);
        self.noise(&begun);
    }

    /// Brackets and commas around objects are not reported.
    fn noise(&mut self, noise: &str) {
        if noise.contains(|c: char| !c.is_whitespace() && !matches!(c, '[' | ']' | ',')) {
            self.heard.push_back(Heard::Noise(noise.to_owned()));
        }
    }
}

fn is_object(line: &str) -> bool {
    let line = line.trim();
    line.starts_with('{') && serde_json::from_str::<IgnoredAny>(line).is_ok()
}

/// Whether an object is a JSON-RPC message, and not part of one.
fn is_message(object: &str) -> bool {
    json::parse(object).is_some_and(|object| object.get("jsonrpc").is_some())
}

/// Whether this is the beginning of an object that may end on a later line. Not within a string: JSON strings have no
/// line breaks.
fn is_begun(text: &str) -> bool {
    let Err(error) = serde_json::from_str::<IgnoredAny>(text) else { return false };
    error.is_eof() && !is_in_string(text)
}

fn is_in_string(json: &str) -> bool {
    let mut is_in = false;
    let mut bytes = json.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => is_in = !is_in,
            b'\\' if is_in => _ = bytes.next(),
            _ => {}
        }
    }
    is_in
}

/// An object without its line breaks.
fn one_line(object: &str) -> String {
    json::parse(object).map_or_else(|| object.to_owned(), |object| object.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(lines: &[&str]) -> Vec<Heard> {
        let mut frames = Frames::new(1000);
        lines.iter().for_each(|line| frames.line(line));
        std::iter::from_fn(|| frames.pop()).collect()
    }

    #[test]
    fn messages_are_found_whatever_stands_around_them() {
        let message = |text: &str| Heard::Message(text.to_owned());
        let noise = |text: &str| Heard::Noise(text.to_owned());
        let (one, two) = (r#"{"jsonrpc":"2.0","id":1}"#, r#"{"jsonrpc":"2.0","id":2}"#);
        for (lines, expected) in [
            (vec![one, two], vec![message(one), message(two)]),
            (vec!["Welcome", "", one], vec![noise("Welcome"), message(one)]),
            (vec![&format!("\u{1b}]0;title\u{7}{one}")], vec![message(one)]),
            (vec![&format!("{one}{two}")], vec![message(one), message(two)]),
            (vec![&format!("[{one}, {two}]")], vec![message(one), message(two)]),
            (vec!["{", r#"  "jsonrpc": "2.0","#, r#"  "id": 1,"#, r#"  "a": {}"#, "}", two], {
                vec![message(r#"{"jsonrpc":"2.0","id":1,"a":{}}"#), message(two)]
            }),
            (vec![r#"{"a":"#, r#"{"b": 1}"#, "}"], vec![message(r#"{"a":{"b":1}}"#)]),
            (vec![r#"{"cut"#, one], vec![noise(r#"{"cut"#), message(one)]),
            (vec![r#"{"cut": "#, one], vec![noise(r#"{"cut": "#), message(one)]),
            (vec![r#"{"n": NaN}"#], vec![message(r#"{"n":null}"#)]),
            (vec!["[1]", "{}"], vec![noise("[1]"), message("{}")]),
        ] {
            assert_eq!(heard(&lines), expected, "{lines:?}");
        }
        let long = "x".repeat(600);
        assert_eq!(heard(&[r#"{"a":["#, &format!("\"{long}\","), &format!("\"{long}\","), one]).len(), 2);
    }

    #[test]
    fn a_message_needs_no_end_of_its_line() {
        for (line, is_whole) in
            [(r#"{"a":1}"#, true), (r#"{"a":1}{"b":2}"#, true), (r#"{"a":{"b":1}"#, false), ("x}", false), ("", false)]
        {
            assert_eq!(Frames::new(1000).unfinished(line.as_bytes()), is_whole, "{line}");
        }
    }
}
