//! The table `runs`: reading, and by verb the statements that move a run: `enqueue.rs`, `claim.rs`, `settle.rs`,
//! `resume.rs`, `lease.rs`, `held.rs`; and `turn_location.rs`, `waiting.rs`.

mod claim;
mod closing;
mod enqueue;
mod held;
mod lease;
mod resume;
mod settle;
mod turn_location;
mod waiting;

use std::collections::HashSet;

use super::{Store, StoreError};
use crate::clock::Timestamp;
use crate::event::Seq;
use crate::failure::ErrorClass;
use crate::id::{MessageId, RunId, SessionId};
use crate::lease::{RunKey, SessionKey};
use crate::run::{Run, Status};
use crate::usage::Usage;

pub use claim::{ClaimRequest, Claimed, Orphan, SessionScope};
pub(super) use closing::cancel_queue;
pub use enqueue::{Enqueue, Enqueued, Purpose, Refusal};
pub use held::Lost;
pub(super) use lease::expire_leases;
pub use settle::{CancelRequest, RUNS_AT_ONCE, Settle, Settled};
pub(super) use settle::{request_cancel, settle_all};
pub use turn_location::TurnLocation;

struct Row {
    key: RunKey,
    session_key: SessionKey,
    id: String,
    session_id: String,
    message_id: String,
    response_id: String,
    workspace: String,
    agent: String,
    slot: Option<String>,
    status: String,
    cause: Option<String>,
    short_of: Option<String>,
    error: Option<String>,
    error_class: Option<String>,
    retry_at: Option<i64>,
    progress: Option<String>,
    input_tokens: Option<i64>,
    output_tokens: Option<i64>,
    cache_read_tokens: Option<i64>,
    cache_write_tokens: Option<i64>,
    reasoning_tokens: Option<i64>,
    cost_usd: Option<f64>,
    context_tokens: Option<i64>,
    context_size: Option<i64>,
    priority: i64,
    attempts: i64,
    timeout_ms: Option<i64>,
    exit_code: Option<i64>,
    exit_signal: Option<i64>,
    first_seq: Option<i64>,
    last_seq: Option<i64>,
    resumes: Option<String>,
    malformed_lines: i64,
    queued_at: i64,
    not_before: Option<i64>,
    claimed_at: Option<i64>,
    cancel_requested_at: Option<i64>,
    settled_at: Option<i64>,
}

impl TryFrom<Row> for RunRow {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        // Only for a failed run: while a run is running, its agent may still recover from an error that it reported.
        let is_failed = row.status == Status::Failed.as_str();
        let class = row.error_class.filter(|_| is_failed).map(|class| class.parse::<ErrorClass>()).transpose();
        let class = class.map_err(|error| StoreError::Invalid(error.to_string()))?;
        let run = Run {
            id: row.id.parse()?,
            session_id: row.session_id.parse()?,
            message_id: row.message_id.parse()?,
            response_id: row.response_id.parse()?,
            workspace: row.workspace.parse()?,
            agent: row.agent.parse()?,
            slot: row.slot,
            waits_for: None,
            short_of: row.short_of,
            status: row.status.parse().map_err(|e: crate::run::UnknownStatus| StoreError::Invalid(e.to_string()))?,
            cause: row.cause,
            error: row.error,
            error_class: class,
            advice: class.map(ErrorClass::advice),
            retry_at: row.retry_at.filter(|_| is_failed).map(Timestamp::from_millis),
            progress: row.progress,
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
            priority: row.priority,
            attempts: row.attempts,
            timeout_ms: row.timeout_ms,
            exit_code: row.exit_code,
            exit_signal: row.exit_signal,
            first_seq: row.first_seq,
            last_seq: row.last_seq,
            resumes: row.resumes.map(|id| id.parse()).transpose()?,
            malformed_lines: row.malformed_lines,
            queued_at: Timestamp::from_millis(row.queued_at),
            not_before: row.not_before.map(Timestamp::from_millis),
            claimed_at: row.claimed_at.map(Timestamp::from_millis),
            cancel_requested_at: row.cancel_requested_at.map(Timestamp::from_millis),
            settled_at: row.settled_at.map(Timestamp::from_millis),
        };
        Ok(RunRow { key: row.key, session: row.session_key, run })
    }
}

/// A run with its row key and that of its session.
#[derive(Debug, Clone)]
pub struct RunRow {
    /// Its row.
    pub key: RunKey,
    /// Its session's row.
    pub session: SessionKey,
    /// The run.
    pub run: Run,
}

/// Which runs to list.
#[derive(Debug, Clone, Default)]
pub struct RunFilter {
    /// Only those of this session.
    pub session: Option<SessionId>,
    /// Only those in this status.
    pub status: Option<Status>,
    /// Only those enqueued before this one (a cursor from the page before).
    pub before: Option<RunKey>,
}

/// Runs by their keys, newest first. The one place that knows the columns of [`Run`].
async fn load<'e>(executor: impl sqlx::SqliteExecutor<'e>, keys: &str) -> Result<Vec<RunRow>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT r.key, r.session_key, r.id, s.id AS session_id, m.id AS message_id, r.response_id, r.workspace, r.agent,
               p.id AS "slot?", r.status, r.cause, r.short_of, r.error, r.error_class, r.retry_at, r.progress, r.input_tokens,
               r.output_tokens, r.cache_read_tokens, r.cache_write_tokens, r.reasoning_tokens, r.cost_usd, r.context_tokens,
               r.context_size, r.priority, r.attempts, r.timeout_ms,
               r.exit_code, r.exit_signal, r.first_seq, r.last_seq,
               (SELECT id FROM runs b WHERE b.key = r.resumes) AS "resumes?", r.malformed_lines, r.queued_at, r.not_before,
               r.claimed_at, r.cancel_requested_at, r.settled_at
           FROM runs r JOIN sessions s ON s.key = r.session_key JOIN messages m ON m.key = r.message_key
           LEFT JOIN slots p ON p.key = r.slot_key
           WHERE r.key IN (SELECT value FROM json_each(?1)) ORDER BY r.key DESC"#,
        keys
    )
    .fetch_all(executor)
    .await?;
    rows.into_iter().map(RunRow::try_from).collect()
}

async fn load_one<'e>(executor: impl sqlx::SqliteExecutor<'e>, key: RunKey) -> Result<Option<RunRow>, StoreError> {
    Ok(load(executor, &format!("[{key}]")).await?.pop())
}

impl Store {
    /// The ids, among the given ones, of running runs and of backends that are not stopped: both have processes under their ids.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn running_among(&self, runs: Vec<RunId>) -> Result<HashSet<RunId>, StoreError> {
        let ids = serde_json::to_string(&runs).map_err(|error| StoreError::Invalid(error.to_string()))?;
        let running = sqlx::query_scalar!(
            r#"SELECT id AS "id!" FROM runs WHERE id IN (SELECT value FROM json_each(?1)) AND status = 'running'
               UNION ALL SELECT id FROM backends WHERE id IN (SELECT value FROM json_each(?1)) AND state <> 'stopped'"#,
            ids
        );
        running.fetch_all(&self.readers).await?.into_iter().map(|id| Ok(id.parse()?)).collect()
    }

    /// A run by its id.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn find_run(&self, id: RunId) -> Result<Option<RunRow>, StoreError> {
        let id = id.to_string();
        let key = sqlx::query_scalar!("SELECT key FROM runs WHERE id = ?1", id).fetch_optional(&self.readers).await?;
        match key {
            Some(key) => load_one(&self.readers, key).await,
            None => Ok(None),
        }
    }

    /// The current run of a session: the running one, else the newest one that is queued or has its span in the log.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn find_current_run(&self, session: SessionKey) -> Result<Option<RunRow>, StoreError> {
        let key = sqlx::query_scalar!(
            r#"SELECT coalesce(
                   (SELECT key FROM runs WHERE session_key = ?1 AND status = 'running'),
                   (SELECT key FROM runs WHERE session_key = ?1 AND status = 'queued'
                    ORDER BY (first_seq IS NULL), front DESC, priority DESC, key LIMIT 1)) AS "key: i64""#,
            session
        )
        .fetch_one(&self.readers)
        .await?;
        match key {
            Some(key) => load_one(&self.readers, key).await,
            None => Ok(None),
        }
    }

    /// The run whose span contains an event of a session.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn find_run_at(&self, session: SessionKey, seq: Seq) -> Result<Option<RunRow>, StoreError> {
        let key = sqlx::query_scalar!("SELECT run_key FROM events WHERE session_key = ?1 AND seq = ?2", session, seq);
        match key.fetch_optional(&self.readers).await? {
            Some(key) => load_one(&self.readers, key).await,
            None => Ok(None),
        }
    }

    /// The run of a message of a session: the newest run that answers it, or, for an answer, the run that produced it.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn find_run_of_message(&self, session: SessionKey, id: &MessageId) -> Result<Option<RunRow>, StoreError> {
        // The id of an answer contains the run's id, so this works before the answer is stored.
        if let Some(run) = id.run_of_response()
            && let Some(located) = self.find_run(run).await?.filter(|located| located.session == session)
        {
            return Ok(Some(located));
        }
        let id = id.as_str();
        let key = sqlx::query_scalar!(
            r#"SELECT r.key AS "key!" FROM messages m JOIN runs r ON r.message_key = m.key
               WHERE m.session_key = ?1 AND m.id = ?2 ORDER BY r.key DESC LIMIT 1"#,
            session,
            id
        );
        match key.fetch_optional(&self.readers).await? {
            Some(key) => load_one(&self.readers, key).await,
            None => Ok(None),
        }
    }

    /// A page of runs, newest first.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn list_runs(&self, filter: &RunFilter, limit: i64) -> Result<Vec<RunRow>, StoreError> {
        let status = filter.status.map(Status::as_str);
        let keys = match &filter.session {
            Some(session) => {
                let session = session.as_str();
                sqlx::query_scalar!(
                    r#"SELECT json_group_array(key) AS "keys!: String" FROM (SELECT r.key FROM runs r
                     WHERE r.session_key = (SELECT key FROM sessions WHERE id = ?1)
                       AND (?2 IS NULL OR r.status = ?2) AND (?3 IS NULL OR r.key < ?3) ORDER BY r.key DESC LIMIT ?4 + 0)"#,
                    session,
                    status,
                    filter.before,
                    limit
                )
                .fetch_one(&self.readers)
                .await?
            }
            None => {
                sqlx::query_scalar!(
                    r#"SELECT json_group_array(key) AS "keys!: String" FROM (SELECT r.key FROM runs r
                     WHERE (?1 IS NULL OR r.status = ?1) AND (?2 IS NULL OR r.key < ?2) ORDER BY r.key DESC LIMIT ?3 + 0)"#,
                    status,
                    filter.before,
                    limit
                )
                .fetch_one(&self.readers)
                .await?
            }
        };
        load(&self.readers, &keys).await
    }

    /// How many runs are running, of each agent that has any.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn running_by_agent(&self) -> Result<Vec<(String, i64)>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT agent, count(*) AS "running!" FROM runs INDEXED BY runs_running WHERE status = 'running' GROUP BY agent"#
        );
        let rows = rows.fetch_all(&self.readers).await?;
        Ok(rows.into_iter().map(|row| (row.agent, row.running)).collect())
    }

    /// What the agent of a run wrote to stderr, head and tail, and a sample of the lines that were not events.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn run_diagnostics(&self, run: RunKey) -> Result<(Option<String>, Option<String>), StoreError> {
        let row = sqlx::query!("SELECT stderr, malformed_sample FROM runs WHERE key = ?1", run);
        let row = row.fetch_one(&self.readers).await?;
        Ok((row.stderr, row.malformed_sample))
    }
}
