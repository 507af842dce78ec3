//! Messages whose turn has not begun.

use futures_util::TryStreamExt;

use super::super::large::PAGE_BYTES;
use super::super::{Store, StoreError};
use super::page::Row;
use crate::lease::SessionKey;
use crate::message::Message;

/// Maximum number of messages, as of a page.
const MAX_QUEUED: i64 = 500;
/// Maximum bytes, as of a page.
const MAX_QUEUED_BYTES: usize = PAGE_BYTES as usize;

impl Store {
    /// The queued messages of a session, the next first.
    pub(super) async fn queued_messages(&self, session: SessionKey) -> Result<Vec<Message>, StoreError> {
        let mut rows = sqlx::query_as!(
            Row,
            "SELECT m.id, m.role, m.metadata, m.parts
             FROM runs r INDEXED BY runs_queued JOIN messages m ON m.key = r.message_key
             WHERE r.session_key = ?1 AND r.status = 'queued' AND m.position IS NULL AND m.superseded_at IS NULL
             ORDER BY (r.first_seq IS NULL), r.front DESC, r.priority DESC, r.key LIMIT ?2 + 0",
            session,
            MAX_QUEUED
        )
        .fetch(&self.readers);
        let (mut queued, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.try_next().await? {
            bytes += row.parts.len() + row.metadata.as_ref().map_or(0, String::len);
            if bytes > MAX_QUEUED_BYTES && !queued.is_empty() {
                break;
            }
            queued.push(Message::try_from(row)?);
        }
        Ok(queued)
    }
}
