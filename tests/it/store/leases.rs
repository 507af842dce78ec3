//! Leases and the workers that hold them.

use std::collections::BTreeMap;
use std::time::Duration;

use mainstay::clock::Clock;
use mainstay::lease::{HeldLease, LeaseLost};
use mainstay::run::{Outcome, Status};
use mainstay::store::run::{ClaimRequest, Lost};
use mainstay::store::worker::Registration;
use mainstay::worker::ProcessIdentity;

use super::{LEASE, Scene, numbered};

#[tokio::test]
async fn an_old_lease_changes_nothing() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    let old = scene.claim(1).await.remove(0);
    let orphans = scene.take_over().await;
    assert_eq!(orphans.len(), 1);
    assert_eq!(scene.store.append(scene.text(&old, "late")).await.unwrap(), Err(LeaseLost));
    assert_eq!(scene.settle(&old, Outcome::completed()).await, Err(LeaseLost));
    assert!(!scene.store.put_back(old.lease).await.unwrap());
    // Nor does the old lease locate a turn: its holder could otherwise end the one that runs by now.
    assert!(scene.store.turn_location(old.lease).await.unwrap().is_none());
    assert!(scene.store.turn_location(orphans[0].lease).await.unwrap().is_some());
    assert!(scene.store.put_back(orphans[0].lease).await.unwrap());
    let again = scene.claim(1).await.remove(0);
    assert_eq!(again.run, old.run);
    scene.settle(&again, Outcome::completed()).await.unwrap();
    assert_eq!(scene.log("s").await, numbered(&["start", "finish"]), "one start, though it was claimed twice");
}

#[tokio::test]
async fn lease_is_taken_over_as_seen_whatever_the_clock_says() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    let claimed = scene.claim(1).await.remove(0);
    let seen = scene.store.held_leases().await.unwrap();
    assert_eq!((seen[0].lease, seen[0].length), (claimed.lease, LEASE));
    let take_over = |lost: Lost| scene.store.take_over(scene.worker, lost, vec![], LEASE, 10);
    scene.clock.advance(Duration::from_secs(1_000_000));
    assert!(take_over(Lost::default()).await.unwrap().is_empty(), "taken over by the wall clock");
    // A renewal in between wins: also by a clock that stands still, and by one that went back.
    for back in [0, 0, 2_000_000] {
        let seen = scene.store.held_leases().await.unwrap();
        scene.clock.set(scene.clock.now() - Duration::from_secs(back));
        let renewed = scene.store.renew(scene.worker, scene.registration.clone(), vec![claimed.lease]).await.unwrap();
        assert_eq!(renewed, [claimed.lease]);
        assert!(
            take_over(Lost { leases: seen, ..Lost::default() }).await.unwrap().is_empty(),
            "taken over in spite of it"
        );
    }
    scene.store.append(scene.text(&claimed, "still mine")).await.unwrap().unwrap();
    assert_eq!(scene.store.held_leases().await.unwrap().len(), 1);
    let orphan = scene.take_over().await.remove(0);
    assert_eq!((orphan.lease.token, orphan.source_offset), (claimed.lease.token + 1, 10));
    scene.store.let_expire(orphan.lease).await.unwrap();
    assert_eq!(scene.store.held_leases().await.unwrap()[0].expires_at, HeldLease::GIVEN_BACK);
}

#[tokio::test]
async fn no_duration_is_negative_when_the_clock_goes_back() {
    let scene = Scene::new(1).await;
    let sent = scene.send("s", "m1").await;
    let hour = Duration::from_secs(3600);
    scene.clock.set(scene.clock.now() - hour);
    let claimed = scene.claim(1).await.remove(0);
    scene.clock.set(scene.clock.now() - hour);
    scene.settle(&claimed, Outcome::completed()).await.unwrap();
    assert_eq!(scene.status(sent.run.run.id).await, Status::Completed);
    let conn = rusqlite::Connection::open(scene.store.path()).unwrap();
    let times: (i64, i64) =
        conn.query_row("SELECT waited_ms, ran_ms FROM v_runs", [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert_eq!(times, (0, 0));
}

#[tokio::test]
async fn a_removed_worker_does_not_come_back_as_another_one() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    assert_eq!(scene.store.remove_workers(vec![scene.worker]).await.unwrap(), 1);
    let process = ProcessIdentity { host: "test".into(), pid: 2, started_at_ticks: 2 };
    let id = mainstay::id::WorkerId::generate();
    let registration = Registration { id, process, hostname: "test".into(), capacity: 8, lease: LEASE };
    assert_ne!(scene.store.register_worker(registration).await.unwrap(), scene.worker);
    let request = ClaimRequest {
        worker: scene.worker,
        limit: 1,
        agents: BTreeMap::from([("demo".parse().unwrap(), 1)]),
        workspaces: vec!["default".parse().unwrap()],
        only: None,
        lease: LEASE,
    };
    assert!(scene.store.claim(request).await.is_err(), "a removed worker claims nothing");
}

#[tokio::test]
async fn forgotten_worker_is_back_with_its_next_heartbeat() {
    let scene = Scene::new(1).await;
    assert_eq!(scene.store.remove_workers(vec![scene.worker]).await.unwrap(), 1);
    scene.store.renew(scene.worker, scene.registration.clone(), vec![]).await.unwrap();
    scene.send("s", "m1").await;
    assert_eq!(scene.claim(1).await.len(), 1);
}
