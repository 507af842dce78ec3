//! Slots: which session gets one, keeps it, and gives it back.

use std::time::Duration;

use mainstay::run::{Cause, Outcome};
use mainstay::store::run::{Claimed, Enqueued, Refusal};
use mainstay::workspace::WhenFull;

use super::{Scene, workspace};

#[tokio::test]
async fn a_waiting_session_gets_the_slot_that_is_freed() {
    let scene = Scene::new(1).await;
    scene.send("a", "1").await;
    let mut waiting = scene.enqueue_request("b", "2");
    waiting.when_full = WhenFull::Wait;
    scene.store.enqueue(waiting).await.unwrap().unwrap();
    let claimed = scene.claim(8).await;
    assert_eq!(claimed.len(), 1);
    scene.settle(&claimed[0], Outcome::completed()).await.unwrap();
    assert!(scene.claim(8).await.is_empty(), "an idle session keeps its slot until its TTL has passed");
    scene.clock.advance(Duration::from_secs(1801));
    assert_eq!(scene.store.expire_idle(10).await.unwrap(), 1);
    let next = scene.claim(8).await;
    assert_eq!((next[0].session_id.as_str(), next[0].slot.as_deref()), ("b", Some("chat-slot-default-1")));
    scene.clock.advance(Duration::from_secs(100_000));
    assert_eq!(scene.store.expire_idle(10).await.unwrap(), 0, "nothing busy ever expires");
}

async fn send_reclaiming(scene: &Scene, session: &str) -> Enqueued {
    let mut request = scene.enqueue_request(session, session);
    request.when_full = WhenFull::Reclaim;
    scene.store.enqueue(request).await.unwrap().unwrap()
}

async fn run_to_its_end(scene: &Scene, session: &str) {
    send_reclaiming(scene, session).await;
    let claimed = scene.claim(8).await.remove(0);
    assert_eq!(claimed.session_id.as_str(), session);
    scene.settle(&claimed, Outcome::completed()).await.unwrap();
    scene.clock.advance(Duration::from_secs(1));
}

#[tokio::test]
async fn child_of_running_session_does_not_wait_for_slot() {
    let scene = Scene::new(1).await;
    send_reclaiming(&scene, "parent").await;
    assert_eq!(scene.claim(8).await.len(), 1);
    send_reclaiming(&scene, "stranger").await;
    let mut request = scene.enqueue_request("child", "child");
    request.when_full = WhenFull::Reclaim;
    request.new.spawned_by = Some("parent".parse().unwrap());
    scene.store.enqueue(request).await.unwrap().unwrap();
    let claimed = scene.claim(8).await;
    let placed: Vec<_> = claimed.iter().map(|run| (run.session_id.as_str(), run.slot.as_deref())).collect();
    assert_eq!(placed, [("child", None)]);
}

#[tokio::test]
async fn full_pool_reclaims_slot_idle_longest() {
    let scene = Scene::new(3).await;
    for session in ["a", "b", "c"] {
        run_to_its_end(&scene, session).await;
    }
    scene.send("a", "more").await;
    scene.settle(&scene.claim(1).await[0], Outcome::completed()).await.unwrap();
    send_reclaiming(&scene, "d").await;
    let claimed = scene.claim(8).await.remove(0);
    assert_eq!((claimed.session_id.as_str(), claimed.slot.as_deref()), ("d", Some("chat-slot-default-2")));
    let slots = scene.store.list_slots().await.unwrap();
    let held: Vec<_> = slots.iter().map(|slot| slot.session_id.as_ref().map_or("", |id| id.as_str())).collect();
    assert_eq!(held, ["a", "d", "c"], "b was idle longest");
    let ended = scene.query("SELECT group_concat(state) FROM assignments WHERE ended_at IS NOT NULL");
    assert_eq!(ended, "reclaimed");
}

#[tokio::test]
async fn busy_sessions_keep_slots_until_idle() {
    let scene = Scene::new(2).await;
    send_reclaiming(&scene, "a").await;
    send_reclaiming(&scene, "b").await;
    let [a, b] = <[Claimed; 2]>::try_from(scene.claim(8).await).unwrap();
    send_reclaiming(&scene, "c").await;
    scene.clock.advance(Duration::from_secs(1));
    send_reclaiming(&scene, "d").await;
    assert!(scene.claim(8).await.is_empty(), "running sessions keep their slots");
    scene.send("b", "more").await;
    scene.settle(&b, Outcome::completed()).await.unwrap();
    let next = scene.claim(8).await;
    assert_eq!(next[0].session_id.as_str(), "b", "a session with a queued run keeps its slot");
    scene.settle(&a, Outcome::completed()).await.unwrap();
    let next = scene.claim(8).await;
    let next: Vec<_> = next.iter().map(|run| (run.session_id.as_str(), run.slot.as_deref())).collect();
    assert_eq!(next, [("c", Some("chat-slot-default-1"))], "the longest wait first, as soon as a session is idle");
}

#[tokio::test]
async fn agents_keyed_by_slot_share_and_keep_slots() {
    let scene = Scene::new(1).await;
    let bound = |session: &str| {
        let mut request = scene.enqueue_request(session, session);
        (request.when_full, request.slot_bound) = (WhenFull::Reclaim, vec!["demo".parse().unwrap()]);
        request
    };
    scene.store.enqueue(bound("a")).await.unwrap().unwrap();
    scene.settle(&scene.claim(1).await[0], Outcome::completed()).await.unwrap();
    scene.store.enqueue(bound("b")).await.unwrap().unwrap();
    send_reclaiming(&scene, "c").await;
    let claimed = scene.claim(8).await;
    let claimed: Vec<_> = claimed.iter().map(|run| (run.session_id.as_str(), run.slot.as_deref())).collect();
    assert_eq!(claimed, [("b", None)], "the slot of a is not taken; c shares as well, as no slot would come");
    assert_eq!(scene.query("SELECT group_concat(slot_key IS NULL) FROM assignments"), "0,1,1");
}

#[tokio::test]
async fn pool_without_slots_is_shared_when_reclaiming() {
    let scene = Scene::new(0).await;
    run_to_its_end(&scene, "a").await;
    run_to_its_end(&scene, "b").await;
}

#[tokio::test]
async fn waiting_sessions_follow_a_changed_policy() {
    let scene = Scene::new(1).await;
    run_to_its_end(&scene, "a").await;
    let mut waiting = scene.enqueue_request("b", "1");
    waiting.when_full = WhenFull::Wait;
    scene.store.enqueue(waiting.clone()).await.unwrap().unwrap();
    assert!(scene.claim(8).await.is_empty());
    scene.store.sync_slots(workspace(1, WhenFull::Reclaim)).await.unwrap();
    let b = scene.claim(8).await.remove(0);
    assert_eq!(b.session_id.as_str(), "b");
    send_reclaiming(&scene, "c").await;
    scene.settle(&b, Outcome::completed()).await.unwrap();
    let c = scene.claim(8).await.remove(0);
    send_reclaiming(&scene, "d").await;
    scene.store.sync_slots(workspace(0, WhenFull::Reclaim)).await.unwrap();
    assert_eq!(scene.claim(8).await[0].slot, None, "no slot would ever come");
    scene.settle(&c, Outcome::completed()).await.unwrap();
}

#[tokio::test]
async fn session_used_once_gives_slot_back() {
    let scene = Scene::new(1).await;
    let mut once = scene.enqueue_request("a", "1");
    once.close_when_idle = true;
    scene.store.enqueue(once).await.unwrap().unwrap();
    let claimed = scene.claim(1).await.remove(0);
    // Its worker is lost, and so is the client: only the row is left.
    let orphan = scene.take_over().await.remove(0);
    assert_eq!(orphan.lease.run, claimed.lease.run);
    let interrupted = Outcome::because(Cause::WorkerLost, "lost");
    scene.settle(&Claimed { lease: orphan.lease, ..claimed }, interrupted).await.unwrap();
    assert_eq!(scene.store.list_slots().await.unwrap()[0].state, "free");
    scene.send("a", "2").await;
    scene.settle(&scene.claim(1).await[0], Outcome::completed()).await.unwrap();
    assert_eq!(scene.store.list_slots().await.unwrap()[0].state, "idle", "who goes on with it keeps the slot");
}

#[tokio::test]
async fn a_full_pool_may_refuse() {
    let scene = Scene::new(1).await;
    scene.send("a", "1").await;
    let mut request = scene.enqueue_request("b", "2");
    request.when_full = WhenFull::Reject;
    let refused = scene.store.enqueue(request).await.unwrap();
    assert!(matches!(refused, Err(Refusal::PoolFull(_))));
    assert!(scene.store.find_session(&"b".parse().unwrap()).await.unwrap().is_none(), "a refusal stores nothing");
}

#[tokio::test]
async fn closed_session_loses_its_idle_slot_and_is_preferred_for_it() {
    let scene = Scene::new(3).await;
    for (session, message) in [("a", "1"), ("b", "2")] {
        scene.send(session, message).await;
    }
    for claimed in scene.claim(8).await {
        scene.settle(&claimed, Outcome::completed()).await.unwrap();
    }
    for session in ["a", "b"] {
        scene.store.close_session(session.parse().unwrap(), false).await.unwrap().unwrap();
    }
    assert!(scene.store.list_slots().await.unwrap().iter().all(|slot| slot.state == "free"));
    scene.send("b", "3").await;
    let claimed = scene.claim(8).await;
    assert_eq!(claimed[0].slot.as_deref(), Some("chat-slot-default-2"), "the slot it had before");
}
