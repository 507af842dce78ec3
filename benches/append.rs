//! Appends that are acknowledged after the commit, from many runs at once; each waits for its acknowledgement before the next.

use std::future::Future;
use std::time::{Duration, Instant};

use mainstay::store::event::Append;
use mainstay::store::run::Claimed;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::sample::{ROUNDS, Sample, Side, count, line};
use crate::{raw, scene};

const ROUND: Duration = Duration::from_millis(500);

/// Prints the table.
pub fn measure(runtime: &Runtime) {
    line("events/s", &["mainstay", "raw SQLite", "ratio", "p50 ms", "raw", "p99 ms", "raw"]);
    for per_append in [1, 20] {
        for runs in [1, 32, 256] {
            let (ours, raw) = runtime.block_on(pair(runs, per_append));
            let times = [50, 99].map(|p| [&ours, &raw].map(|side| format!("{:.2}", side.percentile(p))));
            line(
                &format!("{runs} runs, {per_append} per append"),
                &[
                    &count(ours.rate()),
                    &count(raw.rate()),
                    &format!("{:.2}", ours.ratio(&raw)),
                    &times[0][0],
                    &times[0][1],
                    &times[1][0],
                    &times[1][1],
                ],
            );
        }
    }
}

async fn pair(runs: usize, per_append: usize) -> (Side, Side) {
    let dir = scene::tempdir();
    let (path, claimed) = scene::running(dir.path(), "ours.db", runs).await;
    let store = scene::open(&path).await;
    let (path, claimed_raw) = scene::running(dir.path(), "raw.db", runs).await;
    let writer = raw::Writer::open(&path, |_, _| {});
    let events: Vec<_> = (0..per_append).map(|_| scene::chunk("x")).collect();
    let (mut ours, mut raw) = (Side::default(), Side::default());
    for _ in 0..ROUNDS {
        let appends = claimed.iter().map(|claimed| {
            let (store, append) = (store.clone(), append_of(claimed, events.clone()));
            move || {
                let (store, append) = (store.clone(), append.clone());
                async move { store.append(append).await.unwrap().is_ok() }
            }
        });
        ours.push(round(appends, per_append).await);
        let appends = claimed_raw.iter().map(|claimed| {
            let (writer, lease, events) = (writer.clone(), claimed.lease, events.clone());
            move || {
                let (writer, events) = (writer.clone(), events.clone());
                async move { writer.append(lease, events).await.is_ok() }
            }
        });
        raw.push(round(appends, per_append).await);
    }
    store.close().await;
    (ours, raw)
}

/// An append of an agent's output.
pub fn append_of(claimed: &Claimed, events: Vec<String>) -> Append {
    Append {
        lease: claimed.lease,
        session: claimed.session,
        run_id: claimed.run,
        events: events.into(),
        said: true,
        facts: Vec::new(),
        source_offset: 10,
        parts: None,
    }
}

async fn round<A, F>(appends: impl Iterator<Item = A>, per_append: usize) -> Sample
where
    A: Fn() -> F + Send + 'static,
    F: Future<Output = bool> + Send,
{
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for append in appends {
        tasks.spawn(async move {
            let mut times = Vec::new();
            while began.elapsed() < ROUND {
                let asked = Instant::now();
                assert!(append().await);
                times.push(asked.elapsed());
            }
            times
        });
    }
    let times: Vec<_> = tasks.join_all().await.concat();
    Sample::new(times.len() * per_append, began.elapsed(), times)
}
