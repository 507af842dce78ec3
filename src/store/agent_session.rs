//! The table `agent_sessions`, and the other state of a session that concerns its agent: its options, and what the agent offers.
//! All of it comes from rows: no agent is asked or started.

use std::collections::HashMap;

use serde_json::Value;

use super::session::{find, options_json, read_options};
use super::tx::Tx;
use super::{Store, StoreError};
use crate::clock::Timestamp;
use crate::id::{AgentName, RunId, SessionId, WorkspaceName};
use crate::lease::{RunKey, SessionKey};
use crate::options::{InvalidOption, SessionOptions};
use crate::session::AgentSession;

/// The options of a session, and what its agent offers.
#[derive(Debug, Clone)]
pub struct Told {
    /// The agent.
    pub agent: AgentName,
    /// The session's workspace.
    pub workspace: WorkspaceName,
    /// The options that it is given.
    pub options: SessionOptions,
    /// The modes and options that it offers, if it has reported them.
    pub advertised: Option<Value>,
}

/// The result of resetting a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    /// Its next turn begins a new session of the agent.
    Done,
    /// It is executing this run.
    Busy(RunId),
}

struct Row {
    session_key: SessionKey,
    agent: String,
    id: String,
    origin: String,
    run_id: String,
    lost_in: Option<String>,
    began_at: i64,
    used_at: i64,
}

impl TryFrom<Row> for AgentSession {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            agent: row.agent.parse()?,
            id: row.id,
            origin: row.origin,
            run_id: row.run_id.parse()?,
            lost_in: row.lost_in.map(|id| id.parse()).transpose()?,
            began_at: Timestamp::from_millis(row.began_at),
            used_at: Timestamp::from_millis(row.used_at),
        })
    }
}

impl Store {
    /// The agent's own session in which the next turn of each of these continues.
    pub(super) async fn current_agent_sessions(
        &self,
        sessions: &str,
    ) -> Result<HashMap<SessionKey, AgentSession>, StoreError> {
        let rows = sqlx::query_as!(
            Row,
            r#"SELECT s.key AS "session_key!", a.agent, a.id, a.origin, r.id AS run_id, l.id AS "lost_in?", a.began_at, a.used_at
               FROM sessions s JOIN agent_sessions a ON a.key = (SELECT key FROM agent_sessions
                   WHERE session_key = s.key AND id = s.agent_session ORDER BY key DESC LIMIT 1)
               JOIN runs r ON r.key = a.run_key LEFT JOIN runs l ON l.key = a.lost_in
               WHERE s.key IN (SELECT value FROM json_each(?1))"#,
            sessions
        );
        let rows = rows.fetch_all(&self.readers).await?.into_iter();
        rows.map(|row| Ok((row.session_key, row.try_into()?))).collect()
    }

    /// The ids under which agents have known a session, newest first.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn list_agent_sessions(&self, session: SessionKey, limit: i64) -> Result<Vec<AgentSession>, StoreError> {
        let rows = sqlx::query_as!(
            Row,
            r#"SELECT a.session_key, a.agent, a.id, a.origin, r.id AS run_id, l.id AS "lost_in?", a.began_at, a.used_at
               FROM agent_sessions a JOIN runs r ON r.key = a.run_key LEFT JOIN runs l ON l.key = a.lost_in
               WHERE a.session_key = ?1 ORDER BY a.key DESC LIMIT ?2 + 0"#,
            session,
            limit
        );
        rows.fetch_all(&self.readers).await?.into_iter().map(AgentSession::try_from).collect()
    }

    /// The options of a session, and what its agent offers.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn find_told(&self, id: &SessionId) -> Result<Option<Told>, StoreError> {
        let id = id.as_str();
        let row = sqlx::query!("SELECT agent, workspace, options, advertised FROM sessions WHERE id = ?1", id);
        let Some(row) = row.fetch_optional(&self.readers).await? else { return Ok(None) };
        Ok(Some(Told {
            agent: row.agent.parse()?,
            workspace: row.workspace.parse()?,
            options: read_options(&row.options)?,
            advertised: read_advertised(row.advertised),
        }))
    }

    /// Changes the options of a session, based on their current values and what its agent currently offers. `None` when there is
    /// no such session.
    ///
    /// # Errors
    /// Outside: why nothing was stored. Inside: the option that cannot be set; nothing was stored either.
    pub async fn change_options(
        &self,
        id: SessionId,
        change: impl Fn(&SessionOptions, Option<&Value>) -> Result<SessionOptions, InvalidOption>
        + Clone
        + Send
        + Sync
        + 'static,
    ) -> Result<Option<Result<(), InvalidOption>>, StoreError> {
        self.write(move |tx| {
            let (id, change) = (id.clone(), change.clone());
            Box::pin(async move {
                let text = id.as_str();
                let row =
                    sqlx::query!(r#"SELECT key AS "key!", options, advertised FROM sessions WHERE id = ?1"#, text);
                let Some(row) = row.fetch_optional(&mut *tx.conn).await? else { return Ok(None) };
                let options = match change(&read_options(&row.options)?, read_advertised(row.advertised).as_ref()) {
                    Ok(options) => options_json(&options)?,
                    Err(error) => return Ok(Some(Err(error))),
                };
                let set = sqlx::query!("UPDATE sessions SET options = ?2 WHERE key = ?1", row.key, options);
                set.execute(&mut *tx.conn).await?;
                Ok(Some(Ok(())))
            })
        })
        .await
    }

    /// Clears the agent's own id of a session, which stays in its history, and with `options` also the options. `None` when
    /// there is no such session.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn reset_session(&self, id: SessionId, options: bool) -> Result<Option<Reset>, StoreError> {
        self.write(move |tx| {
            let id = id.clone();
            Box::pin(async move {
                let Some(known) = find(tx.conn, &id).await? else { return Ok(None) };
                reset(tx, known.key, options).await.map(Some)
            })
        })
        .await
    }
}

fn read_advertised(json: Option<String>) -> Option<Value> {
    json.and_then(|json| serde_json::from_str(&json).ok())
}

/// Records which of its own sessions an agent is in. A new id replaces the old one, which stays in the history. If the agent
/// calls a known id new, it is stored as resumed.
pub(super) async fn record(
    tx: &mut Tx<'_>,
    run: RunKey,
    session: SessionKey,
    id: &str,
    origin: &str,
) -> Result<(), StoreError> {
    let now = tx.now.as_millis();
    let known = sqlx::query!(
        "UPDATE agent_sessions SET origin = CASE ?3 WHEN 'new' THEN 'resumed' ELSE ?3 END, run_key = ?4, used_at = ?5
         WHERE key = (SELECT key FROM agent_sessions WHERE session_key = ?1 ORDER BY key DESC LIMIT 1) AND id = ?2",
        session,
        id,
        origin,
        run,
        now
    );
    if known.execute(&mut *tx.conn).await?.rows_affected() == 0 {
        sqlx::query!(
            "INSERT INTO agent_sessions (session_key, agent, id, origin, run_key, began_at, used_at)
             SELECT ?1, agent, ?2, ?3, key, ?5, ?5 FROM runs WHERE key = ?4",
            session,
            id,
            origin,
            run,
            now
        )
        .execute(&mut *tx.conn)
        .await?;
    }
    sqlx::query!("UPDATE sessions SET agent_session = ?2 WHERE key = ?1", session, id).execute(&mut *tx.conn).await?;
    Ok(())
}

async fn reset(tx: &mut Tx<'_>, session: SessionKey, options: bool) -> Result<Reset, StoreError> {
    let running = sqlx::query_scalar!("SELECT id FROM runs WHERE session_key = ?1 AND status = 'running'", session);
    if let Some(run) = running.fetch_optional(&mut *tx.conn).await? {
        return Ok(Reset::Busy(run.parse()?));
    }
    sqlx::query!(
        "UPDATE sessions SET agent_session = NULL, options = iif(?2, '{}', options) WHERE key = ?1",
        session,
        options
    )
    .execute(&mut *tx.conn)
    .await?;
    Ok(Reset::Done)
}
