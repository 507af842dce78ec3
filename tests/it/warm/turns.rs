//! Turns on a backend, and the effect of its crash on them.

use std::time::Duration;

use mainstay::backend::{BackendState, HealthPolicy};
use mainstay::engine::EngineError;
use mainstay::run::Status;

use super::{QUICK, close, left_of, lines, open, reaches, send, turn};
use crate::scene::{NOTHING, settled, story, until, within};

#[tokio::test]
async fn turns_of_a_session_share_a_backend_that_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), "", QUICK).await;
    let (first, second) = (turn(&engine, "live", "a", "x").await, turn(&engine, "live", "a", "x").await);
    assert_eq!((first.status, second.status), (Status::Completed, Status::Completed), "{first:?}");
    assert_eq!(first.progress, second.progress, "another process");
    turn(&engine, "live", "b", "x").await;
    turn(&engine, "shared", "c", "x").await;
    turn(&engine, "shared", "d", "x").await;
    let backends = engine.list_backends().await.unwrap();
    assert_eq!(backends.len(), 3, "{backends:#?}");
    let of_a = backends.iter().find(|b| b.session_id.as_ref().is_some_and(|id| id.as_str() == "a")).unwrap();

    let held = send(&engine, "live", "a", "hold").await;
    within(async {
        while !story(&engine, held).await.contains("held") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(matches!(engine.stop_backend(of_a.id, false).await, Err(EngineError::BackendBusy(_))));
    engine.close_session(&"a".parse().unwrap(), true).await.unwrap();
    assert_eq!(settled(&engine, held).await.status, Status::Cancelled);
    reaches(&engine, of_a.id, BackendState::Stopped).await;
    assert_eq!(left_of(&[of_a.id]), NOTHING);

    let ids: Vec<_> = backends.iter().map(|backend| backend.id).collect();
    close(engine).await;
    assert_eq!(left_of(&ids), NOTHING);
}

#[tokio::test]
async fn run_whose_relay_died_is_settled_when_its_turn_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), "", QUICK).await;
    std::fs::write(dir.path().join("goes-on"), "").unwrap();
    let run = send(&engine, "live", "s", "hold").await;
    let pid = || std::fs::read_to_string(dir.path().join("turn-pid")).unwrap_or_default();
    until(|| pid().ends_with('\n')).await;
    let pid = pid();
    assert!(std::process::Command::new("kill").args(["-KILL", pid.trim()]).status().unwrap().success());
    until(|| dir.path().join("ending").exists()).await;
    assert_eq!(std::fs::read_to_string(dir.path().join("ending")).unwrap(), "1 s true");
    assert_eq!(engine.run(run).await.unwrap().status, Status::Running);
    std::fs::remove_file(dir.path().join("goes-on")).unwrap();
    assert_eq!(settled(&engine, run).await.cause.as_deref(), Some("signal"));
    close(engine).await;
}

#[tokio::test]
async fn turn_whose_backend_dies_before_a_word_is_retried_once() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), "", QUICK).await;
    let run = turn(&engine, "live", "a", "crash-once").await;
    assert_eq!((run.status, run.attempts), (Status::Completed, 2), "{run:?}");
    let backends = engine.list_backends().await.unwrap();
    assert_eq!((backends.len(), backends[0].generation), (1, 2), "{backends:#?}");
    // A turn that has said something is not retried.
    let run = turn(&engine, "live", "a", "crash-later").await;
    assert_eq!((run.status, run.attempts), (Status::Failed, 1), "{run:?}");
    close(engine).await;
}

#[tokio::test]
async fn backend_that_keeps_crashing_is_given_up_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), "", HealthPolicy { most_restarts: 2, ..QUICK }).await;
    std::fs::write(dir.path().join("broken"), "").unwrap();
    let run = turn(&engine, "live", "a", "x").await;
    assert_eq!(run.status, Status::Failed);
    assert_eq!(run.error.as_deref(), Some("Failed to start agent: it ended with code 3: it is broken"));
    assert_eq!(lines(&dir.path().join("started")).len(), 3, "once, and two restarts");
    // The failure is reported at once, and nothing is started.
    assert_eq!(turn(&engine, "live", "a", "x").await.status, Status::Failed);
    assert_eq!(lines(&dir.path().join("started")).len(), 3);
    let backends = engine.list_backends().await.unwrap();
    assert_eq!((backends.len(), backends[0].state), (1, BackendState::Stopped));
    assert!(backends[0].not_before.is_some());
    close(engine).await;
}

#[tokio::test]
async fn backend_closed_for_room_before_restart_was_not_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let pause = Duration::from_secs(600);
    let care = HealthPolicy { first_pause: pause, longest_pause: pause, ..QUICK };
    let engine = open(dir.path(), "[engine]\nmax_backends = 1", care).await;
    assert_eq!(turn(&engine, "live", "a", "crash-later").await.status, Status::Failed);
    let crashed = engine.list_backends().await.unwrap()[0].id;
    reaches(&engine, crashed, BackendState::Restarting).await;
    assert_eq!(turn(&engine, "live", "b", "x").await.status, Status::Completed);
    let run = turn(&engine, "live", "a", "x").await;
    assert_eq!(run.status, Status::Completed, "{run:?}");
    close(engine).await;
}
