//! The chunks of a run, read back in pages to rebuild the state of its turn after its worker died.

use super::super::{Store, StoreError};
use super::{PageEnd, Range};
use crate::event::Seq;
use crate::lease::{RunKey, SessionKey};

/// Maximum number of chunks per page.
const CHUNKS: i64 = 10_000;
/// Maximum bytes per page, unless it is a single chunk.
const CHUNK_BYTES: i64 = 1024 * 1024;

/// A page of a run's chunks.
#[derive(Debug, Clone, Copy)]
pub struct Chunks {
    run: RunKey,
    session: SessionKey,
    after: Seq,
    /// The `seq` of the last one.
    pub last_seq: Seq,
    /// Their total length.
    pub bytes: usize,
}

impl Store {
    /// The next page of a run's committed chunks after `after`. `None` after the last one.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn next_chunks(&self, run: RunKey, after: Seq) -> Result<Option<Chunks>, StoreError> {
        let span = sqlx::query!("SELECT session_key, first_seq FROM runs WHERE key = ?1", run);
        let Some(span) = span.fetch_optional(&self.readers).await? else { return Ok(None) };
        let Some(first_seq) = span.first_seq else { return Ok(None) };
        let after = after.max(first_seq - 1);
        let range = Range { session: span.session_key, run: Some(run), after, limit: CHUNKS };
        let end = self.end_of_page(range, CHUNK_BYTES).await?;
        Ok(end.map(|PageEnd { seq, bytes, .. }| Chunks {
            run,
            session: range.session,
            after,
            last_seq: seq,
            bytes: usize::try_from(bytes).unwrap_or_default(),
        }))
    }

    /// Loads the chunks of a page, as JSON, in order.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn load_chunks(&self, chunks: Chunks) -> Result<Vec<String>, StoreError> {
        let _turn = self.large.turn_for(i64::try_from(chunks.bytes).unwrap_or(i64::MAX)).await;
        let rows = sqlx::query_scalar!(
            "SELECT event FROM events WHERE session_key = ?1 AND seq > ?2 AND seq <= ?3 AND run_key = ?4 ORDER BY seq",
            chunks.session,
            chunks.after,
            chunks.last_seq,
            chunks.run
        );
        Ok(rows.fetch_all(&self.readers).await?)
    }
}
