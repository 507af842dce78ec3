//! Output that SQLite refuses, and runs that crash each process that adopts them.

use mainstay::run::{Run, Status};

use crate::scene::{Camp, NOTHING, Scene, TIMEOUT, marked, says, settled, until, within};

/// Says `fine`, then text that the database refuses, and keeps running.
fn script() -> String {
    format!("{}; while [ ! -e go ]; do sleep 0.01; done; {}; exec tail -f /dev/null", says("fine"), says("poison"))
}

/// Adds a trigger that refuses a row.
fn refuse(db: &std::path::Path, when: &str, statement: &str) -> rusqlite::Connection {
    let other = rusqlite::Connection::open(db).unwrap();
    other.busy_timeout(crate::scene::TIMEOUT).unwrap();
    other.execute_batch(&format!("CREATE TRIGGER refuse BEFORE INSERT ON {when} BEGIN {statement}; END")).unwrap();
    other
}

const POISON: &str = "events WHEN NEW.event LIKE '%poison%'";
/// Too large for a value.
const TOO_BIG: &str = "SELECT length(zeroblob(1000000001))";

fn is_unstorable(run: &Run, words: &str) {
    assert_eq!((run.status, run.cause.as_deref()), (Status::Failed, Some("unstorable")), "{run:?}");
    assert!(run.error.as_ref().is_some_and(|error| error.contains(words)), "{run:?}");
}

/// The run ends with what was stored before, its agent ends too, and its session can be used again.
async fn is_settled_without(statement: &str, words: &str) {
    let scene = Scene::new(&[("agent", &script()), ("other", &says("hello"))], "").await;
    let other = refuse(&scene.dir.path().join("m.db"), POISON, statement);
    let run = scene.send("agent", "s", "hi").await;
    scene.said(run.id, "fine").await;
    std::fs::write(scene.dir.path().join("go"), "").unwrap();
    let run = scene.settled(run.id).await;
    is_unstorable(&run, words);
    let story = scene.story(run.id).await;
    assert!(story.contains("text-delta=fine text-end") && !story.contains("poison"), "{story}");
    assert!(story.contains(" error=") && story.ends_with("finish=error"), "{story}");
    assert_eq!(marked(run.id), NOTHING);
    other.execute_batch("DROP TRIGGER refuse").unwrap();
    assert_eq!(scene.turn("other", "t", "hi").await.status, Status::Completed);
}

#[tokio::test]
async fn run_ends_when_a_row_is_too_large() {
    is_settled_without(TOO_BIG, "too big").await;
}

#[tokio::test]
async fn run_ends_when_the_schema_refuses_a_row() {
    is_settled_without("UPDATE runs SET priority = 1001", "CHECK constraint failed").await;
}

#[tokio::test]
async fn run_whose_message_is_refused_ends_with_its_events() {
    let scene = Scene::new(&[("agent", &says("hello"))], "").await;
    let refused = "messages WHEN NEW.role = 'assistant'";
    let _other = refuse(&scene.dir.path().join("m.db"), refused, TOO_BIG);
    let run = scene.turn("agent", "s", "hi").await;
    is_unstorable(&run, "too big");
    assert!(scene.story(run.id).await.ends_with("finish=error"));
}

async fn is_an_internal_error(statement: &str, words: &str) {
    let scene = Scene::new(&[("agent", &script())], "").await;
    let _other = refuse(&scene.dir.path().join("m.db"), POISON, statement);
    let run = scene.send("agent", "s", "hi").await;
    scene.said(run.id, "fine").await;
    std::fs::write(scene.dir.path().join("go"), "").unwrap();
    let run = scene.settled(run.id).await;
    assert_eq!((run.status, run.cause.as_deref()), (Status::Failed, Some("internal")), "{run:?}");
    assert!(run.error.as_ref().is_some_and(|error| error.contains(words)), "{run:?}");
    assert!(scene.story(run.id).await.ends_with("finish=error"));
    assert_eq!(marked(run.id), NOTHING);
}

#[tokio::test]
async fn contradiction_is_an_internal_error() {
    let twice = "INSERT INTO workers SELECT * FROM workers LIMIT 1";
    is_an_internal_error(twice, "UNIQUE constraint failed").await;
}

#[tokio::test]
async fn row_that_a_trigger_refuses_is_an_internal_error() {
    is_an_internal_error("SELECT RAISE(ABORT, 'seq would have a gap')", "seq would have a gap").await;
}

#[tokio::test]
async fn run_whose_end_is_refused_is_settled_with_a_bare_end() {
    let scene = Scene::new(&[("agent", &script())], "").await;
    let words = "events WHEN NEW.event LIKE '%poison%' OR NEW.event LIKE '%max_line_bytes%'";
    let other = refuse(&scene.dir.path().join("m.db"), words, TOO_BIG);
    let run = scene.send("agent", "s", "hi").await;
    scene.said(run.id, "fine").await;
    std::fs::write(scene.dir.path().join("go"), "").unwrap();
    let run = scene.settled(run.id).await;
    is_unstorable(&run, "The end of this run could not be stored as it was");
    let story = scene.story(run.id).await;
    assert!(story.contains("text-delta=fine data-notice message-metadata error="), "{story}");
    assert!(story.ends_with("finish=error"), "{story}");
    other.execute_batch("DROP TRIGGER refuse").unwrap();
    assert_eq!(marked(run.id), NOTHING);
}

#[tokio::test]
async fn end_with_facts_that_are_refused_is_settled_without() {
    let script = format!("{}; echo poison >&2; exit 3", says("hello"));
    let scene = Scene::new(&[("agent", &script)], "").await;
    let other = rusqlite::Connection::open(scene.dir.path().join("m.db")).unwrap();
    let when = "BEFORE UPDATE OF stderr ON runs WHEN NEW.stderr LIKE '%poison%'";
    other.execute_batch(&format!("CREATE TRIGGER refuse {when} BEGIN {TOO_BIG}; END")).unwrap();
    let run = scene.turn("agent", "s", "hi").await;
    is_unstorable(&run, "too big");
    assert!(scene.story(run.id).await.contains("text-delta=hello text-end"));
}

/// An agent that is stopped because of its output, and ignores that.
async fn deaf(more: &str) -> (Scene, Run, rusqlite::Connection) {
    let script = format!(
        "trap 'echo > asked' TERM; {}; until [ -e go ]; do sleep 0.01; done; {}; while :; do sleep 0.01; done",
        says("fine"),
        says("poison")
    );
    let script = serde_json::Value::from(script);
    let scene = Scene::idle(
        &[],
        &format!(
            "{more}\n[agents.deaf]\ndriver = \"openclaw\"\nkill_grace = \"10m\"\n\
         command = [\"sh\", \"-c\", {script}, \"agent\", \"{{message}}\"]\n[workspaces.deaf]\nagent = \"deaf\"\n"
        ),
    )
    .await;
    scene.engine.start().await.unwrap();
    let other = refuse(&scene.dir.path().join("m.db"), POISON, TOO_BIG);
    let run = scene.send("deaf", "s", "hi").await;
    scene.said(run.id, "fine").await;
    std::fs::write(scene.dir.path().join("go"), "").unwrap();
    until(|| scene.dir.path().join("asked").exists()).await;
    (scene, run, other)
}

#[tokio::test]
async fn kill_reaches_an_agent_that_said_what_is_refused() {
    let (scene, run, _other) = deaf("").await;
    scene.engine.kill_now();
    is_unstorable(&scene.settled(run.id).await, "too big");
    assert_eq!(marked(run.id), NOTHING);
}

#[tokio::test]
async fn lost_lease_ends_the_wait_for_an_agent_that_is_refused() {
    let (scene, run, other) = deaf("[engine]\nlease = \"1s\"\n").await;
    other.execute("UPDATE runs SET lease_token = lease_token + 1", []).unwrap();
    // Returns once nothing is executed here any more.
    within(scene.engine.drain(TIMEOUT * 2)).await;
    assert_eq!(scene.engine.run(run.id).await.unwrap().status, Status::Running, "another worker has it");
    for pid in marked(run.id) {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        // It may have ended together with another of the processes.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// A daemon that adopts a run whose shim is stopped: it never catches up.
#[tokio::test(flavor = "multi_thread")]
async fn only_adoptions_that_fail_are_counted() {
    let camp = Camp::new(&[("agent", &script())], "[engine]\nlease = \"1s\"").await;
    let daemon = camp.daemon();
    let run = camp.send("agent", "s", "hi").await;
    camp.grown(run.id, 4).await;
    daemon.kill();
    let db = rusqlite::Connection::open(&camp.db).unwrap();
    let number =
        |column: &str| db.query_row(&format!("SELECT {column} FROM runs"), [], |row| row.get::<_, i64>(0)).unwrap();
    let shim = rustix::process::Pid::from_raw(number("pid").try_into().unwrap()).unwrap();
    rustix::process::kill_process(shim, rustix::process::Signal::STOP).unwrap();

    let mut daemon = camp.daemon();
    until(|| number("failures") == 1).await;
    daemon.signal("USR2");
    assert!(daemon.wait().success());
    assert_eq!(number("failures"), 0, "it was handed over");

    let first = camp.daemon();
    until(|| number("failures") == 1).await;
    camp.pause(&first);
    let second = camp.daemon();
    until(|| number("failures") == 2).await;
    first.signal("CONT");
    until(|| number("failures") == 1).await;
    second.kill();
    rustix::process::kill_process(shim, rustix::process::Signal::CONT).unwrap();
    camp.watcher.cancel_run(run.id).await.unwrap();
    assert_eq!(settled(&camp.watcher, run.id).await.status, Status::Cancelled);
    first.stop();
}

/// A process that is killed while it adopts a run stands for one that runs out of memory.
#[tokio::test(flavor = "multi_thread")]
async fn run_that_takes_its_workers_down_is_settled() {
    let camp = Camp::new(&[("agent", &script())], "").await;
    let daemon = camp.daemon();
    let run = camp.send("agent", "s", "hi").await;
    camp.grown(run.id, 4).await;
    // The write never ends.
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let other = refuse(&camp.db, POISON, endless);
    std::fs::write(camp.dir.path().join("go"), "").unwrap();
    let is_spooled = || {
        let mut spools = std::fs::read_dir(camp.dir.path().join("m.db-agents")).unwrap().flatten();
        spools.any(|home| {
            let spool = std::fs::read(home.path().join("spool")).unwrap_or_default();
            spool.windows(6).any(|word| word == b"poison")
        })
    };
    until(is_spooled).await;
    daemon.kill();
    let failures = || {
        let count = "SELECT failures FROM runs WHERE id = ?1";
        other.query_row(count, [run.id.to_string()], |row| row.get::<_, i64>(0)).unwrap()
    };
    for expected in 1..=12 {
        let daemon = camp.daemon();
        until(|| failures() >= expected).await;
        daemon.kill();
        assert_eq!(failures(), expected);
    }
    let daemon = camp.daemon();
    let run = settled(&camp.watcher, run.id).await;
    is_unstorable(&run, "12 processes in a row");
    assert_eq!(marked(run.id), NOTHING);
    assert!(camp.log().contains("a run takes its workers down"));
    daemon.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn adoption_that_catches_up_counts_as_none() {
    let camp = Camp::new(&[("agent", &script())], "").await;
    let daemon = camp.daemon();
    let run = camp.send("agent", "s", "hi").await;
    camp.grown(run.id, 4).await;
    daemon.kill();
    let db = rusqlite::Connection::open(&camp.db).unwrap();
    for _ in 0..6 {
        db.busy_timeout(crate::scene::TIMEOUT).unwrap();
        db.execute("UPDATE runs SET failures = 4", []).unwrap();
        let daemon = camp.daemon();
        until(|| db.query_row("SELECT failures FROM runs", [], |row| row.get::<_, i64>(0)).unwrap() == 0).await;
        daemon.kill();
    }
    std::fs::write(camp.dir.path().join("go"), "").unwrap();
    let daemon = camp.daemon();
    camp.watcher.cancel_run(run.id).await.unwrap();
    assert_eq!(settled(&camp.watcher, run.id).await.status, Status::Cancelled);
    daemon.stop();
}

/// The values that the limits of the config are derived from.
#[test]
fn sqlite_stores_as_much_as_the_limits_say() {
    use mainstay::config::limits::MAX_STORED_BYTES;
    let db = rusqlite::Connection::open_in_memory().unwrap();
    let length = |bytes: usize| {
        db.query_row(&format!("SELECT length(zeroblob({bytes}))"), [], |row| row.get::<_, i64>(0)).is_ok()
    };
    assert!(length(MAX_STORED_BYTES) && !length(MAX_STORED_BYTES + 1));
}
