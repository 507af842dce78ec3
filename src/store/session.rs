//! The table `sessions`.

use sqlx::SqliteConnection;

use super::writer::{Notice, Tx};
use super::{Store, StoreError, assignment, run};
use crate::assignment::{Assignment, AssignmentState};
use crate::clock::Timestamp;
use crate::id::{AgentName, RunId, SessionId, WorkspaceName};
use crate::lease::SessionKey;
use crate::session::{Execution, Session};

/// What a session is created with.
#[derive(Debug, Clone)]
pub struct NewSession {
    /// The workspace it belongs to.
    pub workspace: WorkspaceName,
    /// The agent it talks to.
    pub agent: AgentName,
    /// Its title; taken from its first message when none.
    pub title: Option<String>,
    /// How long it keeps its slot while nothing happens.
    pub idle_ttl_ms: i64,
}

/// What a caller said that a session is to have; the rest may be as it is.
#[derive(Debug, Clone, Default)]
pub struct NamedValues {
    /// Its workspace.
    pub workspace: Option<WorkspaceName>,
    /// Its agent.
    pub agent: Option<AgentName>,
    /// Its title.
    pub title: Option<String>,
    /// Its idle TTL.
    pub idle_ttl_ms: Option<i64>,
}

/// What a write needs to know of a session.
pub struct Known {
    /// Its row.
    pub key: SessionKey,
    /// Its workspace.
    pub workspace: String,
    /// Its agent.
    pub agent: String,
    /// Its idle TTL.
    pub idle_ttl_ms: i64,
    /// Whether it has a live assignment.
    pub has_place: bool,
}

/// A session by its id.
pub async fn find(conn: &mut SqliteConnection, id: &SessionId) -> Result<Option<Known>, StoreError> {
    let id = id.as_str();
    let row = sqlx::query!(
        r#"SELECT key, workspace, agent, idle_ttl_ms, EXISTS (SELECT 1 FROM assignments a
               WHERE a.session_key = s.key AND a.state IN ('active', 'idle')) AS "has_place!: bool"
           FROM sessions s WHERE id = ?1"#,
        id
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| Known {
        key: row.key,
        workspace: row.workspace,
        agent: row.agent,
        idle_ttl_ms: row.idle_ttl_ms,
        has_place: row.has_place,
    }))
}

/// Creates a session.
pub async fn create(tx: &mut Tx<'_>, id: &SessionId, new: &NewSession) -> Result<Known, StoreError> {
    let (text, workspace, agent) = (id.as_str(), new.workspace.as_str(), new.agent.as_str());
    let now = tx.now.as_millis();
    let inserted = sqlx::query!(
        "INSERT INTO sessions (id, workspace, agent, title, idle_ttl_ms, created_at, updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)",
        text,
        workspace,
        agent,
        new.title,
        new.idle_ttl_ms,
        now
    )
    .execute(&mut *tx.conn)
    .await?;
    Ok(Known {
        key: inserted.last_insert_rowid(),
        workspace: workspace.to_owned(),
        agent: agent.to_owned(),
        idle_ttl_ms: new.idle_ttl_ms,
        has_place: false,
    })
}

/// Names a session that has no title.
pub async fn set_missing_title(tx: &mut Tx<'_>, session: SessionKey, title: &str) -> Result<(), StoreError> {
    let set = sqlx::query!("UPDATE sessions SET title = ?2 WHERE key = ?1 AND title IS NULL", session, title);
    set.execute(&mut *tx.conn).await?;
    Ok(())
}

/// Puts a session in the line for the next free slot.
pub async fn wait_for_slot(tx: &mut Tx<'_>, session: SessionKey) -> Result<(), StoreError> {
    let now = tx.now.as_millis();
    let wait =
        sqlx::query!("UPDATE sessions SET waiting_since = coalesce(waiting_since, ?2) WHERE key = ?1", session, now);
    wait.execute(&mut *tx.conn).await?;
    Ok(())
}

/// What creating a session came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// It is new.
    New,
    /// It was there with the same values.
    Same,
    /// It was there with others.
    Different,
}

/// What closing a session came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// It has no slot any more.
    Closed,
    /// Its runs were asked to stop; the slot is free when the last one has.
    Closing,
    /// It is busy with this run, and the caller did not want to cancel it.
    Busy(RunId),
}

impl Store {
    /// Creates a session with `new`, or finds it: then it must have the values that were `named`.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn create_session(
        &self,
        id: SessionId,
        new: NewSession,
        named: NamedValues,
    ) -> Result<Created, StoreError> {
        self.write(move |tx| {
            let (id, new, named) = (id.clone(), new.clone(), named.clone());
            Box::pin(async move {
                let text = id.as_str();
                let workspace = named.workspace.as_ref().map(WorkspaceName::as_str);
                let agent = named.agent.as_ref().map(AgentName::as_str);
                let same = sqlx::query_scalar!(
                    r#"SELECT (coalesce(?2, workspace) = workspace AND coalesce(?3, agent) = agent
                           AND coalesce(?4, idle_ttl_ms) = idle_ttl_ms AND (?5 IS NULL OR title IS ?5)) AS "same!: bool"
                       FROM sessions WHERE id = ?1"#,
                    text,
                    workspace,
                    agent,
                    named.idle_ttl_ms,
                    named.title
                );
                match same.fetch_optional(&mut *tx.conn).await? {
                    Some(true) => return Ok(Created::Same),
                    Some(false) => return Ok(Created::Different),
                    None => {}
                }
                create(tx, &id, &new).await?;
                Ok(Created::New)
            })
        })
        .await
    }

    /// Changes the title or the idle TTL of a session. False when there is no such session.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn update_session(
        &self,
        id: SessionId,
        title: Option<String>,
        idle_ttl_ms: Option<i64>,
    ) -> Result<bool, StoreError> {
        self.write(move |tx| {
            let (id, title) = (id.clone(), title.clone());
            Box::pin(async move {
                let text = id.as_str();
                let updated = sqlx::query!(
                    "UPDATE sessions SET title = coalesce(?2, title), idle_ttl_ms = coalesce(?3, idle_ttl_ms) WHERE id = ?1",
                    text,
                    title,
                    idle_ttl_ms
                );
                let updated = updated.execute(&mut *tx.conn).await?.rows_affected() == 1;
                sqlx::query!(
                    "UPDATE assignments SET idle_ttl_ms = coalesce(?2, idle_ttl_ms)
                     WHERE session_key = (SELECT key FROM sessions WHERE id = ?1) AND state IN ('active', 'idle')",
                    text,
                    idle_ttl_ms
                )
                .execute(&mut *tx.conn)
                .await?;
                Ok(updated)
            })
        })
        .await
    }

    /// Frees the slot of a session; with `cancel`, asks its runs to stop first. `None` when there is no such session.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn close_session(&self, id: SessionId, cancel: bool) -> Result<Option<Closed>, StoreError> {
        self.write(move |tx| {
            let id = id.clone();
            Box::pin(async move {
                let Some(known) = find(tx.conn, &id).await? else { return Ok(None) };
                let busy = unsettled(tx.conn, known.key).await?;
                if let (Some((_, first)), false) = (busy.first(), cancel) {
                    return Ok(Some(Closed::Busy(first.parse()?)));
                }
                let flag = sqlx::query!("UPDATE sessions SET close_when_idle = 1 WHERE key = ?1", known.key);
                flag.execute(&mut *tx.conn).await?;
                for (run, _) in busy {
                    run::request_cancel(tx, run).await?;
                }
                assignment::end_if_idle(tx, known.key).await?;
                let closing = !unsettled(tx.conn, known.key).await?.is_empty();
                tx.notices.push(Notice::Ready);
                Ok(Some(if closing { Closed::Closing } else { Closed::Closed }))
            })
        })
        .await
    }

    /// The row of a session.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn find_session_key(&self, id: &SessionId) -> Result<Option<SessionKey>, StoreError> {
        let id = id.as_str();
        Ok(sqlx::query_scalar!("SELECT key FROM sessions WHERE id = ?1", id).fetch_optional(&self.readers).await?)
    }

    /// A session by its id.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn find_session(&self, id: &SessionId) -> Result<Option<Session>, StoreError> {
        let Some(key) = self.find_session_key(id).await? else { return Ok(None) };
        Ok(self.load_sessions(&format!("[{key}]")).await?.pop().map(|(_, session)| session))
    }

    /// A page of sessions, the one with the latest news first, with the cursor of each.
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

    async fn load_sessions(&self, keys: &str) -> Result<Vec<(SessionCursor, Session)>, StoreError> {
        let now = self.clock.now().as_millis();
        let rows = sqlx::query!(
            r#"SELECT s.key, s.id, s.workspace, s.agent, s.title, s.idle_ttl_ms, s.last_seq, s.created_at, s.updated_at,
                   a.state AS "state?", a.last_active_at AS "last_active_at?", p.id AS "slot?",
                   a.slot_key IS NOT NULL AND EXISTS (SELECT 1 FROM assignments o WHERE o.session_key = s.key
                       AND o.key < a.key AND o.slot_key <> a.slot_key) AS "slot_changed!: bool",
                   EXISTS (SELECT 1 FROM runs r WHERE r.session_key = s.key AND r.status = 'running') AS "running!: bool",
                   q.key AS "queued?", q.not_before AS "not_before?"
               FROM sessions s
               LEFT JOIN assignments a ON a.session_key = s.key AND a.state IN ('active', 'idle')
               LEFT JOIN slots p ON p.key = a.slot_key
               LEFT JOIN runs q ON q.key = (SELECT key FROM runs WHERE session_key = s.key AND status = 'queued'
                   ORDER BY (first_seq IS NULL), priority DESC, key LIMIT 1)
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
                    last_seq: row.last_seq,
                    created_at: Timestamp::from_millis(row.created_at),
                    updated_at: Timestamp::from_millis(row.updated_at),
                };
                Ok((cursor, session))
            })
            .collect()
    }
}

/// A place in the list of sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionCursor {
    /// When the session there had news.
    pub updated_at: i64,
    /// Its row.
    pub key: SessionKey,
}

/// The queued and running runs of a session, the running one first.
async fn unsettled(conn: &mut SqliteConnection, session: SessionKey) -> Result<Vec<(i64, String)>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT key AS "key!", id, 0 AS place FROM runs WHERE session_key = ?1 AND status = 'running' UNION ALL
           SELECT key, id, 1 FROM runs INDEXED BY runs_queued WHERE session_key = ?1 AND status = 'queued'
           ORDER BY place, 1"#,
        session
    );
    Ok(rows.fetch_all(conn).await?.into_iter().map(|row| (row.key, row.id)).collect())
}
