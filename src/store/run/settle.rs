//! Settle: the one place where a run ends, and the cancel requests that lead to it.

use std::sync::Arc;

use serde_json::json;
use sqlx::SqliteConnection;

use crate::chunk::{Chunk, Ending};
use crate::clock::Timestamp;
use crate::event::Seq;
use crate::failure::ErrorClass;
use crate::id::RunId;
use crate::lease::{Lease, LeaseLost, RunKey, SessionKey};
use crate::run::{Cause, ExitReport, Outcome, Status};
use crate::store::event::{Guarded, insert_guarded};
use crate::store::message::Response;
use crate::store::text::shown_if_any;
use crate::store::tx::{Committed, Notice, Tx};
use crate::store::{Store, StoreError, message};
use crate::usage::Usage;

use super::{RunRow, load_one, resume};

/// Runs cancelled in one transaction. Each costs a quarter of a millisecond, so other writes wait for 50 ms at most.
pub const RUNS_AT_ONCE: i64 = 200;

/// The parameters of a settle.
#[derive(Debug, Clone)]
pub struct Settle {
    /// Its lease: the right to settle it.
    pub lease: Lease,
    /// The session that it belongs to.
    pub session: SessionKey,
    /// The run, as readers know it.
    pub run_id: RunId,
    /// Its last chunks, ending with `finish`. The outcome is added to them when they are stored.
    pub events: Vec<Chunk>,
    /// Position in the agent's output up to which events were made.
    pub source_offset: i64,
    /// Why it ends.
    pub outcome: Outcome,
    /// How the agent's process ended.
    pub exit: ExitReport,
    /// The whole message, as JSON parts; none without output.
    pub parts: Option<Arc<str>>,
    /// The tail of the agent's text; none without output.
    pub progress: Option<String>,
    /// If the run was interrupted: the maximum number of runs that may resume one message.
    pub resumes: u32,
}

/// A run that was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// Its newest event.
    pub last_seq: Seq,
    /// The class of the error that ended it. For an error that its agent reported, the class that was stored with the report.
    pub class: Option<ErrorClass>,
}

/// The result of a cancel request.
#[derive(Debug, Clone)]
pub struct CancelRequest {
    /// The run after the request.
    pub run: RunRow,
    /// Whether the run was settled already.
    pub was_settled: bool,
}

/// Executes all settles of a transaction.
pub(in crate::store) async fn settle_all(
    tx: &mut Tx<'_>,
    settles: &[Settle],
) -> Result<Vec<Result<Settled, LeaseLost>>, StoreError> {
    if settles.is_empty() {
        return Ok(Vec::new());
    }
    let endings = endings(tx, settles).await?;
    let label = |(s, ending): (&Settle, &Ending)| ending.label(s.events.clone()).iter().map(Chunk::to_json).collect();
    let labelled: Vec<Vec<String>> = settles.iter().zip(&endings).map(label).collect();
    let guarded = settles.iter().zip(&labelled).map(|(s, events)| Guarded {
        lease: s.lease,
        // A stored cancel request decides the outcome, even if it came only a moment before another end.
        unless_cancelled: s.outcome.cause != Cause::Cancelled,
        events,
    });
    insert_guarded(tx, &guarded.collect::<Vec<_>>()).await?;
    for settle in settles.iter().filter(|s| s.resumes > 0 && s.outcome.status() == Status::Interrupted) {
        resume::enqueue_successor(tx, settle.lease, settle.resumes).await?;
    }
    let ends: Vec<_> = settles
        .iter()
        .zip(&labelled)
        .map(|(s, events)| {
            json!([
                s.lease.run,
                s.lease.token,
                events.len(),
                s.source_offset,
                s.outcome.status(),
                s.outcome.cause.as_str(),
                shown_if_any(s.outcome.error.as_ref()),
                s.exit.code,
                s.exit.signal,
                shown_if_any(s.exit.stderr.as_ref()),
                s.exit.malformed_lines,
                shown_if_any(s.exit.malformed_sample.as_ref()),
                shown_if_any(s.progress.as_ref()),
                s.outcome.class,
                s.outcome.retry_at.map(Timestamp::as_millis),
            ])
        })
        .collect();
    let (ends, now) = (serde_json::Value::from(ends).to_string(), tx.now.as_millis());
    let rows = sqlx::query!(
        r#"UPDATE runs SET status = e.value ->> 4, cause = e.value ->> 5, error = e.value ->> 6, settled_at = ?2,
               exit_code = e.value ->> 7, exit_signal = e.value ->> 8, stderr = e.value ->> 9,
               malformed_lines = e.value ->> 10, malformed_sample = e.value ->> 11,
               progress = coalesce(e.value ->> 12, progress),
               error_class = iif(e.value ->> 5 = 'agent_error', coalesce(error_class, e.value ->> 13), e.value ->> 13),
               retry_at = iif(e.value ->> 5 = 'agent_error', coalesce(retry_at, e.value ->> 14), e.value ->> 14),
               last_seq = last_seq + (e.value ->> 2), source_offset = max(source_offset, e.value ->> 3),
               lease_worker = NULL, lease_expires_at = NULL
           FROM jsonb_each(?1) e
           WHERE runs.key = e.value ->> 0 AND runs.lease_token = e.value ->> 1 AND runs.status = 'running'
             AND (runs.cancel_requested_at IS NULL OR e.value ->> 5 = 'cancelled')
           RETURNING key AS "key!", last_seq AS "last_seq!", session_key AS "session_key!", error_class,
               EXISTS (SELECT 1 FROM runs o WHERE o.session_key = runs.session_key
                       AND o.settled_at IS NOT NULL AND o.first_seq IS NULL) AS "unwritten!: bool",
               EXISTS (SELECT 1 FROM sessions s WHERE s.key = runs.session_key AND s.cancel_through IS NOT NULL)
                   AS "closing!: bool""#,
        ends,
        now
    )
    .fetch_all(&mut *tx.conn)
    .await?;
    let row_of = |run: RunKey| rows.iter().find(|row| row.key == run);
    let messages = settles.iter().zip(&endings).filter(|(s, _)| row_of(s.lease.run).is_some());
    let messages = messages.filter_map(|(s, ending)| {
        let parts = s.parts.as_ref()?;
        Some(Response { run: s.lease.run, parts, ending: Some(ending) })
    });
    message::store_responses(tx, messages).await?;
    let mut results = Vec::with_capacity(settles.len());
    for (settle, events) in settles.iter().zip(labelled) {
        let Some(row) = row_of(settle.lease.run) else {
            results.push(Err(LeaseLost));
            continue;
        };
        let first_seq = row.last_seq - Seq::try_from(events.len()).unwrap_or(Seq::MAX) + 1;
        let committed = Committed::new(settle.session, settle.run_id, tx.now, first_seq, events, true);
        tx.notices.push(Notice::EventsCommitted(committed.into()));
        tx.notices.push(Notice::Ready);
        // The schema allows only known words.
        let class = row.error_class.as_deref().and_then(|class| class.parse().ok());
        results.push(Ok(Settled { last_seq: row.last_seq, class }));
        if row.unwritten {
            write_spans(tx, row.session_key).await?;
        }
        if row.unwritten || row.closing {
            tx.notices.push(Notice::Closing);
        }
    }
    Ok(results)
}

/// The endings of these runs, including what is stored already: the usage, and the class of the error that the agent reported.
async fn endings(tx: &mut Tx<'_>, settles: &[Settle]) -> Result<Vec<Ending>, StoreError> {
    let keys = serde_json::Value::from_iter(settles.iter().map(|s| s.lease.run)).to_string();
    let rows = sqlx::query!(
        "SELECT key, error_class, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens,
             cost_usd, context_tokens, context_size
         FROM runs WHERE key IN (SELECT value FROM json_each(?1))",
        keys
    );
    let rows = rows.fetch_all(&mut *tx.conn).await?;
    let ending = |settle: &Settle| {
        let Outcome { cause, class, .. } = settle.outcome;
        let Some(row) = rows.iter().find(|row| row.key == settle.lease.run) else {
            return Ending::new(cause, class, Usage::default());
        };
        // The schema allows only known words.
        let reported = row.error_class.as_deref().and_then(|class| class.parse().ok());
        let usage = Usage {
            input_tokens: row.input_tokens,
            output_tokens: row.output_tokens,
            cache_read_tokens: row.cache_read_tokens,
            cache_write_tokens: row.cache_write_tokens,
            reasoning_tokens: row.reasoning_tokens,
            cost_usd: row.cost_usd,
            context_tokens: row.context_tokens,
            context_size: row.context_size,
        };
        Ending::new(cause, reported.filter(|_| cause == Cause::AgentError).or(class), usage)
    };
    Ok(settles.iter().map(ending).collect())
}

/// Writes the spans of runs that were cancelled in the queue while another run was running. They follow that run's span, so that
/// spans do not interleave. If there are very many, the rest follows in separate transactions (`closing.rs`).
pub(super) async fn write_spans(tx: &mut Tx<'_>, session: SessionKey) -> Result<(), StoreError> {
    let runs = sqlx::query_scalar!(
        r#"SELECT key AS "key!" FROM runs WHERE session_key = ?1 AND settled_at IS NOT NULL AND first_seq IS NULL
           ORDER BY settled_at, key LIMIT ?2 + 0"#,
        session,
        RUNS_AT_ONCE
    )
    .fetch_all(&mut *tx.conn)
    .await?;
    for run in runs {
        write_span(tx, run).await?;
    }
    Ok(())
}

/// Writes the span of a run that ended in the queue: `start` (unless it was claimed before), then its end.
pub(super) async fn write_span(tx: &mut Tx<'_>, run: RunKey) -> Result<(), StoreError> {
    let events: Vec<_> = Chunk::end_of_a_run_cancelled_in_the_queue().iter().map(Chunk::to_json).collect();
    let (events, now) = (format!("[{}]", events.join(",")), tx.now.as_millis());
    sqlx::query!(
        "INSERT INTO events (session_key, seq, run_key, at, event)
         SELECT r.session_key, coalesce(r.last_seq, s.last_seq + 1) + 1 + e.key, r.key, ?2, e.value
         FROM runs r JOIN sessions s ON s.key = r.session_key JOIN json_each(?3) e WHERE r.key = ?1",
        run,
        now,
        events
    )
    .execute(&mut *tx.conn)
    .await?;
    let session = sqlx::query_scalar!(
        r#"UPDATE runs SET first_seq = coalesce(first_seq, s.last_seq + 1),
               last_seq = coalesce(runs.last_seq, s.last_seq + 1) + json_array_length(?2)
           FROM sessions s WHERE s.key = runs.session_key AND runs.key = ?1
           RETURNING session_key AS "session_key!""#,
        run,
        events
    )
    .fetch_all(&mut *tx.conn)
    .await?;
    tx.notices.extend(session.into_iter().map(Notice::EventsAppended));
    Ok(())
}

/// Requests a cancel of a run in any state. A queued run is cancelled at once.
pub(in crate::store) async fn request_cancel(tx: &mut Tx<'_>, run: RunKey) -> Result<(), StoreError> {
    let now = tx.now.as_millis();
    let running = sqlx::query!(
        "UPDATE runs SET cancel_requested_at = ?2 WHERE key = ?1 AND status = 'running' AND cancel_requested_at IS NULL",
        run,
        now
    );
    if running.execute(&mut *tx.conn).await?.rows_affected() == 1 {
        tx.notices.push(Notice::CancelRequested(run));
        return Ok(());
    }
    let Some(session) = cancel_queued(tx, run).await? else { return Ok(()) };
    if !is_in_midst_of_a_span(tx.conn, session).await? {
        write_spans(tx, session).await?;
    }
    tx.notices.push(Notice::EventsAppended(session));
    tx.notices.push(Notice::Ready);
    Ok(())
}

/// Cancels a queued run. The caller still has to write its span, unless the span had begun. Returns its session; none if the run
/// is not queued.
pub(super) async fn cancel_queued(tx: &mut Tx<'_>, run: RunKey) -> Result<Option<SessionKey>, StoreError> {
    let now = tx.now.as_millis();
    let (status, cause) = (Status::Cancelled.as_str(), Cause::Cancelled.as_str());
    // A run that was claimed and put back has its `start` already: its span has to be completed together with its end.
    let begun = sqlx::query_scalar!(
        r#"SELECT first_seq IS NOT NULL AS "begun!: bool" FROM runs WHERE key = ?1 AND status = 'queued'"#,
        run
    );
    let Some(begun) = begun.fetch_optional(&mut *tx.conn).await? else {
        return Ok(None);
    };
    if begun {
        write_span(tx, run).await?;
    }
    let session = sqlx::query_scalar!(
        r#"UPDATE runs SET status = ?2, cause = ?3, cancel_requested_at = ?4, settled_at = ?4, ready = 0, short_of = NULL
           WHERE key = ?1 AND status = 'queued' RETURNING session_key AS "session_key!""#,
        run,
        status,
        cause,
        now
    );
    Ok(Some(session.fetch_one(&mut *tx.conn).await?))
}

impl Store {
    /// Requests a cancel of all runs of the descendants of a session, as [`Store::cancel_run`] does, in short transactions.
    /// Returns the runs that were not settled yet.
    ///
    /// # Errors
    /// Why the rest was not stored; calling it again continues.
    pub async fn cancel_descendants(&self, of: SessionKey) -> Result<Vec<RunId>, StoreError> {
        let (mut cancelled, mut after) = (Vec::new(), 0);
        loop {
            let runs = self.write(move |tx| Box::pin(async move { cancel_below(tx, of, after).await })).await?;
            let is_last = i64::try_from(runs.len()).unwrap_or(i64::MAX) < RUNS_AT_ONCE;
            after = runs.last().map_or(after, |(key, _)| *key);
            cancelled.extend(runs.into_iter().map(|(_, id)| id));
            if is_last {
                return Ok(cancelled);
            }
        }
    }

    /// Requests a cancel of a run in any state. The request is stored before anything is sent to the agent; repeating it changes
    /// nothing.
    ///
    /// # Errors
    /// Why nothing was stored. `None` when there is no such run.
    pub async fn cancel_run(&self, id: RunId) -> Result<Option<CancelRequest>, StoreError> {
        self.write(move |tx| {
            Box::pin(async move {
                let text = id.to_string();
                let key = sqlx::query_scalar!("SELECT key FROM runs WHERE id = ?1", text);
                let Some(key) = key.fetch_optional(&mut *tx.conn).await? else {
                    return Ok(None);
                };
                let was_settled = match load_one(&mut *tx.conn, key).await? {
                    Some(before) => before.run.status.is_settled(),
                    None => return Ok(None),
                };
                request_cancel(tx, key).await?;
                Ok(load_one(&mut *tx.conn, key).await?.map(|run| CancelRequest { run, was_settled }))
            })
        })
        .await
    }
}

/// Requests a cancel of the next unsettled runs of a session's descendants.
async fn cancel_below(tx: &mut Tx<'_>, of: SessionKey, after: RunKey) -> Result<Vec<(RunKey, RunId)>, StoreError> {
    let runs = sqlx::query!(
        r#"WITH RECURSIVE below (key) AS (
               SELECT key FROM sessions WHERE spawned_by = ?1
               UNION SELECT s.key FROM below JOIN sessions s ON s.spawned_by = below.key)
           SELECT key AS "key!", id AS "id!" FROM (
               SELECT r.key, r.id FROM below CROSS JOIN runs r INDEXED BY one_running_run_per_session
                   ON r.session_key = below.key
                   WHERE r.status = 'running' AND r.key > ?2
               UNION ALL
               SELECT r.key, r.id FROM below CROSS JOIN runs r INDEXED BY runs_queued ON r.session_key = below.key
                   WHERE r.status = 'queued' AND r.key > ?2)
           ORDER BY 1 LIMIT ?3 + 0"#,
        of,
        after,
        RUNS_AT_ONCE
    );
    let runs = runs.fetch_all(&mut *tx.conn).await?;
    for run in &runs {
        request_cancel(tx, run.key).await?;
    }
    runs.into_iter().map(|run| Ok((run.key, run.id.parse()?))).collect()
}

/// Whether a run of a session is running, or was put back after its span had begun.
pub(super) async fn is_in_midst_of_a_span(
    conn: &mut SqliteConnection,
    session: SessionKey,
) -> Result<bool, StoreError> {
    let busy = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM runs WHERE session_key = ?1 AND status = 'running')
               OR EXISTS (SELECT 1 FROM runs WHERE session_key = ?1 AND status = 'queued' AND (first_seq IS NULL) = 0)
               AS "busy!: bool""#,
        session
    );
    Ok(busy.fetch_one(conn).await?)
}
