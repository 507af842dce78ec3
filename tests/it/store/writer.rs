//! The writer: group commit, and what a failed or abandoned write does to its neighbours.

use mainstay::run::Outcome;
use mainstay::store::session::NewSession;
use mainstay::store::{Notice, StoreError};

use super::{Scene, numbered};

#[tokio::test]
async fn a_cancelled_caller_does_not_cancel_the_write() {
    let scene = Scene::new(1).await;
    for number in 0..50 {
        let store = scene.store.clone();
        let request = scene.enqueue_request("s", &format!("m{number}"));
        let task = tokio::spawn(async move { store.enqueue(request).await });
        tokio::task::yield_now().await;
        task.abort();
        let _ = task.await;
    }
    let last = scene.send("s", "last").await;
    let runs = scene.store.list_runs(&Default::default(), 500).await.unwrap();
    let messages: Vec<_> = runs.iter().map(|located| located.run.message_id.clone()).collect();
    assert_eq!(messages[0], last.run.run.message_id);
    let distinct: std::collections::HashSet<_> = messages.iter().collect();
    assert_eq!(distinct.len(), messages.len());
}

#[tokio::test]
async fn one_bad_write_does_not_fail_its_neighbours() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    let claimed = scene.claim(1).await.remove(0);
    let mut bad = scene.text(&claimed, "x");
    bad.events = vec!["{not json".into()].into();
    let (bad, good) = tokio::join!(scene.store.append(bad), scene.store.enqueue(scene.enqueue_request("t", "m2")));
    assert!(bad.is_err());
    assert!(good.unwrap().unwrap().created);
    assert_eq!(scene.log("s").await, numbered(&["start"]));
}

#[tokio::test]
async fn write_without_memory_does_not_fail_its_neighbours() {
    let scene = Scene::new(1).await;
    let large = scene.store.write(|_| Box::pin(async { Err::<(), _>(StoreError::OutOfMemory) }));
    let (large, good) = tokio::join!(large, scene.store.enqueue(scene.enqueue_request("t", "m")));
    assert!(matches!(large, Err(StoreError::OutOfMemory)));
    assert!(good.unwrap().unwrap().created);
}

#[tokio::test]
async fn a_commit_is_told_in_order_with_its_rows() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    let claimed = scene.claim(1).await.remove(0);
    for word in ["a", "b", "c"] {
        scene.store.append(scene.text(&claimed, word)).await.unwrap().unwrap();
    }
    scene.settle(&claimed, Outcome::completed()).await.unwrap();
    let notices = scene.notices.lock().unwrap();
    let told: Vec<_> = notices
        .iter()
        .filter_map(|notice| match notice {
            Notice::EventsCommitted(committed) => {
                Some((committed.first_seq, committed.events.len(), committed.ends_run))
            }
            _ => None,
        })
        .collect();
    assert_eq!(told, [(2, 1, false), (3, 1, false), (4, 1, false), (5, 1, true)]);
}

#[tokio::test]
async fn a_full_database_refuses_and_goes_on_when_there_is_room() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    let claimed = scene.claim(1).await.remove(0);
    let limit = scene.store.write(|tx| Box::pin(async move { tx.limit_pages(Some(0)).await })).await.unwrap();
    assert!(limit > 0);
    let big = "x".repeat(100_000);
    let error = scene.store.append(scene.text(&claimed, &big)).await.unwrap_err();
    assert!(matches!(error, StoreError::DiskFull), "{error:?}");
    scene.store.write(|tx| Box::pin(async move { tx.limit_pages(None).await })).await.unwrap();
    scene.store.append(scene.text(&claimed, &big)).await.unwrap().unwrap();
    assert_eq!(scene.log("s").await, numbered(&["start", "text-delta"]));
}

#[tokio::test]
async fn full_disk_ends_the_transaction_not_the_writer() {
    let scene = Scene::new(1).await;
    scene.store.write(|tx| Box::pin(async move { tx.limit_pages(Some(0)).await })).await.unwrap();
    let mut refused = 0;
    for number in 0..200 {
        let mut new = NewSession::of("default".parse().unwrap(), "demo".parse().unwrap(), 1000);
        new.title = Some("t".repeat(400));
        let id = format!("many{number}").parse().unwrap();
        match scene.store.create_session(id, new, Default::default()).await {
            Ok(_) => {}
            Err(StoreError::DiskFull) => refused += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(refused > 1);
    scene.store.write(|tx| Box::pin(async move { tx.limit_pages(None).await })).await.unwrap();
    assert!(scene.send("s", "m1").await.created);
}
