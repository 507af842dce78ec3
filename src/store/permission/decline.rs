//! Questions that a new message declines: a person who types instead of answering must not wait for the answer.

use super::{GiveAnswer, answer, expire};
use crate::id::PermissionId;
use crate::lease::{RunKey, SessionKey};
use crate::permission::Answer;
use crate::store::StoreError;
use crate::store::tx::Tx;

/// The `answered_by` when the sender of the message is not known any more.
const BY_CHAT: &str = "chat";
/// The stored reason.
const REASON: &str = "declined: a new message was sent";

/// Declines, for `by`, the open questions of a session's running run, if the run waits for nothing else. Returns whether it did.
/// While a question is open, the stored message is as recent as the newest event of a tool.
pub(in crate::store) async fn decline(tx: &mut Tx<'_>, session: SessionKey, by: &str) -> Result<bool, StoreError> {
    let waiting = sqlx::query_scalar!(
        r#"SELECT r.key AS "key!" FROM runs r JOIN messages m ON m.run_key = r.key
           WHERE r.session_key = ?1 AND r.status = 'running' AND r.cancel_requested_at IS NULL
             AND EXISTS (SELECT 1 FROM permissions WHERE run_key = r.key AND state = 'pending')
             AND NOT EXISTS (SELECT 1 FROM json_each(m.parts) p WHERE p.value ->> '$.type' = 'dynamic-tool'
                 AND (p.value ->> '$.state' = 'input-available' OR p.value ->> '$.preliminary'))"#,
        session
    );
    let Some(run) = waiting.fetch_optional(&mut *tx.conn).await? else { return Ok(false) };
    expire(tx, run).await?;
    let pending = sqlx::query_scalar!("SELECT id FROM permissions WHERE run_key = ?1 AND state = 'pending'", run);
    let pending = pending.fetch_all(&mut *tx.conn).await?;
    for id in &pending {
        answer(tx, &denial(id.parse()?, by)).await?;
    }
    Ok(!pending.is_empty())
}

/// Declines a question of a run if a queued message of the session goes next: its sender reads the stream of that message, where
/// this run's question is not shown.
pub(super) async fn decline_if_passed(tx: &mut Tx<'_>, run: RunKey, id: PermissionId) -> Result<(), StoreError> {
    let is_passed = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM runs r JOIN runs q ON q.session_key = r.session_key
               WHERE r.key = ?1 AND q.status = 'queued' AND q.front > 0) AS "passed!: bool""#,
        run
    );
    if is_passed.fetch_one(&mut *tx.conn).await? {
        answer(tx, &denial(id, BY_CHAT)).await?;
    }
    Ok(())
}

fn denial(id: PermissionId, by: &str) -> GiveAnswer {
    GiveAnswer { id, answer: Answer::Approved(false), by: by.to_owned(), reason: Some(REASON.to_owned()) }
}
