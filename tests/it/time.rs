//! Leases do not depend on wall clocks: clocks jump, processes are paused, and no worker loses a run that it holds, nor keeps
//! one that it has lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay::clock::{ManualClock, Timestamp};
use mainstay::engine::Engine;
use mainstay::run::Status;

use crate::scene::{Camp, Scene, says, settled, within};

/// Numbers, one after the other, until a file `go` exists.
fn counting() -> String {
    "i=0; until [ -e go ]; do i=$((i+1)); \
     echo \"{\\\"event\\\":\\\"agent\\\",\\\"stream\\\":\\\"assistant\\\",\\\"data\\\":{\\\"delta\\\":\\\"$i \\\"}}\"; sleep 0.01; done"
        .to_owned()
}

/// The numbers in the order in which they were stored.
async fn counted(engine: &Engine, session: &str) -> Vec<u64> {
    let events = engine.session_events(&session.parse().unwrap(), 0, 100_000).await.unwrap();
    let delta = |event: &serde_json::Value| event["delta"].as_str()?.trim().parse().ok();
    events.iter().filter_map(|event| delta(&serde_json::from_str(event.event.get()).unwrap())).collect()
}

fn is_whole(numbers: &[u64]) -> bool {
    !numbers.is_empty() && numbers.iter().copied().eq(1..=numbers.len() as u64)
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread")]
async fn wall_clocks_that_jump_take_nobodys_run() {
    let start = Timestamp::from_millis(1_700_000_000_000);
    let clocks = [0, 1, 2].map(|_| Arc::new(ManualClock::new(start)));
    let more = "[engine]\nlease = \"1s\"\nsweep_interval = \"1s\"\nworkers = 2";
    let scene = Scene::with_clock(&[("agent", &counting())], more, clocks[0].clone()).await;
    let (db, config) = (scene.dir.path().join("m.db"), scene.engine.config().clone());
    let mut engines = vec![scene.engine.clone()];
    for clock in &clocks[1..] {
        engines.push(Engine::open_with_clock(&db, config.clone(), clock.clone()).await.unwrap());
    }
    for engine in &engines {
        engine.start().await.unwrap();
    }
    let sessions = ["a", "b", "c"];
    let mut runs = Vec::new();
    for session in sessions {
        runs.push(scene.send("agent", session, "count").await);
    }
    // Forward, back before the beginning, and apart from each other; in between they stand still.
    for to in [start + HOUR * 5, start - HOUR * 5, start] {
        for (clock, apart) in clocks.iter().zip(0..) {
            clock.set(to + HOUR * apart);
        }
        for run in &runs {
            // More than a lease, measured by the agents' output.
            let seen = scene.engine.run(run.id).await.unwrap().last_seq.unwrap_or(0);
            let mut follower = scene.engine.follow_run(run.id, seen).await.unwrap();
            let mut heard = 0;
            while heard < 130 {
                heard += within(follower.next_events()).await.unwrap().expect("it goes on").len();
            }
        }
    }
    std::fs::write(scene.dir.path().join("go"), "").unwrap();
    for (run, session) in runs.iter().zip(sessions) {
        let run = scene.settled(run.id).await;
        assert_eq!((run.status, run.attempts), (Status::Completed, 1), "{:?}", run.error);
        assert!(is_whole(&counted(&scene.engine, session).await));
    }
    // Nothing is stuck either, whatever time the clocks show.
    clocks[0].set(start - HOUR * 100);
    let again = scene.turn("agent", "a", "again").await;
    assert_eq!(again.cause.as_deref(), Some("no_output"), "with `go` there it counts to nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_survives_that_all_its_daemons_stand_still_together() {
    let script = format!("case $1 in count) {};; *) {};; esac", counting(), says("ok"));
    let camp = Camp::new(&[("agent", &script)], "[engine]\nlease = \"6s\"\nsweep_interval = \"1h\"").await;
    let holder = camp.daemon();
    let run = camp.send("agent", "s", "count").await;
    let other = camp.daemon();
    camp.grown(run.id, 100).await;
    camp.pause(&holder);
    camp.pause(&other);
    // Longer than the lease.
    tokio::time::sleep(Duration::from_millis(6500)).await;
    // The other daemon continues first, and makes progress before the holder can renew anything.
    other.signal("CONT");
    let quick = camp.send("agent", "t", "hi").await;
    settled(&camp.watcher, quick.id).await;
    holder.signal("CONT");
    let seen = camp.watcher.run(run.id).await.unwrap().last_seq.unwrap();
    camp.grown(run.id, usize::try_from(seen).unwrap() + 200).await;
    std::fs::write(camp.dir.path().join("go"), "").unwrap();
    let run = settled(&camp.watcher, run.id).await;
    assert_eq!((run.status, run.attempts), (Status::Completed, 1), "{:?}", run.error);
    assert!(is_whole(&counted(&camp.watcher, "s").await));
    holder.stop();
    other.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_is_noticed_by_the_next_long_before_its_lease_ends() {
    let script = format!("{}; while [ ! -e go ]; do sleep 0.02; done; {}", says("first"), says("last"));
    let camp = Camp::new(&[("agent", &script)], "[engine]\nlease = \"1h\"\nsweep_interval = \"1h\"").await;
    let holder = camp.daemon();
    let run = camp.send("agent", "s", "hi").await;
    camp.grown(run.id, 4).await;
    let other = camp.daemon();
    let died = Instant::now();
    holder.kill();
    crate::scene::until(|| camp.log().contains("run adopted")).await;
    // About a second; a loaded machine gets more.
    assert!(died.elapsed() < Duration::from_secs(20), "{:?}", died.elapsed());
    std::fs::write(camp.dir.path().join("go"), "").unwrap();
    let run = settled(&camp.watcher, run.id).await;
    assert_eq!((run.status, run.attempts), (Status::Completed, 1));
    other.stop();
}
