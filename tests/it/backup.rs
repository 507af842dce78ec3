//! Backup: a copy of a file in use is complete, continues where it was, and leaves the agents of the original alone.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use mainstay::audit::Verdict;
use mainstay::config::Config;
use mainstay::engine::{Depth, Engine, StoreError, back_up, doctor};
use mainstay::run::Status;
use rusqlite::Connection;

use crate::scene::{Camp, Scene, config, marked, says, settled, until, within};

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = entries.collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_copy_has_all_that_was_said_and_goes_on() {
    let scene = Scene::new(&[("x", &says("hello"))], "").await;
    let run = scene.turn("x", "s", "hi").await;
    let (original, copies) = (scene.story(run.id).await, tempfile::tempdir().unwrap());
    let copy = copies.path().join("copy.db");
    let backup = back_up(&scene.dir.path().join("m.db"), &copy).await.unwrap();
    let meta = copy.metadata().unwrap();
    assert_eq!(
        (backup.path.as_path(), backup.bytes, meta.permissions().mode() & 0o777),
        (copy.as_path(), meta.len(), 0o600)
    );
    assert_eq!(names(copies.path()), ["copy.db"], "nothing else is left");

    // An existing file is never overwritten.
    let before = std::fs::read(&copy).unwrap();
    let error = back_up(&scene.dir.path().join("m.db"), &copy).await.unwrap_err().to_string();
    assert!(error.contains("copy.db is there already"), "{error}");
    assert_eq!((std::fs::read(&copy).unwrap() == before, names(copies.path())), (true, vec!["copy.db".to_owned()]));
    // And nothing is left of a copy that failed.
    back_up(&scene.dir.path().join("m.db"), &copies.path().join("none/copy.db")).await.unwrap_err();
    back_up(&scene.dir.path().join("none.db"), &copies.path().join("other.db")).await.unwrap_err();
    assert_eq!(names(copies.path()), ["copy.db"]);

    let text = config(copies.path(), &[("x", &says("again"))], "");
    let mut config = Config::load(&text, Path::new("test.toml"), copies.path()).unwrap();
    config.engine.shim_program = env!("CARGO_BIN_EXE_mainstay").into();
    let engine = Engine::open(&copy, config).await.unwrap();
    engine.start().await.unwrap();
    let restored = Scene { dir: copies, engine };
    assert_eq!((restored.story(run.id).await, restored.messages("s").await), (original, scene.messages("s").await));
    let next = restored.turn("x", "s", "and now?").await;
    assert_eq!((next.status, next.first_seq), (Status::Completed, run.last_seq.map(|seq| seq + 1)));
    assert_eq!(restored.engine.audit(Depth::Full).await.unwrap().verdict(), Verdict::Ok);
}

#[tokio::test]
async fn a_copy_settles_what_was_running_and_leaves_the_agents_of_the_original_alone() {
    let script = format!(
        "[ \"$1\" = next ] || {{ {}; while [ ! -e stop ]; do sleep 0.01; done; }}; {}",
        says("begun"),
        says("ended")
    );
    let camp = Camp::new(&[("x", &script)], "").await;
    let daemon = camp.daemon();
    let run = camp.send("x", "s", "first").await;
    let waiting = camp.send("x", "s", "next").await;
    camp.grown(run.id, 4).await;
    // Its `sleep` comes and goes.
    let agent = marked(run.id)[0];

    let copies = tempfile::tempdir().unwrap();
    let copy = copies.path().join("copy.db");
    back_up(&camp.db, &copy).await.unwrap();
    let db = Connection::open(&copy).unwrap();
    let processes = "SELECT count(*) FROM runs WHERE coalesce(pid, pid_started_at, pid_scope, shim_attempt, shim_secret) IS NOT NULL
                         AND status = 'running' OR (SELECT count(*) FROM workers WHERE pid <> 0 OR pid_scope <> '')";
    assert_eq!(db.query_row(processes, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
    drop(db);

    let mut config = camp.watcher.config().clone();
    config.engine.shim_program = env!("CARGO_BIN_EXE_mainstay").into();
    let engine = Engine::open(&copy, config.clone()).await.unwrap();
    // Processes that carry the same run's marker do not belong to this copy.
    let examined = doctor::examine(&copy, &config, Depth::Quick).await.unwrap();
    let processes = examined.checks.iter().find(|check| check.name == "processes").unwrap();
    assert_eq!(processes.findings, []);
    assert!(!engine.is_executed_elsewhere().await.unwrap(), "the daemon of the original does not execute for the copy");
    engine.start().await.unwrap();
    assert_eq!(settled(&engine, run.id).await.status, Status::Interrupted);
    assert_eq!(settled(&engine, waiting.id).await.status, Status::Completed);
    assert_eq!(engine.audit(Depth::Full).await.unwrap().verdict(), Verdict::Ok);
    engine.drain(std::time::Duration::ZERO).await;
    engine.close().await;

    assert!(marked(run.id).contains(&agent), "the agent of the original goes on");
    std::fs::write(camp.dir.path().join("stop"), "").unwrap();
    for run in [run.id, waiting.id] {
        assert_eq!(within(camp.watcher.wait_settled(run)).await.unwrap().status, Status::Completed);
    }
    until(|| marked(run.id).is_empty()).await;
    daemon.stop();
}

#[tokio::test]
async fn a_copy_made_in_the_midst_of_writes_is_sound() {
    let scene = Scene::new(&[("x", "for i in 1 2 3 4 5 6 7 8 9; do echo '{\"event\":\"agent\",\"stream\":\"assistant\",\"data\":{\"delta\":\"x\"}}'; done")], "").await;
    let copies = tempfile::tempdir().unwrap();
    let mut runs = Vec::new();
    for number in 0..4 {
        for session in ["a", "b", "c"] {
            runs.push(scene.send("x", session, "hi").await.id);
        }
        let copy = copies.path().join(format!("{number}.db"));
        back_up(&scene.dir.path().join("m.db"), &copy).await.unwrap();
        let examined = doctor::examine(&copy, scene.engine.config(), Depth::Full).await.unwrap();
        let wrong = examined.findings().filter(|(check, _)| !["disk", "runs", "workers", "waiting"].contains(check));
        assert_eq!(wrong.collect::<Vec<_>>(), []);
    }
    for run in runs {
        scene.settled(run).await;
    }
}

#[tokio::test]
async fn only_a_database_of_ours_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    Connection::open(dir.path().join("other.db")).unwrap().execute_batch("CREATE TABLE x (y)").unwrap();
    let error = back_up(&dir.path().join("other.db"), &dir.path().join("copy.db")).await.unwrap_err();
    assert!(matches!(error, mainstay::engine::EngineError::Store(StoreError::NotOurs(_))), "{error}");
    assert_eq!(names(dir.path()), ["other.db"]);
}
