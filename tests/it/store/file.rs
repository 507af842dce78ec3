//! The database file: opened, refused, upgraded, moved away.

use std::path::Path;
use std::sync::Arc;

use mainstay::clock::{ManualClock, Timestamp};
use mainstay::run::{Outcome, Status};
use mainstay::store::StoreError;

use super::{Scene, open};

#[tokio::test]
async fn what_was_acknowledged_is_there_after_reopening() {
    let scene = Scene::new(1).await;
    let sent = scene.send("s", "m1").await;
    scene.store.close().await;
    assert!(matches!(scene.store.enqueue(scene.enqueue_request("s", "m2")).await, Err(StoreError::Closed)));
    let store = open(&scene.path, scene.clock.clone(), Arc::default()).await.unwrap();
    assert_eq!(store.find_run(sent.run.run.id).await.unwrap().unwrap().run.status, Status::Queued);
}

#[tokio::test]
async fn eight_openers_at_once_make_one_database() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.db");
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(0)));
    let opened = (0..8).map(|_| {
        let (path, clock) = (path.clone(), clock.clone());
        tokio::spawn(async move { open(&path, clock, Arc::default()).await.map(|_| ()) })
    });
    for opener in futures_util::future::join_all(opened).await {
        opener.unwrap().unwrap();
    }
}

#[tokio::test]
async fn the_files_are_readable_by_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    for entry in std::fs::read_dir(scene.path.parent().unwrap()).unwrap() {
        let entry = entry.unwrap();
        let mode = if entry.path().is_dir() { 0o700 } else { 0o600 };
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, mode, "{:?}", entry.path());
    }
}

async fn opening(path: &Path) -> StoreError {
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(0)));
    open(path, clock, Arc::default()).await.expect_err("it must not open")
}

#[tokio::test]
async fn another_programs_file_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.txt");
    std::fs::write(&path, "my notes, which are long enough to be no empty database at all; ".repeat(20)).unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(matches!(opening(&path).await, StoreError::NotOurs(_)));
    assert_eq!(std::fs::read(&path).unwrap(), before);

    let path = dir.path().join("other.db");
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)").unwrap();
    drop(other);
    let before = std::fs::read(&path).unwrap();
    assert!(matches!(opening(&path).await, StoreError::NotOurs(_)));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_newer_database_is_refused() {
    let scene = Scene::new(1).await;
    scene.store.close().await;
    let conn = rusqlite::Connection::open(&scene.path).unwrap();
    conn.execute_batch(
        "INSERT INTO refinery_schema_history SELECT 99, 'future', applied_on, checksum FROM refinery_schema_history LIMIT 1",
    )
    .unwrap();
    drop(conn);
    let error = opening(&scene.path).await.to_string();
    assert!(error.contains("version 99") && error.contains("newer build"), "{error}");
}

fn agents_dir(path: &Path) -> std::fs::File {
    std::fs::File::open(path.with_file_name("m.db-agents")).unwrap()
}

#[tokio::test]
async fn open_database_keeps_migrations_away() {
    let scene = Scene::new(1).await;
    let another = open(&scene.path, scene.clock.clone(), Arc::default()).await.unwrap();
    let dir = agents_dir(&scene.path);
    assert!(dir.try_lock().is_err());
    scene.store.close().await;
    assert!(dir.try_lock().is_err(), "one of two is still there");
    another.close().await;
    dir.try_lock().unwrap();
}

#[tokio::test]
async fn a_database_that_is_moved_away_takes_no_write() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    let away = scene.path.with_file_name("away.db");
    std::fs::rename(&scene.path, &away).unwrap();
    let request = scene.enqueue_request("s", "m2");
    let error = scene.store.enqueue(request.clone()).await.unwrap_err();
    assert!(matches!(&error, StoreError::Gone(_)) && error.is_transient(), "{error:?}");
    // So many at once that all connections are needed.
    for shown in futures_util::future::join_all((0..8).map(|_| scene.shown("s"))).await {
        assert_eq!(shown, ["m1"]);
    }
    let error = opening(&scene.path).await;
    assert!(matches!(&error, StoreError::Damaged { .. }), "its WAL is still needed: {error:?}");
    // Another file at its path, even a copy, is not the same.
    std::fs::copy(&away, &scene.path).unwrap();
    assert!(matches!(scene.store.check_writable().await.unwrap_err(), StoreError::Gone(_)));
    assert_eq!(scene.shown("s").await, ["m1"], "readers go on");
    std::fs::rename(&away, &scene.path).unwrap();
    scene.store.enqueue(request).await.unwrap().unwrap();
    assert_eq!(scene.shown("s").await, ["m1", "m2"]);
}

#[tokio::test]
async fn a_damaged_database_is_refused() {
    use std::os::unix::fs::FileExt;
    let scene = Scene::new(1).await;
    for number in 0..200 {
        scene.send("s", &format!("m{number}")).await;
    }
    scene.store.close().await;
    let file = std::fs::OpenOptions::new().write(true).open(&scene.path).unwrap();
    for page in 3..20 {
        file.write_all_at(&[0xAA; 512], page * 4096).unwrap();
    }
    let error = opening(&scene.path).await;
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    file.set_len(5000).unwrap();
    let error = opening(&scene.path).await;
    assert!(matches!(error, StoreError::Damaged { .. } | StoreError::NotOurs(_)), "{error:?}");
}

#[tokio::test]
async fn a_missing_directory_is_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let error = opening(&dir.path().join("missing/m.db")).await;
    assert!(matches!(&error, StoreError::NoDirectory(missing) if missing.ends_with("missing")), "{error:?}");
    let error = opening(dir.path()).await;
    assert!(matches!(&error, StoreError::NotAFile { kind: "a directory", .. }), "{error:?}");
}

#[tokio::test]
async fn closing_leaves_no_statistics_behind() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    scene.settle(&scene.claim(1).await[0], Outcome::completed()).await.unwrap();
    scene.store.close().await;
    let conn = rusqlite::Connection::open(&scene.path).unwrap();
    let count = "SELECT count(*) FROM sqlite_schema WHERE name LIKE 'sqlite_stat%'";
    assert_eq!(conn.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
}
