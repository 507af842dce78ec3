//! What was just committed, for readers that follow closely.
//!
//! Always: what lagging readers keep of it is bounded in bytes, for each session and over all; beyond that they read from the
//! store. The text of a commit is built once and shared by all of its readers.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Followed;
use crate::event::Seq;
use crate::memory::{Permit, Pool};
use crate::store::Committed;

/// What the readers of one session may keep of its commits, as rows and as text: some thousand events.
pub(super) const SESSION_BYTES: usize = 1024 * 1024;

/// A commit, and the text that its readers share.
#[derive(Debug)]
pub(super) struct Live {
    committed: Arc<Committed>,
    frames: OnceLock<Bytes>,
    held: Arc<Held>,
}

/// Released when neither the commit nor its text is kept any more.
#[derive(Debug)]
struct Held {
    _of_session: OwnedSemaphorePermit,
    _of_all: Permit,
}

struct Text {
    text: String,
    _held: Arc<Held>,
}

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

impl std::ops::Deref for Live {
    type Target = Committed;

    fn deref(&self) -> &Committed {
        &self.committed
    }
}

impl Live {
    /// A commit for live readers, unless they keep too much already.
    pub(super) fn new(committed: Arc<Committed>, session: &Arc<Semaphore>, all: &Pool) -> Option<Self> {
        let bytes: usize = committed.events.iter().map(String::len).sum();
        // Counted twice: as rows and as text.
        let bytes = bytes.saturating_mul(2);
        let of_session = session.clone().try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()?;
        let held = Arc::new(Held { _of_session: of_session, _of_all: all.try_acquire(bytes)? });
        Some(Self { committed, frames: OnceLock::new(), held })
    }

    /// The number of the last event.
    pub(super) fn last_seq(&self) -> Seq {
        last_seq(&self.committed)
    }

    /// The events from this one on.
    pub(super) fn followed(&self, from: usize) -> Vec<Followed> {
        let numbered = (self.first_seq..).zip(self.events.iter()).skip(from);
        let followed = numbered.map(|(seq, event)| Followed {
            seq: Some(seq),
            at: self.at,
            run_id: self.run_id,
            event: event.clone(),
        });
        followed.collect()
    }

    /// The same events as SSE text.
    pub(super) fn frames(&self, from: usize) -> Bytes {
        let frame = |(seq, event): (Seq, &String)| format!("id: {seq}\ndata: {event}\n\n");
        let numbered = || (self.first_seq..).zip(self.events.iter());
        let frames = self.frames.get_or_init(|| {
            let text = numbered().map(frame).collect();
            Bytes::from_owner(Text { text, _held: self.held.clone() })
        });
        let passed: usize = numbered().take(from).map(|one| frame(one).len()).sum();
        frames.slice(passed..)
    }
}

/// The number of the last event of a commit.
pub(super) fn last_seq(committed: &Committed) -> Seq {
    committed.first_seq + Seq::try_from(committed.events.len()).unwrap_or(Seq::MAX) - 1
}
