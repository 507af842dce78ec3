//! Every released schema, with rows in it, is brought to the newest one: the rows are there, they are sound, and work goes
//! on with them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mainstay::config::Config;
use mainstay::engine::{Depth, Engine, RunFilter};
use mainstay::id::SessionId;
use mainstay::run::Status;
use mainstay::store::migrate::migrate;
use refinery_core::{Migration, Runner};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

/// The migrations, oldest first.
fn migrations() -> Vec<Migration> {
    let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations"));
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort_by_key(|path| {
        let name = path.file_stem().unwrap().to_str().unwrap();
        name[1..].split_once("__").unwrap().0.parse::<u32>().unwrap()
    });
    let read = |path: &std::path::PathBuf| {
        let name = path.file_stem().unwrap().to_str().unwrap();
        Migration::unapplied(name, &std::fs::read_to_string(path).unwrap()).unwrap()
    };
    files.iter().map(read).collect()
}

/// A session with an answered message, and one that waits for its answer; as the first schema stores them.
const ROWS: &str = r#"
INSERT INTO slots (key, id, workspace, number) VALUES (1, 'chat-slot-default-1', 'default', 1);
INSERT INTO sessions (key, id, workspace, agent, title, idle_ttl_ms, created_at, updated_at)
    VALUES (1, 'old', 'default', 'demo', 'Old', 1800000, 1000, 1000);
INSERT INTO assignments (key, session_key, workspace, slot_key, state, idle_ttl_ms, created_at, last_active_at)
    VALUES (1, 1, 'default', 1, 'idle', 1800000, 1000, 1000);
INSERT INTO workers (key, id, host, hostname, pid, pid_started_at, capacity, version, started_at, heartbeat_at)
    VALUES (1, '00000000-0000-7000-8000-000000000001', 'boot', 'host', 1, 1, 1, '0.1.0', 1000, 1000);
INSERT INTO messages (key, session_key, id, role, parts, created_at, updated_at)
    VALUES (1, 1, 'm-1', 'user', '[{"type":"text","text":"first"}]', 1000, 1000),
           (2, 1, 'm-2', 'user', '[{"type":"text","text":"second"}]', 2000, 2000);
INSERT INTO runs (key, id, session_key, message_key, response_id, workspace, agent, status, queued_at)
    VALUES (1, '00000000-0000-7000-8000-00000000000a', 1, 1, 'r-1', 'default', 'demo', 'queued', 1000);
UPDATE runs SET status = 'running', slot_key = 1, claimed_at = 1100, lease_worker = 1, lease_token = 1, lease_expires_at = 9000,
    attempts = 1, ready = 0, first_seq = 1, last_seq = 1 WHERE key = 1;
INSERT INTO events (session_key, seq, run_key, at, event) VALUES (1, 2, 1, 1200, '{"type":"finish","finishReason":"stop"}');
UPDATE runs SET status = 'completed', cause = 'finished', settled_at = 1200, lease_worker = NULL, lease_expires_at = NULL,
    last_seq = 2 WHERE key = 1;
INSERT INTO runs (key, id, session_key, message_key, response_id, workspace, agent, status, queued_at)
    VALUES (2, '00000000-0000-7000-8000-00000000000b', 1, 2, 'r-2', 'default', 'demo', 'queued', 2000);
"#;

/// A file of an older schema, with those rows and more.
async fn older_file(dir: &Path, migrations: &[Migration], more: &'static str) -> PathBuf {
    let path = dir.join("mainstay.db");
    let mut conn = SqliteConnection::connect(&format!("sqlite://{}?mode=rwc", path.display())).await.unwrap();
    migrate(&mut conn, &Runner::new(migrations)).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(ROWS)).execute(&mut conn).await.unwrap();
    sqlx::raw_sql(more).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    path
}

#[tokio::test]
async fn a_file_of_every_older_schema_goes_on_with_all_its_rows() {
    let migrations = migrations();
    for older in 1..migrations.len() {
        let dir = tempfile::tempdir().unwrap();
        let more = "UPDATE sessions SET agent_session = 'a' || char(0) || 'b', title = ' '";
        let path = older_file(dir.path(), &migrations[..older], more).await;

        let engine = Engine::open(&path, Config::builtin(dir.path())).await.unwrap();
        let findings: Vec<_> =
            engine.audit(Depth::Full).await.unwrap().findings().map(|found| format!("{found:?}")).collect();
        assert_eq!(findings, Vec::<String>::new(), "from {older}");
        let session: SessionId = "old".parse().unwrap();
        let found = engine.session(&session).await.unwrap();
        assert_eq!((found.agent_session, found.title), (None, None), "from {older}");
        engine.start().await.unwrap();
        let runs = engine.list_runs(&RunFilter { session: Some(session), ..RunFilter::default() }, 10).await.unwrap();
        assert_eq!(runs.len(), 2, "from {older}");
        for (_, run) in &runs {
            let settled = tokio::time::timeout(Duration::from_secs(30), engine.wait_settled(run.id)).await;
            assert_eq!(settled.expect("it is executed").unwrap().status, Status::Completed, "from {older}");
        }
        let last = "00000000-0000-7000-8000-00000000000b".parse().unwrap();
        let events = engine.run_event_page(last, 0, 100).await.unwrap().events;
        let is_told = events.iter().any(|event| event.event.get().contains("could not go on in its earlier"));
        assert!(is_told, "from {older}");
        engine.drain(Duration::from_secs(5)).await;
        engine.close().await;
    }
}

#[tokio::test]
async fn a_run_that_gave_up_an_illegal_id_can_be_settled() {
    let dir = tempfile::tempdir().unwrap();
    let given_up =
        "INSERT INTO agent_sessions (key, session_key, agent, id, origin, run_key, lost_in, began_at, used_at)
        VALUES (1, 1, 'demo', '--x', 'new', 1, 2, 1100, 1100)";
    let path = older_file(dir.path(), &migrations()[..3], given_up).await;
    let engine = Engine::open(&path, Config::builtin(dir.path())).await.unwrap();
    let run = "00000000-0000-7000-8000-00000000000b".parse().unwrap();
    engine.cancel_run(run).await.unwrap();
    assert_eq!(engine.run(run).await.unwrap().status, Status::Cancelled);
    engine.close().await;
}

#[tokio::test]
async fn a_file_of_an_earlier_build_is_refused_with_a_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mainstay.db");
    Engine::open(&path, Config::builtin(dir.path())).await.unwrap().close().await;
    let db = rusqlite::Connection::open(&path).unwrap();
    db.execute_batch("UPDATE refinery_schema_history SET checksum = '1' WHERE version = 1").unwrap();
    drop(db);
    let before = std::fs::read(&path).unwrap();
    let error = Engine::open(&path, Config::builtin(dir.path())).await.unwrap_err().to_string();
    for said in ["mainstay.db cannot be used", "an earlier build", "mainstay messages", "another --db"] {
        assert!(error.contains(said), "{error}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), before);
}
