//! The audit: checks the invariants of every database on one file. The schema refuses most violations, so a finding means
//! damage, a write by another program, or a bug.
//!
//! Always: nothing is written; each check is one statement with its own snapshot, so that it can run while engines write; a
//! check lists only the first few violations. It reads the whole file, so it may take a while.
//! Deliberately absent: facts about the moment, such as whether the worker of a run is alive.
//!
//! Proof: `tests/it/audit.rs`, where each check finds a violation that was made for it.

mod constraints;

use std::collections::BTreeMap;

use sqlx::SqliteConnection;

use super::StoreError;
use super::reading::Reading;
use crate::audit::{Audit, Check, Finding, MOST_FINDINGS, Verdict};
use crate::run::Cause;

/// How thoroughly the file itself is checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Depth {
    /// Pages and rows only; several times as fast. Skips three checks: that each index matches its table, that each row
    /// satisfies the constraints of its table, and that the commands can read each row.
    Quick,
    /// Everything.
    #[default]
    Full,
}

const ADVICE: &str =
    "restore a backup, and report the finding: it is damage, a bug, or somebody else wrote to the file";

impl Reading {
    /// Checks the file and its rows. A check that fails to run, because the file is damaged, is a finding itself.
    pub async fn audit(&mut self, depth: Depth) -> Audit {
        let mut checks = vec![file(&mut self.conn, depth).await];
        if depth == Depth::Full {
            checks.push(self.constraints().await);
        }
        for (name, question) in CHECKS {
            checks.push(ask(&mut self.conn, name, question).await);
        }
        Audit { checks }
    }
}

impl Reading {
    /// Rows that violate a CHECK of their table. SQLite's own check finds them only on a writable connection, and the audit's is
    /// read-only; so the CHECKs are evaluated here, as the migrations of this build define them.
    async fn constraints(&mut self) -> Check {
        let mut found = Vec::new();
        let tables = match self.fresh_schema().await {
            Ok(schema) => schema,
            Err(error) => {
                return Check::new(
                    "constraints",
                    Verdict::Error,
                    ADVICE,
                    vec![Finding::new("the schema", error.to_string())],
                );
            }
        };
        for (name, sql) in &tables {
            let Some(table) = name.strip_prefix("table ") else { continue };
            let broken = constraints::broken(&mut self.conn, table, sql).await;
            found.extend(broken.unwrap_or_else(|error| {
                vec![Finding::new(table, format!("its rows cannot be checked: {}", StoreError::from(error)))]
            }));
        }
        Check::new("constraints", Verdict::Error, ADVICE, found)
    }
}

/// SQLite's own checks of the file: pages, rows, indexes, and, on a writable connection, the constraints of rows. The pragmas
/// run as statements and not as table-valued functions, which report nothing when they fail.
pub(super) async fn file(conn: &mut SqliteConnection, depth: Depth) -> Check {
    let question = match depth {
        Depth::Quick => "PRAGMA quick_check(21)",
        Depth::Full => "PRAGMA integrity_check(21)",
    };
    check("file", said_of_the_file(conn, question).await)
}

async fn said_of_the_file(conn: &mut SqliteConnection, question: &'static str) -> Result<Vec<Finding>, sqlx::Error> {
    // Without it, SQLite does not check constraints that use JSON functions.
    sqlx::raw_sql("PRAGMA trusted_schema = ON").execute(&mut *conn).await?;
    let said: Result<Vec<String>, _> = sqlx::query_scalar(question).fetch_all(&mut *conn).await;
    sqlx::raw_sql("PRAGMA trusted_schema = OFF").execute(&mut *conn).await?;
    let said = said?;
    let is_well = said == ["ok"];
    Ok(said.into_iter().filter(|_| !is_well).map(|line| Finding::new("the file", line)).collect())
}

async fn ask(conn: &mut SqliteConnection, name: &'static str, question: &'static str) -> Check {
    // One more than is listed, to know whether there are more.
    let limit = i64::try_from(MOST_FINDINGS).unwrap_or(i64::MAX).saturating_add(1);
    let causes: BTreeMap<_, _> = Cause::ALL.iter().map(|cause| (cause.as_str(), cause.status().as_str())).collect();
    let asked = sqlx::query_as(question).bind(limit).bind(serde_json::json!(causes).to_string());
    let found: Result<Vec<(String, String)>, _> = asked.fetch_all(conn).await;
    let finding = |(subject, detail)| Finding { subject, detail };
    check(name, found.map(|rows| rows.into_iter().map(finding).collect()))
}

fn check(name: &'static str, found: Result<Vec<Finding>, sqlx::Error>) -> Check {
    // Damage first shows as failing statements.
    let failed = |error| vec![Finding::new("the file", format!("cannot be asked: {}", StoreError::from(error)))];
    Check::new(name, Verdict::Error, ADVICE, found.unwrap_or_else(failed))
}

/// Each returns subjects and details, at most ?1 rows; ?2 maps each cause to its status. Unlike all other queries these are not
/// checked at compile time: those must use an index (`tests/plans.rs`), and these are meant to read everything.
const CHECKS: [(&str, &str); 20] = [
    (
        "references",
        "SELECT \"table\" || ' ' || coalesce(rowid, '?'), 'points to a row of ' || parent || ' that does not exist'
         FROM pragma_foreign_key_check LIMIT ?1 + 0",
    ),
    (
        // `seq` is unique and at least 1, so a count equal to the newest `seq` means 1, 2, 3 … without a gap.
        "log_has_no_gap",
        "SELECT id, 'its newest event is said to be ' || last_seq || '; it has '
             || (SELECT count(*) FROM events WHERE session_key = s.key) || ' events up to '
             || (SELECT coalesce(max(seq), 0) FROM events WHERE session_key = s.key)
         FROM sessions s
         WHERE last_seq <> (SELECT coalesce(max(seq), 0) FROM events WHERE session_key = s.key)
            OR last_seq <> (SELECT count(*) FROM events WHERE session_key = s.key) LIMIT ?1 + 0",
    ),
    (
        "events_are_json",
        "SELECT coalesce((SELECT id FROM sessions WHERE key = session_key), 'session ' || session_key),
             'event ' || seq || ' is no JSON'
         FROM events WHERE NOT json_valid(event) LIMIT ?1 + 0",
    ),
    (
        "events_belong_to_a_run",
        "SELECT coalesce(r.id, 'run ' || e.run_key), 'event ' || e.seq || ' of '
             || coalesce((SELECT id FROM sessions WHERE key = e.session_key), 'session ' || e.session_key)
             || ' is outside of its span'
         FROM events e LEFT JOIN runs r ON r.key = e.run_key
         WHERE r.key IS NULL OR r.session_key <> e.session_key OR e.seq BETWEEN r.first_seq AND r.last_seq IS NOT 1
         LIMIT ?1 + 0",
    ),
    (
        "span_is_one_piece",
        "SELECT id, 'not all events from ' || first_seq || ' to ' || last_seq || ' are its own'
         FROM runs r
         WHERE first_seq IS NOT NULL AND last_seq - first_seq + 1 <> (SELECT count(*) FROM events e
             WHERE e.session_key = r.session_key AND e.seq BETWEEN r.first_seq AND r.last_seq AND e.run_key = r.key)
         LIMIT ?1 + 0",
    ),
    (
        "span_begins_and_ends_once",
        "SELECT id, 'a ' || status || ' run whose events begin with ' || coalesce(first, 'nothing') || ' and end with '
             || coalesce(last, 'nothing') || iif(again, ', and that begins or ends in between', '')
         FROM (SELECT id, status, settled_at,
                 (SELECT iif(json_valid(event), event ->> '$.type', NULL) FROM events WHERE session_key = r.session_key AND seq = r.first_seq) AS first,
                 (SELECT iif(json_valid(event), event ->> '$.type', NULL) FROM events WHERE session_key = r.session_key AND seq = r.last_seq) AS last,
                 EXISTS (SELECT 1 FROM events e WHERE e.session_key = r.session_key
                     AND e.seq BETWEEN r.first_seq + 1 AND r.last_seq - 1
                     AND iif(json_valid(e.event), e.event ->> '$.type', NULL) IN ('start', 'finish')) AS again
             FROM runs r WHERE first_seq IS NOT NULL)
         WHERE first IS NOT 'start' OR (last IS 'finish') <> (settled_at IS NOT NULL) OR again LIMIT ?1 + 0",
    ),
    (
        // A run that was cancelled in the queue gets its span after the one that is being written.
        "settled_runs_say_why",
        "SELECT id, 'it is ' || status || iif(cause IS NULL, ' without a cause', ' without an end that readers see')
         FROM runs r
         WHERE settled_at IS NOT NULL AND (cause IS NULL OR (first_seq IS NULL AND NOT (status = 'cancelled'
             AND EXISTS (SELECT 1 FROM runs o WHERE o.session_key = r.session_key AND o.settled_at IS NULL
                         AND o.first_seq IS NOT NULL)))) LIMIT ?1 + 0",
    ),
    (
        "messages_have_a_run",
        "SELECT m.id, 'the message of ' || s.id || ' was taken, but there is no run for it'
         FROM messages m JOIN sessions s ON s.key = m.session_key
         WHERE m.role = 'user' AND NOT EXISTS (SELECT 1 FROM runs WHERE message_key = m.key) LIMIT ?1 + 0",
    ),
    (
        "messages_are_in_place",
        "SELECT m.id, 'it is at ' || coalesce(m.position, 'no place') || ' of ' || s.id
             || ', which is not where its newest run begins'
         FROM messages m JOIN sessions s ON s.key = m.session_key
         WHERE m.run_key IS NULL AND m.position IS NOT (SELECT max(first_seq) FROM runs WHERE message_key = m.key)
         LIMIT ?1 + 0",
    ),
    (
        "answers_belong_to_their_run",
        "SELECT r.id, 'message ' || m.id || ' of ' || s.id || ' is not where or what the run says'
         FROM messages m JOIN runs r ON r.key = m.run_key JOIN sessions s ON s.key = m.session_key
         WHERE m.session_key <> r.session_key OR m.id <> r.response_id OR m.position IS NOT r.first_seq
         UNION ALL
         SELECT r.id, 'it answers a message of another session' FROM runs r JOIN messages m ON m.key = r.message_key
         WHERE m.session_key <> r.session_key
         UNION ALL
         SELECT r.id, 'it goes on from ' || b.id || ', which is ' || b.status || iif(b.message_key <> r.message_key, ' and answers something else', '')
         FROM runs r JOIN runs b ON b.key = r.resumes
         WHERE b.message_key <> r.message_key OR b.status <> 'interrupted' LIMIT ?1 + 0",
    ),
    (
        "one_run_at_a_time",
        "SELECT group_concat(id, ' '), 'run at once in one session' FROM runs NOT INDEXED
             WHERE status = 'running' GROUP BY session_key HAVING count(*) > 1
         UNION ALL
         SELECT group_concat(id, ' '), 'run at once in one slot' FROM runs NOT INDEXED
             WHERE status = 'running' AND slot_key IS NOT NULL GROUP BY slot_key HAVING count(*) > 1
         UNION ALL
         SELECT group_concat(id, ' '), 'run at once in the shared agent of ' || workspace FROM runs NOT INDEXED
             WHERE status = 'running' AND slot_key IS NULL GROUP BY workspace HAVING count(*) > 1 LIMIT ?1 + 0",
    ),
    (
        // A queue without a ready run would stall for ever.
        "head_of_the_queue_is_ready",
        "SELECT id, iif(ready, 'it is ready, but not next', 'it is next, but not ready')
         FROM (SELECT id, ready, key = (SELECT key FROM runs q WHERE q.session_key = r.session_key AND q.status = 'queued'
                     ORDER BY (q.first_seq IS NULL), q.front DESC, q.priority DESC, q.key LIMIT 1)
                 AND NOT EXISTS (SELECT 1 FROM runs o WHERE o.session_key = r.session_key AND o.status = 'running')
                 AND EXISTS (SELECT 1 FROM assignments a WHERE a.session_key = r.session_key
                             AND a.state IN ('active', 'idle')) AS next
             FROM runs r WHERE status = 'queued' OR ready = 1)
         WHERE ready <> next LIMIT ?1 + 0",
    ),
    (
        "places_are_active_while_busy",
        "SELECT s.id, iif(a.state = 'active', 'its place is active, but it has nothing to do',
                                              'its place may expire, but it has something to do')
         FROM assignments a JOIN sessions s ON s.key = a.session_key
         WHERE a.state IN ('active', 'idle') AND (a.state = 'active') <>
             EXISTS (SELECT 1 FROM runs WHERE session_key = s.key AND settled_at IS NULL) LIMIT ?1 + 0",
    ),
    (
        "runs_are_where_their_session_sits",
        "SELECT r.id, iif(a.key IS NULL, 'it is running, but its session has no place',
                                         'it is running in another place than its session has')
         FROM runs r LEFT JOIN assignments a ON a.session_key = r.session_key AND a.state IN ('active', 'idle')
         WHERE r.status = 'running' AND (a.key IS NULL OR a.slot_key IS NOT r.slot_key) LIMIT ?1 + 0",
    ),
    (
        "who_waits_for_a_slot_gets_one",
        "SELECT id, CASE WHEN waits AND NOT queued THEN 'it waits for a slot without a queued run'
                         WHEN waits AND placed THEN 'it waits for a slot, but has a place'
                         WHEN NOT waits THEN 'it has queued runs, but neither a place nor one in the line'
                         ELSE 'it waits, but ' || free || ' is there for it' END
         FROM (SELECT s.id, s.waiting_since IS NOT NULL AS waits,
                 EXISTS (SELECT 1 FROM runs WHERE session_key = s.key AND status = 'queued') AS queued,
                 EXISTS (SELECT 1 FROM assignments WHERE session_key = s.key AND state IN ('active', 'idle')) AS placed,
                 (SELECT p.id FROM slots p WHERE p.workspace = s.workspace AND p.enabled = 1
                  AND s.waiting_since IS NOT NULL AND NOT EXISTS (SELECT 1 FROM assignments a
                      JOIN sessions o ON o.key = a.session_key
                      WHERE a.slot_key = p.key AND a.state IN ('active', 'idle')
                        AND NOT (s.reclaims AND a.state = 'idle' AND NOT o.slot_bound)) LIMIT 1) AS free
             FROM sessions s)
         WHERE waits <> (queued AND NOT placed) OR free IS NOT NULL LIMIT ?1 + 0",
    ),
    (
        "backends_are_one_of_a_kind",
        "SELECT group_concat(id, ' '), 'live at once for one place' FROM backends NOT INDEXED WHERE state <> 'stopped'
             GROUP BY agent, workspace, coalesce(session_key, 0) HAVING count(*) > 1
         UNION ALL
         SELECT id, 'it is said to run, but nobody can reach it' FROM backends WHERE state = 'running' AND endpoint IS NULL
         UNION ALL
         SELECT id, 'it is ' || state || ', and said to have a process' FROM backends
             WHERE state IN ('stopped', 'restarting') AND pid IS NOT NULL LIMIT ?1 + 0",
    ),
    (
        "causes_fit",
        "SELECT id, 'it is ' || status || ' because of ' || cause FROM runs
         WHERE settled_at IS NOT NULL AND coalesce(?2 ->> cause, status) <> status LIMIT ?1 + 0",
    ),
    (
        // A pending question must be visible in the log, and a run that is over must not have one.
        "questions_are_of_running_runs",
        "SELECT p.id, CASE WHEN r.status <> 'running' THEN 'it is pending, but ' || r.id || ' is ' || r.status
                           ELSE 'it is pending, but ' || r.id || ' does not say that it asks' END
         FROM permissions p JOIN runs r ON r.key = p.run_key
         WHERE p.state = 'pending' AND (r.status <> 'running' OR NOT EXISTS (SELECT 1 FROM events e
             WHERE e.session_key = r.session_key AND e.seq BETWEEN r.first_seq AND r.last_seq
               AND iif(json_valid(e.event), e.event ->> '$.approvalId', NULL) = p.id)) LIMIT ?1 + 0",
    ),
    (
        "replaced_answers_are_hidden",
        "SELECT m.id, 'it is shown, but what it answers was asked anew' FROM messages m JOIN runs r ON r.key = m.run_key
         WHERE m.superseded_at IS NULL
           AND (EXISTS (SELECT 1 FROM messages q WHERE q.key = r.message_key AND q.superseded_at IS NOT NULL)
                OR EXISTS (SELECT 1 FROM runs n WHERE n.message_key = r.message_key AND n.key > r.key AND n.resumes IS NULL))
         LIMIT ?1 + 0",
    ),
    (
        "places_are_in_their_workspace",
        "SELECT s.id, 'its place is in another workspace' FROM assignments a JOIN sessions s ON s.key = a.session_key
         LEFT JOIN slots p ON p.key = a.slot_key
         WHERE a.state IN ('active', 'idle') AND (a.workspace <> s.workspace OR p.workspace <> s.workspace) LIMIT ?1 + 0",
    ),
];
