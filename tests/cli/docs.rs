//! The documentation compared with the product: its SQL runs on a database that an engine filled, its names are those of the
//! code, its examples are parsed, its links resolve.

mod commands;
mod pages;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use mainstay::config::Config;
use mainstay::engine::{Depth, Engine, SendMessage};
use mainstay::id::{MessageId, RunId};
use mainstay::message::UserMessage;
use mainstay::permission::Answer;
use mainstay::run::{Cause, Status};
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};

const README: &str = include_str!("../../README.md");
const AGENTS: &str = include_str!("../../docs/agents.md");
const SQL: &str = include_str!("../../docs/sql.md");

/// The fenced blocks of a language.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let open = format!("```{language}\n");
    page.split(&open).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

/// The text between each pair of these, on one line.
fn between<'a>(page: &'a str, open: &str, close: &str) -> Vec<&'a str> {
    let lines = page.lines().flat_map(|line| line.split(open).skip(1));
    lines.filter_map(|rest| rest.split_once(close).map(|(inside, _)| inside)).collect()
}

/// A database with rows for everything that the queries ask about, and the run that called a tool.
async fn filled(dir: &Path) -> (Engine, RunId) {
    let config = Config::load("[workspaces.default]\nslots = 3", Path::new("test.toml"), dir).unwrap();
    let engine = Engine::open(&dir.join("m.db"), config).await.unwrap();
    engine.start().await.unwrap();
    let send = async |session: &str, text: &str| {
        let message = UserMessage::text(MessageId::generate(), text).unwrap();
        engine.send(SendMessage::new(session.parse().unwrap(), message)).await.unwrap().run.id
    };
    let tool = send("hello", "/tool").await;
    let last = send("hello", "hi").await;
    let failing = send("unlucky", "/fail no luck").await;
    for run in [tool, last, failing] {
        tokio::time::timeout(Duration::from_secs(60), engine.wait_settled(run)).await.unwrap().unwrap();
    }
    let hanging = send("busy", "/hang").await;
    let mut follower = engine.follow_run(hanging, 0).await.unwrap();
    follower.next_events().await.unwrap();
    send("busy", "behind it").await;
    for session in ["asks", "allowed"] {
        let asking = send(session, "/ask").await;
        let mut follower = engine.follow_run(asking, 0).await.unwrap();
        while !follower.next_events().await.unwrap().unwrap().iter().any(|event| event.event.contains("approvalId")) {}
    }
    (engine, tool)
}

fn ask(db: &Connection, sql: &str) -> (Vec<String>, Vec<Vec<Value>>) {
    let mut statement = db.prepare(sql).unwrap_or_else(|error| panic!("{error}: {sql}"));
    let columns: Vec<_> = statement.column_names().into_iter().map(str::to_owned).collect();
    let rows = statement.query_map([], |row| (0..columns.len()).map(|column| row.get(column)).collect());
    let rows = rows.and_then(Iterator::collect).unwrap_or_else(|error| panic!("{error}: {sql}"));
    (columns, rows)
}

#[tokio::test]
async fn the_questions_have_answers() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, tool) = filled(dir.path()).await;
    let db = Connection::open_with_flags(dir.path().join("m.db"), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();

    let pending = "SELECT id FROM v_permissions WHERE session_id = 'allowed'";
    let allowed = text(&ask(&db, pending).1[0][0]).parse().unwrap();
    let allow = engine.answer_permission(allowed, Answer::Approved(true), "test", None).await.unwrap();
    let run = tokio::time::timeout(Duration::from_secs(60), engine.wait_settled(allow.run_id)).await.unwrap().unwrap();
    assert_eq!(run.status, Status::Completed);
    let tools = blocks(SQL, "sql").into_iter().find(|question| question.contains("'$.toolName'")).unwrap();
    let (_, tools) = ask(&db, tools);
    let called = ask(
        &db,
        "SELECT count(DISTINCT run_id || (event ->> '$.toolCallId')) FROM v_events WHERE type LIKE 'tool-input%'",
    );
    let sum =
        |column: usize| tools.iter().map(|row| if let Value::Integer(n) = row[column] { n } else { 0 }).sum::<i64>();
    assert_eq!((sum(1), sum(2)), (4, 0), "an approved call is one: {tools:?}");
    assert_eq!(called.1[0][0], Value::Integer(4));
    let questions = blocks(SQL, "sql");
    assert!(questions.len() >= 9, "the questions were not found");
    for question in questions {
        let (_, rows) = ask(&db, &question.replace('…', &tool.to_string()));
        if question.contains("HAVING max(seq)") {
            assert_eq!(rows, Vec::<Vec<Value>>::new(), "no log has a gap");
        } else {
            assert!(!rows.is_empty(), "no answer to: {question}");
        }
        if question.starts_with("SELECT role, text") {
            let said: Vec<_> = rows.iter().map(|row| row.iter().map(text).collect::<Vec<_>>()).collect();
            assert_eq!(said.iter().map(|row| row[0]).collect::<Vec<_>>(), ["user", "assistant", "user", "assistant"]);
            assert_eq!((said[0][1], said[1][1], said[2][1]), ("/tool", "The tool counted to 3.", "hi"));
        }
        if question.contains("'$.delta'") {
            let words: String = rows.iter().map(|row| text(&row[2])).collect();
            assert_eq!(words, "The tool counted to 3.");
        }
    }
    let quoted = blocks(README, "sh").into_iter().find(|block| block.contains("sqlite3")).unwrap();
    assert!(!ask(&db, quoted.split('"').nth(1).unwrap()).1.is_empty());
    let (version, id) = (ask(&db, "PRAGMA user_version").1, ask(&db, "PRAGMA application_id").1);
    let Value::Integer(version) = version[0][0] else { panic!("no version: {version:?}") };
    assert!(SQL.contains(&format!("PRAGMA user_version = {version}\"")), "docs/sql.md restores another schema");
    assert_eq!(id[0][0], Value::Integer(0x4D53_544E));
    assert!(SQL.contains("0x4D53544E"));
    drop(db);
    engine.drain(Duration::ZERO).await;
    engine.close().await;
}

/// The oldest SQLite in common use is that of Debian 12, 3.40. If a newer shell is installed, that one is used.
#[tokio::test]
async fn an_old_sqlite_shell_checks_dumps_and_restores_a_file() {
    if Command::new("sqlite3").arg("-version").output().is_err() {
        let _ = writeln!(std::io::stderr(), "\n*** SKIPPED: there is no sqlite3 to check files with ***");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (engine, tool) = filled(dir.path()).await;
    engine.drain(Duration::ZERO).await;
    engine.close().await;
    let (original, restored) = (dir.path().join("m.db"), dir.path().join("restored.db"));
    for check in ["PRAGMA integrity_check", "PRAGMA quick_check"] {
        assert_eq!(shell(&original, check), "ok\n");
    }
    for question in blocks(SQL, "sql") {
        shell(&original, &question.replace('…', &tool.to_string()));
    }
    let restore = blocks(SQL, "sh").concat().replace("mainstay.db", "m.db");
    let done = Command::new("sh").args(["-ec", &restore]).current_dir(dir.path()).output().unwrap();
    assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
    assert_eq!(shell(&restored, "PRAGMA integrity_check"), "ok\n");
    let tables = "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite%'";
    for table in shell(&original, tables).lines() {
        let rows = format!("SELECT * FROM {table} ORDER BY 1, 2");
        assert_eq!(shell(&original, &rows), shell(&restored, &rows), "{table}");
    }
    let engine = Engine::open(&restored, Config::builtin(dir.path())).await.unwrap();
    let findings: Vec<_> =
        engine.audit(Depth::Full).await.unwrap().findings().map(|found| format!("{found:?}")).collect();
    assert_eq!(findings, Vec::<String>::new());
    engine.close().await;
}

/// The shell's output for some lines of input.
fn shell(db: &Path, input: &str) -> String {
    let mut sqlite = Command::new("sqlite3");
    sqlite.args(["-bail", "-batch"]).arg(db);
    let mut child = sqlite.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = format!("{input};");
    let writing = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn text(value: &Value) -> &str {
    match value {
        Value::Text(text) => text,
        other => panic!("{other:?} is no text"),
    }
}

#[tokio::test]
async fn the_views_have_the_columns_that_are_written_down() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(&dir.path().join("m.db"), Config::builtin(dir.path())).await.unwrap();
    let db = Connection::open_with_flags(dir.path().join("m.db"), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut written: Vec<(&str, Vec<&str>)> = Vec::new();
    for word in blocks(SQL, "text").into_iter().flat_map(str::split_whitespace) {
        match written.last_mut() {
            Some((_, columns)) if !word.starts_with("v_") => columns.push(word),
            _ => written.push((word, Vec::new())),
        }
    }
    let (_, views) = ask(&db, "SELECT name FROM sqlite_schema WHERE type = 'view' AND name LIKE 'v\\_%' ESCAPE '\\'");
    let names: std::collections::BTreeSet<_> = views.iter().map(|row| text(&row[0])).collect();
    assert_eq!(written.iter().map(|(view, _)| *view).collect::<std::collections::BTreeSet<_>>(), names);
    for (view, columns) in written {
        assert_eq!(ask(&db, &format!("SELECT * FROM {view}")).0, columns, "{view}");
        assert!(SQL.contains(&format!("| `{view}` |")), "{view} is not explained");
    }
    drop(db);
    engine.close().await;
}

#[test]
fn every_status_and_cause_is_explained() {
    for status in Status::ALL {
        assert!(SQL.contains(&format!("`{}`", status.as_str())), "{}", status.as_str());
    }
    let row =
        |status: Status| SQL.lines().find(|line| line.starts_with(&format!("| `{}` |", status.as_str()))).unwrap();
    for cause in Cause::ALL {
        assert!(row(cause.status()).contains(&format!("`{}`", cause.as_str())), "{}", cause.as_str());
    }
}

#[test]
fn every_example_of_a_config_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("prometheus.token");
    std::fs::write(&token, "s3cret").unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut count = 0;
    for (name, page) in pages::pages() {
        for block in pages::blocks(&page).into_iter().filter(|block| block.language == "toml") {
            let place = Path::new(&name);
            Config::load(&block.text, place, dir.path()).unwrap_or_else(|error| panic!("{}: {error}", block.line));
            count += 1;
        }
    }
    assert!(count > 10, "the examples were not found");
}

#[test]
fn the_error_of_a_config_is_the_one_that_is_shown() {
    let page = include_str!("../../docs/config.md");
    let shown = blocks(page, "text").into_iter().find(|block| block.contains("engine.leese")).unwrap();
    let (line, _) = shown.trim_start_matches("mainstay.toml:").split_once(':').unwrap();
    let text = format!("{}[engine]\nleese = \"30s\"\n", "\n".repeat(line.parse::<usize>().unwrap() - 2));
    let error = Config::load(&text, Path::new("mainstay.toml"), Path::new("/")).unwrap_err();
    assert_eq!(error.to_string(), shown.trim_end());
}

#[test]
fn each_line_of_the_contract_is_understood() {
    let lines: Vec<_> = AGENTS.lines().filter_map(|line| line.strip_prefix("| `{\"event\"")).collect();
    assert_eq!(lines.len(), 8);
    for line in lines {
        let line = format!("{{\"event\"{}", line.split('`').next().unwrap());
        let mut parse = mainstay::driver::openclaw::parser();
        assert!(!parse(&line).expect("it is understood").is_empty(), "{line}");
    }
}

#[test]
fn links_and_paths_lead_somewhere() {
    let root = pages::root();
    let is_there = |from: &Path, path: &str| from.join(path.trim_end_matches('/')).exists();
    for (name, page) in pages::pages() {
        let here = root.join(&name);
        for link in between(&page, "](", ")").into_iter().filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { here.clone() } else { here.parent().unwrap().join(path) };
            assert!(target.exists(), "{name} links to {link}");
            if !anchor.is_empty() {
                let target = std::fs::read_to_string(target).unwrap();
                assert!(pages::anchors(&target).contains(anchor), "{name} links to {link}, which has no such heading");
            }
        }
        let paths = page.split('`').skip(1).step_by(2).filter(|word| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "_./-".contains(c);
            word.chars().all(plain) && (word.ends_with(".rs") || word.ends_with(".sql") || word.starts_with("src/"))
        });
        for path in paths {
            let anywhere = [
                "",
                "src",
                "src/store/run",
                "src/engine",
                "src/process",
                "src/driver",
                "tests/faults",
                "tests/security",
            ];
            assert!(anywhere.iter().any(|dir| is_there(&root.join(dir), path)), "{name} names {path}");
        }
    }
}

/// The commands under "Kill it" in the order in which a newcomer types them, only with a shorter answer, and with the daemon
/// killed while it answers.
#[test]
fn readme_kills_a_daemon_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mainstay.toml"), "[server]\nlisten = \"127.0.0.1:0\"").unwrap();
    let commands = |heading: &str| blocks(README.split(heading).nth(1).unwrap(), "sh")[0].to_owned();
    let (serve, kill_it) = (commands("## Serve a chat"), commands("## Kill it"));
    let serve = serve.lines().find(|line| line.starts_with("mainstay serve")).unwrap();
    assert!(kill_it.contains("/slow 1500\"") && kill_it.contains("\nkill -9 $daemon"), "{kill_it}");
    let speaks = "until mainstay runs --json | grep -q '\"last_seq\":[1-9][0-9]'; do sleep 0.05; done";
    let kill_it = kill_it.replace("/slow 1500", "/slow 100").replace("\nkill", &format!("\n{speaks}\nkill"));
    let script = format!("trap 'kill -9 $daemon' EXIT\n{serve}\n{kill_it}");
    let bin = Path::new(env!("CARGO_BIN_EXE_mainstay")).parent().unwrap().display().to_string();
    let path = format!("{bin}:{}", std::env::var("PATH").unwrap());
    let mut bash = testkit::command("timeout");
    bash.args(["60", "bash", "-c", &script]).current_dir(dir.path()).env("PATH", path);
    let output = bash.stdin(Stdio::null()).output().unwrap();
    let (said, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let answer: String = (1..=100).map(|number| format!("{number} ")).collect();
    // In between, a daemon prints its address.
    let mut pieces = said.split("listening on http://");
    let before = pieces.next().unwrap().to_owned();
    let without = pieces.fold(before, |all, piece| all + piece.split_once('\n').map_or("", |(_, rest)| rest));
    assert!(without.contains(answer.trim_end()), "{said}\n{log}");
    let db = Connection::open(dir.path().join("mainstay.db")).unwrap();
    let runs: Vec<(String, i64)> = ask(&db, "SELECT status, attempts FROM v_runs")
        .1
        .into_iter()
        .map(|row| match &row[..] {
            [Value::Text(status), Value::Integer(attempts)] => (status.clone(), *attempts),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(runs, [("completed".to_owned(), 1)], "{log}");
}
