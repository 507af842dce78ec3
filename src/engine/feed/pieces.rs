//! The SSE text of a follower, piece by piece.
//!
//! Always: a reader that does not read keeps one piece, whatever it follows. A large event is read in pieces too; when memory
//! is short the pieces are smaller, and no reader waits for it.

use bytes::Bytes;

use super::{Follower, Step};
use crate::event::Seq;
use crate::memory::PIECE_BYTES;
use crate::store::event::Frames;
use crate::store::{LargeText, StoreError};

/// A piece of the text.
#[derive(Debug)]
pub(super) enum Piece {
    /// Whole events.
    Events(Bytes),
    /// A part of a large event; with its outline when it is the last part.
    Part(Bytes, Option<Outline>),
}

impl Piece {
    pub(super) fn into_bytes(self) -> Bytes {
        match self {
            Self::Events(bytes) | Self::Part(bytes, _) => bytes,
        }
    }
}

/// A chunk of a tool without its large values; `None` for other chunks.
pub(super) type Outline = Option<String>;

/// A large event that is being given out.
#[derive(Debug)]
pub(super) struct Part {
    seq: Seq,
    text: LargeText,
    given: usize,
    is_of_tool: bool,
}

impl Follower {
    /// Whether what was given out so far ends in the middle of an event.
    pub fn is_within_event(&self) -> bool {
        self.part.is_some()
    }

    /// The next piece. Cancel safe: a dropped call has moved nothing.
    pub(super) async fn read_piece(&mut self) -> Result<Option<Piece>, StoreError> {
        loop {
            if self.part.is_some() {
                return self.read_part().await;
            }
            match self.step().await? {
                None => return Ok(None),
                Some(Step::Stored(range)) => {
                    let allowed = self.memory.allow_piece(PIECE_BYTES);
                    let page = match self.store.frames(range, allowed.bytes()).await? {
                        Some(Frames::Large { seq, text }) => {
                            self.part = Some(Part { seq, text, given: 0, is_of_tool: false });
                            continue;
                        }
                        Some(Frames::Events { text, last_seq }) => Some((last_seq, text)),
                        None => None,
                    };
                    if let Some(text) = self.advance(page).await? {
                        return Ok(Some(Piece::Events(allowed.hold(text))));
                    }
                }
                Some(Step::Live(live, from)) => return Ok(Some(Piece::Events(live.frames(from)))),
                Some(Step::NeverBegun(id)) => {
                    let events = self.never_begun(id).await?;
                    let frames: String = events.iter().map(|event| format!("data: {}\n\n", event.event)).collect();
                    return Ok(Some(Piece::Events(frames.into())));
                }
            }
        }
    }

    async fn read_part(&mut self) -> Result<Option<Piece>, StoreError> {
        let Some(part) = &mut self.part else { return Ok(None) };
        let allowed = self.memory.allow_piece(PIECE_BYTES);
        let read = part.text.piece(part.given, allowed.bytes()).await?;
        let mut text = Vec::with_capacity(read.len() + 64);
        if part.given == 0 {
            part.is_of_tool = read.starts_with(br#"{"type":"tool-"#);
            text.extend_from_slice(format!("id: {}\ndata: ", part.seq).as_bytes());
        }
        text.extend_from_slice(&read);
        if part.given + read.len() < part.text.len() {
            part.given += read.len();
            return Ok(Some(Piece::Part(allowed.hold(text), None)));
        }
        text.extend_from_slice(b"\n\n");
        let seq = part.seq;
        let outline = match part.is_of_tool && self.pausing.is_some() {
            true => Some(self.store.event_outline(self.session, seq).await?),
            false => None,
        };
        // No await from here on.
        self.part = None;
        self.cursor = seq;
        Ok(Some(Piece::Part(allowed.hold(text), Some(outline))))
    }
}
