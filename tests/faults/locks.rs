//! Other programs that use the file: one that holds the write lock, and one with a long read transaction.

use std::time::{Duration, Instant};

use reqwest::Method;

use crate::scene::{Count, Scene, check_file, counted, until, within};

#[tokio::test]
async fn a_writer_that_keeps_the_lock_for_long_only_keeps_others_waiting() {
    let scene = Scene::new("");
    let daemon = scene.daemon();
    let run = daemon.count("s", "before").await.run();
    let other = scene.open();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refused = within(daemon.count("s", "during")).await;
    assert_eq!(refused.refused(), (503, "database_busy"), "longer than the busy timeout");
    assert_eq!(daemon.get("/v1/sessions/s/messages").await.status, 200);
    other.execute_batch("ROLLBACK").unwrap();
    let again = daemon.count("s", "during").await.run();
    for run in [run, again] {
        assert_eq!(within(daemon.follow(&run, |_, _| ())).await, counted());
    }
    check_file(&other).unwrap();
    daemon.stop();
}

#[tokio::test]
async fn a_daemon_that_starts_while_another_process_holds_the_lock_waits_for_it() {
    let scene = Scene::new("");
    scene.daemon().stop();
    let other = scene.open();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let starting = scene.serve().spawn().unwrap();
    until(|| scene.logged().contains("locked by another process; waiting")).await;
    other.execute_batch("ROLLBACK").unwrap();
    let daemon = scene.ready(starting).unwrap_or_else(|_| panic!("it gave up: {}", scene.logged()));
    assert_eq!(within(daemon.settled(&daemon.count("s", "m").await.run())).await["status"], "completed");
    daemon.stop();
}

#[tokio::test]
async fn the_wal_is_brought_back_when_a_reader_that_held_it_has_gone() {
    // Six thousand events of two kilobytes.
    let line = r#"{\"event\":\"agent\",\"stream\":\"assistant\",\"data\":{\"delta\":\"$text\"}}"#;
    let script =
        format!("text=$(printf '%02000d' 7); i=0; while [ $i -lt 6000 ]; do i=$((i+1)); echo \"{line}\"; done");
    let scene = Scene::with_agent(&script, "");
    let daemon = scene.daemon();
    let reader = scene.open();
    reader.execute_batch("BEGIN; SELECT count(*) FROM runs").unwrap();
    let run = daemon.count("s", "m").await.run();
    assert_eq!(within(daemon.settled(&run)).await["status"], "completed");
    let grown = scene.wal_bytes();
    assert!(grown > 10_000_000, "nothing was held back: {grown}");
    for number in 0..3 {
        // When idle, the writer tries to truncate the WAL, and must not hold the lock while it waits for the reader.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let begun = Instant::now();
        daemon.count("s", &format!("m{number}")).await.run();
        assert!(begun.elapsed() < Duration::from_secs(4), "it waited for the reader");
        daemon.request(Method::POST, "/api/chat/s/stop").send().await.unwrap();
    }
    reader.execute_batch("COMMIT").unwrap();
    until(|| scene.wal_bytes() < 1_000_000).await;
    assert_eq!(daemon.get("/readyz").await.status, 200);
    check_file(&reader).unwrap();
    daemon.stop();
}
