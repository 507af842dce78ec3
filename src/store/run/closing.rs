//! Closing a session with a long queue: one small statement marks the runs to be cancelled; short transactions, of any process
//! on the file, then cancel them.
//!
//! Always: no transaction cancels or writes the spans of more than [`RUNS_AT_ONCE`] runs. A marked run is never claimed
//! (`claimable_runs`), and the mark does not affect a run that is enqueued after it.

use sqlx::SqliteConnection;

use super::settle::{RUNS_AT_ONCE, cancel_queued, is_in_midst_of_a_span, write_span, write_spans};
use crate::lease::SessionKey;
use crate::store::tx::{Notice, Tx};
use crate::store::{Store, StoreError, assignment};

/// Sessions handled in one pass, round-robin.
const SESSIONS_AT_ONCE: i64 = 16;

/// Marks the queued runs of a session as cancelled, and cancels the first of them.
pub(in crate::store) async fn cancel_queue(tx: &mut Tx<'_>, session: SessionKey) -> Result<(), StoreError> {
    let mark = sqlx::query!(
        "UPDATE sessions SET cancel_through = (SELECT max(key) FROM runs) WHERE key = ?1
           AND EXISTS (SELECT 1 FROM runs WHERE session_key = ?1 AND status = 'queued')",
        session
    );
    mark.execute(&mut *tx.conn).await?;
    cancel_some(tx, session).await
}

/// Cancels marked runs of a session in the order in which they would have begun, so that their spans stand in that order.
async fn cancel_some(tx: &mut Tx<'_>, session: SessionKey) -> Result<(), StoreError> {
    let runs = sqlx::query_scalar!(
        r#"SELECT r.key AS "key!" FROM sessions s CROSS JOIN runs r INDEXED BY runs_queued ON r.session_key = s.key
           WHERE s.key = ?1 AND r.status = 'queued' AND r.key <= s.cancel_through
           ORDER BY (r.first_seq IS NULL), r.front DESC, r.priority DESC, r.key LIMIT ?2 + 0"#,
        session,
        RUNS_AT_ONCE
    );
    let runs = runs.fetch_all(&mut *tx.conn).await?;
    let mut done = runs.len() < usize::try_from(RUNS_AT_ONCE).unwrap_or(usize::MAX);
    // Their spans follow that of a run that has begun and is not marked.
    let waits_for_span = is_running(tx.conn, session).await? || is_other_begun(tx.conn, session).await?;
    for (index, run) in runs.into_iter().enumerate() {
        let cancelled = cancel_queued(tx, run).await?;
        if waits_for_span || cancelled.is_none() {
            continue;
        }
        if index > 0 {
            write_span(tx, run).await?;
            continue;
        }
        // The spans of runs that were cancelled while another run was running come first.
        write_spans(tx, session).await?;
        if has_unwritten(tx.conn, session).await? {
            done = false;
            break;
        }
    }
    if done {
        if !is_in_midst_of_a_span(tx.conn, session).await? {
            write_spans(tx, session).await?;
        }
        let closes = sqlx::query_scalar!(
            r#"UPDATE sessions SET cancel_through = NULL WHERE key = ?1 RETURNING close_when_idle AS "closes!: bool""#,
            session
        );
        if closes.fetch_one(&mut *tx.conn).await? {
            assignment::end_if_idle(tx, session).await?;
        }
    }
    tx.notices.push(Notice::EventsAppended(session));
    tx.notices.push(Notice::Ready);
    Ok(())
}

async fn is_running(conn: &mut SqliteConnection, session: SessionKey) -> Result<bool, StoreError> {
    let running = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM runs WHERE session_key = ?1 AND status = 'running') AS "running!: bool""#,
        session
    );
    Ok(running.fetch_one(conn).await?)
}

/// Whether a run beyond the mark was put back after its span had begun.
async fn is_other_begun(conn: &mut SqliteConnection, session: SessionKey) -> Result<bool, StoreError> {
    let begun = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM runs WHERE session_key = ?1 AND status = 'queued' AND (first_seq IS NULL) = 0
               AND key > (SELECT coalesce(cancel_through, 0) FROM sessions WHERE key = ?1)) AS "begun!: bool""#,
        session
    );
    Ok(begun.fetch_one(conn).await?)
}

async fn has_unwritten(conn: &mut SqliteConnection, session: SessionKey) -> Result<bool, StoreError> {
    let unwritten = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM runs WHERE session_key = ?1 AND settled_at IS NOT NULL AND first_seq IS NULL)
               AS "unwritten!: bool""#,
        session
    );
    Ok(unwritten.fetch_one(conn).await?)
}

impl Store {
    /// Continues to cancel the marked runs and to write the spans of runs that were cancelled in the queue. A session with a
    /// running run waits until that run ends. Returns true if there is more to do right away.
    ///
    /// # Errors
    /// Why the rest was not stored.
    pub async fn go_on_closing(&self) -> Result<bool, StoreError> {
        let sessions = sqlx::query_scalar!(
            r#"SELECT key AS "key!" FROM (
                   SELECT key FROM sessions INDEXED BY sessions_cancelling WHERE cancel_through IS NOT NULL
                   UNION SELECT session_key FROM runs INDEXED BY runs_unwritten
                       WHERE settled_at IS NOT NULL AND first_seq IS NULL) s
               WHERE NOT EXISTS (SELECT 1 FROM runs WHERE session_key = s.key AND status = 'running')
                 AND (EXISTS (SELECT 1 FROM sessions m WHERE m.key = s.key AND m.cancel_through IS NOT NULL)
                      OR NOT EXISTS (SELECT 1 FROM runs WHERE session_key = s.key AND status = 'queued' AND (first_seq IS NULL) = 0))
               LIMIT ?1 + 0"#,
            SESSIONS_AT_ONCE
        );
        let sessions = sessions.fetch_all(&self.readers).await?;
        let mut more = false;
        for session in sessions {
            more |= self.write(move |tx| Box::pin(async move { go_on(tx, session).await })).await?;
        }
        Ok(more)
    }
}

/// True if the session is not done and can be continued right away.
async fn go_on(tx: &mut Tx<'_>, session: SessionKey) -> Result<bool, StoreError> {
    if is_running(tx.conn, session).await? {
        return Ok(false);
    }
    cancel_some(tx, session).await?;
    let left = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM sessions WHERE key = ?1 AND cancel_through IS NOT NULL)
               OR (EXISTS (SELECT 1 FROM runs WHERE session_key = ?1 AND settled_at IS NOT NULL AND first_seq IS NULL)
                   AND NOT EXISTS (SELECT 1 FROM runs WHERE session_key = ?1 AND status = 'queued' AND (first_seq IS NULL) = 0))
               AS "left!: bool""#,
        session
    );
    Ok(left.fetch_one(&mut *tx.conn).await?)
}
