//! The table `assignments`: creating and ending the assignment of a session. Triggers apply what enqueue, claim and settle do to
//! a live assignment (`migrations/`).

use sqlx::SqliteConnection;

use super::tx::{Notice, Tx};
use super::{Store, StoreError, session};
use crate::clock::Timestamp;
use crate::lease::SessionKey;
use crate::workspace::WhenFull;

/// The slot that a session would get: the one that it had last if that is free, else the first free one by number.
pub async fn free_slot(
    conn: &mut SqliteConnection,
    session: SessionKey,
    workspace: &str,
) -> Result<Option<i64>, StoreError> {
    let slot = sqlx::query_scalar!(
        r#"SELECT p.key AS "key!" FROM slots p WHERE p.workspace = ?2 AND p.enabled = 1
             AND NOT EXISTS (SELECT 1 FROM assignments a WHERE a.slot_key = p.key AND a.state IN ('active', 'idle'))
           ORDER BY p.key = (SELECT slot_key FROM assignments WHERE session_key = ?1 AND slot_key IS NOT NULL
                             ORDER BY key DESC LIMIT 1) DESC, p.number LIMIT 1"#,
        session,
        workspace
    );
    Ok(slot.fetch_optional(conn).await?)
}

/// Gives a session without an assignment one: a slot or, depending on `when_full`, a share of the workspace's resident agent or
/// a place in the queue for a slot.
pub async fn allocate(tx: &mut Tx<'_>, session: &session::Known, when_full: WhenFull) -> Result<(), StoreError> {
    let slot = free_slot(tx.conn, session.key, &session.workspace).await?;
    match when_full {
        _ if slot.is_some() => give(tx, session, slot).await,
        WhenFull::Share => give(tx, session, None).await,
        WhenFull::Wait | WhenFull::Reject => session::wait_for_slot(tx, session.key, false).await,
        WhenFull::Reclaim => {
            session::wait_for_slot(tx, session.key, true).await?;
            let waits = !reclaim(tx, &session.workspace).await?;
            if waits
                && (session.slot_bound
                    || works_for_a_running_session(tx, session.key).await?
                    || !can_reclaim_later(tx, &session.workspace).await?)
            {
                give(tx, session, None).await?;
            }
            Ok(())
        }
    }
}

/// Whether an ancestor of this session is running: it keeps its slot and may be waiting for this session's answer. If this
/// session waited for a slot, a pool full of parents would deadlock.
async fn works_for_a_running_session(tx: &mut Tx<'_>, session: SessionKey) -> Result<bool, StoreError> {
    let found = sqlx::query_scalar!(
        r#"WITH RECURSIVE above (key) AS (
               SELECT spawned_by FROM sessions WHERE key = ?1
               UNION SELECT s.spawned_by FROM above JOIN sessions s ON s.key = above.key WHERE s.spawned_by IS NOT NULL)
           SELECT EXISTS (SELECT 1 FROM above JOIN runs r ON r.session_key = above.key AND r.status = 'running')
               AS "found!: bool""#,
        session
    );
    Ok(found.fetch_one(&mut *tx.conn).await?)
}

async fn give(tx: &mut Tx<'_>, session: &session::Known, slot: Option<i64>) -> Result<(), StoreError> {
    let now = tx.now.as_millis();
    sqlx::query!(
        "INSERT INTO assignments (session_key, workspace, slot_key, state, idle_ttl_ms, created_at, last_active_at)
         VALUES (?1, ?2, ?3, 'active', ?4, ?5, ?5)",
        session.key,
        session.workspace,
        slot,
        session.idle_ttl_ms,
        now
    )
    .execute(&mut *tx.conn)
    .await?;
    Ok(())
}

/// Takes the slot of the session that has been idle longest and gives it to the session that has waited longest to reclaim one
/// (`hand_over_slot`). False when no session is idle, or when the agents of all idle ones are keyed by slot.
///
/// While a session waits to reclaim, no session that could give up its slot is idle: the trigger `idle_slot_is_reclaimed`
/// ensures that.
pub(super) async fn reclaim(tx: &mut Tx<'_>, workspace: &str) -> Result<bool, StoreError> {
    let now = tx.now.as_millis();
    let reclaimed = sqlx::query!(
        "UPDATE assignments SET state = 'reclaimed', ended_at = ?2 WHERE key = (
             SELECT a.key FROM assignments a INDEXED BY assignments_idle
             JOIN slots p ON p.key = a.slot_key AND p.enabled = 1
             JOIN sessions s ON s.key = a.session_key AND s.slot_bound = 0
             WHERE a.state = 'idle' AND a.workspace = ?1 ORDER BY a.last_active_at, a.key LIMIT 1)",
        workspace,
        now
    );
    Ok(reclaimed.execute(&mut *tx.conn).await?.rows_affected() > 0)
}

/// Whether any slot of a full pool is held by a session that will give it up when it turns idle.
pub(super) async fn can_reclaim_later(tx: &mut Tx<'_>, workspace: &str) -> Result<bool, StoreError> {
    let found = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM slots p JOIN assignments a ON a.slot_key = p.key AND a.state IN ('active', 'idle')
               JOIN sessions s ON s.key = a.session_key AND s.slot_bound = 0
               WHERE p.workspace = ?1 AND p.enabled = 1) AS "found!: bool""#,
        workspace
    );
    Ok(found.fetch_one(&mut *tx.conn).await?)
}

/// Ends the assignment of a session without queued or running runs.
pub async fn end_if_idle(tx: &mut Tx<'_>, session: SessionKey) -> Result<(), StoreError> {
    let now = tx.now.as_millis();
    sqlx::query!(
        "UPDATE assignments SET state = 'deleted', ended_at = ?2 WHERE session_key = ?1 AND state IN ('active', 'idle')
           AND NOT EXISTS (SELECT 1 FROM runs WHERE session_key = ?1 AND status = 'queued')
           AND NOT EXISTS (SELECT 1 FROM runs WHERE session_key = ?1 AND status = 'running')",
        session,
        now
    )
    .execute(&mut *tx.conn)
    .await?;
    Ok(())
}

impl Store {
    /// Expires assignments that have been idle for longer than their TTL, oldest first, at most `limit` of them, so that a jump
    /// of the clock cannot empty all pools at once. Returns their number.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn expire_idle(&self, limit: i64) -> Result<u64, StoreError> {
        self.write(move |tx| {
            Box::pin(async move {
                let now = tx.now.as_millis();
                let expired = sqlx::query!(
                    "UPDATE assignments SET state = 'expired', ended_at = ?1 WHERE key IN (
                         SELECT a.key FROM assignments a WHERE a.state = 'idle' AND a.last_active_at + a.idle_ttl_ms < ?1
                           AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.session_key = a.session_key AND r.status = 'queued')
                           AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.session_key = a.session_key AND r.status = 'running')
                         ORDER BY a.last_active_at LIMIT ?2 + 0)",
                    now,
                    limit
                )
                .execute(&mut *tx.conn)
                .await?
                .rows_affected();
                if expired > 0 {
                    tx.notices.push(Notice::Ready);
                }
                Ok(expired)
            })
        })
        .await
    }

    /// Deletes rows of assignments that ended before `before`, at most `limit` of them. Returns their number.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn purge_assignments(&self, before: Timestamp, limit: i64) -> Result<u64, StoreError> {
        self.write(move |tx| {
            let before = before.as_millis();
            Box::pin(async move {
                let purged = sqlx::query!(
                    "DELETE FROM assignments WHERE key IN (
                         SELECT key FROM assignments WHERE ended_at < ?1 ORDER BY ended_at LIMIT ?2 + 0)",
                    before,
                    limit
                );
                Ok(purged.execute(&mut *tx.conn).await?.rows_affected())
            })
        })
        .await
    }
}
