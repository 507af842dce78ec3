//! The table `sessions`: creating, changing and closing. `session/load.rs` reads it.

mod close;
mod load;

use sqlx::SqliteConnection;

use super::text::{shown, shown_if_any};
use super::tx::Tx;
use super::{Store, StoreError};
use crate::id::{AgentName, RunId, SessionId, WorkspaceName};
use crate::lease::SessionKey;
use crate::options::SessionOptions;
use crate::session::SessionMode;

pub use load::SessionCursor;

/// What a session is created with.
#[derive(Debug, Clone)]
pub struct NewSession {
    /// The workspace it belongs to.
    pub workspace: WorkspaceName,
    /// The agent it talks to.
    pub agent: AgentName,
    /// Its title; if none, its first message and its agent give it one.
    pub title: Option<String>,
    /// How long it keeps its slot while idle.
    pub idle_ttl_ms: i64,
    /// Whether its agent remembers it from turn to turn.
    pub mode: SessionMode,
    /// The options that its agent is given.
    pub options: SessionOptions,
    /// The session that it works for.
    pub spawned_by: Option<SessionId>,
    /// What it is for.
    pub label: Option<String>,
}

impl NewSession {
    /// A session of this workspace and agent, with defaults for all else.
    pub fn of(workspace: WorkspaceName, agent: AgentName, idle_ttl_ms: i64) -> Self {
        let (mode, options) = (SessionMode::default(), SessionOptions::default());
        Self { workspace, agent, title: None, idle_ttl_ms, mode, options, spawned_by: None, label: None }
    }
}

/// The values that a caller named for a session; the others may be anything.
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
    /// Whether its agent remembers it.
    pub mode: Option<SessionMode>,
    /// Its options.
    pub options: Option<SessionOptions>,
    /// The session that it works for.
    pub spawned_by: Option<SessionId>,
    /// What it is for.
    pub label: Option<String>,
}

/// What a write needs to know about a session.
pub struct Known {
    /// Its row.
    pub key: SessionKey,
    /// Its workspace.
    pub workspace: String,
    /// Its agent.
    pub agent: String,
    /// Its idle TTL.
    pub idle_ttl_ms: i64,
    /// Whether its agent was keyed by slot when its last message was enqueued.
    pub slot_bound: bool,
    /// Whether it has a live assignment.
    pub has_place: bool,
}

/// A session by its id.
pub async fn find(conn: &mut SqliteConnection, id: &SessionId) -> Result<Option<Known>, StoreError> {
    let id = id.as_str();
    let row = sqlx::query!(
        r#"SELECT key, workspace, agent, idle_ttl_ms, slot_bound AS "slot_bound: bool", EXISTS (SELECT 1 FROM assignments a
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
        slot_bound: row.slot_bound,
        has_place: row.has_place,
    }))
}

/// Creates a session.
pub async fn create(tx: &mut Tx<'_>, id: &SessionId, new: &NewSession) -> Result<Known, StoreError> {
    let (text, workspace, agent) = (id.as_str(), new.workspace.as_str(), new.agent.as_str());
    let (options, oneshot, now) = (options_json(&new.options)?, new.mode == SessionMode::Oneshot, tx.now.as_millis());
    let parent = new.spawned_by.as_ref().map(SessionId::as_str);
    let title = shown_if_any(new.title.as_ref());
    let inserted = sqlx::query!(
        "INSERT INTO sessions (id, workspace, agent, title, idle_ttl_ms, created_at, updated_at, oneshot, options, label,
             spawned_by, title_given)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, ?7, ?8, ?9, (SELECT key FROM sessions WHERE id = ?10), ?4 IS NOT NULL)",
        text,
        workspace,
        agent,
        title,
        new.idle_ttl_ms,
        now,
        oneshot,
        options,
        new.label,
        parent
    )
    .execute(&mut *tx.conn)
    .await?;
    Ok(Known {
        key: inserted.last_insert_rowid(),
        workspace: workspace.to_owned(),
        agent: agent.to_owned(),
        idle_ttl_ms: new.idle_ttl_ms,
        slot_bound: false,
        has_place: false,
    })
}

pub(super) fn options_json(options: &SessionOptions) -> Result<String, StoreError> {
    serde_json::to_string(options).map_err(|error| StoreError::Invalid(error.to_string()))
}

pub(super) fn read_options(json: &str) -> Result<SessionOptions, StoreError> {
    serde_json::from_str(json).map_err(|error| StoreError::Invalid(format!("options of a session ({error})")))
}

/// Sets the title of a session that has none.
pub async fn set_missing_title(tx: &mut Tx<'_>, session: SessionKey, title: &str) -> Result<(), StoreError> {
    let title = shown(title);
    let set = sqlx::query!("UPDATE sessions SET title = ?2 WHERE key = ?1 AND title IS NULL", session, title);
    set.execute(&mut *tx.conn).await?;
    Ok(())
}

/// Stores whether the agent of a session is keyed by slot. This depends on the config, which may change.
pub async fn set_slot_bound(tx: &mut Tx<'_>, session: SessionKey, slot_bound: bool) -> Result<(), StoreError> {
    let set = sqlx::query!("UPDATE sessions SET slot_bound = ?2 WHERE key = ?1", session, slot_bound);
    set.execute(&mut *tx.conn).await?;
    Ok(())
}

/// Puts a session in the queue for a slot: the next free one or, with `reclaims`, also that of an idle session.
pub async fn wait_for_slot(tx: &mut Tx<'_>, session: SessionKey, reclaims: bool) -> Result<(), StoreError> {
    let now = tx.now.as_millis();
    let wait = sqlx::query!(
        "UPDATE sessions SET waiting_since = coalesce(waiting_since, ?2), reclaims = ?3 WHERE key = ?1",
        session,
        now,
        reclaims
    );
    wait.execute(&mut *tx.conn).await?;
    Ok(())
}

/// Marks a session to give up its slot as soon as it has nothing left to do. Its next message clears the mark.
pub async fn close_when_idle(tx: &mut Tx<'_>, session: SessionKey) -> Result<(), StoreError> {
    let flag = sqlx::query!("UPDATE sessions SET close_when_idle = 1 WHERE key = ?1", session);
    flag.execute(&mut *tx.conn).await?;
    Ok(())
}

/// The result of creating a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// It is new.
    New,
    /// It existed with the same values.
    Same,
    /// It existed with other values.
    Different,
    /// The parent session does not exist.
    NoParent,
}

/// The result of closing a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// It has no slot any more.
    Closed,
    /// Cancels of its runs were requested; the slot is free once the last run has ended.
    Closing,
    /// It is busy with this run, and the caller did not want to cancel it.
    Busy(RunId),
}

impl Store {
    /// Creates a session with `new`, or finds an existing one, which must have the values that were `named`.
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
                let oneshot = named.mode.map(|mode| mode == SessionMode::Oneshot);
                let options = named.options.as_ref().map(options_json).transpose()?;
                let parent = named.spawned_by.as_ref().map(SessionId::as_str);
                let title = shown_if_any(named.title.as_ref());
                let same = sqlx::query_scalar!(
                    r#"SELECT (coalesce(?2, workspace) = workspace AND coalesce(?3, agent) = agent
                           AND coalesce(?4, idle_ttl_ms) = idle_ttl_ms AND (?5 IS NULL OR title IS ?5)
                           AND coalesce(?6, oneshot) = oneshot AND coalesce(?7, options) = options
                           AND (?8 IS NULL OR spawned_by IS (SELECT key FROM sessions WHERE id = ?8))
                           AND (?9 IS NULL OR label IS ?9)) AS "same!: bool"
                       FROM sessions WHERE id = ?1"#,
                    text,
                    workspace,
                    agent,
                    named.idle_ttl_ms,
                    title,
                    oneshot,
                    options,
                    parent,
                    named.label
                );
                match same.fetch_optional(&mut *tx.conn).await? {
                    Some(true) => return Ok(Created::Same),
                    Some(false) => return Ok(Created::Different),
                    None => {}
                }
                if let Some(parent) = &new.spawned_by
                    && find(tx.conn, parent).await?.is_none()
                {
                    return Ok(Created::NoParent);
                }
                create(tx, &id, &new).await?;
                Ok(Created::New)
            })
        })
        .await
    }

    /// Changes the title or the idle TTL of a session. With a title of `Some(None)`, its agent or its next message gives it one.
    /// False when there is no such session.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn update_session(
        &self,
        id: SessionId,
        title: Option<Option<String>>,
        idle_ttl_ms: Option<i64>,
    ) -> Result<bool, StoreError> {
        self.write(move |tx| {
            let (id, title) = (id.clone(), title.clone());
            Box::pin(async move {
                let text = id.as_str();
                let (is_named, title) = (title.is_some(), title.flatten());
                let title = shown_if_any(title.as_ref());
                let updated = sqlx::query!(
                    "UPDATE sessions SET title = iif(?2, ?3, title), title_given = iif(?2, ?3 IS NOT NULL, title_given),
                         idle_ttl_ms = coalesce(?4, idle_ttl_ms) WHERE id = ?1",
                    text,
                    is_named,
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

    /// The row of a session.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn find_session_key(&self, id: &SessionId) -> Result<Option<SessionKey>, StoreError> {
        let id = id.as_str();
        Ok(sqlx::query_scalar!("SELECT key FROM sessions WHERE id = ?1", id).fetch_optional(&self.readers).await?)
    }

    /// The workspace of a session.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn find_workspace_of(&self, id: &SessionId) -> Result<Option<WorkspaceName>, StoreError> {
        let id = id.as_str();
        let found = sqlx::query_scalar!("SELECT workspace FROM sessions WHERE id = ?1", id);
        Ok(found.fetch_optional(&self.readers).await?.map(|name| name.parse()).transpose()?)
    }
}
