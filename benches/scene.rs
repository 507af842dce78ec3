//! Files to measure on: the store itself creates the schema, bulk SQL the rows; both sides get the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mainstay::clock::{Clock, SystemClock};
use mainstay::config::Durability;
use mainstay::id::{MessageId, RunId, WorkerId};
use mainstay::lease::WorkerKey;
use mainstay::store::run::{ClaimRequest, Claimed};
use mainstay::store::worker::Registration;
use mainstay::store::{OnCommit, Store};
use mainstay::worker::ProcessIdentity;
use rusqlite::{Connection, params};

/// The length of a lease: longer than any measurement.
pub const LEASE: Duration = Duration::from_secs(3600);

/// What a person asks, as message parts.
pub const QUESTION: &str = r#"[{"type":"text","text":"What does the build say about the failing test?"}]"#;

/// A directory on the disk of the build: `/tmp` may be memory.
pub fn tempdir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Opens a store whose commits are reported to no one.
pub async fn open(path: &Path) -> Store {
    open_telling(path, Box::new(drop)).await
}

/// Opens a store that reports its commits.
pub async fn open_telling(path: &Path, on_commit: OnCommit) -> Store {
    Store::open(path, Durability::Full, Arc::new(SystemClock), on_commit, |_| true).await.unwrap()
}

/// A connection with the store's settings.
pub fn connect(path: &Path) -> Connection {
    let conn = Connection::open(path).unwrap();
    conn.busy_timeout(Duration::from_secs(5)).unwrap();
    conn.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF;
         PRAGMA journal_size_limit = 67108864;",
    )
    .unwrap();
    conn.set_prepared_statement_cache_capacity(100);
    conn
}

/// A new file with the schema and this many sessions, each in a slot of its own.
pub async fn new_file(dir: &Path, name: &str, sessions: usize) -> PathBuf {
    let path = dir.join(name);
    open(&path).await.close().await;
    let conn = connect(&path);
    let now = SystemClock.now().as_millis();
    conn.execute_batch(&format!(
        "BEGIN;
         CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {sessions}) SELECT i FROM n;
         INSERT INTO slots (key, id, workspace, number) SELECT i, 'chat-slot-default-' || i, 'default', i FROM n;
         INSERT INTO sessions (key, id, workspace, agent, title, idle_ttl_ms, created_at, updated_at)
             SELECT i, printf('session-%08d', i), 'default', 'demo', 'A conversation', 1800000, {now}, {now} FROM n;
         INSERT INTO assignments (session_key, workspace, slot_key, state, idle_ttl_ms, created_at, last_active_at)
             SELECT i, 'default', i, 'idle', 1800000, {now}, {now} FROM n;
         COMMIT;"
    ))
    .unwrap();
    path
}

/// Enqueues `count` messages, in turn for the sessions `first..first + sessions`.
pub fn enqueue(conn: &Connection, count: usize, first: usize, sessions: usize) {
    let now = SystemClock.now().as_millis();
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut message = conn
        .prepare_cached(
            "INSERT INTO messages (session_key, id, role, parts, created_at, updated_at) VALUES (?1, ?2, 'user', ?3, ?4, ?4)",
        )
        .unwrap();
    let mut run = conn
        .prepare_cached(
            "INSERT INTO runs (id, session_key, message_key, response_id, workspace, agent, status, queued_at)
             VALUES (?1, ?2, last_insert_rowid(), ?3, 'default', 'demo', 'queued', ?4)",
        )
        .unwrap();
    for number in 0..count {
        let session = (first + number % sessions) as i64;
        let id = RunId::generate();
        message.execute(params![session, format!("message-{id}"), QUESTION, now]).unwrap();
        run.execute(params![id.to_string(), session, MessageId::of_response(id).as_str(), now]).unwrap();
    }
    conn.execute_batch("COMMIT").unwrap();
}

/// Registers a worker.
pub async fn register(store: &Store) -> WorkerKey {
    let process = ProcessIdentity { host: "bench".into(), pid: 1, started_at_ticks: 1 };
    let id = WorkerId::generate();
    store
        .register_worker(Registration {
            id,
            process,
            hostname: "bench".into(),
            capacity: 8,
            lease: std::time::Duration::from_secs(30),
        })
        .await
        .unwrap()
}

/// The claim of a worker that takes any run.
pub fn claim_request(worker: WorkerKey, limit: i64) -> ClaimRequest {
    ClaimRequest {
        worker,
        limit,
        agents: BTreeMap::from([("demo".parse().unwrap(), 100_000)]),
        workspaces: vec!["default".parse().unwrap()],
        only: None,
        lease: LEASE,
    }
}

/// A new file with this many running runs, one per session.
pub async fn running(dir: &Path, name: &str, runs: usize) -> (PathBuf, Vec<Claimed>) {
    let path = new_file(dir, name, runs).await;
    enqueue(&connect(&path), runs, 1, runs);
    let store = open(&path).await;
    let worker = register(&store).await;
    let claimed = store.claim(claim_request(worker, runs as i64)).await.unwrap();
    assert_eq!(claimed.len(), runs);
    store.close().await;
    (path, claimed)
}

/// A chunk of about 120 bytes, a usual size for agents.
pub fn chunk(text: &str) -> String {
    let filler = "and so the tests pass again, once the missing index is there; ";
    format!(r#"{{"type":"text-delta","id":"text-1","delta":"{text:<16} {filler}"}}"#)
}
