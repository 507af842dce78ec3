//! Resume: the transaction that settles an interrupted run enqueues its successor.

use crate::id::{MessageId, RunId};
use crate::lease::Lease;
use crate::store::StoreError;
use crate::store::tx::{Notice, Tx};

/// Enqueues the successor of a run that is being settled as interrupted: another run for the same message. Runs before the
/// settle, so that the session always has work and keeps its slot. Refused together with the settle, if the lease is lost or a
/// cancel was requested. Does nothing if the session has a newer run, or if the message was resumed `at_most` times already.
pub(super) async fn enqueue_successor(tx: &mut Tx<'_>, lease: Lease, at_most: u32) -> Result<(), StoreError> {
    let id = RunId::generate();
    let response = MessageId::of_response(id);
    let (id, response, now) = (id.to_string(), response.as_str(), tx.now.as_millis());
    let enqueued = sqlx::query!(
        "INSERT INTO runs (id, session_key, message_key, response_id, workspace, agent, status, priority, front,
                           timeout_ms, queued_at, resumes)
         SELECT ?3, r.session_key, r.message_key, ?4, r.workspace, r.agent, 'queued', r.priority,
                (SELECT coalesce(max(q.front), 0) + 1 FROM runs q WHERE q.session_key = r.session_key AND q.status = 'queued'),
                r.timeout_ms, ?5, r.key
         FROM runs r JOIN messages m ON m.key = r.message_key
         WHERE r.key = ?1 AND r.lease_token = ?2 AND r.status = 'running' AND r.cancel_requested_at IS NULL
           AND m.superseded_at IS NULL
           AND NOT EXISTS (SELECT 1 FROM runs n WHERE n.session_key = r.session_key AND n.key > r.key)
           AND (SELECT count(*) FROM runs b WHERE b.message_key = r.message_key AND b.resumes IS NOT NULL) < ?6",
        lease.run,
        lease.token,
        id,
        response,
        now,
        at_most
    );
    if enqueued.execute(&mut *tx.conn).await?.rows_affected() > 0 {
        tx.notices.push(Notice::Ready);
    }
    Ok(())
}
