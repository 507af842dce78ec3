//! `/readyz` says why nothing would be accepted or executed now, soon after the cause, and without a write per request.

use std::time::Instant;

use mainstay::config::Config;
use mainstay::engine::Engine;

use crate::place::until_ready;
use crate::scene::{Answer, Count, Daemon, Scene, within};

async fn code(daemon: &Daemon) -> (u16, String) {
    let Answer { status, body, .. } = daemon.get("/readyz").await;
    (status, body["error"]["code"].as_str().unwrap_or("none").to_owned())
}

#[tokio::test]
async fn a_daemon_whose_writer_waits_says_so_before_the_wait_is_over() {
    let scene = Scene::new("");
    let daemon = scene.daemon();
    let other = scene.open();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(within(code(&daemon)).await, (503, "stalled".to_owned()), "the busy timeout is longer");
    other.execute_batch("ROLLBACK").unwrap();
    until_ready(&daemon).await;
    daemon.stop();
}

#[tokio::test]
async fn a_daemon_that_cannot_renew_its_leases_is_not_ready() {
    let scene = Scene::new("[engine]\nlease = \"2s\"");
    let daemon = scene.daemon();
    let other = scene.open();
    // All other writes succeed.
    let refuse =
        "CREATE TRIGGER refuse BEFORE UPDATE OF heartbeat_at ON workers BEGIN SELECT RAISE(ABORT, 'refused'); END";
    other.execute_batch(refuse).unwrap();
    within(async {
        while code(&daemon).await != (503, "stalled".to_owned()) {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    other.execute_batch("DROP TRIGGER refuse").unwrap();
    until_ready(&daemon).await;
    daemon.stop();
}

/// Refuses, or ignores, each claim, and nothing else.
fn without_claims(scene: &Scene, raise: &str) -> rusqlite::Connection {
    let other = scene.open();
    let trigger = format!(
        "CREATE TRIGGER refuse BEFORE UPDATE OF status ON runs WHEN NEW.status = 'running' BEGIN SELECT {raise}; END"
    );
    other.execute_batch(&trigger).unwrap();
    other
}

async fn until_stalled(daemon: &Daemon, why: &str) {
    within(async {
        loop {
            let Answer { status, body, .. } = daemon.get("/readyz").await;
            if status == 503 && body["error"]["message"].as_str().unwrap().contains(why) {
                return assert_eq!(body["error"]["code"], "stalled");
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_daemon_whose_claims_fail_is_not_ready() {
    let scene = Scene::new("");
    let daemon = scene.daemon();
    let other = without_claims(&scene, "RAISE(ABORT, 'no claim today')");
    let run = daemon.count("s", "m").await.run();
    until_stalled(&daemon, "no claim today").await;
    other.execute_batch("DROP TRIGGER refuse").unwrap();
    assert_eq!(within(daemon.settled(&run)).await["status"], "completed");
    until_ready(&daemon).await;
    daemon.stop();
}

#[tokio::test]
async fn a_queue_that_stands_still_shows_in_readyz_and_doctor() {
    let scene = Scene::new("");
    let daemon = scene.daemon();
    let other = without_claims(&scene, "RAISE(IGNORE)");
    let run = daemon.count("s", "m").await.run();
    until_stalled(&daemon, "have not been claimed for").await;
    let doctor = async || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mainstay"));
        command.args(["doctor", "--json", "--db"]).arg(&scene.db).arg("--config").arg(&scene.config);
        let said = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        let said: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
        said["checks"].as_array().unwrap().iter().find(|check| check["name"] == "queue").unwrap().clone()
    };
    let queue = doctor().await;
    assert_eq!((&queue["verdict"], &queue["findings"][0]["subject"]), (&"error".into(), &run.as_str().into()));
    other.execute_batch("DROP TRIGGER refuse").unwrap();
    assert_eq!(within(daemon.settled(&run)).await["status"], "completed");
    until_ready(&daemon).await;
    assert_eq!(doctor().await["verdict"], "ok");
    daemon.stop();
}

#[tokio::test]
async fn asking_often_writes_at_most_once_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.db");
    let engine = Engine::open(&path, Config::builtin(dir.path())).await.unwrap();
    let wal_bytes = || std::fs::metadata(dir.path().join("m.db-wal")).unwrap().len();
    let (before, begun) = (wal_bytes(), Instant::now());
    for _ in 0..200 {
        engine.check_ready().await.unwrap();
    }
    // A write is one page and its header.
    let writes = (wal_bytes() - before) / (4096 + 24);
    assert!((1..=begun.elapsed().as_secs() + 1).contains(&writes), "{writes} writes in {:?}", begun.elapsed());
    engine.close().await;
}
