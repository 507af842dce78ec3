//! The SSE text of a follower, piece by piece.
//!
//! Always: a reader that does not read keeps one piece, whatever it follows. A large event is read in pieces, too; memory
//! that is short makes the pieces smaller, and no reader waits for it.

use bytes::Bytes;

use super::{Follower, Step};
use crate::event::Seq;
use crate::memory::Permit;
use crate::store::StoreError;
use crate::store::event::Frames;

/// A piece of many events: reading it takes about a millisecond.
const PIECE_BYTES: usize = 256 * 1024;
/// A piece of a large event, which SQLite reads whole each time: the fewer the better.
const LARGE_PIECE_BYTES: usize = 512 * 1024;
/// The same when memory is short: all readers that there may be take one.
const SMALL_PIECE_BYTES: usize = 16 * 1024;

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

/// A chunk of a tool without what is large in it; none for other chunks.
pub(super) type Outline = Option<String>;

/// A large event that is being given out.
#[derive(Debug)]
pub(super) struct Part {
    seq: Seq,
    given: i64,
    bytes: i64,
    is_of_tool: bool,
}

/// A piece and the memory that it takes, until it is written.
struct Text<T> {
    text: T,
    _permit: Option<Permit>,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Text<T> {
    fn as_ref(&self) -> &[u8] {
        self.text.as_ref()
    }
}

fn held(text: impl AsRef<[u8]> + Send + 'static, permit: Option<Permit>) -> Bytes {
    Bytes::from_owner(Text { text, _permit: permit })
}

impl Follower {
    /// Whether what was given out ends in the midst of an event.
    pub fn is_within_event(&self) -> bool {
        self.part.is_some()
    }

    /// How much may be read at once, and the permit for it.
    fn allowance(&self, wanted: usize) -> (usize, Option<Permit>) {
        match self.memory.try_acquire(wanted) {
            Some(permit) => (wanted, Some(permit)),
            None => (SMALL_PIECE_BYTES, None),
        }
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
                    let (bytes, permit) = self.allowance(PIECE_BYTES);
                    let page = match self.store.frames(range, bytes).await? {
                        Some(Frames::Large { seq, bytes }) => {
                            self.part = Some(Part { seq, given: 0, bytes, is_of_tool: false });
                            continue;
                        }
                        Some(Frames::Events { text, last_seq }) => Some((last_seq, text)),
                        None => None,
                    };
                    if let Some(text) = self.advance(page).await? {
                        return Ok(Some(Piece::Events(held(text, permit))));
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
        let Some(Part { seq, given, bytes, mut is_of_tool }) = self.part else { return Ok(None) };
        let (most, permit) = self.allowance(LARGE_PIECE_BYTES);
        let wanted = i64::try_from(most).unwrap_or(i64::MAX);
        let read = self.store.event_piece(self.session, seq, given, wanted).await?;
        let mut text = Vec::with_capacity(read.len() + 64);
        if given == 0 {
            is_of_tool = read.starts_with(br#"{"type":"tool-"#);
            text.extend_from_slice(format!("id: {seq}\ndata: ").as_bytes());
        }
        text.extend_from_slice(&read);
        let given = given.saturating_add(i64::try_from(read.len()).unwrap_or(i64::MAX));
        // Events are never rewritten; an empty piece would go on for ever.
        if given < bytes && !read.is_empty() {
            self.part = Some(Part { seq, given, bytes, is_of_tool });
            return Ok(Some(Piece::Part(held(text, permit), None)));
        }
        text.extend_from_slice(b"\n\n");
        let outline = match is_of_tool && self.pausing.is_some() {
            true => Some(self.store.event_outline(self.session, seq).await?),
            false => None,
        };
        // Nothing is awaited from here on.
        self.part = None;
        self.cursor = seq;
        Ok(Some(Piece::Part(held(text, permit), Some(outline))))
    }
}
