//! The audit: a file that engines wrote is sound, and whatever breaks a promise is found and named.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use mainstay::audit::{Audit, MOST_FINDINGS, Verdict};
use mainstay::config::Config;
use mainstay::engine::{Depth, Engine, SendMessage};
use mainstay::id::MessageId;
use mainstay::message::UserMessage;
use mainstay::store::reading::Reading;
use rusqlite::Connection;

/// A file with settled runs of all kinds, a running one and one that asks, a queue, and a session that waits for a slot.
async fn filled(dir: &Path) -> Engine {
    let text = "[agents.demo]\nmax_concurrent = 5\n[workspaces.default]\nslots = 2\nwhen_full = \"wait\"";
    let config = Config::load(text, Path::new("test.toml"), dir).unwrap();
    let engine = Engine::open(&dir.join("m.db"), config).await.unwrap();
    engine.start().await.unwrap();
    let send = async |session: &str, text: &str| {
        let message = UserMessage::text(MessageId::generate(), text).unwrap();
        engine.send(SendMessage::new(session.parse().unwrap(), message)).await.unwrap().run.id
    };
    for (session, text) in [("a", "/tool"), ("a", "/fail no luck"), ("b", "hi")] {
        let run = send(session, text).await;
        tokio::time::timeout(Duration::from_secs(60), engine.wait_settled(run)).await.unwrap().unwrap();
    }
    let hanging = send("b", "/hang").await;
    let mut follower = engine.follow_run(hanging, 0).await.unwrap();
    follower.next_events().await.unwrap();
    send("b", "behind it").await;
    let cancelled = send("b", "never").await;
    engine.cancel_run(cancelled).await.unwrap();
    send("c", "no slot for this one").await;
    let asking = send("a", "/ask").await;
    let mut follower = engine.follow_run(asking, 0).await.unwrap();
    while !follower.next_events().await.unwrap().unwrap().iter().any(|event| event.event.contains("approvalId")) {}
    engine
}

async fn audit(path: &Path) -> Audit {
    let mut reading = Reading::open(path).await.unwrap();
    let audit = reading.audit(Depth::Full).await;
    reading.close().await;
    audit
}

/// The result of the audit after this damage to a copy of the file, whose constraints are removed first.
async fn after(dir: &Path, damage: &str) -> Audit {
    let broken = dir.join("broken.db");
    for name in ["broken.db", "broken.db-wal", "broken.db-shm"] {
        let _ = std::fs::remove_file(dir.join(name));
    }
    std::fs::copy(dir.join("copy.db"), &broken).unwrap();
    let db = Connection::open(&broken).unwrap();
    db.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON").unwrap();
    let drop = "SELECT group_concat('DROP TRIGGER ' || name, ';') FROM sqlite_schema WHERE type = 'trigger'";
    let drop: String = db.query_row(drop, [], |row| row.get(0)).unwrap();
    db.execute_batch(&drop).unwrap();
    db.execute_batch(damage).unwrap_or_else(|error| panic!("{error}: {damage}"));
    assert!(db.changes() > 0 || damage.contains("DROP"), "it damages nothing: {damage}");
    db.close().unwrap();
    audit(&broken).await
}

fn names(audit: &Audit) -> Vec<&'static str> {
    audit.checks.iter().filter(|check| !check.findings.is_empty()).map(|check| check.name).collect()
}

#[tokio::test]
async fn whatever_breaks_a_promise_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let engine = filled(dir.path()).await;
    let while_it_runs = engine.audit(Depth::Quick).await.unwrap();
    assert_eq!(while_it_runs.findings().collect::<Vec<_>>(), [], "a file in use is sound");
    assert!(while_it_runs.checks.iter().all(|check| check.name != "constraints"), "quick");
    mainstay::engine::back_up(&dir.path().join("m.db"), &dir.path().join("copy.db")).await.unwrap();
    engine.drain(Duration::ZERO).await;
    let afterwards = engine.audit(Depth::Full).await.unwrap();
    assert_eq!((names(&afterwards), afterwards.verdict()), (vec![], Verdict::Ok), "{afterwards:?}");
    engine.close().await;

    const SETTLED: &str = "(SELECT min(key) FROM runs WHERE settled_at IS NOT NULL)";
    for (check, damage) in [
        ("constraints", "UPDATE slots SET number = 0 WHERE number = 1"),
        ("constraints", "UPDATE runs SET status = 'paused' WHERE status = 'queued'"),
        ("references", "UPDATE runs SET session_key = 99 WHERE status = 'queued'"),
        ("log_has_no_gap", "DELETE FROM events WHERE seq = 2"),
        ("log_has_no_gap", "UPDATE sessions SET last_seq = last_seq + 1"),
        ("events_are_json", "UPDATE events SET event = '{' WHERE seq = 3"),
        ("events_belong_to_a_run", "UPDATE events SET run_key = 99 WHERE seq = 3"),
        ("span_is_one_piece", "UPDATE events SET run_key = run_key + 1 WHERE seq = 3"),
        ("span_begins_and_ends_once", "UPDATE events SET event = '{\"type\":\"finish\"}' WHERE seq = 3"),
        (
            "span_begins_and_ends_once",
            "UPDATE events SET event = '{\"type\":\"abort\"}' WHERE event LIKE '{\"type\":\"finish\"%'",
        ),
        ("settled_runs_say_why", &format!("UPDATE runs SET cause = NULL WHERE key = {SETTLED}")),
        ("settled_runs_say_why", &format!("UPDATE runs SET first_seq = NULL, last_seq = NULL WHERE key = {SETTLED}")),
        (
            "backends_are_one_of_a_kind",
            "INSERT INTO backends (id, agent, workspace, state, created_at, used_at)
             VALUES ('0192f0c1-2345-7000-8000-0123456789ab', 'a', 'default', 'running', 1, 1)",
        ),
        ("causes_fit", &format!("UPDATE runs SET cause = 'exit_code' WHERE key = {SETTLED}")),
        ("messages_have_a_run", "DELETE FROM runs WHERE status = 'queued'"),
        ("messages_are_in_place", "UPDATE messages SET position = 2 WHERE role = 'user'"),
        (
            "answers_belong_to_their_run",
            "UPDATE messages SET id = 'other' WHERE key = (SELECT max(key) FROM messages WHERE role = 'assistant')",
        ),
        ("replaced_answers_are_hidden", "UPDATE messages SET superseded_at = 1 WHERE role = 'user'"),
        (
            "one_run_at_a_time",
            "DROP INDEX one_running_run_per_session; DROP INDEX one_running_run_per_slot; DROP INDEX one_running_run_per_shared_agent;
                               UPDATE runs SET status = 'running'",
        ),
        ("head_of_the_queue_is_ready", "UPDATE runs SET ready = 1 WHERE status = 'queued'"),
        ("places_are_active_while_busy", "UPDATE assignments SET state = 'idle'"),
        ("runs_are_where_their_session_sits", "UPDATE runs SET slot_key = NULL WHERE key = (SELECT min(key) FROM runs WHERE status = 'running')"),
        ("who_waits_for_a_slot_gets_one", "UPDATE sessions SET waiting_since = NULL"),
        ("who_waits_for_a_slot_gets_one", "UPDATE assignments SET state = 'deleted', ended_at = 1"),
        (
            "questions_are_of_running_runs",
            "UPDATE permissions SET state = 'pending', answered_at = NULL, run_key = (SELECT min(key) FROM runs)",
        ),
        ("questions_are_of_running_runs", "UPDATE permissions SET id = '0192f0c1-2345-7000-8000-0123456789ab'"),
        ("places_are_in_their_workspace", "UPDATE assignments SET workspace = 'other'"),
    ] {
        let audit = after(dir.path(), damage).await;
        assert!(names(&audit).contains(&check), "{damage}: {audit:#?}");
        assert_eq!(audit.verdict(), Verdict::Error);
    }
    // SQLite reports the same for the constraints that it checks itself: in the copy, which can be written.
    let audit = after(dir.path(), "UPDATE slots SET number = 0 WHERE number = 1").await;
    let (_, finding) = audit.findings().next().unwrap();
    assert_eq!((finding.subject.as_str(), finding.detail.contains("CHECK (number >= 1)")), ("row 1 of slots", true));
    let backup = mainstay::engine::back_up(&dir.path().join("broken.db"), &dir.path().join("of-broken.db")).await;
    assert!(backup.unwrap_err().to_string().contains("CHECK constraint failed in slots"));
    assert!(!dir.path().join("of-broken.db").exists());
    // Every check was seen to fail (the first one below), and there are no others.
    let sound = self::audit(&dir.path().join("copy.db")).await;
    assert_eq!(names(&sound), Vec::<&str>::new());
    assert_eq!(sound.checks.len(), 22);
}

#[tokio::test]
async fn findings_are_bounded_and_damage_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let engine = filled(dir.path()).await;
    mainstay::engine::back_up(&dir.path().join("m.db"), &dir.path().join("copy.db")).await.unwrap();
    engine.drain(Duration::ZERO).await;
    engine.close().await;
    let audit = after(dir.path(), "UPDATE events SET event = '{'").await;
    let check = audit.checks.iter().find(|check| check.name == "events_are_json").unwrap();
    assert_eq!((check.findings.len(), check.more), (MOST_FINDINGS, true));

    // A torn page of a table: every query still succeeds, or is a finding.
    const PAGE: u64 = 4096;
    let db = Connection::open(dir.path().join("copy.db")).unwrap();
    let root = "SELECT rootpage FROM sqlite_schema WHERE name = 'workers'";
    let root: u32 = db.query_row(root, [], |row| row.get(0)).unwrap();
    let broken = dir.path().join("broken.db");
    std::fs::copy(dir.path().join("copy.db"), &broken).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&broken).unwrap();
    file.write_all_at(&[0xAA; PAGE as usize], u64::from(root - 1) * PAGE).unwrap();
    let audit = self::audit(&broken).await;
    assert!(names(&audit).contains(&"file"), "{audit:?}");
}
