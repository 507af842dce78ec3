//! Resume: a run that was interrupted is followed by another one, in the transaction that settles it.

use crate::id::{MessageId, RunId};
use crate::lease::RunKey;
use crate::store::StoreError;
use crate::store::writer::{Notice, Tx};

/// Enqueues the successor of a run that has just been interrupted: the same message, answered once more. Not when anything
/// newer was asked of the session, when that gave up its place, or when the message was answered `at_most` times again.
pub(super) async fn enqueue_successor(tx: &mut Tx<'_>, run: RunKey, at_most: u32) -> Result<(), StoreError> {
    let id = RunId::generate();
    let response = MessageId::of_response(id);
    let (id, response, now) = (id.to_string(), response.as_str(), tx.now.as_millis());
    let enqueued = sqlx::query!(
        "INSERT INTO runs (id, session_key, message_key, response_id, workspace, agent, status, priority, timeout_ms,
                           queued_at, resumes)
         SELECT ?2, r.session_key, r.message_key, ?3, r.workspace, r.agent, 'queued', r.priority, r.timeout_ms, ?4, r.key
         FROM runs r JOIN messages m ON m.key = r.message_key
         WHERE r.key = ?1 AND r.status = 'interrupted' AND r.cancel_requested_at IS NULL AND m.superseded_at IS NULL
           AND NOT EXISTS (SELECT 1 FROM runs n WHERE n.session_key = r.session_key AND n.key > r.key)
           AND EXISTS (SELECT 1 FROM assignments a WHERE a.session_key = r.session_key AND a.state IN ('active', 'idle'))
           AND (SELECT count(*) FROM runs b WHERE b.message_key = r.message_key AND b.resumes IS NOT NULL) < ?5",
        run,
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
