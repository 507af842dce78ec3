//! The table `messages`: what people sent, as it came, and what agents answered, folded from the events.

mod page;

use sqlx::SqliteConnection;

use super::StoreError;
use super::writer::Tx;
use crate::id::MessageId;
use crate::lease::{RunKey, SessionKey};
use crate::message::{Role, UserMessage};

pub use page::{MessageCursor, MessagePage, MessageRange, PageFrom};

/// A message that was sent before.
pub struct Sent {
    /// Its parts, as JSON.
    pub parts: String,
    /// Its newest run, and whether that is settled; none for a message that nobody sent.
    pub latest_run: Option<(RunKey, bool)>,
}

/// A message of a session by its id.
pub async fn find_sent(
    conn: &mut SqliteConnection,
    session: SessionKey,
    id: &MessageId,
) -> Result<Option<Sent>, StoreError> {
    let id = id.as_str();
    let row = sqlx::query!(
        r#"SELECT m.parts, r.key AS "run?", r.settled_at IS NOT NULL AS "settled!: bool"
           FROM messages m LEFT JOIN runs r ON r.key =
               (SELECT key FROM runs WHERE message_key = m.key ORDER BY key DESC LIMIT 1)
           WHERE m.session_key = ?1 AND m.id = ?2"#,
        session,
        id
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| Sent { parts: row.parts, latest_run: row.run.map(|run| (run, row.settled)) }))
}

/// Stores what a person sent.
pub async fn insert_user(tx: &mut Tx<'_>, session: SessionKey, message: &UserMessage) -> Result<i64, StoreError> {
    let (id, role) = (message.id.as_str(), Role::User.as_str());
    let (parts, metadata, now) = (message.parts_json(), message.metadata_json(), tx.now.as_millis());
    let inserted = sqlx::query!(
        "INSERT INTO messages (session_key, id, role, parts, metadata, created_at, updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)",
        session,
        id,
        role,
        parts,
        metadata,
        now
    )
    .execute(&mut *tx.conn)
    .await?;
    Ok(inserted.last_insert_rowid())
}

/// Makes room for a new answer to a message: what came after it is kept, but no longer shown. With `replacement` the
/// message itself says that from now on. It is shown again if it was hidden itself.
pub async fn supersede_answers(
    tx: &mut Tx<'_>,
    session: SessionKey,
    id: &MessageId,
    replacement: Option<&UserMessage>,
) -> Result<i64, StoreError> {
    let (id, now) = (id.as_str(), tx.now.as_millis());
    let message = sqlx::query!(
        r#"SELECT key AS "key!", position, superseded_at FROM messages WHERE session_key = ?1 AND id = ?2"#,
        session,
        id
    )
    .fetch_one(&mut *tx.conn)
    .await?;
    // What followed a hidden message was hidden with it: what is shown now is not behind it.
    if message.superseded_at.is_none() {
        sqlx::query!(
            "UPDATE messages SET superseded_at = ?3 WHERE session_key = ?1 AND superseded_at IS NULL AND key <> ?2
                 AND (position >= ?4 OR (position IS NULL AND key > ?2))",
            session,
            message.key,
            now,
            message.position
        )
        .execute(&mut *tx.conn)
        .await?;
    }
    let parts = replacement.map(UserMessage::parts_json);
    let metadata = replacement.and_then(UserMessage::metadata_json);
    let replaced = replacement.is_some();
    sqlx::query!(
        "UPDATE messages SET superseded_at = NULL, parts = coalesce(?2, parts), metadata = iif(?3, ?4, metadata),
             updated_at = iif(?3, ?5, updated_at)
         WHERE key = ?1",
        message.key,
        parts,
        replaced,
        metadata,
        now
    )
    .execute(&mut *tx.conn)
    .await?;
    Ok(message.key)
}

/// Stores the answers of runs as far as they have got: one statement, whatever their number. The caller holds their leases.
/// An answer to what was replaced while its run went on is kept, but not shown.
pub async fn store_responses<'a>(
    tx: &mut Tx<'_>,
    responses: impl Iterator<Item = (RunKey, &'a str)>,
) -> Result<(), StoreError> {
    let items: Vec<_> = responses.map(|(run, parts)| format!("[{run},{parts}]")).collect();
    if items.is_empty() {
        return Ok(());
    }
    let (items, now) = (format!("[{}]", items.join(",")), tx.now.as_millis());
    sqlx::query!(
        "INSERT INTO messages (session_key, id, role, run_key, parts, metadata, position, superseded_at, created_at, updated_at)
         SELECT r.session_key, r.response_id, 'assistant', r.key, i.value -> 1,
                json_object('run_id', r.id, 'session_id', s.id), r.first_seq,
                iif(m.superseded_at IS NOT NULL OR EXISTS
                    (SELECT 1 FROM runs n WHERE n.message_key = r.message_key AND n.key > r.key), ?2, NULL), ?2, ?2
         FROM jsonb_each(?1) i JOIN runs r ON r.key = i.value ->> 0 JOIN sessions s ON s.key = r.session_key
         JOIN messages m ON m.key = r.message_key
         WHERE true
         ON CONFLICT (session_key, id) DO UPDATE SET parts = excluded.parts, updated_at = excluded.updated_at",
        items,
        now
    )
    .execute(&mut *tx.conn)
    .await?;
    Ok(())
}
