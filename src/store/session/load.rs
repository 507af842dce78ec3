//! Reading sessions: one, a page, or the descendants of one.

use super::read_options;
use crate::assignment::{Assignment, AssignmentState};
use crate::clock::Timestamp;
use crate::id::SessionId;
use crate::lease::SessionKey;
use crate::run::UnknownStatus;
use crate::session::{Execution, Session, SessionMode};
use crate::store::{Store, StoreError};
use crate::usage::Usage;

impl Store {
    /// A session by its id.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn find_session(&self, id: &SessionId) -> Result<Option<Session>, StoreError> {
        let Some(key) = self.find_session_key(id).await? else { return Ok(None) };
        Ok(self.load_sessions(&format!("[{key}]")).await?.pop().map(|(_, session)| session))
    }

    /// A page of sessions, most recently updated first, each with its cursor.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn list_sessions(
        &self,
        before: Option<SessionCursor>,
        limit: i64,
    ) -> Result<Vec<(SessionCursor, Session)>, StoreError> {
        let before = before.unwrap_or(SessionCursor { updated_at: i64::MAX, key: i64::MAX });
        let keys = sqlx::query_scalar!(
            r#"SELECT json_group_array(key) AS "keys!: String" FROM (SELECT key FROM sessions WHERE (updated_at, key) < (?1, ?2)
             ORDER BY updated_at DESC, key DESC LIMIT ?3 + 0)"#,
            before.updated_at,
            before.key,
            limit
        )
        .fetch_one(&self.readers)
        .await?;
        self.load_sessions(&keys).await
    }

    /// The descendants of a session, direct and indirect: older ones first, so that each follows its parent. The cursor is the
    /// row of the last one.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn list_descendants(
        &self,
        of: SessionKey,
        after: SessionKey,
        limit: i64,
    ) -> Result<Vec<(SessionKey, Session)>, StoreError> {
        let keys = sqlx::query_scalar!(
            r#"WITH RECURSIVE below (key) AS (
                   SELECT key FROM sessions WHERE spawned_by = ?1
                   UNION SELECT s.key FROM below JOIN sessions s ON s.spawned_by = below.key)
               SELECT json_group_array(key) AS "keys!: String"
               FROM (SELECT key FROM below WHERE key > ?2 ORDER BY key LIMIT ?3 + 0)"#,
            of,
            after,
            limit
        )
        .fetch_one(&self.readers)
        .await?;
        let mut found: Vec<_> = self.load_sessions(&keys).await?.into_iter().map(|(at, one)| (at.key, one)).collect();
        found.sort_unstable_by_key(|(key, _)| *key);
        Ok(found)
    }

    async fn load_sessions(&self, keys: &str) -> Result<Vec<(SessionCursor, Session)>, StoreError> {
        let now = self.clock.now().as_millis();
        let agent_sessions = self.current_agent_sessions(keys).await?;
        let rows = sqlx::query!(
            r#"SELECT s.key, s.id, s.workspace, s.agent, s.title, s.idle_ttl_ms, s.last_seq, s.created_at, s.updated_at,
                   s.options, s.oneshot AS "oneshot!: bool", s.label, o.id AS "spawned_by?",
                   (SELECT progress FROM runs WHERE session_key = s.key AND progress IS NOT NULL ORDER BY key DESC LIMIT 1)
                       AS "progress?: String",
                   (SELECT status FROM runs WHERE session_key = s.key AND settled_at IS NOT NULL ORDER BY key DESC LIMIT 1)
                       AS "last_outcome?: String",
                   u.input_tokens AS "input_tokens?: i64",
                   u.output_tokens AS "output_tokens?: i64", u.cache_read_tokens AS "cache_read_tokens?: i64",
                   u.cache_write_tokens AS "cache_write_tokens?: i64", u.reasoning_tokens AS "reasoning_tokens?: i64",
                   u.cost_usd AS "cost_usd?: f64", c.context_tokens AS "context_tokens?", c.context_size AS "context_size?",
                   a.state AS "state?", a.last_active_at AS "last_active_at?", p.id AS "slot?",
                   a.slot_key IS NOT NULL AND EXISTS (SELECT 1 FROM assignments o WHERE o.session_key = s.key
                       AND o.key < a.key AND o.slot_key <> a.slot_key) AS "slot_changed!: bool",
                   EXISTS (SELECT 1 FROM runs r WHERE r.session_key = s.key AND r.status = 'running') AS "running!: bool",
                   s.cancel_through IS NOT NULL OR (s.close_when_idle = 1 AND a.key IS NOT NULL) AS "closing!: bool",
                   q.key AS "queued?", q.not_before AS "not_before?"
               FROM sessions s
               LEFT JOIN sessions o ON o.key = s.spawned_by
               LEFT JOIN (SELECT session_key, sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens,
                       sum(cache_read_tokens) AS cache_read_tokens, sum(cache_write_tokens) AS cache_write_tokens,
                       sum(reasoning_tokens) AS reasoning_tokens, sum(cost_usd) AS cost_usd
                   FROM runs WHERE session_key IN (SELECT value FROM json_each(?1)) GROUP BY session_key) u
                   ON u.session_key = s.key
               LEFT JOIN runs c ON c.key = (SELECT key FROM runs
                   WHERE session_key = s.key AND context_tokens IS NOT NULL ORDER BY key DESC LIMIT 1)
               LEFT JOIN assignments a ON a.session_key = s.key AND a.state IN ('active', 'idle')
               LEFT JOIN slots p ON p.key = a.slot_key
               LEFT JOIN runs q ON q.key = (SELECT key FROM runs WHERE session_key = s.key AND status = 'queued'
                   ORDER BY (first_seq IS NULL), front DESC, priority DESC, key LIMIT 1)
               WHERE s.key IN (SELECT value FROM json_each(?1)) ORDER BY s.updated_at DESC, s.key DESC"#,
            keys
        )
        .fetch_all(&self.readers)
        .await?;
        rows.into_iter()
            .map(|row| {
                let execution = match (row.running, row.queued) {
                    (true, _) => Execution::Streaming,
                    (false, None) => Execution::Idle,
                    (false, Some(_)) if row.not_before.is_some_and(|at| at > now) => Execution::Parked,
                    (false, Some(_)) => Execution::Queued,
                };
                let assignment = row.state.zip(row.last_active_at).map(|(state, at)| Assignment {
                    slot: row.slot.clone(),
                    state: if state == "active" { AssignmentState::Active } else { AssignmentState::Idle },
                    last_active_at: Timestamp::from_millis(at),
                    slot_changed: row.slot_changed,
                });
                let cursor = SessionCursor { updated_at: row.updated_at, key: row.key };
                let session = Session {
                    id: row.id.parse()?,
                    workspace: row.workspace.parse()?,
                    agent: row.agent.parse()?,
                    title: row.title,
                    idle_ttl_ms: row.idle_ttl_ms,
                    assignment,
                    execution,
                    closing: row.closing,
                    mode: if row.oneshot { SessionMode::Oneshot } else { SessionMode::Persistent },
                    options: read_options(&row.options)?,
                    agent_session: agent_sessions.get(&row.key).cloned(),
                    spawned_by: row.spawned_by.map(|id| id.parse()).transpose()?,
                    label: row.label,
                    progress: row.progress,
                    last_outcome: row.last_outcome.map(|status| status.parse()).transpose().map_err(unknown_status)?,
                    usage: Usage {
                        input_tokens: row.input_tokens,
                        output_tokens: row.output_tokens,
                        cache_read_tokens: row.cache_read_tokens,
                        cache_write_tokens: row.cache_write_tokens,
                        reasoning_tokens: row.reasoning_tokens,
                        cost_usd: row.cost_usd,
                        context_tokens: row.context_tokens,
                        context_size: row.context_size,
                    },
                    last_seq: row.last_seq,
                    created_at: Timestamp::from_millis(row.created_at),
                    updated_at: Timestamp::from_millis(row.updated_at),
                };
                Ok((cursor, session))
            })
            .collect()
    }
}

fn unknown_status(error: UnknownStatus) -> StoreError {
    StoreError::Invalid(error.to_string())
}

/// A position in the list of sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionCursor {
    /// When that session was last updated.
    pub updated_at: i64,
    /// Its row.
    pub key: SessionKey,
}
