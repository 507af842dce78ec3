//! The sweep: what a dead worker leaves behind, and what expires.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mainstay::clock::{Clock, ManualClock, Timestamp};
use mainstay::engine::Engine;
use mainstay::run::Status;

use crate::scene::{NOTHING, Scene, marked, says, until, within};

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(Timestamp::from_millis(1_700_000_000_000)))
}

async fn second_engine(scene: &Scene, clock: Arc<ManualClock>) -> Engine {
    let config = scene.engine.config().clone();
    Engine::open_with_clock(&scene.dir.path().join("m.db"), config, clock).await.unwrap()
}

/// No other engine can adopt a run whose agent lives in its own engine, as the demo agent does when it is embedded.
#[tokio::test]
async fn a_silent_workers_run_without_a_host_is_fenced_and_settled() {
    let clock = clock();
    let scene = Scene::embedded("[engine]\nlease = \"1h\"\nsweep_interval = \"1h\"", clock.clone()).await;
    scene.engine.start().await.unwrap();
    let run = scene.send("default", "s", "/slow 100000").await;
    let next = scene.send("default", "s", "/slow 1").await;
    scene.said(run.id, " ").await;
    let other = second_engine(&scene, clock.clone()).await;
    assert_eq!(other.sweep().await.unwrap().runs_settled, 0, "a live lease is nobody else's");
    scene.give_leases_back().await;
    let report = other.sweep().await.unwrap();
    assert_eq!((report.runs_settled, report.runs_put_back), (1, 0));
    let run = other.run(run.id).await.unwrap();
    assert_eq!((run.status, run.cause.as_deref()), (Status::Interrupted, Some("worker_lost")));
    let story = scene.story(run.id).await;
    assert!(
        story.contains(" text-end finish-step message-metadata error=") && story.ends_with("finish=error"),
        "{story}"
    );
    assert_eq!(scene.settled(next.id).await.status, Status::Completed, "its worker learns of it, and goes on");
}

/// A clock that blocks its caller once the test says so: for a worker that is paused during a claim.
#[derive(Debug)]
struct Holding(ManualClock, AtomicBool);

impl Clock for Holding {
    fn now(&self) -> Timestamp {
        if self.1.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1100));
        }
        self.0.now()
    }
}

#[tokio::test]
async fn a_worker_that_overslept_its_lease_starts_no_agent() {
    let clock = Arc::new(Holding(ManualClock::new(Timestamp::from_millis(1_700_000_000_000)), AtomicBool::new(false)));
    let script = format!("touch started; {}", says("too late"));
    let more = "[engine]\nlease = \"1s\"\nsweep_interval = \"1h\"";
    let scene = Scene::with_clock(&[("agent", &script)], more, clock.clone()).await;
    scene.engine.start().await.unwrap();
    clock.1.store(true, Ordering::SeqCst);
    let run = scene.send("agent", "s", "hi").await;
    within(async {
        while scene.engine.run(run.id).await.unwrap().attempts == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    clock.1.store(false, Ordering::SeqCst);
    // Waits until the worker is done with what it claimed.
    scene.engine.drain(Duration::from_secs(3600)).await;
    assert!(!scene.dir.path().join("started").exists());
    // It is left to a sweep, which queues it again; it does not count as a failure of the agent.
    assert_ne!(scene.engine.run(run.id).await.unwrap().status, Status::Failed);
}

#[tokio::test]
async fn idle_slots_expire_and_busy_ones_do_not() {
    let clock = clock();
    let script = format!("{}; [ \"$1\" = hang ] && exec tail -f /dev/null; true", says("ok"));
    let scene =
        Scene::with_clock(&[("agent", &script)], "[engine]\nlease = \"1h\"\nsweep_interval = \"1h\"", clock.clone())
            .await;
    scene.engine.start().await.unwrap();
    scene.turn("agent", "idle", "hi").await;
    let busy = scene.send("agent", "busy", "hang").await;
    scene.said(busy.id, "ok").await;
    clock.advance(Duration::from_secs(1801));
    assert_eq!(scene.engine.sweep().await.unwrap().assignments_expired, 1);
    assert!(scene.engine.session(&"idle".parse().unwrap()).await.unwrap().assignment.is_none());
    assert!(scene.engine.session(&"busy".parse().unwrap()).await.unwrap().assignment.is_some());
    clock.advance(Duration::from_secs(8 * 24 * 3600));
    assert_eq!(scene.engine.sweep().await.unwrap().assignments_purged, 1);
    scene.engine.cancel_run(busy.id).await.unwrap();
    scene.settled(busy.id).await;
}

#[tokio::test]
async fn a_drained_engine_leaves_nothing_running() {
    let script = format!("{}; exec tail -f /dev/null", says("said"));
    let scene = Scene::new(&[("hang", &script), ("mute", "exec tail -f /dev/null")], "").await;
    let (said, mute) = (scene.send("hang", "a", "hi").await, scene.send("mute", "b", "hi").await);
    scene.said(said.id, "said").await;
    until(|| !marked(mute.id).is_empty()).await;
    scene.engine.drain(Duration::ZERO).await;
    let said = scene.engine.run(said.id).await.unwrap();
    assert_eq!((said.status, said.cause.as_deref()), (Status::Interrupted, Some("shutdown")));
    assert_eq!(scene.engine.run(mute.id).await.unwrap().status, Status::Queued, "it had said nothing");
    assert!(marked(said.id).is_empty() && marked(mute.id).is_empty());
    assert!(scene.engine.list_workers().await.unwrap().len() == 1);
    scene.engine.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_though_nothing_can_be_written() {
    let script = format!("{}; while :; do {}; sleep 0.05; done", says("first"), says("."));
    let scene = Scene::new(&[("agent", &script)], "").await;
    let run = scene.send("agent", "s", "hi").await;
    scene.said(run.id, "first").await;
    let foreign = rusqlite::Connection::open(scene.dir.path().join("m.db")).unwrap();
    foreign.execute_batch("BEGIN IMMEDIATE").unwrap();
    within(scene.engine.drain(Duration::ZERO)).await;
    assert_eq!(marked(run.id), NOTHING);
    foreign.execute_batch("ROLLBACK").unwrap();
}
