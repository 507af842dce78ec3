//! Resume: a run that was interrupted is followed by another one, in the transaction that settles it.

use crate::id::{MessageId, RunId};
use crate::lease::Lease;
use crate::store::StoreError;
use crate::store::tx::{Notice, Tx};

/// Enqueues the successor of a run that its settle interrupts: the same message, answered once more. Comes before the run is
/// settled, so that its session always has something to do and keeps its slot. Refused together with the settle: when the
/// lease is lost or a cancel was requested. Not when anything newer was asked of the session, or when the message was answered
/// `at_most` times again.
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
