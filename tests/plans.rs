//! How SQLite executes the store's statements and triggers: by the index that was made for each, whatever the size of the
//! history, and prepared once. Nothing in the file changes that, because it has no statistics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed expectation is a failed test")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use mainstay::clock::SystemClock;
use mainstay::config::Durability;
use mainstay::store::Store;
use rusqlite::{Connection, StatementStatus};

/// What may walk an index or a table from one end: it holds little, or the walk ends early.
const SHORT_WALKS: [&str; 18] = [
    "USING INDEX runs_ready",                         // at most one a session, best first
    "USING COVERING INDEX runs_running",              // what runs now
    "USING INDEX runs_leased",                        // the same
    "INDEX permissions_pending",                      // what agents wait for now
    "COVERING INDEX one_ready_run_per_session",       // stops at the first
    "USING INDEX assignments_idle",                   // at most one a slot or sharing session
    "USING INDEX sqlite_autoindex_slots_2",           // the config's slots
    "COVERING INDEX one_running_run_per_session",     // what runs now, counted
    "COVERING INDEX one_running_run_per_slot",        // the same
    "INDEX one_live_session_per_slot",                // at most one a slot or sharing session
    "COVERING INDEX runs_queued",                     // what waits now, counted
    "COVERING INDEX one_live_assignment_per_session", // at most one a slot or sharing session
    "USING INDEX sessions_cancelling",                // sessions that were closed with a long queue
    "USING INDEX runs_unwritten",                     // runs that were cancelled behind one that runs
    "INDEX backends_live",                            // at most `max_backends`
    "SCAN workers",                                   // a row a process
    "VIRTUAL TABLE",                                  // JSON that was handed in
    "CONSTANT ROW",
];

/// What may read the history of one session, or all runs from the newest on, because it returns a page of that.
const PAGES: [&str; 6] = [
    "SELECT json_group_array(key) AS \"keys!: String\" FROM (SELECT r.key FROM runs r",
    "WHERE (?1 IS NULL OR p.state = ?1)",
    "SELECT json_group_array(key) AS \"keys!: String\" FROM (SELECT p.key FROM permissions p",
    "slot_changed",
    "UNION SELECT key FROM (SELECT key FROM backends",
    "sum(input_tokens) AS \"input: i64\"", // what an agent that only tells its total used in its session before
];

async fn database(dir: &Path) -> Connection {
    let path = dir.join("m.db");
    let store = Store::open(&path, Durability::Full, Arc::new(SystemClock), Box::new(drop), |_| true).await.unwrap();
    store.close().await;
    Connection::open(path).unwrap()
}

/// The text of every checked query.
fn queries() -> Vec<String> {
    let files = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/sqlx-data")).unwrap();
    let query = |file: fs::DirEntry| {
        let data: serde_json::Value = serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap();
        data["query"].as_str().unwrap().to_owned()
    };
    files.map(|file| query(file.unwrap())).collect()
}

/// The statements of every trigger, with a parameter for each value of the row.
fn trigger_statements(conn: &Connection) -> Vec<String> {
    let mut triggers = conn.prepare("SELECT sql FROM sqlite_schema WHERE type = 'trigger'").unwrap();
    let triggers = triggers.query_map([], |row| row.get::<_, String>(0)).unwrap();
    let bodies = triggers.map(|sql| {
        let sql = sql.unwrap();
        let body = sql.split_once(" BEGIN\n").unwrap().1.rsplit_once("END").unwrap().0;
        let without_rows = replace_from(&replace_from(body, "NEW.", "?", word), "OLD.", "?", word);
        replace_from(&without_rows, "RAISE(", "1", |rest| rest.find(')').unwrap() + 1)
    });
    let statements = bodies.flat_map(|body| body.split(';').map(|text| text.trim().to_owned()).collect::<Vec<_>>());
    statements.filter(|text| !text.is_empty()).collect()
}

fn word(rest: &str) -> usize {
    rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len())
}

/// Replaces each `from` together with as much of the text after it as `length` says.
fn replace_from(text: &str, from: &str, to: &str, length: fn(&str) -> usize) -> String {
    let mut pieces = text.split(from);
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |done, rest| done + to + &rest[length(rest)..])
}

fn plan(conn: &Connection, sql: &str) -> Vec<String> {
    let mut explain =
        conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap_or_else(|error| panic!("{error}: {sql}"));
    let mut rows = explain.raw_query();
    let mut plan = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        plan.push(row.get(3).unwrap());
    }
    plan
}

#[tokio::test]
async fn no_statement_reads_what_it_does_not_want() {
    let dir = tempfile::tempdir().unwrap();
    let conn = database(dir.path()).await;
    let mut statements = queries();
    statements.extend(trigger_statements(&conn));
    assert!(statements.len() > 80, "{}", statements.len());
    for sql in statements.iter().filter(|sql| !PAGES.iter().any(|page| sql.contains(page))) {
        let plan = plan(&conn, sql);
        let is_subquery = |name: &str| {
            plan.iter().any(|step| *step == format!("CO-ROUTINE {name}") || *step == format!("MATERIALIZE {name}"))
        };
        for step in &plan {
            let walk = step.strip_prefix("SCAN ").is_some_and(|what| !is_subquery(what))
                && !SHORT_WALKS.iter().any(|short| step.contains(short));
            // With a key as start, an index on the history does not walk through it.
            let history = step.contains("INDEX runs_by_session (session_key=?)")
                || step.contains("INDEX assignments_by_session (session_key=?)");
            let last_place = sql.contains("AND slot_key IS NOT NULL");
            assert!(!walk && (!history || last_place), "{step}\nof {plan:#?}\nof {sql}");
        }
    }
}

#[tokio::test]
async fn the_statements_that_run_all_the_time_use_the_indexes_made_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let conn = database(dir.path()).await;
    let queries = queries();
    let wanted: [(&str, &str, &[&str]); 9] = [
        (
            "claim",
            "UPDATE runs SET status = 'running', ready = 0",
            &[
                "SEARCH runs USING INTEGER PRIMARY KEY",
                "SCAN r USING INDEX runs_ready",
                "one_running_run_per_slot (slot_key=?)",
            ],
        ),
        (
            "renew",
            "UPDATE runs SET lease_expires_at = max(?2",
            &["SEARCH runs USING INDEX runs_leased (lease_worker=?)"],
        ),
        ("look at leases", "SELECT r.key, r.lease_token, r.lease_expires_at", &["SCAN r USING INDEX runs_leased"]),
        ("take over", "SELECT r.key, r.id, r.session_key", &["SCAN r USING INDEX runs_leased"]),
        (
            "expire",
            "UPDATE assignments SET state = 'expired'",
            &["SCAN a USING INDEX assignments_idle", "SEARCH assignments USING INTEGER PRIMARY KEY"],
        ),
        ("a page of frames", "SELECT group_concat(", &["SEARCH events USING PRIMARY KEY (session_key=? AND seq>?"]),
        ("a page of events", "SELECT e.seq, e.at, e.event", &["SEARCH e USING PRIMARY KEY (session_key=? AND seq>?"]),
        ("the end of a page", "SELECT max(seq) FILTER", &["SEARCH events USING PRIMARY KEY (session_key=? AND seq>?)"]),
        (
            "find the current run",
            "SELECT coalesce(\n",
            &["one_running_run_per_session (session_key=?)", "USING INDEX runs_queued (session_key=?)"],
        ),
    ];
    for (what, begin, steps) in wanted {
        let sql = queries.iter().find(|sql| sql.contains(begin)).unwrap_or_else(|| panic!("no query to {what}"));
        let plan = plan(&conn, sql);
        for step in steps {
            assert!(plan.iter().any(|done| done.contains(step)), "to {what}: no {step:?} in {plan:#?}");
        }
    }
}

/// SQLite plans by the values of some parameters, and then prepares the statement again at every use: a bare `LIMIT ?1` is
/// enough. That cost a claim more than everything else.
#[tokio::test]
async fn no_statement_is_prepared_anew_for_other_values() {
    let dir = tempfile::tempdir().unwrap();
    let conn = database(dir.path()).await;
    for sql in queries() {
        conn.execute_batch("BEGIN").unwrap();
        let mut statement = conn.prepare(&sql).unwrap();
        for value in 1..3 {
            (1..=statement.parameter_count()).for_each(|index| statement.raw_bind_parameter(index, value).unwrap());
            let mut rows = statement.raw_query();
            // Some values are refused, which does not matter here.
            while let Ok(Some(_)) = rows.next() {}
        }
        assert_eq!(statement.get_status(StatementStatus::RePrepare), 0, "{sql}");
        drop(statement);
        conn.execute_batch("ROLLBACK").unwrap();
    }
}
