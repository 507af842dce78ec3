//! The table `messages`: what people sent, unchanged, and the answers of agents, folded from the events.

mod page;
mod queued;

use std::sync::Arc;

use serde_json::Value;
use sqlx::SqliteConnection;

use super::tx::Tx;
use super::{Store, StoreError};
use crate::chunk::Ending;
use crate::id::{MessageId, RunId};
use crate::lease::{RunKey, SessionKey};
use crate::message::{Role, UserMessage};

pub use page::{MessageCursor, MessagePage, MessageRange, PageFrom};

/// A message that was sent before.
pub struct Sent {
    /// Its row.
    pub key: i64,
    /// Its parts.
    pub parts: Vec<Value>,
    /// Its newest run; none for an answer.
    pub latest_run: Option<LatestRun>,
}

/// The newest run of a message.
pub struct LatestRun {
    /// Its row.
    pub key: RunKey,
    /// Whether it has ended, or is marked to be cancelled.
    pub is_settled: bool,
    /// Whether an edit can still change the text of its message: it is queued and does not resume another run.
    pub takes_edits: bool,
}

/// A message of a session by its id.
pub async fn find_sent(
    conn: &mut SqliteConnection,
    session: SessionKey,
    id: &MessageId,
) -> Result<Option<Sent>, StoreError> {
    let id = id.as_str();
    let row = sqlx::query!(
        r#"SELECT m.key AS "key!", m.parts, r.key AS "run?", r.settled_at IS NOT NULL OR r.key <= coalesce(s.cancel_through, 0) AS "settled!: bool",
               coalesce(r.status = 'queued' AND r.resumes IS NULL AND r.key > coalesce(s.cancel_through, 0), 0)
                   AS "takes_edits!: bool"
           FROM messages m CROSS JOIN sessions s ON s.key = m.session_key LEFT JOIN runs r ON r.key =
               (SELECT key FROM runs WHERE message_key = m.key ORDER BY key DESC LIMIT 1)
           WHERE m.session_key = ?1 AND m.id = ?2"#,
        session,
        id
    )
    .fetch_optional(conn)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let unreadable = |error: serde_json::Error| StoreError::Invalid(format!("a message that cannot be read ({error})"));
    Ok(Some(Sent {
        key: row.key,
        parts: serde_json::from_str(&row.parts).map_err(unreadable)?,
        latest_run: row.run.map(|key| LatestRun { key, is_settled: row.settled, takes_edits: row.takes_edits }),
    }))
}

/// Replaces the content of a message before its run begins.
pub async fn rewrite(tx: &mut Tx<'_>, key: i64, message: &UserMessage) -> Result<(), StoreError> {
    let (parts, metadata, now) = (message.parts_json(), message.metadata_json(), tx.now.as_millis());
    sqlx::query!(
        "UPDATE messages SET parts = ?2, metadata = ?3, updated_at = ?4 WHERE key = ?1",
        key,
        parts,
        metadata,
        now
    )
    .execute(&mut *tx.conn)
    .await?;
    Ok(())
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

/// Makes room for a new answer to a message: what came after it is kept, but no longer shown. With `replacement`, the content of
/// the message itself is replaced. A hidden message is shown again. If the message was not answered yet, the messages queued
/// after it stay.
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
    // What followed a hidden message was hidden with it, so no shown message follows it.
    if message.superseded_at.is_none() && message.position.is_some() {
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
    sqlx::query!("UPDATE messages SET superseded_at = NULL WHERE key = ?1", message.key).execute(&mut *tx.conn).await?;
    if let Some(replacement) = replacement {
        rewrite(tx, message.key, replacement).await?;
    }
    Ok(message.key)
}

/// The answer of a run so far.
pub struct Response<'a> {
    /// The run.
    pub run: RunKey,
    /// Its parts, as JSON.
    pub parts: &'a Arc<str>,
    /// How the run ended, if this is the whole answer.
    pub ending: Option<&'a Ending>,
}

/// A larger answer gets its own statement: SQLite makes about ten copies of what it parses as JSON.
const LARGE_PARTS_BYTES: usize = 1024 * 1024;

/// Stores the answers of runs so far: one statement for all but the large ones. The caller holds their leases. An answer to a
/// message that was replaced while its run was running is kept, but not shown.
pub async fn store_responses<'a>(
    tx: &mut Tx<'_>,
    responses: impl Iterator<Item = Response<'a>>,
) -> Result<(), StoreError> {
    let mut items = Vec::new();
    for Response { run, parts, ending } in responses {
        let ending = ending.map_or(Value::Object(Default::default()), Ending::to_json);
        if parts.len() > LARGE_PARTS_BYTES {
            store_large(tx, run, parts, ending.to_string()).await?;
        } else {
            items.push(format!("[{run},{parts},{ending}]"));
        }
    }
    if items.is_empty() {
        return Ok(());
    }
    let (items, now) = (format!("[{}]", items.join(",")), tx.now.as_millis());
    sqlx::query!(
        "INSERT INTO messages (session_key, id, role, run_key, parts, metadata, position, superseded_at, created_at, updated_at)
         SELECT r.session_key, r.response_id, 'assistant', r.key, i.value -> 1,
                json_patch(json_object('run_id', r.id, 'session_id', s.id), i.value -> 2), r.first_seq,
                iif(m.superseded_at IS NOT NULL OR EXISTS
                    (SELECT 1 FROM runs n WHERE n.message_key = r.message_key AND n.key > r.key AND n.resumes IS NOT r.key),
                    ?2, NULL), ?2, ?2
         FROM jsonb_each(?1) i JOIN runs r ON r.key = i.value ->> 0 JOIN sessions s ON s.key = r.session_key
         JOIN messages m ON m.key = r.message_key
         WHERE true
         ON CONFLICT (session_key, id) DO UPDATE SET parts = excluded.parts, metadata = excluded.metadata,
             updated_at = excluded.updated_at",
        items,
        now
    )
    .execute(&mut *tx.conn)
    .await?;
    Ok(())
}

/// Stores the answer of one run. Besides the text passed in, SQLite makes two copies of it: the bound parameter and the row.
/// With the SELECT inside the INSERT it would also copy it to a temporary table, and the CHECK, which parses the JSON that was
/// just written, would make two more.
async fn store_large(tx: &mut Tx<'_>, run: RunKey, parts: &Arc<str>, ending: String) -> Result<(), StoreError> {
    let now = tx.now.as_millis();
    let row = sqlx::query!(
        r#"SELECT r.session_key, r.response_id, r.first_seq,
               json_patch(json_object('run_id', r.id, 'session_id', s.id), ?2) AS "metadata!: String",
               m.superseded_at IS NOT NULL OR EXISTS
                   (SELECT 1 FROM runs n WHERE n.message_key = r.message_key AND n.key > r.key AND n.resumes IS NOT r.key)
                   AS "is_superseded!: bool"
           FROM runs r JOIN sessions s ON s.key = r.session_key JOIN messages m ON m.key = r.message_key WHERE r.key = ?1"#,
        run,
        ending
    )
    .fetch_one(&mut *tx.conn)
    .await?;
    let superseded_at = row.is_superseded.then_some(now);
    sqlx::raw_sql("PRAGMA ignore_check_constraints = ON").execute(&mut *tx.conn).await?;
    let stored = sqlx::query!(
        "INSERT INTO messages (session_key, id, role, run_key, parts, metadata, position, superseded_at, created_at, updated_at)
         VALUES (?1, ?2, 'assistant', ?3, ?4, ?5, ?6, ?7, ?8, ?8)
         ON CONFLICT (session_key, id) DO UPDATE SET parts = excluded.parts, metadata = excluded.metadata,
             updated_at = excluded.updated_at",
        row.session_key,
        row.response_id,
        run,
        parts,
        row.metadata,
        row.first_seq,
        superseded_at,
        now
    )
    .execute(&mut *tx.conn)
    .await;
    sqlx::raw_sql("PRAGMA ignore_check_constraints = OFF").execute(&mut *tx.conn).await?;
    stored?;
    Ok(())
}

impl Store {
    /// The parts of the message that a run answers, as JSON.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn message_of_run(&self, run: RunId) -> Result<Option<String>, StoreError> {
        let run = run.to_string();
        let parts = sqlx::query_scalar!(
            "SELECT m.parts FROM runs r JOIN messages m ON m.key = r.message_key WHERE r.id = ?1",
            run
        );
        Ok(parts.fetch_optional(&self.readers).await?)
    }
}
