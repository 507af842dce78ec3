//! An engine with a task that ends by a bug reports it, accepts nothing more, and can be closed.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use mainstay::clock::{Clock, SystemClock, Timestamp};
use mainstay::config::Config;
use mainstay::engine::{Engine, EngineError, SendMessage};
use mainstay::id::MessageId;
use mainstay::message::UserMessage;

use crate::scene::within;

/// A clock with a bug, which shows when the test says so.
#[derive(Debug, Default)]
struct BrokenClock(AtomicBool);

impl Clock for BrokenClock {
    fn now(&self) -> Timestamp {
        assert!(!self.0.load(SeqCst), "the clock is broken");
        SystemClock.now()
    }
}

async fn engine(dir: &Path) -> (Engine, Arc<BrokenClock>) {
    let clock = Arc::new(BrokenClock::default());
    (Engine::open_with_clock(&dir.join("m.db"), Config::builtin(dir), clock.clone()).await.unwrap(), clock)
}

fn message() -> SendMessage {
    SendMessage::new("s".parse().unwrap(), UserMessage::text(MessageId::generate(), "hi").unwrap())
}

async fn has_failed(engine: &Engine, clock: &BrokenClock) {
    let failure = within(engine.failed()).await.to_string();
    assert!(failure.contains("the clock is broken") || failure.contains("it returned"), "{failure}");
    clock.0.store(false, SeqCst);
    assert!(matches!(engine.send(message()).await, Err(EngineError::Failed(_))));
    assert!(matches!(engine.check_ready().await, Err(EngineError::Failed(_))));
    within(engine.drain(Duration::from_secs(600))).await;
    within(engine.close()).await;
}

#[tokio::test]
async fn engine_fails_when_its_worker_panics() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, clock) = engine(dir.path()).await;
    engine.start().await.unwrap();
    clock.0.store(true, SeqCst);
    has_failed(&engine, &clock).await;
}

#[tokio::test]
async fn engine_fails_when_its_writer_panics() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, clock) = engine(dir.path()).await;
    clock.0.store(true, SeqCst);
    assert!(engine.send(message()).await.is_err());
    has_failed(&engine, &clock).await;
}

#[tokio::test]
async fn engine_that_is_closed_has_not_failed() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _) = engine(dir.path()).await;
    engine.start().await.unwrap();
    engine.send(message()).await.unwrap();
    engine.drain(Duration::ZERO).await;
    engine.close().await;
    let failed = tokio::time::timeout(Duration::from_millis(10), engine.failed()).await;
    assert!(failed.is_err(), "{failed:?}");
}
