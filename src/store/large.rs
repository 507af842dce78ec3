//! Rows that are larger than a page. They are read one at a time, and their text is handed out in pieces, so that a slow reader
//! holds one piece of it and does not block the next reader.
//!
//! Always: SQLite reads a whole row for any part of it, so a part is read as a window of some MiB that serves many pieces, for
//! all readers at that place. There are a few windows, and none without a reader.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Store, StoreError};
use crate::event::Seq;
use crate::lease::SessionKey;

/// Maximum size of a page, in bytes: it ends before the row that would exceed it. Files of some MB are common, and 500 of them
/// are too much for one page. A single row may be larger.
pub(super) const PAGE_BYTES: i64 = 4 * 1024 * 1024;
/// With this size a row of 60 MiB is read whole fifteen times, about a second in all.
const WINDOW_BYTES: usize = 4 * 1024 * 1024;
/// Number of readers at different places that can be served before one evicts the window of another.
const WINDOWS: usize = 4;

/// The windows of large rows that are being read. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Large(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    turn: Semaphore,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    /// Least recently used first.
    windows: VecDeque<Window>,
    readers: usize,
}

#[derive(Debug)]
struct Window {
    of: Row,
    from: usize,
    text: Bytes,
}

/// Identifies the text of a row that does not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Row {
    Event { session: SessionKey, seq: Seq },
    Parts { message: i64, updated_at: i64 },
}

impl Large {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner { turn: Semaphore::new(1), open: Mutex::default() }))
    }

    /// The permit to read a large row: one reader at a time, until it is dropped. Its holder must not wait for a client.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // It fails only when the semaphore is closed, which it never is.
        self.0.turn.acquire().await.ok()
    }

    /// The same for a page of `bytes`; none when it holds no large row.
    pub(super) async fn turn_for(&self, bytes: i64) -> Option<SemaphorePermit<'_>> {
        if bytes > PAGE_BYTES { self.turn().await } else { None }
    }
}

impl Inner {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// A part of a row, if it is in a window; at the end of a window it may be shorter.
    fn find(&mut self, row: Row, part: &Range<usize>) -> Option<Bytes> {
        let index = self.windows.iter().position(|window| window.of == row && window.holds(part.start))?;
        let window = self.windows.remove(index)?;
        let from = part.start - window.from;
        let piece = Bytes::copy_from_slice(&window.text[from..window.text.len().min(from + part.len())]);
        self.windows.push_back(window);
        Some(piece)
    }

    fn add(&mut self, window: Window) {
        if self.windows.len() == WINDOWS {
            self.windows.pop_front();
        }
        self.windows.push_back(window);
    }
}

impl Window {
    fn holds(&self, at: usize) -> bool {
        (self.from..self.from + self.text.len()).contains(&at)
    }
}

/// The text of a large row, read in pieces.
#[derive(Debug)]
pub struct LargeText {
    store: Store,
    row: Row,
    bytes: usize,
}

impl LargeText {
    pub(super) fn of_event(store: &Store, session: SessionKey, seq: Seq, bytes: i64) -> Self {
        Self::new(store, Row::Event { session, seq }, bytes)
    }

    /// The text of a message, as written at `updated_at`.
    pub(super) fn of_message(store: &Store, message: i64, updated_at: i64, bytes: i64) -> Self {
        Self::new(store, Row::Parts { message, updated_at }, bytes)
    }

    fn new(store: &Store, row: Row, bytes: i64) -> Self {
        store.large.0.open().readers += 1;
        Self { store: store.clone(), row, bytes: usize::try_from(bytes).unwrap_or_default() }
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Up to `bytes` of it from offset `from`; empty only at its end. Cancel safe.
    ///
    /// # Errors
    /// [`StoreError::Rewritten`] when the row has changed, and any failure of the database.
    pub async fn piece(&self, from: usize, bytes: usize) -> Result<Bytes, StoreError> {
        let part = from..self.bytes.min(from.saturating_add(bytes));
        if part.is_empty() {
            return Ok(Bytes::new());
        }
        let large = &self.store.large;
        if let Some(piece) = large.0.open().find(self.row, &part) {
            return Ok(piece);
        }
        let _turn = large.turn_for(i64::try_from(self.bytes).unwrap_or(i64::MAX)).await;
        // Another reader may have loaded the same window meanwhile.
        if let Some(piece) = large.0.open().find(self.row, &part) {
            return Ok(piece);
        }
        let from = part.start - part.start % WINDOW_BYTES;
        let text = self.read(from, WINDOW_BYTES).await?;
        let mut open = large.0.open();
        open.add(Window { of: self.row, from, text });
        open.find(self.row, &part).ok_or(StoreError::Rewritten)
    }

    async fn read(&self, from: usize, bytes: usize) -> Result<Bytes, StoreError> {
        let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let (from, bytes, length) = (number(from), number(bytes), number(self.bytes));
        let text = match self.row {
            Row::Event { session, seq } => {
                let text = sqlx::query_scalar!(
                    r#"SELECT substr(CAST(event AS BLOB), ?3 + 1, ?4) AS "text!: Vec<u8>" FROM events
                       WHERE session_key = ?1 AND seq = ?2 AND octet_length(event) = ?5"#,
                    session,
                    seq,
                    from,
                    bytes,
                    length
                );
                text.fetch_optional(&self.store.readers).await?
            }
            Row::Parts { message, updated_at } => {
                let text = sqlx::query_scalar!(
                    r#"SELECT substr(CAST(parts AS BLOB), ?3 + 1, ?4) AS "text!: Vec<u8>" FROM messages
                       WHERE key = ?1 AND updated_at = ?2 AND octet_length(parts) = ?5"#,
                    message,
                    updated_at,
                    from,
                    bytes,
                    length
                );
                text.fetch_optional(&self.store.readers).await?
            }
        };
        text.map(Bytes::from).ok_or(StoreError::Rewritten)
    }
}

impl Drop for LargeText {
    fn drop(&mut self) {
        let mut open = self.store.large.0.open();
        open.readers -= 1;
        if open.readers == 0 {
            open.windows.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_that_was_used_longest_ago_gives_way() {
        let row = |message| Row::Parts { message, updated_at: 1 };
        let mut open = Open::default();
        for message in 0..4 {
            open.add(Window { of: row(message), from: 10, text: Bytes::from_static(b"0123456789") });
        }
        assert_eq!(open.find(row(0), &(10..14)).as_deref(), Some(&b"0123"[..]));
        assert_eq!(open.find(row(0), &(18..99)).as_deref(), Some(&b"89"[..]), "as much as there is");
        assert!(open.find(row(0), &(20..21)).is_none() && open.find(row(0), &(9..12)).is_none());
        assert!(open.find(Row::Parts { message: 0, updated_at: 2 }, &(10..14)).is_none(), "written since");
        open.add(Window { of: row(4), from: 0, text: Bytes::from_static(b"01") });
        assert!(open.find(row(1), &(10..11)).is_none());
        assert!([0, 2, 3].into_iter().all(|message| open.find(row(message), &(10..11)).is_some()));
    }
}
