//! From append to reader: the age of an event when a reader gets it, in the process that wrote it and in another one.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use mainstay::config::Config;
use mainstay::engine::Engine;
use mainstay::engine::feed::{Feed, Follower, Scope};
use mainstay::store::run::Claimed;
use mainstay::store::{Notice, Store};
use tokio::runtime::Runtime;
use tokio::sync::broadcast;
use tokio::task::JoinSet;

use crate::append::append_of;
use crate::sample::{Sample, Side, line};
use crate::{raw, scene};

const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(2);
/// Time between two events of a run.
const EVERY: Duration = Duration::from_millis(10);
/// Poll interval of the raw reader in another process; the same as the engine's.
const LOOK: Duration = Duration::from_millis(5);

/// Prints the table.
pub fn measure(runtime: &Runtime) {
    line("ms from append to reader", &["p50", "raw", "p99", "raw"]);
    for runs in [2, 20] {
        let (mut here, mut here_raw, mut other, mut other_raw) = Default::default();
        for _ in 0..ROUNDS {
            let round = |side: &mut Side, times| side.push(Sample { rate: 0.0, times });
            round(&mut here, runtime.block_on(in_process(runs)));
            round(&mut here_raw, runtime.block_on(in_process_raw(runs)));
            round(&mut other, runtime.block_on(across(runs)));
            round(&mut other_raw, runtime.block_on(across_raw(runs)));
        }
        let rate = runs as u128 * 1000 / EVERY.as_millis();
        for (name, ours, raw) in [("same process", &here, &here_raw), ("another process", &other, &other_raw)] {
            let columns =
                [(ours, 50), (raw, 50), (ours, 99), (raw, 99)].map(|(side, p)| format!("{:.2}", side.percentile(p)));
            line(&format!("{rate} events/s, {name}"), &columns.each_ref().map(String::as_str));
        }
    }
}

/// The ages of the events at all readers.
#[derive(Clone, Default)]
pub struct Ages(Arc<Mutex<Vec<Duration>>>);

static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// An event that contains the time at which it was made.
pub fn dated() -> String {
    scene::chunk(&BEGAN.elapsed().as_nanos().to_string())
}

impl Ages {
    /// Records the ages of the dated events in a text.
    pub fn read(&self, text: &str) {
        let now = BEGAN.elapsed();
        let dates = text.split(r#""delta":""#).skip(1).filter_map(|rest| rest.split(' ').next()?.parse().ok());
        self.0.lock().unwrap().extend(dates.map(|date| now - Duration::from_nanos(date)));
    }

    /// All of them.
    pub fn take(&self) -> Vec<Duration> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// A store whose commits go to a feed.
pub async fn open_with_feed(path: &Path) -> (Store, Arc<Feed>) {
    let feed = Arc::new(Feed::default());
    let told = feed.clone();
    let tell = move |notices: Vec<Notice>| notices.iter().for_each(|notice| told.publish(notice));
    (scene::open_telling(path, Box::new(tell)).await, feed)
}

/// A task that follows a run until it is aborted.
pub async fn follow(mut follower: Follower, ages: Ages) {
    while let Some(frames) = follower.next_frames().await.unwrap() {
        ages.read(std::str::from_utf8(&frames).unwrap());
    }
}

/// One event per `every` from each run, for a round; returns how long the acknowledgements took.
pub async fn send<A, F>(appends: impl ExactSizeIterator<Item = A>, every: Duration, round: Duration) -> Vec<Duration>
where
    A: Fn(String) -> F + Send + 'static,
    F: Future<Output = bool> + Send,
{
    let (runs, began) = (appends.len(), tokio::time::Instant::now());
    let mut tasks = JoinSet::new();
    for (number, append) in appends.enumerate() {
        let first = began + every * number as u32 / runs as u32;
        tasks.spawn(async move {
            let mut ticks = tokio::time::interval_at(first, every);
            let mut times = Vec::new();
            while began.elapsed() < round {
                ticks.tick().await;
                let asked = Instant::now();
                assert!(append(dated()).await);
                times.push(asked.elapsed());
            }
            times
        });
    }
    let times = tasks.join_all().await.concat();
    // The last events are still on their way.
    tokio::time::sleep(Duration::from_millis(100)).await;
    times
}

async fn send_ours(store: &Store, runs: &[Claimed]) {
    let appends = runs.iter().cloned().map(|run| {
        let store = store.clone();
        move |event| {
            let (store, append) = (store.clone(), append_of(&run, vec![event]));
            async move { store.append(append).await.unwrap().is_ok() }
        }
    });
    send(appends, EVERY, ROUND).await;
}

async fn send_raw(writer: &raw::Writer, runs: &[Claimed]) {
    let appends = runs.iter().map(|run| {
        let (writer, lease) = (writer.clone(), run.lease);
        move |event| {
            let writer = writer.clone();
            async move { writer.append(lease, vec![event]).await.is_ok() }
        }
    });
    send(appends, EVERY, ROUND).await;
}

async fn in_process(runs: usize) -> Vec<Duration> {
    let dir = scene::tempdir();
    let (path, claimed) = scene::running(dir.path(), "here.db", runs).await;
    let (store, feed) = open_with_feed(&path).await;
    let (ages, mut readers) = (Ages::default(), JoinSet::new());
    for run in &claimed {
        let scope = Scope::Run { key: run.lease.run, id: run.run };
        readers.spawn(follow(Follower::new(&feed, store.clone(), run.session, scope, 1), ages.clone()));
    }
    send_ours(&store, &claimed).await;
    store.close().await;
    ages.take()
}

async fn in_process_raw(runs: usize) -> Vec<Duration> {
    let dir = scene::tempdir();
    let (path, claimed) = scene::running(dir.path(), "here.db", runs).await;
    let channels: HashMap<_, _> =
        claimed.iter().map(|run| (run.lease.run, broadcast::Sender::<Arc<Vec<String>>>::new(64))).collect();
    let (ages, mut readers) = (Ages::default(), JoinSet::new());
    for channel in channels.values() {
        let (mut events, ages) = (channel.subscribe(), ages.clone());
        readers.spawn(async move {
            while let Ok(events) = events.recv().await {
                events.iter().for_each(|event| ages.read(event));
            }
        });
    }
    // A send fails only without readers.
    let writer = raw::Writer::open(&path, move |run, events| _ = channels[&run].send(Arc::new(events)));
    send_raw(&writer, &claimed).await;
    ages.take()
}

async fn across(runs: usize) -> Vec<Duration> {
    let dir = scene::tempdir();
    let (path, claimed) = scene::running(dir.path(), "across.db", runs).await;
    let store = scene::open(&path).await;
    let other = Engine::open(&path, Config::builtin(dir.path())).await.unwrap();
    let (ages, mut readers) = (Ages::default(), JoinSet::new());
    for run in &claimed {
        readers.spawn(follow(other.follow_run(run.run, 1).await.unwrap(), ages.clone()));
    }
    send_ours(&store, &claimed).await;
    readers.shutdown().await;
    other.close().await;
    store.close().await;
    ages.take()
}

async fn across_raw(runs: usize) -> Vec<Duration> {
    let dir = scene::tempdir();
    let (path, claimed) = scene::running(dir.path(), "across.db", runs).await;
    let writer = raw::Writer::open(&path, |_, _| {});
    let (ages, done) = (Ages::default(), Arc::new(AtomicBool::new(false)));
    let reader = {
        let (ages, done, conn) = (ages.clone(), done.clone(), scene::connect(&path));
        let mut cursors: Vec<_> = claimed.iter().map(|run| (run.session, 1)).collect();
        std::thread::spawn(move || {
            let mut known = 0;
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(LOOK);
                let version: i64 =
                    conn.prepare_cached("PRAGMA data_version").unwrap().query_row([], |r| r.get(0)).unwrap();
                if std::mem::replace(&mut known, version) == version {
                    continue;
                }
                for (session, after) in &mut cursors {
                    let mut page = conn
                        .prepare_cached(
                            "SELECT seq, event FROM events WHERE session_key = ?1 AND seq > ?2 ORDER BY seq",
                        )
                        .unwrap();
                    let mut rows = page.query([*session, *after]).unwrap();
                    while let Some(row) = rows.next().unwrap() {
                        *after = row.get(0).unwrap();
                        ages.read(row.get_ref(1).unwrap().as_str().unwrap());
                    }
                }
            }
        })
    };
    send_raw(&writer, &claimed).await;
    done.store(true, Ordering::Relaxed);
    reader.join().unwrap();
    ages.take()
}
