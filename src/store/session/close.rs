//! Closing a session: its slot is freed, and its runs are cancelled if requested.

use sqlx::SqliteConnection;

use super::{Closed, close_when_idle, find};
use crate::id::SessionId;
use crate::lease::SessionKey;
use crate::store::tx::Notice;
use crate::store::{Store, StoreError, assignment, run};

impl Store {
    /// Frees the slot of a session; with `cancel`, requests a cancel of its runs first. Of a long queue only the beginning is
    /// cancelled here; [`Store::go_on_closing`] cancels the rest. `None` when there is no such session.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn close_session(&self, id: SessionId, cancel: bool) -> Result<Option<Closed>, StoreError> {
        self.write(move |tx| {
            let id = id.clone();
            Box::pin(async move {
                let Some(known) = find(tx.conn, &id).await? else { return Ok(None) };
                let first = first_unsettled(tx.conn, known.key).await?;
                if let (Some((_, first)), false) = (&first, cancel) {
                    return Ok(Some(Closed::Busy(first.parse()?)));
                }
                close_when_idle(tx, known.key).await?;
                if let Some((running, _)) = first {
                    run::request_cancel(tx, running).await?;
                    run::cancel_queue(tx, known.key).await?;
                }
                assignment::end_if_idle(tx, known.key).await?;
                let closing = first_unsettled(tx.conn, known.key).await?.is_some();
                tx.notices.push(Notice::Ready);
                Ok(Some(if closing { Closed::Closing } else { Closed::Closed }))
            })
        })
        .await
    }
}

/// The running run of a session, else the next in its queue.
async fn first_unsettled(
    conn: &mut SqliteConnection,
    session: SessionKey,
) -> Result<Option<(i64, String)>, StoreError> {
    let first = sqlx::query!(
        r#"SELECT key AS "key!", id FROM runs WHERE key = coalesce(
               (SELECT key FROM runs WHERE session_key = ?1 AND status = 'running'),
               (SELECT key FROM runs WHERE session_key = ?1 AND status = 'queued'
                ORDER BY (first_seq IS NULL), front DESC, priority DESC, key LIMIT 1))"#,
        session
    );
    Ok(first.fetch_optional(conn).await?.map(|row| (row.key, row.id)))
}
