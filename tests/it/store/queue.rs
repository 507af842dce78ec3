//! Long queues: their limit, and how they are cancelled.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mainstay::clock::Clock;
use mainstay::run::{Outcome, Status};
use mainstay::store::Notice;
use mainstay::store::run::{Enqueue, RUNS_AT_ONCE, Refusal};
use mainstay::store::session::Closed;
use mainstay::waiting::WaitsFor;

use super::{Scene, open};

/// Inserts this many queued runs of a session, as its messages would have made them.
fn fill_queue(path: &Path, session: &str, runs: i64) {
    let db = rusqlite::Connection::open(path).unwrap();
    db.execute_batch(&format!(
        "BEGIN IMMEDIATE;
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {runs})
         INSERT INTO messages (session_key, id, role, parts, created_at, updated_at)
             SELECT s.key, 'q-' || i, 'user', '[]', 0, 0 FROM n, sessions s WHERE s.id = '{session}';
         INSERT INTO runs (id, session_key, message_key, response_id, workspace, agent, status, queued_at)
             SELECT printf('%08d-0000-7000-8000-000000000000', key), session_key, key, 'r-' || key, 'default', 'demo', 'queued', 0
             FROM messages WHERE id LIKE 'q-%' ORDER BY key;
         COMMIT;"
    ))
    .unwrap();
}

#[tokio::test]
async fn a_long_queue_is_cancelled_in_short_transactions() {
    let scene = Scene::new(1).await;
    scene.send("s", "first").await;
    let running = scene.claim(1).await.remove(0);
    fill_queue(&scene.path, "s", 2 * RUNS_AT_ONCE + 50);
    let count = |what: &str| -> i64 {
        let db = rusqlite::Connection::open(&scene.path).unwrap();
        db.query_row(&format!("SELECT count(*) FROM runs WHERE {what}"), [], |row| row.get(0)).unwrap()
    };
    let (queued, unwritten) = ("status = 'queued'", "settled_at IS NOT NULL AND first_seq IS NULL");
    let closed = scene.store.close_session("s".parse().unwrap(), true).await.unwrap().unwrap();
    assert_eq!((closed, count(queued)), (Closed::Closing, RUNS_AT_ONCE + 50));
    assert!(!scene.store.go_on_closing().await.unwrap(), "the running run comes first");
    assert!(scene.store.find_session(&"s".parse().unwrap()).await.unwrap().unwrap().closing);

    scene.notices.lock().unwrap().clear();
    scene.settle(&running, Outcome::cancelled()).await.unwrap();
    assert!(scene.notices.lock().unwrap().iter().any(|notice| matches!(notice, Notice::Closing)), "it is gone on with");
    assert_eq!((count(unwritten), count(queued)), (0, RUNS_AT_ONCE + 50));
    assert!(scene.claim(8).await.is_empty(), "what is to be cancelled is not claimed");
    let later = Enqueue { max_queued: 1, ..scene.enqueue_request("s", "later") };
    let later = scene.store.enqueue(later).await.unwrap().expect("what is to be cancelled takes no place in the queue");
    // As another process does after this one has crashed.
    let other = open(&scene.path, scene.clock.clone(), Arc::default()).await.unwrap();
    assert!(other.go_on_closing().await.unwrap());
    assert_eq!((count(queued), count(unwritten)), (50 + 1, 0));
    assert!(!other.go_on_closing().await.unwrap());
    assert_eq!((count(queued), count(unwritten)), (1, 0));
    other.close().await;
    let claimed = scene.claim(8).await;
    assert_eq!(claimed.iter().map(|claimed| claimed.run).collect::<Vec<_>>(), [later.run.run.id]);
    assert!(!scene.store.find_session(&"s".parse().unwrap()).await.unwrap().unwrap().closing);
    let disorder =
        "SELECT count(*) || '' FROM messages a JOIN messages b ON b.key = a.key + 1 AND b.position < a.position
        WHERE a.id LIKE 'q-%' AND b.id LIKE 'q-%'";
    assert_eq!(scene.query(disorder), "0");
}

#[tokio::test]
async fn spans_of_many_cancelled_runs_are_written_some_at_a_time() {
    let scene = Scene::new(1).await;
    scene.send("s", "first").await;
    let running = scene.claim(1).await.remove(0);
    fill_queue(&scene.path, "s", RUNS_AT_ONCE + 30);
    let queued: Vec<String> = {
        let db = rusqlite::Connection::open(&scene.path).unwrap();
        let mut ids = db.prepare("SELECT id FROM runs WHERE status = 'queued'").unwrap();
        ids.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    for run in queued {
        scene.store.cancel_run(run.parse().unwrap()).await.unwrap().unwrap();
    }
    scene.settle(&running, Outcome::completed()).await.unwrap();
    let unwritten = "SELECT count(*) || '' FROM runs WHERE first_seq IS NULL";
    assert_eq!(scene.query(unwritten), "30");
    assert!(!scene.store.go_on_closing().await.unwrap());
    assert_eq!(scene.query(unwritten), "0");
}

#[tokio::test]
async fn a_queue_has_a_limit() {
    let scene = Scene::new(1).await;
    scene.send("s", "first").await;
    scene.claim(1).await;
    let request = |message: &str| Enqueue { max_queued: 2, ..scene.enqueue_request("s", message) };
    for message in ["a", "b"] {
        scene.store.enqueue(request(message)).await.unwrap().unwrap();
    }
    assert_eq!(scene.store.enqueue(request("c")).await.unwrap().unwrap_err(), Refusal::QueueFull(2));
    assert!(!scene.store.enqueue(request("b")).await.unwrap().unwrap().created, "it is there");
    let elsewhere = Enqueue { session: "t".parse().unwrap(), ..request("c") };
    assert!(scene.store.enqueue(elsewhere).await.unwrap().is_ok());
}

#[tokio::test]
async fn run_that_is_short_of_something_rests_in_the_queue() {
    let scene = Scene::new(1).await;
    let run = scene.send("s", "first").await.run;
    let first = scene.claim(1).await.remove(0);
    let rest = Duration::from_secs(5);
    assert!(scene.store.put_back_short(first.lease, rest, "No space left\0".into()).await.unwrap());
    assert!(!scene.store.put_back_short(first.lease, rest, "again".into()).await.unwrap(), "the lease is gone");
    assert!(scene.claim(1).await.is_empty());
    let most = BTreeMap::from([("demo".parse().unwrap(), 5)]);
    let waits_for = scene.store.waits_for(&[run.key], &most).await.unwrap();
    assert_eq!(waits_for[&run.key], WaitsFor::Resources);
    let short_of = "SELECT short_of FROM v_runs WHERE status = 'queued'";
    assert_eq!(scene.query(short_of), "No space left\u{fffd}");
    scene.clock.advance(rest);
    let again = scene.claim(1).await.remove(0);
    assert_eq!((again.run, again.shortages), (first.run, 1));
    assert!(scene.store.is_first_try(run.key).await.unwrap(), "its agent was not tried before");
    assert_eq!(scene.query("SELECT coalesce(short_of, 'none') FROM v_runs"), "none");
    assert!(scene.store.put_back_short(again.lease, rest, "No space left".into()).await.unwrap());
    scene.clock.set(scene.clock.now() - Duration::from_secs(3600));
    let again = scene.claim(1).await.remove(0);
    assert_eq!(again.shortages, 2, "the clock stepped back");
    assert!(scene.store.put_back_short(again.lease, rest, "No space left".into()).await.unwrap());
    let cancelled = scene.store.cancel_run(run.run.id).await.unwrap().unwrap();
    assert_eq!(cancelled.run.run.status, Status::Cancelled);
    assert_eq!(scene.query("SELECT coalesce(short_of, 'none') FROM v_runs"), "none");
}
