//! The schema: illegal states are refused, and the views show what is stored.

use mainstay::chunk::{Chunk, FinishReason};
use mainstay::message::UserMessage;
use mainstay::run::{Cause, ExitReport, Outcome};
use mainstay::store::fact::Fact;
use mainstay::store::run::{Enqueue, Settle};

use super::Scene;

#[tokio::test]
async fn the_schema_refuses_illegal_states() {
    let scene = Scene::new(2).await;
    for (session, message) in [("a", "1"), ("a", "2"), ("b", "3"), ("c", "4")] {
        scene.send(session, message).await;
    }
    let claimed = scene.claim(8).await;
    scene.settle(&claimed[1], Outcome::completed()).await.unwrap();
    let conn = rusqlite::Connection::open(&scene.path).unwrap();
    conn.execute_batch("PRAGMA foreign_keys = ON").unwrap();
    let illegal = [
        (
            "two running runs in a session",
            "UPDATE runs SET status = 'running', slot_key = 2, ready = 0, lease_worker = 1, lease_expires_at = 1, claimed_at = 1, first_seq = s.last_seq + 1, last_seq = s.last_seq + 1 FROM sessions s WHERE s.key = session_key AND status = 'queued'",
            "runs.session_key",
        ),
        (
            "two running runs in a slot",
            "INSERT INTO runs (id, session_key, message_key, response_id, workspace, agent, slot_key, status, queued_at, claimed_at, lease_worker, lease_expires_at, first_seq, last_seq) VALUES ('123456789012345678901234567890123456', 2, 3, 'r', 'default', 'demo', 1, 'running', 1, 1, 1, 1, 4, 4)",
            "runs.slot_key",
        ),
        (
            "two running runs in a shared agent",
            "INSERT INTO runs (id, session_key, message_key, response_id, workspace, agent, slot_key, status, queued_at, claimed_at, lease_worker, lease_expires_at, first_seq, last_seq) VALUES ('123456789012345678901234567890123456', 2, 3, 'r', 'default', 'demo', NULL, 'running', 1, 1, 1, 1, 4, 4)",
            "runs.workspace",
        ),
        ("a word that is no status", "UPDATE runs SET status = 'stuck' WHERE status = 'queued'", "status IN"),
        ("running without a lease", "UPDATE runs SET lease_worker = NULL WHERE status = 'running'", "lease_worker"),
        (
            "a settled run that changes",
            "UPDATE runs SET status = 'failed' WHERE status = 'completed'",
            "a settled run does not change",
        ),
        (
            "a settled run that grows",
            "UPDATE runs SET last_seq = last_seq + 1 WHERE status = 'completed'",
            "a settled run does not change",
        ),
        (
            "a settled run that is queued again",
            "UPDATE runs SET status = 'queued', settled_at = NULL WHERE status = 'completed'",
            "a settled run does not change",
        ),
        ("an event that changes", "UPDATE events SET event = '{}'", "append-only"),
        ("a gap in seq", "UPDATE sessions SET last_seq = last_seq + 1", "gap"),
        ("seq that goes back", "UPDATE sessions SET last_seq = 0 WHERE last_seq > 0", "gap"),
        (
            "two sessions in a slot",
            "UPDATE assignments SET slot_key = 1 WHERE slot_key IS NOT NULL",
            "assignments.slot_key",
        ),
        (
            "two places of a session",
            "UPDATE assignments SET session_key = 1 WHERE slot_key IS NOT NULL",
            "assignments.session_key",
        ),
        (
            "a busy session that expires",
            "UPDATE assignments SET state = 'expired', ended_at = 1 WHERE state = 'active'",
            "the session is busy",
        ),
        ("a live assignment that has ended", "UPDATE assignments SET ended_at = 1", "ended_at"),
        ("a worker that leaves its runs", "DELETE FROM workers", "FOREIGN KEY"),
        (
            "a cancel that is withdrawn",
            "UPDATE runs SET cancel_requested_at = 1 WHERE status = 'queued'; UPDATE runs SET cancel_requested_at = NULL WHERE status = 'queued'",
            "not withdrawn",
        ),
        ("a run that has spoken and waits", "UPDATE runs SET said = 1 WHERE status = 'queued'", "said"),
        (
            "an id that could be a path",
            "INSERT INTO sessions (id, workspace, agent, idle_ttl_ms, created_at, updated_at) VALUES ('a/b', 'w', 'a', 1, 1, 1)",
            "id NOT GLOB",
        ),
        ("parts that are no array", "UPDATE messages SET parts = '{}'", "json_type(parts)"),
        (
            "a cause of another status",
            "UPDATE runs SET cause = 'exit_code' WHERE status = 'completed'",
            "status = CASE",
        ),
        ("a word that is no cause", "UPDATE runs SET cause = 'bored' WHERE status = 'completed'", "status = CASE"),
        ("a cause before the end", "UPDATE runs SET cause = 'shutdown' WHERE status = 'running'", "cause IS NULL"),
        ("a pid of no machine", "UPDATE runs SET pid = 1, pid_started_at = 1 WHERE status = 'running'", "pid_scope"),
        ("a title without a word", "UPDATE sessions SET title = ' '", "trim(title)"),
        ("an agent's id that is an option", "UPDATE sessions SET agent_session = '--yolo'", "agent_session"),
    ];
    for (what, sql, guard) in illegal {
        let refused = conn.execute_batch(sql).expect_err(what).to_string();
        assert!(refused.contains(guard), "{what} was refused for another reason: {refused}");
    }
}

#[tokio::test]
async fn key_of_deleted_row_is_never_given_again() {
    let scene = Scene::new(1).await;
    scene.send("a", "1").await;
    let conn = rusqlite::Connection::open(&scene.path).unwrap();
    let newest = |table: &str| {
        let sql = format!("SELECT max(key) FROM {table}");
        conn.query_row(&sql, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    let tables = ["sessions", "messages", "runs"];
    let before = tables.map(newest);
    conn.execute_batch("DELETE FROM runs; DELETE FROM messages; DELETE FROM assignments; DELETE FROM sessions")
        .unwrap();
    scene.send("a", "1").await;
    let after = tables.map(newest);
    for ((table, before), after) in tables.iter().zip(before).zip(after) {
        assert!(after > before, "{table}: {after} after {before}");
    }
}

#[tokio::test]
async fn views_show_text_whole_and_its_parts_apart() {
    let scene = Scene::new(1).await;
    let parts = ["a\0b \\u0000 \"", "", "second\n"].map(|text| serde_json::json!({"type": "text", "text": text}));
    let message = UserMessage::from_parts("m".parse().unwrap(), parts.to_vec(), None).unwrap();
    let request = Enqueue { message, ..scene.enqueue_request("s", "m") };
    scene.store.enqueue(request).await.unwrap().unwrap();
    let claimed = scene.claim(1).await.remove(0);
    let mut append = scene.text(&claimed, "x");
    append.facts = vec![Fact::Progress("p\0q".into()), Fact::Title("t\0u".into())];
    scene.store.append(append).await.unwrap().unwrap();
    let exit =
        ExitReport { stderr: Some("e\0f".into()), malformed_sample: Some("m\0n".into()), ..ExitReport::default() };
    let settle = Settle {
        lease: claimed.lease,
        session: claimed.session,
        run_id: claimed.run,
        events: vec![Chunk::Finish { finish_reason: FinishReason::Stop, message_metadata: None }],
        source_offset: 0,
        outcome: Outcome::because(Cause::AgentError, "g\0h"),
        exit,
        parts: None,
        progress: None,
        resumes: 0,
    };
    scene.store.settle(settle).await.unwrap().unwrap();
    let conn = rusqlite::Connection::open(&scene.path).unwrap();
    let row = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
    assert_eq!(row("SELECT text FROM v_messages WHERE role = 'user'"), "a\u{fffd}b \\u0000 \"\n\nsecond\n");
    let texts = row("SELECT error || stderr || malformed_sample || progress FROM v_runs");
    assert_eq!(texts, "g\u{fffd}he\u{fffd}fm\u{fffd}np\u{fffd}q");
    assert_eq!(row("SELECT title FROM v_sessions"), "t\u{fffd}u");
}
