//! `mainstay doctor` and `mainstay backup` as people and scripts use them: real processes on a database of their own.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn mainstay(dir: &Path, args: &[&str]) -> Output {
    let mut command = testkit::command(env!("CARGO_BIN_EXE_mainstay"));
    command.args(args).current_dir(dir).stdin(Stdio::null()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The exit status, and the verdict and findings of a check, given its name.
fn examined(dir: &Path, check: &str) -> (Option<i32>, String, String) {
    let output = mainstay(dir, &["doctor", "--json"]);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let check = said["checks"].as_array().unwrap().iter().find(|found| found["name"] == check).unwrap().clone();
    assert_eq!(said["ok"], output.status.code() == Some(0));
    (output.status.code(), check["verdict"].as_str().unwrap().to_owned(), check["findings"].to_string())
}

fn ask(dir: &Path, sql: &str) -> String {
    let db = rusqlite::Connection::open(dir.join("mainstay.db")).unwrap();
    db.query_row(sql, [], |row| row.get(0)).unwrap()
}

fn change(dir: &Path, sql: &str) {
    rusqlite::Connection::open(dir.join("mainstay.db")).unwrap().execute_batch(sql).unwrap();
}

#[test]
fn a_missing_database_is_an_error_and_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    for args in [&["doctor"] as &[&str], &["backup", "copy.db"]] {
        let output = mainstay(dir.path(), args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr.contains("mainstay.db") && stderr.contains("--db"), "{stderr}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_sound_database_is_well_and_is_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    assert!(mainstay(dir.path(), &["run", "hi"]).status.success());
    let before = std::fs::read(dir.path().join("mainstay.db")).unwrap();
    let output = mainstay(dir.path(), &["doctor"]);
    let text = stdout(&output);
    assert_eq!((output.status.code(), text.contains("ERROR")), (Some(0), false), "{text}");
    assert!(text.starts_with("ok       schema\n") && text.contains("\nok       agents\n"), "{text}");
    assert!(std::fs::read(dir.path().join("mainstay.db")).unwrap() == before, "it was changed");
}

#[test]
fn what_is_wrong_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert!(mainstay(dir, &["run", "hi"]).status.success());
    let run = ask(dir, "SELECT id FROM runs");
    let is = |check: &str, code: i32, verdict: &str, said: &str| {
        let (found_code, found, findings) = examined(dir, check);
        assert_eq!((found_code, found.as_str()), (Some(code), verdict), "{check}: {findings}");
        assert!(findings.contains(said), "{check}: {findings}");
    };

    // A process that a settled run left behind.
    let mut left =
        Command::new("sleep").arg("600").env("MAINSTAY_RUN", &run).env("MAINSTAY_ATTEMPT", "1").spawn().unwrap();
    is("processes", 1, "error", &left.id().to_string());
    left.kill().unwrap();
    left.wait().unwrap();
    is("processes", 0, "ok", "[]");

    // A directory that a settled run left behind, and permissions that other users should not have.
    let home = dir.join("mainstay.db-agents").join(format!("{run}-1"));
    std::fs::create_dir_all(&home).unwrap();
    is("directories", 0, "warning", "completed");
    std::fs::remove_dir_all(&home).unwrap();
    std::fs::set_permissions(dir.join("mainstay.db"), std::fs::Permissions::from_mode(0o644)).unwrap();
    is("permissions", 0, "warning", "its mode is 644");

    // An agent that is not installed.
    let agent = "[agents.x]\ndriver = \"openclaw\"\ncommand = [\"no-such-program\", \"{message}\"]";
    std::fs::write(dir.join("mainstay.toml"), agent).unwrap();
    is("agents", 1, "error", "no-such-program");
    std::fs::write(dir.join("mainstay.toml"), agent.replace("no-such-program", "sh")).unwrap();
    is("agents", 0, "ok", "[]");
    is("placeholders", 0, "ok", "[]");
    std::fs::write(dir.join("mainstay.toml"), agent.replace("no-such-program", "sh").replace("message", "topic"))
        .unwrap();
    is("placeholders", 0, "warning", "{topic} is no placeholder");

    // A run that makes no progress, and its worker.
    assert!(mainstay(dir, &["send", "s", "hi", "-q"]).status.success());
    change(
        dir,
        "INSERT INTO workers (key, id, pid_scope, hostname, pid, pid_started_at, capacity, version, lease_ms, started_at, heartbeat_at)
             VALUES (99, 'w', 'another machine', 'x', 1, 1, 1, 'x', 30000, 1, 1);
         UPDATE runs SET status = 'running', ready = 0, claimed_at = 1, lease_worker = 99, lease_expires_at = 1,
             lease_token = 1, first_seq = 1, last_seq = 1, slot_key = (SELECT slot_key FROM assignments a
                 WHERE a.session_key = runs.session_key AND a.state = 'active') WHERE status = 'queued'",
    );
    is("runs", 1, "error", "ran out at 1970");
    is("workers", 1, "warning", "last heard of at 1970");
    is("log_has_no_gap", 1, "ok", "[]");

    // The schema that keeps the promises.
    change(dir, "DROP TRIGGER settled_is_final");
    is("schema", 1, "error", "trigger settled_is_final");
    change(dir, "PRAGMA user_version = 99");
    is("schema", 1, "error", "version 99");
}

#[test]
fn a_backup_says_what_was_made() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert!(mainstay(dir, &["run", "--session", "s", "hi"]).status.success());
    let output = mainstay(dir, &["backup", "copy.db", "--json"]);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let bytes = dir.join("copy.db").metadata().unwrap().len();
    assert_eq!((said["bytes"].as_u64(), said["path"].as_str()), (Some(bytes), dir.join("copy.db").to_str()));
    assert!(said["duration_ms"].is_u64());
    assert_eq!(mainstay(dir, &["backup", "copy.db"]).status.code(), Some(1), "nothing is overwritten");
    let messages = |db| stdout(&mainstay(dir, &["--db", db, "messages", "s", "--json"]));
    assert_eq!(messages("copy.db"), messages("mainstay.db"));
    assert!(mainstay(dir, &["--db", "copy.db", "run", "--session", "s", "and now?"]).status.success());
    assert_eq!(mainstay(dir, &["--db", "copy.db", "doctor"]).status.code(), Some(0));
}

/// A file that no command can open or show is not reported as sound.
#[test]
fn doctor_and_the_commands_agree() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert!(mainstay(dir, &["run", "--session", "s", "hi"]).status.success());
    let (db, sound) = (dir.join("mainstay.db"), dir.join("sound"));
    std::fs::copy(&db, &sound).unwrap();
    for (damage, check, said, commands) in [
        ("UPDATE slots SET number = 0 WHERE number = 1", "constraints", "CHECK (number >= 1)", &["send", "s", "hi"] as &[&str]),
        ("UPDATE runs SET id = substr(id, 2) || 'x'", "rows", "a UUID is needed", &["runs"]),
        ("UPDATE workers SET id = '', pid_scope = 'x'; INSERT INTO workers (id, pid_scope, hostname, pid, pid_started_at, capacity,
             version, lease_ms, started_at, heartbeat_at) VALUES ('not an id', 'x', 'x', 1, 1, 0, 'x', 1, 1, 1)", "rows", "not an id", &["workers"]),
        ("UPDATE sessions SET agent = 'no name'", "rows", "no name", &["sessions"]),
    ] {
        std::fs::copy(&sound, &db).unwrap();
        let conn = rusqlite::Connection::open(&db).unwrap();
        let triggers = "SELECT group_concat('DROP TRIGGER ' || name, ';') FROM sqlite_schema WHERE type = 'trigger'";
        let drop: String = conn.query_row(triggers, [], |row| row.get(0)).unwrap();
        let kept = "SELECT group_concat(sql, ';') FROM sqlite_schema WHERE type = 'trigger'";
        let kept: String = conn.query_row(kept, [], |row| row.get(0)).unwrap();
        conn.execute_batch(&format!("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON; {drop}; {damage}; {kept}")).unwrap();
        conn.close().unwrap();
        let (code, verdict, findings) = examined(dir, check);
        assert_eq!((code, verdict.as_str()), (Some(1), "error"), "{damage}: {findings}");
        assert!(findings.contains(said), "{damage}: {findings}");
        assert_eq!(examined(dir, "schema").1, "ok");
        assert_eq!(mainstay(dir, commands).status.code(), Some(1), "{commands:?}");
    }
}
