//! A message of a person or an agent, as an AI SDK `UIMessage` with ordered parts.

mod attachment;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::id::{AgentName, MessageId};
use crate::text::heard_line;

pub use attachment::Attachment;

/// Its author.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the words say it")]
pub enum Role {
    User,
    Assistant,
    System,
}

impl Role {
    /// The word in the database and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::System => "system",
        }
    }
}

/// A stored message, ready for `useChat({ messages })`.
#[derive(Debug, Clone, Serialize)]
pub struct Message {
    /// Unique in its session.
    pub id: MessageId,
    /// Its author.
    pub role: Role,
    /// For an agent's message: the run and session that it comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Box<RawValue>>,
    /// The parts, in order.
    pub parts: Box<RawValue>,
}

/// A message of a person: the parts of a UIMessage, stored unchanged.
#[derive(Debug, Clone, PartialEq)]
pub struct UserMessage {
    /// The idempotency key of the send.
    pub id: MessageId,
    parts: Vec<Value>,
    metadata: Option<Value>,
}

/// A message that cannot be sent to an agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMessage {
    /// It has neither text nor a file.
    #[error("the message has no text: send {{\"text\": …}} or a part {{\"type\": \"text\", \"text\": …}}")]
    Blank,
    /// A malformed file part.
    #[error("part {index} of the message is a file and {problem}")]
    File {
        /// Position of the part, from 0.
        index: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A file of a type that its agent does not accept.
    #[error("part {index} of the message is {what}, which agent {agent} does not take: {takes}")]
    NotTaken {
        /// Position of the part, from 0.
        index: usize,
        /// Its media type, or that it is a link.
        what: String,
        /// The agent of the session.
        agent: AgentName,
        /// What the agent accepts.
        takes: String,
    },
    /// A part is not an object with a `type`.
    #[error("part {0} of the message is not an object with a string \"type\"")]
    Part(usize),
    /// A malformed text part.
    #[error("message.parts[{0}].text is not a string")]
    Text(usize),
    /// A part of a type that no agent accepts.
    #[error("part {index} of the message has type {kind:?}: only parts of type text and file can be sent")]
    Unsupported {
        /// Position of the part, from 0.
        index: usize,
        /// Its type.
        kind: String,
    },
}

impl UserMessage {
    /// A message of one text part.
    ///
    /// # Errors
    /// [`InvalidMessage::Blank`] when the text is empty or only white space.
    pub fn text(id: MessageId, text: impl Into<String>) -> Result<Self, InvalidMessage> {
        Self::from_parts(id, vec![json!({"type": "text", "text": text.into()})], None)
    }

    /// A message of files and a text, which may be empty when there are files.
    ///
    /// # Errors
    /// When a file is malformed, or the message is empty.
    pub fn with_files(id: MessageId, text: &str, files: &[Attachment]) -> Result<Self, InvalidMessage> {
        let mut parts: Vec<_> = files.iter().map(Attachment::to_part).collect();
        if !text.trim().is_empty() || files.is_empty() {
            parts.push(json!({"type": "text", "text": text}));
        }
        Self::from_parts(id, parts, None)
    }

    /// A message as an AI SDK client sends it. Does not check whether its agent accepts the files.
    ///
    /// # Errors
    /// When a part is malformed or of a type that no agent accepts, or when no part has text or a file.
    pub fn from_parts(id: MessageId, parts: Vec<Value>, metadata: Option<Value>) -> Result<Self, InvalidMessage> {
        for (index, part) in parts.iter().enumerate() {
            let kind = part.get("type").and_then(Value::as_str).ok_or(InvalidMessage::Part(index))?;
            match kind {
                "text" if part.get("text").is_some_and(Value::is_string) => {}
                "text" => return Err(InvalidMessage::Text(index)),
                "file" => {
                    Attachment::of(part).map_err(|problem| InvalidMessage::File { index, problem })?;
                }
                // Data parts are notes of the client: stored with the message, not passed to the agent.
                kind if kind.starts_with("data-") => {}
                kind => return Err(InvalidMessage::Unsupported { index, kind: kind.chars().take(40).collect() }),
            }
        }
        let message = Self { id, parts, metadata };
        let says_something = !message.prompt().trim().is_empty() || message.files().next().is_some();
        if says_something { Ok(message) } else { Err(InvalidMessage::Blank) }
    }

    /// Its files, each with the position of its part.
    pub fn files(&self) -> impl Iterator<Item = (usize, Attachment)> {
        files(&self.parts)
    }

    /// The prompt for the agent: the text parts, separated by line breaks.
    pub fn prompt(&self) -> String {
        prompt(&self.parts)
    }

    /// The first line, or the name of the first file, shortened to 80 characters: the title of a session that has none. None
    /// when it would have no visible character.
    pub fn title(&self) -> Option<String> {
        const TITLE_CHARS: usize = 80;
        let text = self.prompt();
        let file = self.files().next().map(|(_, file)| file.label().to_owned()).unwrap_or_default();
        let line = text.trim().lines().next().unwrap_or(&file);
        let line = heard_line(line, TITLE_CHARS + 1)?;
        Some(match line.char_indices().nth(TITLE_CHARS) {
            Some((end, _)) => format!("{}…", line[..end].trim_end()),
            None => line,
        })
    }

    /// Whether stored parts have the same content. Other fields that a client keeps in its parts are ignored.
    pub fn has_content_of(&self, stored: &[Value]) -> bool {
        content(&self.parts) == content(stored)
    }

    /// The parts as stored JSON.
    pub fn parts_json(&self) -> String {
        Value::Array(self.parts.clone()).to_string()
    }

    /// The metadata as stored JSON.
    pub fn metadata_json(&self) -> Option<String> {
        self.metadata.as_ref().map(Value::to_string)
    }
}

/// The content of parts: without `state`, `providerMetadata` and the like, which clients add and remove.
fn content(parts: &[Value]) -> Vec<Value> {
    let content = |part: &Value| match (part.get("type").and_then(Value::as_str), Attachment::of(part)) {
        (Some("text"), _) => json!(["text", part.get("text")]),
        (Some("file"), Ok(file)) => json!(["file", file]),
        (kind, _) => json!([kind, part.get("id"), part.get("data")]),
    };
    parts.iter().map(content).collect()
}

/// The text of stored parts, separated by line breaks.
pub fn prompt(parts: &[Value]) -> String {
    let texts = parts.iter().filter(|part| part.get("type").and_then(Value::as_str) == Some("text"));
    texts.filter_map(|part| part.get("text").and_then(Value::as_str)).collect::<Vec<_>>().join("\n")
}

/// The files of stored parts.
pub fn attachments(parts: &[Value]) -> Vec<Attachment> {
    files(parts).map(|(_, file)| file).collect()
}

fn files(parts: &[Value]) -> impl Iterator<Item = (usize, Attachment)> {
    let files = parts.iter().enumerate().filter(|(_, part)| part.get("type").and_then(Value::as_str) == Some("file"));
    files.filter_map(|(index, part)| Some((index, Attachment::of(part).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(parts: Value) -> Result<UserMessage, InvalidMessage> {
        let Value::Array(parts) = parts else { panic!("an array is needed") };
        UserMessage::from_parts(MessageId::generate(), parts, None)
    }

    #[test]
    fn the_prompt_joins_the_text_parts() {
        let parts =
            json!([{"type": "text", "text": "a"}, {"type": "data-x", "data": 1}, {"type": "text", "text": "b"}]);
        assert_eq!(message(parts).unwrap().prompt(), "a\nb");
    }

    #[test]
    fn what_no_agent_could_read_is_refused() {
        assert_eq!(message(json!([])), Err(InvalidMessage::Blank));
        assert_eq!(message(json!([{"type": "text", "text": " \n"}])), Err(InvalidMessage::Blank));
        assert_eq!(message(json!(["x"])), Err(InvalidMessage::Part(0)));
        assert_eq!(message(json!([{"type": "text", "text": 1}])), Err(InvalidMessage::Text(0)));
        let unsupported = message(json!([{"type": "reasoning", "text": "x"}]));
        assert!(matches!(unsupported, Err(InvalidMessage::Unsupported { index: 0, .. })));
    }

    #[test]
    fn a_file_is_held_in_the_message_or_linked_to() {
        for (file, label, is_link) in [
            (
                json!({"mediaType": "image/png", "url": "data:image/png;base64,AAAA", "filename": "ä b.png"}),
                "ä b.png",
                false,
            ),
            (json!({"mediaType": "Image/SVG+xml", "url": "data:;base64,AA=="}), "image/svg+xml", false),
            (
                json!({"mediaType": "text/plain", "url": "data:text/plain;charset=utf-8;base64,AA==", "filename": null}),
                "text/plain",
                false,
            ),
            (
                json!({"mediaType": "application/pdf", "url": "https://example.com/a?b#c", "x": 1}),
                "application/pdf",
                true,
            ),
        ] {
            let mut part = file.clone();
            part["type"] = "file".into();
            let message = message(json!([{"type": "text", "text": " "}, part])).unwrap();
            let (index, file) = message.files().next().unwrap();
            assert_eq!(
                (index, file.label(), file.is_link(), message.title().unwrap().as_str()),
                (1, label, is_link, label)
            );
        }
    }

    #[test]
    fn what_is_no_file_is_refused_by_its_position() {
        let good = json!({"type": "file", "mediaType": "image/png", "url": "data:image/png;base64,AAAA"});
        for (key, value, problem) in [
            ("mediaType", json!(null), "mediaType"),
            ("mediaType", json!("image"), "mediaType"),
            ("mediaType", json!("image/"), "mediaType"),
            ("mediaType", json!("image/png; x"), "mediaType"),
            ("mediaType", json!("x".repeat(200) + "/y"), "mediaType"),
            ("mediaType", json!("text/plain"), "another type"),
            ("filename", json!(""), "filename"),
            ("filename", json!("../../etc/passwd"), "filename"),
            ("filename", json!("a\nb"), "filename"),
            ("filename", json!("x".repeat(256)), "filename"),
            ("filename", json!(7), "filename"),
            ("url", json!(null), "needs a \"url\""),
            ("url", json!("data:image/png,AAAA"), ";base64,"),
            ("url", json!("data:image/png;base64,"), "empty"),
            ("url", json!("data:image/png;base64,AAA"), "no base64"),
            ("url", json!("data:image/png;base64,AA AA"), "no base64"),
            ("url", json!("data:image/png;base64,%41%41"), "no base64"),
            ("url", json!("file:///etc/passwd"), "neither"),
            ("url", json!("http://example.com/a.png"), "neither"),
            ("url", json!("https://"), "neither"),
            ("url", json!("https:///a"), "neither"),
            ("url", json!("https://a b"), "neither"),
            ("url", json!(format!("https://{}", "x".repeat(9000))), "neither"),
        ] {
            let mut part = good.clone();
            part[key] = value;
            let error = message(json!([good.clone(), part])).unwrap_err();
            assert!(
                matches!(&error, InvalidMessage::File { index: 1, problem: said } if said.contains(problem)),
                "{error}"
            );
        }
    }

    #[test]
    fn files_are_read_back_as_they_were_sent() {
        let file = Attachment {
            media_type: "image/png".to_owned(),
            filename: Some("a.png".to_owned()),
            url: "data:image/png;base64,AAAA".to_owned(),
        };
        for text in ["", "look"] {
            let message = UserMessage::with_files(MessageId::generate(), text, std::slice::from_ref(&file)).unwrap();
            let parts: Vec<Value> = serde_json::from_str(&message.parts_json()).unwrap();
            assert_eq!((attachments(&parts), prompt(&parts).as_str()), (vec![file.clone()], text));
        }
        assert_eq!(UserMessage::with_files(MessageId::generate(), " ", &[]), Err(InvalidMessage::Blank));
    }

    #[test]
    fn content_is_compared_without_client_state() {
        let sent = json!([
            {"type": "text", "text": "a"},
            {"type": "file", "mediaType": "image/png", "url": "data:image/png;base64,AAAA"},
            {"type": "data-note", "data": {"x": 1, "y": 2}},
        ]);
        let known = sent.as_array().unwrap();
        let mut again = known.clone();
        again[0]["state"] = "done".into();
        again[0]["providerMetadata"] = json!({"a": {}});
        again[1]["mediaType"] = "image/PNG".into();
        again[1]["filename"] = Value::Null;
        assert!(message(Value::Array(again.clone())).unwrap().has_content_of(known));
        for (part, key, other) in [
            (0, "text", json!("b")),
            (1, "url", json!("data:image/png;base64,AAAB")),
            (1, "filename", json!("a.png")),
            (2, "data", json!({"x": 1})),
            (2, "type", json!("data-other")),
        ] {
            let mut differs = again.clone();
            differs[part][key] = other;
            assert!(!message(Value::Array(differs)).unwrap().has_content_of(known), "{key}");
        }
        again.remove(2);
        assert!(!message(Value::Array(again)).unwrap().has_content_of(known));
    }

    #[test]
    fn a_title_is_one_short_line() {
        let long = "x".repeat(200);
        let title = UserMessage::text(MessageId::generate(), format!("\n {long}\nmore")).unwrap().title().unwrap();
        assert_eq!(title.chars().count(), 81);
    }
}
