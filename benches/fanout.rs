//! Fan-out: many readers of one run, and whether they slow the writer down.

use std::time::Duration;

use mainstay::engine::feed::{Follower, Scope};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::append::append_of;
use crate::latency::{Ages, follow, open_with_feed, send};
use crate::sample::{Sample, Side, line};
use crate::scene;

const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(3);
const EVERY: Duration = Duration::from_millis(20);
const READERS: usize = 1000;

/// Prints the table.
pub fn measure(runtime: &Runtime) {
    line("50 events/s, ms", &["p50 reader", "p99 reader", "p50 ack", "p99 ack"]);
    let mut sides = [0, READERS].map(|readers| (readers, Side::default(), Side::default()));
    for _ in 0..ROUNDS {
        for (readers, received, acknowledged) in &mut sides {
            let (ages, acks) = runtime.block_on(round(*readers));
            received.push(Sample { rate: 0.0, times: ages });
            acknowledged.push(Sample { rate: 0.0, times: acks });
        }
    }
    for (readers, received, acknowledged) in &sides {
        let columns = [(received, 50), (received, 99), (acknowledged, 50), (acknowledged, 99)];
        let columns = columns.map(|(side, p)| format!("{:.2}", side.percentile(p)));
        line(&format!("{readers} readers of one run"), &columns.each_ref().map(String::as_str));
    }
}

async fn round(count: usize) -> (Vec<Duration>, Vec<Duration>) {
    let dir = scene::tempdir();
    let (path, claimed) = scene::running(dir.path(), "fanout.db", 1).await;
    let (store, feed) = open_with_feed(&path).await;
    let run = claimed.into_iter().next().unwrap();
    let (ages, mut readers) = (Ages::default(), JoinSet::new());
    for _ in 0..count {
        let scope = Scope::Run { key: run.lease.run, id: run.run };
        readers.spawn(follow(Follower::new(&feed, store.clone(), run.session, scope, 1), ages.clone()));
    }
    let append = {
        let store = store.clone();
        move |event| {
            let (store, append) = (store.clone(), append_of(&run, vec![event]));
            async move { store.append(append).await.unwrap().is_ok() }
        }
    };
    let acks = send(std::iter::once(append), EVERY, ROUND).await;
    readers.shutdown().await;
    store.close().await;
    (ages.take(), acks)
}
