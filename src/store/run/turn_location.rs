//! Where the turn of a run is: what is needed to find it in a backend.

use crate::id::{SessionId, WorkspaceName};
use crate::lease::{BackendKey, Lease, RunKey};
use crate::store::{Store, StoreError};
use crate::text::AgentSessionId;

/// Where the turn of a run is, according to its rows.
#[derive(Debug, Clone)]
pub struct TurnLocation {
    /// Its workspace.
    pub workspace: WorkspaceName,
    /// The slot it runs in; none when it shares the workspace's resident agent.
    pub slot: Option<String>,
    /// Its session.
    pub session: SessionId,
    /// The agent's own id of the conversation.
    pub agent_session: Option<AgentSessionId>,
    /// The agent's working directory; none when no process was started for it.
    pub dir: Option<String>,
    /// The number of the attempt that its process was started for, if one was.
    pub shim_attempt: Option<i64>,
    /// The backend that it is on, if any, and the current generation of that backend.
    pub backend: Option<(BackendKey, i64)>,
    /// The endpoint of that backend; none when it has no process.
    pub endpoint: Option<String>,
}

impl Store {
    /// Where the turn of a run is; none when the lease is lost or the run is settled: then this worker must not end it.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn turn_location(&self, lease: Lease) -> Result<Option<TurnLocation>, StoreError> {
        let row = sqlx::query!(
            r#"SELECT r.workspace, p.id AS "slot?", s.id AS session, s.agent_session, r.dir, r.shim_attempt, b.key AS "backend_key?",
                   b.generation AS "generation?", b.endpoint AS "endpoint?"
               FROM runs r JOIN sessions s ON s.key = r.session_key LEFT JOIN slots p ON p.key = r.slot_key
               LEFT JOIN backends b ON b.key = r.backend_key
               WHERE r.key = ?1 AND r.lease_token = ?2 AND r.status = 'running'"#,
            lease.run,
            lease.token
        );
        let Some(row) = row.fetch_optional(&self.readers).await? else { return Ok(None) };
        Ok(Some(TurnLocation {
            workspace: row.workspace.parse()?,
            slot: row.slot,
            session: row.session.parse()?,
            agent_session: row.agent_session.and_then(|id| id.parse().ok()),
            dir: row.dir,
            shim_attempt: row.shim_attempt,
            backend: row.backend_key.zip(row.generation),
            endpoint: row.endpoint,
        }))
    }

    /// Whether this is the first attempt at a run, not counting those that ended in a shortage of resources.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn is_first_try(&self, run: RunKey) -> Result<bool, StoreError> {
        let first =
            sqlx::query_scalar!(r#"SELECT attempts - shortages = 1 AS "first!: bool" FROM runs WHERE key = ?1"#, run);
        Ok(first.fetch_one(&self.readers).await?)
    }

    /// Whether an earlier attempt at a run gave up the agent's own session, or the stored id of that session is invalid, which
    /// only another program can have stored.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn has_given_up_session(&self, run: RunKey) -> Result<bool, StoreError> {
        let given_up = sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT 1 FROM agent_sessions WHERE lost_in = ?1) AS "given_up!: bool""#,
            run
        );
        if given_up.fetch_one(&self.readers).await? {
            return Ok(true);
        }
        Ok(self.stored_agent_session(run).await?.is_some_and(|id| id.parse::<AgentSessionId>().is_err()))
    }

    /// The agent's own session that a run resumes.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn session_to_go_on_in(&self, run: RunKey) -> Result<Option<AgentSessionId>, StoreError> {
        Ok(self.stored_agent_session(run).await?.and_then(|id| id.parse().ok()))
    }

    async fn stored_agent_session(&self, run: RunKey) -> Result<Option<String>, StoreError> {
        let session = sqlx::query_scalar!(
            r#"SELECT iif(s.oneshot, NULL, s.agent_session) AS "session?: String"
               FROM runs r JOIN sessions s ON s.key = r.session_key WHERE r.key = ?1"#,
            run
        );
        Ok(session.fetch_one(&self.readers).await?)
    }
}
