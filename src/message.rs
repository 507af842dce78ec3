//! A message: what a person or an agent said, as an AI SDK `UIMessage` with ordered parts.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::id::MessageId;

/// Who said it.
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
    /// Who said it.
    pub role: Role,
    /// For an agent's message: the run and session that it comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Box<RawValue>>,
    /// The parts, in order.
    pub parts: Box<RawValue>,
}

/// What a person sends: the parts of a UIMessage, kept as they came.
#[derive(Debug, Clone, PartialEq)]
pub struct UserMessage {
    /// The idempotency key of the send.
    pub id: MessageId,
    parts: Vec<Value>,
    metadata: Option<Value>,
}

/// A file of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// What it is, such as `image/png`.
    pub media_type: String,
    /// Its name, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
    /// A `data:` URL that holds it, or where it is.
    pub url: String,
}

/// A message that cannot be sent to an agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMessage {
    /// No text in it.
    #[error("the message has no text: send {{\"text\": …}} or a part {{\"type\": \"text\", \"text\": …}}")]
    Blank,
    /// A part is not an object with a `type`.
    #[error("part {0} of the message is not an object with a string \"type\"")]
    Part(usize),
    /// A part that agents cannot take yet.
    #[error("part {index} of the message has type {kind:?}: only text parts can be sent to this agent")]
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
        Self::from_parts(id, vec![serde_json::json!({"type": "text", "text": text.into()})], None)
    }

    /// A message as an AI SDK client sends it.
    ///
    /// # Errors
    /// When a part is malformed, of a kind that no agent takes, or when there is no text in any of them.
    pub fn from_parts(id: MessageId, parts: Vec<Value>, metadata: Option<Value>) -> Result<Self, InvalidMessage> {
        for (index, part) in parts.iter().enumerate() {
            let kind = part.get("type").and_then(Value::as_str).ok_or(InvalidMessage::Part(index))?;
            match kind {
                "text" if part.get("text").is_some_and(Value::is_string) => {}
                "text" => return Err(InvalidMessage::Part(index)),
                // Data parts are the client's own notes: kept with the message, not shown to the agent.
                kind if kind.starts_with("data-") => {}
                kind => return Err(InvalidMessage::Unsupported { index, kind: kind.chars().take(40).collect() }),
            }
        }
        let message = Self { id, parts, metadata };
        if message.prompt().trim().is_empty() { Err(InvalidMessage::Blank) } else { Ok(message) }
    }

    /// What the agent is given: the text parts, one below the other.
    pub fn prompt(&self) -> String {
        prompt(&self.parts)
    }

    /// The first line, shortened to 80 characters: the title of a session that has none.
    pub fn title(&self) -> String {
        const TITLE_CHARS: usize = 80;
        let text = self.prompt();
        let line = text.trim().lines().next().unwrap_or_default().trim();
        match line.char_indices().nth(TITLE_CHARS) {
            Some((end, _)) => format!("{}…", line[..end].trim_end()),
            None => line.to_owned(),
        }
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

/// The text of stored parts, one below the other.
pub fn prompt(parts: &[Value]) -> String {
    let texts = parts.iter().filter(|part| part.get("type").and_then(Value::as_str) == Some("text"));
    texts.filter_map(|part| part.get("text").and_then(Value::as_str)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
        assert!(matches!(message(json!([{"type": "file", "url": "x"}])), Err(InvalidMessage::Unsupported { .. })));
    }

    #[test]
    fn a_title_is_one_short_line() {
        let long = "x".repeat(200);
        let title = UserMessage::text(MessageId::generate(), format!("\n {long}\nmore")).unwrap().title();
        assert_eq!(title.chars().count(), 81);
    }
}
