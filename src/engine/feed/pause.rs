//! Where the stream of a chat pauses: at a question that a person has to answer. The AI SDK sends an answer as a message, and
//! a message only when the stream before it has ended. So the stream ends as soon as the run waits for nothing but answers,
//! and continues in the response to the message.
//!
//! Always: the same chunks give the same places, so that the client that answers gets what comes after the place where its
//! stream ended. Of consecutive places the last one counts, so that questions that are asked together are shown together. A
//! question that is answered pauses nothing any more.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::pieces::Piece;
use super::{Follower, State};
use crate::chunk::Chunk;
use crate::store::StoreError;

/// Questions of one turn that follow each other this closely are shown together: a stream that ended at the first one would
/// hide the others until that is answered.
const MORE_WITHIN: Duration = Duration::from_millis(250);
/// Longest wait for further questions, for an agent that keeps writing.
const ASKED_WITHIN: Duration = Duration::from_secs(1);
/// Most bytes held back during that wait.
const MOST_HELD_BYTES: usize = 512 * 1024;

/// The unfinished tools, as far as they decide where a stream pauses.
#[derive(Debug, Clone, Default)]
pub struct Pause {
    /// By call; with the question that the tool waits on, if any.
    unfinished: HashMap<String, Option<String>>,
}

impl Pause {
    /// Takes the next chunk. Returns the open questions if the run waits for nothing else after it.
    pub fn take(&mut self, chunk: &Chunk) -> Option<Vec<String>> {
        match chunk {
            Chunk::ToolInputAvailable { tool_call_id, .. }
            | Chunk::ToolOutputAvailable { tool_call_id, preliminary: Some(true), .. } => {
                self.unfinished.insert(tool_call_id.clone(), None);
                return None;
            }
            Chunk::ToolApprovalRequest { approval_id, tool_call_id } => {
                self.unfinished.insert(tool_call_id.clone(), Some(approval_id.clone()));
            }
            Chunk::ToolOutputAvailable { tool_call_id, .. }
            | Chunk::ToolOutputError { tool_call_id, .. }
            | Chunk::ToolOutputDenied { tool_call_id } => {
                self.unfinished.remove(tool_call_id);
            }
            _ => return None,
        }
        let questions: Option<Vec<_>> = self.unfinished.values().cloned().collect();
        questions.filter(|questions| !questions.is_empty())
    }

    /// The same for a chunk as JSON. Only the chunks of tools are parsed.
    pub fn take_json(&mut self, event: &str) -> Option<Vec<String>> {
        if !event.starts_with(r#"{"type":"tool-"#) {
            return None;
        }
        // A chunk that this build does not know is nothing to wait for.
        serde_json::from_str(event).ok().and_then(|chunk| self.take(&chunk))
    }
}

/// A stream that pauses, with what was read of it and not given out yet.
#[derive(Debug)]
pub(super) struct Pausing {
    pause: Pause,
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    frames: Bytes,
    /// Byte positions where it may end, each with the questions that are open there.
    places: VecDeque<(usize, Vec<String>)>,
}

impl Follower {
    /// Ends the SSE text where a person has to answer. `pause` has taken the chunks up to the cursor.
    pub fn pausing(mut self, pause: Pause) -> Self {
        self.pausing = Some(Pausing { pause, held: None });
        self
    }

    /// The next piece of the stream as SSE text (`id:` and `data:` lines). `None` after the end of a run.
    ///
    /// Cancel safe: a dropped call loses nothing.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn next_frames(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.pausing.as_ref().is_none_or(|pausing| pausing.held.is_none()) {
            let Some(piece) = self.read_piece().await? else { return Ok(None) };
            match &mut self.pausing {
                None => return Ok(Some(piece.into_bytes())),
                Some(pausing) => pausing.hold(piece),
            }
        }
        let give_up = Instant::now() + ASKED_WITHIN;
        while let Some(end) = self.open_place().await? {
            // Agents ask about several tools in quick succession.
            let more = match timeout(MORE_WITHIN, self.read_piece()).await {
                Ok(more) => more?,
                Err(_) => {
                    self.end_at(end);
                    break;
                }
            };
            let (Some(pausing), Some(more)) = (&mut self.pausing, more) else { break };
            pausing.hold(more);
            if Instant::now() >= give_up
                || pausing.held.as_ref().is_some_and(|held| held.frames.len() > MOST_HELD_BYTES)
            {
                self.end_at(end);
                break;
            }
        }
        Ok(self.pausing.as_mut().and_then(|pausing| pausing.held.take()).map(|held| held.frames))
    }

    /// The last place in the held text where a question is open.
    async fn open_place(&mut self) -> Result<Option<usize>, StoreError> {
        while let Some(held) = self.pausing.as_mut().and_then(|pausing| pausing.held.as_mut()) {
            let Some((end, questions)) = held.places.back() else { break };
            if self.store.are_pending(questions).await? {
                return Ok(Some(*end));
            }
            held.places.pop_back();
        }
        Ok(None)
    }

    fn end_at(&mut self, end: usize) {
        if let Some(held) = self.pausing.as_mut().and_then(|pausing| pausing.held.as_mut()) {
            held.frames.truncate(end);
            held.places.clear();
        }
        self.state = State::Finished;
    }
}

impl Pausing {
    /// Appends a piece to the held text.
    fn hold(&mut self, piece: Piece) {
        let (before, mut places) = self.held.take().map_or_else(Default::default, |held| (held.frames, held.places));
        let frames = match piece {
            Piece::Events(frames) => {
                let mut at = before.len();
                for frame in frames.split_inclusive(|byte| *byte == b'\n') {
                    at += frame.len();
                    let event = frame.strip_prefix(b"data: ").and_then(|event| std::str::from_utf8(event).ok());
                    if let Some(questions) = event.and_then(|event| self.pause.take_json(event.trim_end())) {
                        // After the empty line that ends an event.
                        places.push_back((at + 1, questions));
                    }
                }
                frames
            }
            Piece::Part(frames, outline) => {
                if let Some(questions) = outline.flatten().and_then(|event| self.pause.take_json(&event)) {
                    places.push_back((before.len() + frames.len(), questions));
                }
                frames
            }
        };
        let frames = if before.is_empty() { frames } else { [before, frames].concat().into() };
        self.held = Some(Held { frames, places });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(pause: &mut Pause, event: &str) -> Vec<String> {
        let mut questions = pause.take_json(event).unwrap_or_default();
        questions.sort();
        questions
    }

    #[test]
    fn a_stream_pauses_when_only_answers_are_waited_for() {
        let started = |id: &str| {
            format!(
                r#"{{"type":"tool-input-available","toolCallId":"{id}","toolName":"t","input":{{}},"providerExecuted":true,"dynamic":true}}"#
            )
        };
        let asks =
            |id: &str| format!(r#"{{"type":"tool-approval-request","approvalId":"ask-{id}","toolCallId":"{id}"}}"#);
        let done = |id: &str| {
            format!(
                r#"{{"type":"tool-output-error","toolCallId":"{id}","errorText":"e","providerExecuted":true,"dynamic":true}}"#
            )
        };
        let denied = |id: &str| format!(r#"{{"type":"tool-output-denied","toolCallId":"{id}"}}"#);
        let mut pause = Pause::default();
        for (event, expected) in [
            (started("a"), &[][..]),
            (started("b"), &[]),
            (asks("a"), &[]),
            (r#"{"type":"text-delta","id":"x","delta":"y"}"#.to_owned(), &[]),
            (done("b"), &["ask-a"]),
            (started("c"), &[]),
            (asks("c"), &["ask-a", "ask-c"]),
            (denied("a"), &["ask-c"]),
            (started("c"), &[]),
            (done("c"), &[]),
        ] {
            assert_eq!(take(&mut pause, &event), expected, "{event}");
        }
    }
}
