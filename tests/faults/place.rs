//! A database that is moved, deleted or replaced under a daemon, and the lock that lasts as long as the daemon.

use std::fs;

use crate::scene::{Answer, Count, Daemon, Scene, check_file, counted, stored_messages, until, within};

/// A turn whose agent has begun to speak.
async fn speaking(scene: &Scene, daemon: &Daemon, session: &str, message: &str) -> String {
    let run = daemon.count(session, message).await.run();
    let conn = scene.open();
    let spoke =
        "SELECT count(*) > 0 FROM events e JOIN runs r ON r.key = e.run_key WHERE r.id = ?1 AND e.event LIKE '%delta%'";
    until(|| conn.query_row(spoke, [&run], |row| row.get(0)).unwrap()).await;
    run
}

/// Writes are refused, with the reason; what was there is still shown.
async fn refuses(daemon: &Daemon, message: &str) {
    assert_eq!(daemon.count("s", message).await.refused(), (503, "database_gone"));
    let Answer { status, body: ready, .. } = daemon.get("/readyz").await;
    assert_eq!((status, ready["error"]["code"].as_str()), (503, Some("database_gone")), "{ready}");
    assert_eq!(daemon.get("/healthz").await.status, 200);
    let Answer { status, body: messages, .. } = daemon.get("/v1/sessions/s/messages").await;
    assert_eq!((status, messages["items"][0]["id"].as_str()), (200, Some("m1")), "{messages}");
}

#[tokio::test]
async fn a_database_that_is_moved_away_and_back_loses_nothing() {
    let scene = Scene::new("");
    let daemon = scene.daemon();
    let run = speaking(&scene, &daemon, "s", "m1").await;
    let away = scene.home.join("away.db");
    fs::rename(&scene.db, &away).unwrap();
    for message in ["m2", "m3"] {
        refuses(&daemon, message).await;
    }
    let from = scene.logged().len();
    until(|| scene.logged_since(from, "deleted or replaced") > 0).await;
    fs::rename(&away, &scene.db).unwrap();
    until_ready(&daemon).await;
    assert_eq!(within(daemon.settled(&run)).await["status"], "completed");
    assert_eq!(daemon.follow(&run, |_, _| ()).await, counted());
    assert_eq!(stored_messages(&scene.open())["s"], ["m1"], "what was refused left no trace");
    assert_eq!(within(daemon.settled(&daemon.count("s", "m2").await.run())).await["status"], "completed");
    check_file(&scene.open()).unwrap();
    daemon.stop();
}

#[tokio::test]
async fn a_database_that_is_deleted_or_replaced_is_read_on_and_not_written() {
    for replaced in [false, true] {
        let scene = Scene::new("");
        let daemon = scene.daemon();
        let run = daemon.count("s", "m1").await.run();
        assert_eq!(within(daemon.settled(&run)).await["status"], "completed");
        let copy = scene.home.join("copy.db");
        if replaced {
            fs::copy(&scene.db, &copy).unwrap();
            fs::rename(&copy, &scene.db).unwrap();
        } else {
            fs::remove_file(&scene.db).unwrap();
        }
        let put_there = replaced.then(|| fs::read(&scene.db).unwrap());
        refuses(&daemon, "m2").await;
        assert_eq!(daemon.follow(&run, |_, _| ()).await, counted(), "all of it can still be read");
        daemon.stop();
        assert_eq!(fs::read(&scene.db).ok(), put_there, "nothing of ours was written there");
    }
}

#[tokio::test]
async fn agents_do_not_keep_the_lock_of_an_engine_that_died() {
    let scene = Scene::new("");
    let daemon = scene.daemon();
    let run = speaking(&scene, &daemon, "s", "m1").await;
    let agents = fs::File::open(scene.home.join("m.db-agents")).unwrap();
    assert!(agents.try_lock().is_err(), "the daemon has the database open");
    daemon.kill();
    agents.try_lock().unwrap();
    drop(agents);
    let daemon = scene.daemon();
    assert_eq!(within(daemon.follow(&run, |_, _| ())).await, counted(), "its agent went on");
    daemon.stop();
}

/// Waits until the cached result of the check has expired.
pub async fn until_ready(daemon: &Daemon) {
    within(async {
        while daemon.get("/readyz").await.status != 200 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn vanished_database_is_an_error_in_the_log_at_once() {
    let scene = Scene::new("");
    let daemon = scene.daemon();
    until_ready(&daemon).await;
    let away = scene.home.join("away.db");
    let from = scene.logged().len();
    fs::rename(&scene.db, &away).unwrap();
    let gone = "the database file is gone";
    until(|| scene.logged_since(from, gone) == 1).await;
    let log = scene.logged();
    assert!(log.lines().any(|line| line.contains(gone) && line.contains("\"ERROR\"")), "{log}");
    fs::rename(&away, &scene.db).unwrap();
    until(|| scene.logged_since(from, "the database file is back") == 1).await;
    assert_eq!(scene.logged_since(from, gone), 1, "it is said once");
}
