//! Lists of backends for readers, and stop requests.

use crate::backend::Backend;
use crate::clock::Timestamp;
use crate::id::BackendId;
use crate::store::tx::Notice;
use crate::store::{Store, StoreError};

use super::{class_of, state_of};

/// The result of a stop request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopRequest {
    /// There is no such backend.
    Unknown,
    /// A turn is on it, and the request was not to wait for that.
    Busy,
    /// It ends as soon as no turn is on it, or has ended.
    Asked,
}

impl Store {
    /// All live backends, then those of the `limit` newest that have ended; each newest first.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn list_backends(&self, limit: i64) -> Result<Vec<Backend>, StoreError> {
        let keys = sqlx::query_scalar!(
            r#"SELECT json_group_array(key) AS "keys!: String" FROM (
                   SELECT key FROM backends INDEXED BY backends_live WHERE state <> 'stopped'
                   UNION SELECT key FROM (SELECT key FROM backends ORDER BY key DESC LIMIT ?1 + 0))"#,
            limit
        );
        let keys = keys.fetch_one(&self.readers).await?;
        self.load_backends(&keys).await
    }

    /// A backend by its id.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn find_backend(&self, id: BackendId) -> Result<Option<Backend>, StoreError> {
        let id = id.to_string();
        let key = sqlx::query_scalar!("SELECT key FROM backends WHERE id = ?1", id);
        match key.fetch_optional(&self.readers).await? {
            Some(key) => Ok(self.load_backends(&format!("[{key}]")).await?.pop()),
            None => Ok(None),
        }
    }

    async fn load_backends(&self, keys: &str) -> Result<Vec<Backend>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT b.id, b.agent, b.workspace, s.id AS "session?", b.state, b.reason, b.error_class, w.id AS "worker?",
                   b.generation, b.pid, b.close_when_idle AS "close_when_idle: bool", b.created_at, b.started_at,
                   b.healthy_at, b.used_at, b.not_before, b.stopped_at,
                   (SELECT count(*) FROM runs r WHERE r.backend_key = b.key AND r.status = 'running') AS "running!: i64"
               FROM backends b LEFT JOIN sessions s ON s.key = b.session_key LEFT JOIN workers w ON w.key = b.worker_key
               WHERE b.key IN (SELECT value FROM json_each(?1)) ORDER BY (b.state = 'stopped'), b.key DESC"#,
            keys
        )
        .fetch_all(&self.readers)
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(Backend {
                    id: row.id.parse()?,
                    agent: row.agent.parse()?,
                    workspace: row.workspace.parse()?,
                    session_id: row.session.map(|id| id.parse()).transpose()?,
                    state: state_of(&row.state)?,
                    reason: row.reason,
                    error_class: class_of(row.error_class)?,
                    worker: row.worker,
                    generation: row.generation,
                    pid: row.pid,
                    running: row.running,
                    close_when_idle: row.close_when_idle,
                    created_at: Timestamp::from_millis(row.created_at),
                    started_at: row.started_at.map(Timestamp::from_millis),
                    healthy_at: row.healthy_at.map(Timestamp::from_millis),
                    used_at: Timestamp::from_millis(row.used_at),
                    not_before: row.not_before.map(Timestamp::from_millis),
                    stopped_at: row.stopped_at.map(Timestamp::from_millis),
                })
            })
            .collect()
    }

    /// Requests that a backend ends as soon as no turn is on it. Without `force`, refuses if one is on it now.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn stop_backend(&self, id: BackendId, force: bool) -> Result<StopRequest, StoreError> {
        self.write(move |tx| {
            Box::pin(async move {
                let id = id.to_string();
                let found = sqlx::query!(
                    r#"SELECT key AS "key!", EXISTS (SELECT 1 FROM runs r WHERE r.backend_key = backends.key
                           AND r.status = 'running') AS "is_busy!: bool" FROM backends WHERE id = ?1"#,
                    id
                );
                let Some(found) = found.fetch_optional(&mut *tx.conn).await? else { return Ok(StopRequest::Unknown) };
                if found.is_busy && !force {
                    return Ok(StopRequest::Busy);
                }
                sqlx::query!(
                    "UPDATE backends SET close_when_idle = 1 WHERE key = ?1 AND state <> 'stopped'",
                    found.key
                )
                .execute(&mut *tx.conn)
                .await?;
                tx.notices.push(Notice::Backends);
                Ok(StopRequest::Asked)
            })
        })
        .await
    }
}
