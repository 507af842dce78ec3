//! Claim: one statement turns ready runs into running ones, under a lease of this worker. Also what else is done with the leases
//! of many runs at once: renewing them, and taking runs over from a dead worker.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::id::{AgentName, MessageId, RunId, SessionId, WorkspaceName};
use crate::lease::{Lease, RunKey, SessionKey, WorkerKey};
use crate::run::Attempt;
use crate::store::run::Lost;
use crate::store::tx::{Notice, Tx};
use crate::store::worker::{self, Registration};
use crate::store::{Store, StoreError};
use crate::text::AgentSessionId;
use crate::worker::{ProcessIdentity, Shim};

/// The parameters of a claim.
#[derive(Debug, Clone)]
pub struct ClaimRequest {
    /// The worker that claims.
    pub worker: WorkerKey,
    /// Maximum number of runs.
    pub limit: i64,
    /// The agents that this process has configured, each with its maximum number of running runs over all processes.
    pub agents: BTreeMap<AgentName, u32>,
    /// The workspaces that this process has configured.
    pub workspaces: Vec<WorkspaceName>,
    /// Restricts the claim to the runs of one session.
    pub only: Option<SessionScope>,
    /// How long the leases last unless they are renewed.
    pub lease: Duration,
}

/// The runs of one session, until a given run is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionScope {
    /// The session.
    pub session: SessionKey,
    /// The run that the caller waits for; once it is settled, nothing more is claimed.
    pub until: RunKey,
}

/// A claimed run, with what the worker needs to execute it.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// Its lease: the right to write to it.
    pub lease: Lease,
    /// Its id.
    pub run: RunId,
    /// Its session's row.
    pub session: SessionKey,
    /// Its session.
    pub session_id: SessionId,
    /// The id of its answer.
    pub response_id: MessageId,
    /// Its workspace.
    pub workspace: WorkspaceName,
    /// Its agent.
    pub agent: AgentName,
    /// The slot it runs in; none when it shares the workspace's resident agent.
    pub slot: Option<String>,
    /// The parts of the message that it answers, as JSON.
    pub message_parts: String,
    /// The agent's own id of the conversation, if it has one.
    pub agent_session: Option<AgentSessionId>,
    /// The options of the session, as JSON.
    pub options: String,
    /// Whether the session is one-shot: the agent may forget the conversation after the turn.
    pub oneshot: bool,
    /// Its own limit for the whole turn, or that of its session.
    pub timeout_ms: Option<i64>,
    /// Whether it resumes an interrupted run that had output: then the agent knows the message already.
    pub resumes: bool,
    /// When it was enqueued.
    pub queued_at: Timestamp,
    /// How often it was put back because a system resource ran out.
    pub shortages: i64,
}

impl Claimed {
    /// The attempt at the run that its lease allows.
    pub fn attempt(&self) -> Attempt {
        Attempt { run: self.run, number: self.lease.token }
    }
}

impl Orphan {
    /// The attempt at the run that its lease allows; all earlier ones are over.
    pub fn attempt(&self) -> Attempt {
        Attempt { run: self.run, number: self.lease.token }
    }
}

/// A running run whose worker is dead or silent; now under a lease of the worker that recovers it.
#[derive(Debug, Clone)]
pub struct Orphan {
    /// Its lease: the right to settle it or to put it back.
    pub lease: Lease,
    /// Its id.
    pub run: RunId,
    /// Its session's row.
    pub session: SessionKey,
    /// Its session.
    pub session_id: SessionId,
    /// The worker that held it before.
    pub worker: String,
    /// Whether that worker is proven dead, rather than just silent.
    pub worker_dead: bool,
    /// Its workspace.
    pub workspace: WorkspaceName,
    /// Its agent.
    pub agent: AgentName,
    /// Its own limit for the whole turn, or that of its session.
    pub timeout_ms: Option<i64>,
    /// The agent's shim, if one was started.
    pub host: Option<Shim>,
    /// Position in the agent's output up to which events were made.
    pub source_offset: i64,
    /// Whether the agent had any output.
    pub said: bool,
    /// Whether a cancel was requested.
    pub cancel_requested: bool,
    /// How often it was claimed, without the claims that ended in a shortage of resources.
    pub attempts: i64,
    /// How often it was taken over, this time included.
    pub recoveries: i64,
    /// Consecutive failed adoptions.
    pub failures: i64,
    /// How often it was put back because a system resource ran out.
    pub shortages: i64,
}

impl Store {
    /// Claims ready runs: by priority, then oldest first.
    ///
    /// # Errors
    /// Why nothing was claimed.
    pub async fn claim(&self, request: ClaimRequest) -> Result<Vec<Claimed>, StoreError> {
        self.write(move |tx| {
            let request = request.clone();
            Box::pin(async move { claim(tx, &request).await })
        })
        .await
    }

    /// Whether a claim would find anything. Runs on a read connection, so that polling takes no write lock.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn has_claimable_run(&self, request: &ClaimRequest) -> Result<bool, StoreError> {
        let (agents, workspaces) = (to_json(&request.agents)?, to_json(&request.workspaces)?);
        let now = self.clock.now().as_millis();
        let session = request.only.map(|only| only.session);
        let found = sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT 1 FROM claimable_runs c
                WHERE (c.not_before IS NULL OR c.not_before <= ?1 OR (c.short_of IS NOT NULL AND c.not_before > ?1 + 30000))
                  AND c.agent_running < coalesce((SELECT value FROM json_each(?2) WHERE key = c.agent), 0)
                  AND c.workspace IN (SELECT value FROM json_each(?3))
                  AND (?4 IS NULL OR c.session_key = ?4)) AS "found!: bool""#,
            now,
            agents,
            workspaces,
            session
        );
        Ok(found.fetch_one(&self.readers).await?)
    }

    /// Renews the leases of these runs of a worker, and its heartbeat, in one statement each. Returns the leases that it still
    /// holds. A worker whose row was removed in the meantime (a sweep on another machine found it silent) is registered again.
    ///
    /// # Errors
    /// Why nothing was renewed.
    pub async fn renew(
        &self,
        worker: WorkerKey,
        registration: Registration,
        leases: Vec<Lease>,
    ) -> Result<Vec<Lease>, StoreError> {
        self.write(move |tx| {
            let (registration, leases) = (registration.clone(), leases.clone());
            Box::pin(async move {
                worker::beat(tx, worker, &registration).await?;
                renew(tx, worker, &leases, registration.lease).await
            })
        })
        .await
    }

    /// The running runs of a worker that have a cancel request.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn cancel_requests(&self, worker: WorkerKey) -> Result<Vec<RunKey>, StoreError> {
        let keys = sqlx::query_scalar!(
            r#"SELECT key AS "key!" FROM runs WHERE lease_worker = ?1 AND cancel_requested_at IS NOT NULL"#,
            worker
        );
        Ok(keys.fetch_all(&self.readers).await?)
    }

    /// Takes over the running runs that are lost, except those in `own`, which this process is executing. Reads no clock: the
    /// caller has determined what is lost.
    ///
    /// # Errors
    /// Why nothing was taken over.
    pub async fn take_over(
        &self,
        worker: WorkerKey,
        lost: Lost,
        own: Vec<RunKey>,
        lease: Duration,
        limit: i64,
    ) -> Result<Vec<Orphan>, StoreError> {
        self.write(move |tx| {
            let (lost, own) = (lost.clone(), own.clone());
            Box::pin(async move { take_over(tx, worker, &lost, &own, lease, limit).await })
        })
        .await
    }
}

async fn claim(tx: &mut Tx<'_>, request: &ClaimRequest) -> Result<Vec<Claimed>, StoreError> {
    let (agents, workspaces) = (to_json(&request.agents)?, to_json(&request.workspaces)?);
    let (now, expires_at) = (tx.now.as_millis(), (tx.now + request.lease).as_millis());
    let (session, until) = request.only.map(|only| (only.session, only.until)).unzip();
    // A session has at most one ready run, so the cost depends neither on history nor on the length of a session's queue. A run
    // that was put back for a shortage waits half a minute at most (`engine::shortage`); a longer wait means that the clock has
    // stepped back since. Two candidates may compete for one shared agent, or for an agent's last place: the ranks let only the
    // better one through. `key IN` and not `UPDATE … FROM`, which SQLite may execute as a scan of all runs.
    let rows = sqlx::query!(
        r#"UPDATE runs SET status = 'running', ready = 0, short_of = NULL, claimed_at = ?1, attempts = attempts + 1,
               lease_worker = ?2, lease_token = lease_token + 1, lease_expires_at = ?3,
               slot_key = (SELECT slot_key FROM assignments a
                           WHERE a.session_key = runs.session_key AND a.state IN ('active', 'idle')),
               first_seq = coalesce(first_seq, (SELECT s.last_seq + 1 FROM sessions s WHERE s.key = runs.session_key)),
               last_seq = coalesce(last_seq, (SELECT s.last_seq + 1 FROM sessions s WHERE s.key = runs.session_key))
           WHERE key IN (
               WITH candidates AS (
                   SELECT c.*, coalesce((SELECT value FROM json_each(?4) WHERE key = c.agent), 0) - c.agent_running AS places
                   FROM claimable_runs c
                   WHERE (c.not_before IS NULL OR c.not_before <= ?1
                          OR (c.short_of IS NOT NULL AND c.not_before > ?1 + 30000))
                     AND c.agent_running < coalesce((SELECT value FROM json_each(?4) WHERE key = c.agent), 0)
                     AND c.workspace IN (SELECT value FROM json_each(?5))
                     AND (?6 IS NULL OR (c.session_key = ?6
                          AND EXISTS (SELECT 1 FROM runs u WHERE u.key = ?7 AND u.settled_at IS NULL)))
                   ORDER BY c.priority DESC, c.key LIMIT ?8 + 0)
               SELECT key FROM (
                   SELECT key, places,
                       row_number() OVER (PARTITION BY agent ORDER BY priority DESC, key) AS agent_rank,
                       row_number() OVER (PARTITION BY slot_key, iif(slot_key IS NULL, workspace, NULL)
                                          ORDER BY priority DESC, key) AS place_rank
                   FROM candidates)
               WHERE place_rank = 1 AND agent_rank <= places)
           RETURNING key AS "key!", id AS "id!", lease_token AS "token!", session_key AS "session_key!",
               response_id AS "response_id!", workspace AS "workspace!", agent AS "agent!",
               coalesce(timeout_ms, (SELECT 1000 * (options ->> '$.timeout_seconds') FROM sessions
                   WHERE sessions.key = session_key)) AS "timeout_ms?: i64",
               queued_at AS "queued_at!", shortages AS "shortages!", resumes IS NOT NULL AND EXISTS (SELECT 1 FROM runs b WHERE b.message_key = runs.message_key AND b.said = 1)
                   AS "resumes!: bool",
               (SELECT id FROM slots WHERE slots.key = slot_key) AS "slot?: String",
               (SELECT parts FROM messages WHERE messages.key = message_key) AS "message_parts!: String",
               (SELECT id FROM sessions WHERE sessions.key = session_key) AS "session_id!: String",
               (SELECT iif(oneshot, NULL, agent_session) FROM sessions WHERE sessions.key = session_key)
                   AS "agent_session?: String",
               (SELECT options FROM sessions WHERE sessions.key = session_key) AS "options!: String",
               (SELECT oneshot FROM sessions WHERE sessions.key = session_key) AS "oneshot!: bool""#,
        now,
        request.worker,
        expires_at,
        agents,
        workspaces,
        session,
        until,
        request.limit
    )
    .fetch_all(&mut *tx.conn)
    .await?;
    let mut claimed = Vec::with_capacity(rows.len());
    for row in rows {
        tx.notices.push(Notice::EventsAppended(row.session_key));
        claimed.push(Claimed {
            lease: Lease { run: row.key, token: row.token },
            run: row.id.parse()?,
            session: row.session_key,
            session_id: row.session_id.parse()?,
            response_id: row.response_id.parse()?,
            workspace: row.workspace.parse()?,
            agent: row.agent.parse()?,
            slot: row.slot,
            message_parts: row.message_parts,
            // Another program may have stored an id that is not valid.
            agent_session: row.agent_session.and_then(|id| id.parse().ok()),
            options: row.options,
            oneshot: row.oneshot,
            timeout_ms: row.timeout_ms,
            resumes: row.resumes,
            queued_at: Timestamp::from_millis(row.queued_at),
            shortages: row.shortages,
        });
    }
    Ok(claimed)
}

fn to_json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Invalid(error.to_string()))
}

async fn renew(
    tx: &mut Tx<'_>,
    worker: WorkerKey,
    leases: &[Lease],
    lease: Duration,
) -> Result<Vec<Lease>, StoreError> {
    if leases.is_empty() {
        return Ok(Vec::new());
    }
    let wanted = to_json(&leases.iter().map(|l| (l.run, l.token)).collect::<Vec<_>>())?;
    let expires_at = (tx.now + lease).as_millis();
    // The value always grows, even if the clock stands still or went back: other workers detect a renewal by the change.
    let rows = sqlx::query!(
        r#"UPDATE runs SET lease_expires_at = max(?2, lease_expires_at + 1)
           FROM (SELECT value ->> 0 AS run, value ->> 1 AS token FROM json_each(?3)) l
           WHERE runs.key = l.run AND runs.lease_token = l.token AND runs.lease_worker = ?1
           RETURNING key AS "run!", lease_token AS "token!""#,
        worker,
        expires_at,
        wanted
    )
    .fetch_all(&mut *tx.conn)
    .await?;
    Ok(rows.into_iter().map(|row| Lease { run: row.run, token: row.token }).collect())
}

async fn take_over(
    tx: &mut Tx<'_>,
    worker: WorkerKey,
    lost: &Lost,
    own: &[RunKey],
    lease: Duration,
    limit: i64,
) -> Result<Vec<Orphan>, StoreError> {
    let (dead, own) = (to_json(&lost.workers)?, to_json(&own)?);
    let ran_out = lost.leases.iter().map(|held| (held.lease.run, held.lease.token, held.expires_at.as_millis()));
    let ran_out = to_json(&ran_out.collect::<Vec<_>>())?;
    let expires_at = (tx.now + lease).as_millis();
    let rows = sqlx::query!(
        r#"SELECT r.key, r.id, r.session_key, s.id AS session_id, r.lease_token, r.attempts, r.shortages, r.workspace, r.agent,
               coalesce(r.timeout_ms, 1000 * (s.options ->> '$.timeout_seconds')) AS "timeout_ms?: i64", r.pid,
               r.pid_started_at, r.pid_scope, r.shim_attempt, r.shim_secret, r.source_offset, r.said,
               r.failures, r.cancel_requested_at, w.key AS worker_key, w.id AS worker
           FROM runs r INDEXED BY runs_leased
           JOIN workers w ON w.key = r.lease_worker JOIN sessions s ON s.key = r.session_key
           WHERE r.status = 'running'
             AND (w.key IN (SELECT value FROM json_each(?1))
                  OR (r.key, r.lease_token, r.lease_expires_at) IN
                     (SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?2)))
             AND r.key NOT IN (SELECT value FROM json_each(?3))
           ORDER BY r.key LIMIT ?4 + 0"#,
        dead,
        ran_out,
        own,
        limit
    )
    .fetch_all(&mut *tx.conn)
    .await?;
    let keys = to_json(&rows.iter().map(|row| row.key).collect::<Vec<_>>())?;
    sqlx::query!(
        "UPDATE runs SET lease_worker = ?2, lease_token = lease_token + 1, lease_expires_at = ?3
         WHERE key IN (SELECT value FROM json_each(?1))",
        keys,
        worker,
        expires_at
    )
    .execute(&mut *tx.conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let process = row.pid.zip(row.pid_started_at).zip(row.pid_scope);
            let process = process.map(|((pid, started_at_ticks), host)| ProcessIdentity {
                host,
                pid: i32::try_from(pid).unwrap_or_default(),
                started_at_ticks,
            });
            let host = process.zip(row.shim_attempt.zip(row.shim_secret));
            Ok(Orphan {
                lease: Lease { run: row.key, token: row.lease_token + 1 },
                run: row.id.parse()?,
                session: row.session_key,
                session_id: row.session_id.parse()?,
                worker_dead: lost.workers.contains(&row.worker_key),
                worker: row.worker,
                workspace: row.workspace.parse()?,
                agent: row.agent.parse()?,
                timeout_ms: row.timeout_ms,
                host: host.map(|(process, (attempt, secret))| Shim { process, attempt, secret }),
                source_offset: row.source_offset,
                said: row.said == 1,
                cancel_requested: row.cancel_requested_at.is_some(),
                attempts: row.attempts - row.shortages,
                failures: row.failures,
                shortages: row.shortages,
                recoveries: (row.lease_token & Attempt::COUNT_MASK) + 1 - row.attempts,
            })
        })
        .collect()
}
